"""`galvanic` commands as processes of their own, whose descendants can be found wherever they went."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

ROOT = Path(__file__).parents[2]


class Launched:
    """A command running in `directory`. Leaving the context kills what is left of it."""

    def __init__(
        self, command: list[str], directory: Path, environment: Mapping[str, str], append: bool = False
    ) -> None:
        # Whatever names this directory is taken for a descendant, and killed at the end.
        assert directory != Path(tempfile.gettempdir()), "the directory must be of this command alone"
        self._directory = directory
        self.output_file = directory / "output.txt"
        kept = {name: os.environ[name] for name in ("HOME", "LANG", "TMPDIR") if name in os.environ}
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
        # By default like a shell's `>`, which must not make the processes of `galvanic up` overwrite each other.
        with self.output_file.open("ab" if append else "wb") as output:
            self.process = subprocess.Popen(
                command,
                cwd=directory,
                env={**kept, "PATH": path, **environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    @property
    def output(self) -> str:
        """All it and its descendants have printed so far."""
        return self.output_file.read_text()

    def wait(self, seconds: float = 180) -> int:
        """Waits for its end and returns the exit code."""
        return self.process.wait(seconds)

    def wait_for(self, text: str, seconds: float = 180) -> None:
        """Waits until the text was printed; fails if it ends before."""
        deadline = time.monotonic() + seconds
        while text not in self.output:
            assert self.process.poll() is None, f"ended with {self.process.returncode}:\n{self.output}"
            assert time.monotonic() < deadline, f"no {text!r} within {seconds} s:\n{self.output}"
            time.sleep(0.1)

    def descendants(self) -> dict[int, str]:
        """The living processes it started, by id with their command lines; the development server's, too."""
        found = {}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == self.process.pid:
                continue
            with contextlib.suppress(OSError):
                command = (entry / "cmdline").read_bytes()
                # All of them stay in their working directory, except Postgres, which names its data directory.
                # (Their environment would not tell: a process title is written over it.)
                ours = (entry / "cwd").readlink() == self._directory
                if command and (ours or os.fsencode(self._directory) in command):
                    found[int(entry.name)] = command.replace(b"\0", b" ").decode(errors="replace")
        return found

    def wait_until_alone(self, seconds: float = 180) -> None:
        """Waits until no descendant is left."""
        deadline = time.monotonic() + seconds
        while left := self.descendants():
            assert time.monotonic() < deadline, f"still there after {seconds} s: {left}\n{self.output}"
            time.sleep(0.1)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.wait()
        for pid in self.descendants():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def galvanic(arguments: str, directory: Path, **environment: str) -> Launched:
    """Starts `galvanic` with these arguments and nothing of our environment but a path."""
    return Launched(
        [sys.executable, "-m", "deploy", *arguments.split()], directory, {"PYTHONPATH": str(ROOT), **environment}
    )

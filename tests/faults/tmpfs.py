"""A disk of 32 MB: small enough to fill, on a file system of its own."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

MEGABYTES = 32
_PREFIX = "galvanic-tmpfs-"


class SmallDisk:
    """A mounted tmpfs. ``fill`` leaves ``spare`` bytes free, ``empty`` gives the room back."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._filler = path / "filler"

    @property
    def free(self) -> int:
        """Bytes that can still be written."""
        found = os.statvfs(self.path)
        return found.f_bavail * found.f_frsize

    def fill(self, spare: int = 0) -> None:
        """Take all room but ``spare`` bytes."""
        with contextlib.suppress(OSError), self._filler.open("ab", buffering=0) as file:
            while (size := self.free - spare) > 0:
                file.write(b"\0" * min(size, 1 << 20))

    def empty(self) -> None:
        """Give back what ``fill`` took."""
        self._filler.unlink(missing_ok=True)

    def remount(self, options: str) -> None:
        """Change how it is mounted (``ro``, ``rw``). Refused by the kernel while files are open for writing."""
        _run("mount", "-o", f"remount,{options}", str(self.path))


@pytest.fixture
def small_disk() -> Iterator[SmallDisk]:
    """A tmpfs of 32 MB of this test's own; needs root. Ask for it before the stack, which must be stopped first."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a tmpfs")
    _sweep()
    path = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-"))
    try:
        _run("mount", "-t", "tmpfs", "-o", f"size={MEGABYTES}m", "galvanic-test", str(path))
    except (OSError, subprocess.CalledProcessError) as error:
        path.rmdir()
        pytest.skip(f"a tmpfs cannot be mounted here: {error}")
    try:
        yield SmallDisk(path)
    finally:
        _unmount(path)


def _sweep() -> None:
    """Unmount what a test process that was killed has left."""
    for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        pid = path.name.removeprefix(_PREFIX).split("-")[0]
        if not Path(f"/proc/{pid}").exists():
            _unmount(path)


def _unmount(path: Path) -> None:
    # Lazily: it goes for sure, also when a process that is about to end still holds a file.
    subprocess.run(["umount", "--lazy", str(path)], check=False, stderr=subprocess.DEVNULL)
    with contextlib.suppress(OSError):
        path.rmdir()


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=120)

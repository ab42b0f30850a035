"""The official client in a Node process of its own, driven over JSON lines (see follow.mjs)."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import signal
import subprocess
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from common.process import dying_with_this_process

DIRECTORY: Final = Path(__file__).resolve().parent
_HANG_SECONDS: Final = 180.0


def install_client() -> None:
    """Installs the packages of package-lock.json into node_modules, unless they are there."""
    lock, done = DIRECTORY / "package-lock.json", DIRECTORY / "node_modules" / ".package-lock.json"
    with lock.open() as claim:
        # Test processes that run at the same time must not install over each other.
        fcntl.flock(claim, fcntl.LOCK_EX)
        if done.exists() and done.stat().st_mtime >= lock.stat().st_mtime:
            return
        result = subprocess.run(
            ["npm", "ci", "--no-audit", "--no-fund"], cwd=DIRECTORY, capture_output=True, text=True, timeout=300
        )
        assert result.returncode == 0, f"npm ci failed: {result.stdout}\n{result.stderr}"


class Follower:
    """One shape, followed by `@electric-sql/client` from `async with` on.

    `operations` and `refetches` count what subscribers of the stream were handed so far, `streams` and `polls` its live
    requests. `options` are further ones of the client's `ShapeStream`.
    """

    def __init__(
        self, url: str, params: Mapping[str, str], directory: Path, options: Mapping[str, Any] | None = None
    ) -> None:
        self.url = url
        self.params = dict(params)
        self.options = dict(options or {})
        self.streams = 0
        self.polls = 0
        self.operations: Counter[str] = Counter()
        self.refetches = 0
        self.lsn = -1
        self._dump = directory / f"{params['table']}.json"
        self._log = directory / f"{params['table']}.log"
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Self:
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                "node",
                *self._arguments(),
                cwd=DIRECTORY,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                preexec_fn=dying_with_this_process(signal.SIGKILL),
            )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()

    async def reach(self, lsn: int) -> None:
        """Waits until the client was up to date with all commits up to `lsn`."""
        try:
            async with asyncio.timeout(_HANG_SECONDS):
                while self.lsn < lsn:
                    self._take(await self._event())
        except TimeoutError:
            raise AssertionError(f"the client waits in vain for LSN {lsn}, at {self.lsn}{self._said()}") from None

    async def rows(self) -> dict[str, dict[str, str | None]]:
        """What the client's `Shape` holds, by key, each value as text."""
        await self._command({"dump": str(self._dump)})
        rows: dict[str, dict[str, str | None]] = json.loads(self._dump.read_bytes())
        return rows

    @property
    def warnings(self) -> str:
        """What the client wrote to standard error."""
        return self._log.read_text(errors="replace")

    def _arguments(self) -> list[str]:
        """The script and its arguments."""
        return ["follow.mjs", f"{self.url}/v1/shape", json.dumps(self.params), json.dumps(self.options)]

    async def _command(self, command: Mapping[str, Any]) -> dict[str, Any]:
        """Gives a command; returns the event that answers it."""
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command).encode() + b"\n")
        async with asyncio.timeout(_HANG_SECONDS):
            while "lsn" in (event := await self._event()):
                self._take(event)
        return event

    async def _event(self) -> dict[str, Any]:
        assert self._process is not None
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        event: dict[str, Any] = json.loads(line) if line else {"error": "the client's process ended"}
        assert "error" not in event, f"{event['error']}{self._said()}"
        return event

    def _take(self, event: Mapping[str, Any]) -> None:
        self.lsn = int(event["lsn"])
        self.operations = Counter(event["operations"])
        self.refetches = event["refetches"]
        self.streams = event["requests"]["streams"]
        self.polls = event["requests"]["polls"]

    def _said(self) -> str:
        return f"\nstandard error of the client: {self.warnings[-3000:]}" if self.warnings else ""

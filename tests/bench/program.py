"""Programs of the benchmark that run beside it, one process each: orders and answers are lines of JSON."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final, Self

from common.process import dying_with_this_process

_REPOSITORY: Final = Path(__file__).resolve().parents[2]
_LONGEST_LINE: Final = 1 << 28


class BenchError(Exception):
    """Something could not be measured; the text says what and why."""


class Program:
    """A child that was started with ``python -m MODULE`` and the order ``order``."""

    def __init__(self, module: str, process: asyncio.subprocess.Process) -> None:
        self._module = module
        self._process = process

    @classmethod
    @contextlib.asynccontextmanager
    async def started(cls, module: str, **order: Any) -> AsyncIterator[Self]:
        """Runs it as long as the block does."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", module),
            cwd=_REPOSITORY,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=_LONGEST_LINE,
            preexec_fn=dying_with_this_process(signal.SIGKILL),
        )
        program = cls(module, process)
        try:
            program.say(**order)
            yield program
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def say(self, **words: Any) -> None:
        """An order."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(words).encode() + b"\n")

    async def hear(self) -> dict[str, Any]:
        """The next answer. Raises :class:`BenchError` when it complains or ends instead."""
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        line = await self._process.stdout.readline()
        if not line:
            said = (await self._process.stderr.read()).decode(errors="replace")
            raise BenchError(f"{self._module} has ended: {said.strip()[-2000:]}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise BenchError(f"{self._module}: {answer['error']}")
        return answer


class Control:
    """The child's side of it: its standard input and output."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader

    @classmethod
    async def open(cls) -> Self:
        """On the running loop."""
        reader = asyncio.StreamReader(limit=_LONGEST_LINE)
        loop = asyncio.get_running_loop()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        return cls(reader)

    async def hear(self) -> dict[str, Any]:
        """The next order; ``{}`` when there will be none."""
        line = await self._reader.readline()
        order: dict[str, Any] = json.loads(line) if line else {}
        return order

    def say(self, **words: Any) -> None:
        """An answer."""
        sys.stdout.write(json.dumps(words) + "\n")
        sys.stdout.flush()

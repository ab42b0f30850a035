"""The official packages in a Node process of its own, driven over JSON lines (see drivers/channel.mjs)."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from common.process import dying_with_this_process

DIRECTORY: Final = Path(__file__).resolve().parent
HANG_SECONDS: Final = 120.0
_LINE_BYTES: Final = 1 << 28

Answer = Callable[[dict[str, Any]], Awaitable[Any]]


class DriverError(Exception):
    """What a package threw; `status` and `body` are those of its FetchError."""

    def __init__(self, text: str, status: int | None, body: object) -> None:
        super().__init__(text)
        self.status = status
        self.body = body


class Driver:
    """`drivers/<script>.mjs` from `async with` on.

    `warnings` is everything that packages wrote to the console. `answer` is asked when a package wants something
    written to the database, as its user's backend would be.
    """

    def __init__(self, script: str, directory: Path, answer: Answer | None = None) -> None:
        self.script = script
        self.warnings: list[str] = []
        self._answer = answer
        self._log = directory / f"{script}.log"
        self._process: asyncio.subprocess.Process | None = None
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                "node",
                f"drivers/{self.script}.mjs",
                cwd=DIRECTORY,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                limit=_LINE_BYTES,
                preexec_fn=dying_with_this_process(signal.SIGKILL),
            )
        self._start(self._listen())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def call(self, command: str, **arguments: object) -> Any:
        """Runs one command and returns its result. Raises DriverError for what it threw, AssertionError if it hangs."""
        number = next(self._numbers)
        future = self._waiting[number] = asyncio.get_running_loop().create_future()
        self._send({"call": number, "do": command, **arguments})
        try:
            async with asyncio.timeout(HANG_SECONDS):
                return await future
        except TimeoutError:
            raise AssertionError(f"{self.script}: no answer to {command} {arguments}{self._said()}") from None
        finally:
            del self._waiting[number]

    async def until(self, name: str, **wanted: object) -> dict[str, Any]:
        """Waits until the state of a subject has these members, each equal to this or accepted by this callable."""
        state: dict[str, Any] = {}
        try:
            async with asyncio.timeout(HANG_SECONDS):
                while True:
                    state = await self.call("state", name=name)
                    if all(
                        value(state[key]) if callable(value) else state[key] == value for key, value in wanted.items()
                    ):
                        return state
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise AssertionError(f"{self.script} {name}: {state}, not {wanted}{self._said()}") from None

    def _send(self, message: dict[str, object]) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(message).encode() + b"\n")

    async def _listen(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        try:
            while line := await self._process.stdout.readline():
                message = json.loads(line)
                if message.get("event") == "warning":
                    self.warnings.append(message["text"])
                elif message.get("event") == "asks":
                    self._start(self._reply(message))
                else:
                    self._settle(message)
        finally:
            for future in self._waiting.values():
                if not future.done():
                    future.set_exception(AssertionError(f"{self.script}: the process ended{self._said()}"))

    def _settle(self, message: dict[str, Any]) -> None:
        future = self._waiting.get(message["call"])
        if future is None or future.done():
            return
        if "error" in message:
            future.set_exception(DriverError(message["error"], message.get("status"), message.get("body")))
        else:
            future.set_result(message["result"])

    async def _reply(self, question: dict[str, Any]) -> None:
        assert self._answer is not None, f"{self.script} asks {question}"
        value = await self._answer(question)
        self._send({"call": 0, "do": "answer", "question": question["question"], "value": value})

    def _start(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _said(self) -> str:
        said = "\n".join([*self.warnings[-20:], self._log.read_text(errors="replace")[-3000:]]).strip()
        return f"\nthe process said: {said}" if said else ""

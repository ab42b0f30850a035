"""Crash only: a process whose parts do what they should, or ends and is started again (engine.md 27).

A task that fails, or a callback that raises, is not lost in a log: unless somebody said what to do about it, the
process ends. Nothing another process needs is in its memory: that is always safe, going on half-working never is.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Coroutine
from typing import Any, Final

import structlog

log = structlog.get_logger()

CRASHED: Final = 1
"""Exit code of a process that failed in a way nobody foresaw; supervisord starts it again."""


class CrashOnly:
    """The background tasks of a process, and its end by SIGTERM, SIGINT or failure. Made on the running loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self._failed: asyncio.Future[None] = self._loop.create_future()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._loop.set_exception_handler(self._on_exception)
        for signum in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(signum, self._stop.set)

    @property
    def stopping(self) -> bool:
        """Whether the process was told to stop."""
        return self._stop.is_set()

    def spawn(self, work: Coroutine[Any, Any, Any], on_failure: Callable[[Exception], None] | None = None) -> None:
        """Run in the background. A failure goes to ``on_failure``, or else ends the process."""
        task = self._loop.create_task(work)
        self._tasks.add(task)

        def done(task: asyncio.Task[Any]) -> None:
            self._tasks.discard(task)
            error = None if task.cancelled() else task.exception()
            if error is None:
                return
            log.error("a task failed", exc_info=error)
            if on_failure is not None and isinstance(error, Exception):
                on_failure(error)
            else:
                self._fail()

        task.add_done_callback(done)

    async def end(self, *others: asyncio.Future[Any]) -> int | None:
        """Wait for a failure, a signal, or one of the others: the exit code of a crash, else ``None``."""
        stop = self._loop.create_task(self._stop.wait())
        waits: list[asyncio.Future[Any]] = [self._failed, stop, *others]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        return CRASHED if self._failed.done() else None

    def cancel(self) -> None:
        """Cancel all background tasks."""
        for task in list(self._tasks):
            task.cancel()

    def _on_exception(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        log.error("a callback failed", error=context.get("message"), exc_info=context.get("exception"))
        self._fail()

    def _fail(self) -> None:
        if not self._failed.done():
            self._failed.set_result(None)

"""An event loop that its owner turns by hand: virtual time, and threads that are steps to be taken when he likes."""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
from asyncio import events
from collections import deque
from collections.abc import Callable
from contextvars import Context
from typing import Any, NamedTuple, cast


class Job(NamedTuple):
    """A call that waits for its thread. ``lane``: the thread pool; one of ``None`` has a thread of its own."""

    lane: object | None
    call: Callable[[], Any]
    future: asyncio.Future[Any]


class Loop:
    """What asyncio asks of a loop when there are no sockets. ``on_error`` is told what no task caught."""

    def __init__(self, on_error: Callable[[dict[str, Any]], None]) -> None:
        self.now = 0.0
        self.ready: deque[asyncio.Handle] = deque()
        self.jobs: list[Job] = []
        self.working = False
        self.tasks: list[asyncio.Task[Any]] = []
        self._on_error = on_error
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._numbers = itertools.count()
        self._self = cast(asyncio.AbstractEventLoop, self)

    # ---- turning it

    def turn(self) -> None:
        """Run the callbacks that are ready now."""
        outer = events._get_running_loop()
        events._set_running_loop(self._self)
        try:
            for _ in range(len(self.ready)):
                handle = self.ready.popleft()
                if not handle.cancelled():
                    handle._run()
        finally:
            events._set_running_loop(outer)

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call it as the loop would."""
        outer = events._get_running_loop()
        events._set_running_loop(self._self)
        try:
            return function(*arguments)
        finally:
            events._set_running_loop(outer)

    def startable(self) -> list[Job]:
        """The jobs that a thread could begin now: of a pool the first one."""
        self.jobs = [job for job in self.jobs if not job.future.cancelled()]
        found, lanes = [], []
        for job in self.jobs:
            if job.lane is None or job.lane not in lanes:
                found.append(job)
                lanes.append(job.lane)
        return found

    def work(self, job: Job) -> None:
        """Let a thread do this."""
        self.jobs.remove(job)
        outer = events._get_running_loop()
        events._set_running_loop(None)
        self.working = True
        result: Any = None
        failure: BaseException | None = None
        try:
            result = job.call()
        except BaseException as error:  # noqa: BLE001 - it belongs to whoever waits
            failure = error
        finally:
            self.working = False
            events._set_running_loop(outer)
        self.call_soon(_deliver, job.future, result, failure)

    def advance(self) -> bool:
        """Jump to the next moment at which something happens by itself. ``False`` when nothing does."""
        while self._timers:
            when, _, timer = heapq.heappop(self._timers)
            if not timer.cancelled():
                self.now = max(self.now, when)
                self.ready.append(timer)
                return True
        return False

    def abandon(self) -> None:
        """The process is gone: nothing runs any more, and nobody complains."""
        self._on_error = lambda context: None
        self.ready.clear()
        self._timers.clear()
        self.jobs.clear()
        for task in self.tasks:
            if not task.done():
                task._log_destroy_pending = False  # type: ignore[attr-defined]
                with contextlib.suppress(BaseException):
                    task.get_coro().close()
        self.ready.clear()
        self._timers.clear()

    # ---- what asyncio asks of a loop

    def time(self) -> float:
        return self.now

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return False

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self._self)

    def create_task(self, coro: Any, *, name: Any = None, context: Context | None = None) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.Task(coro, loop=self._self, name=name)
        self.tasks.append(task)
        return task

    def call_soon(self, callback: Any, *args: Any, context: Context | None = None) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self._self, context)
        self.ready.append(handle)
        return handle

    def call_soon_threadsafe(self, callback: Any, *args: Any, context: Context | None = None) -> asyncio.Handle:
        return self.call_soon(callback, *args, context=context)

    def call_later(
        self, delay: float, callback: Any, *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self.now + delay, callback, *args, context=context)

    def call_at(self, when: float, callback: Any, *args: Any, context: Context | None = None) -> asyncio.TimerHandle:
        timer = asyncio.TimerHandle(when, callback, args, self._self, context)
        heapq.heappush(self._timers, (when, next(self._numbers), timer))
        return timer

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        pass

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:
        future = self.create_future()
        self.jobs.append(Job(executor, lambda: func(*args), future))
        return future

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        self._on_error(context)


def _deliver(future: asyncio.Future[Any], result: Any, failure: BaseException | None) -> None:
    if future.cancelled():
        return
    if failure is None:
        future.set_result(result)
    else:
        future.set_exception(failure)

"""A simulated process: an asyncio loop and threads in virtual time, that can be stopped and killed at any step.

A loop is a queue of callbacks that run in their order, a few at a time, so that what other processes do comes in
between. What a killed process still does while it is unwound reaches nobody.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

from greenlet import greenlet

from tests.simulation.scheduler import Killed, Scheduler

T = TypeVar("T")

ITERATION: Final = 12
"""Callbacks that a loop runs before others get their turn, at most."""


class Process:
    """One incarnation of a process. ``on_exit(code)`` is told when its main coroutine returns."""

    def __init__(self, scheduler: Scheduler, name: str) -> None:
        self.scheduler = scheduler
        self.name = name
        self.alive = True
        self.stopped_until = 0.0
        self.threads: dict[greenlet, None] = {}
        self.loop = SimLoop(self)  # type: ignore[abstract]
        self.on_kill: list[Callable[[], None]] = []
        self._remains: list[asyncio.Task[Any]] = []
        scheduler.processes.append(self)

    def start(self, make: Callable[[], Coroutine[Any, Any, int]], on_exit: Callable[[int], None]) -> None:
        """Run the main coroutine that ``make`` gives when it is called on the loop."""

        def begin() -> None:
            task = self.loop.create_task(make())
            task.add_done_callback(ended)

        def ended(task: asyncio.Task[int]) -> None:
            error = task.exception()
            if error is not None:
                self.scheduler.fail(error)
            else:
                self.scheduler.after(0, lambda: on_exit(task.result()))

        self.loop.call_soon(begin)

    def soon(self, action: Callable[[], object]) -> None:
        """Do this on the loop."""
        self.loop.call_soon(action)

    def kill(self) -> None:
        """It is gone, with everything it was about to do."""
        if self.alive:
            self.alive = False
            # Kept alive until the end: what is collected is unwound, and that must not happen at random.
            self._remains = list(asyncio.all_tasks(self.loop))
            for action in self.on_kill:
                action()

    def check(self) -> None:
        """Nothing that a killed process still does reaches the world. Raises :class:`Killed`."""
        if not self.alive:
            raise Killed

    def dispose(self) -> None:
        """Unwind all coroutines and threads."""
        for task in {*self._remains, *asyncio.all_tasks(self.loop)}:
            task._log_destroy_pending = False  # type: ignore[attr-defined]
            _quietly(task.get_coro().close)
        for thread in list(self.threads):
            if thread and not thread.dead:
                _quietly(lambda thread=thread: thread.throw(Killed))  # type: ignore[misc]
        self._remains.clear()
        self.threads.clear()
        self.on_kill.clear()


def _quietly(action: Callable[[], object]) -> None:
    try:
        action()
    except BaseException:  # noqa: BLE001 - whatever the unwinding of a dead process leads to
        return


class SimLoop(asyncio.AbstractEventLoop):
    """The asyncio loop of a process, in virtual time: callbacks in their order, threads beside it."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._scheduler = process.scheduler
        self._ready: deque[asyncio.Handle] = deque()
        self._armed = False
        self._lanes: dict[object, _Lane] = {}
        self._on_exception: Callable[[asyncio.AbstractEventLoop, dict[str, Any]], object] | None = None
        self.signals: dict[int, Callable[[], object]] = {}
        self.thread_delay: Callable[[], float] = lambda: self._scheduler.rng.random() * 0.002

    # ---- time and callbacks

    def time(self) -> float:
        """Seconds since the start of the simulation."""
        return self._scheduler.now

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        """In the order of the calls."""
        handle = asyncio.Handle(callback, args, self, context)
        if self._process.alive:
            self._ready.append(handle)
            if not self._armed:
                self._arm()
        return handle

    call_soon_threadsafe = call_soon  # type: ignore[assignment]

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        """After ``delay`` seconds."""
        return self.call_at(self._scheduler.now + delay, callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        """At that time."""
        handle = asyncio.TimerHandle(when, callback, args, self, context)

        def due() -> None:
            if self._process.alive and not handle.cancelled():
                self._ready.append(handle)
                if not self._armed:
                    self._armed = True
                    self._iterate()

        self._scheduler.at(max(when, self._scheduler.now), due)
        return handle

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """It is looked at when its time comes."""

    def _arm(self) -> None:
        self._armed = True
        rng = self._scheduler.rng
        delay = rng.random() * (0.0001 if rng.random() < 0.98 else 0.01)
        self._scheduler.after(delay, self._iterate)

    def _iterate(self) -> None:
        process, scheduler = self._process, self._scheduler
        if not process.alive:
            return
        if process.stopped_until > scheduler.now:
            scheduler.at(process.stopped_until, self._iterate)
            return
        ready = self._ready
        scheduler.current = process
        asyncio._set_running_loop(self)
        try:
            for _ in range(min(len(ready), ITERATION)):
                handle = ready.popleft()
                if not handle.cancelled():
                    handle._run()
                    if not process.alive:
                        break
        finally:
            asyncio._set_running_loop(None)
            scheduler.current = None
        self._armed = False
        if ready:
            self._arm()

    # ---- futures, tasks, threads

    def create_future(self) -> asyncio.Future[Any]:
        """A future of this loop."""
        return asyncio.Future(loop=self)

    def create_task(self, coro: Any, *, name: str | None = None, context: Any = None) -> asyncio.Task[Any]:
        """A task of this loop."""
        return asyncio.Task(coro, loop=self, name=name, context=context)

    def run_in_executor(  # type: ignore[override]
        self, executor: Any, function: Callable[..., T], *args: Any
    ) -> asyncio.Future[T]:
        """Run as a thread: those of one executor in order, as many at a time as it has threads."""
        lane = self._lanes.get(executor)
        if lane is None:
            lane = self._lanes[executor] = _Lane(getattr(executor, "_max_workers", 8))
        future: asyncio.Future[T] = self.create_future()
        lane.waiting.append((lambda: function(*args), future))
        self._next(lane)
        return future

    def _next(self, lane: _Lane) -> None:
        while lane.waiting and lane.free:
            work, future = lane.waiting.popleft()
            if future.cancelled():
                continue
            lane.free -= 1
            self._start(lane, work, future)

    def _start(self, lane: _Lane, work: Callable[[], Any], future: asyncio.Future[Any]) -> None:
        def run() -> None:
            result: Any = None
            failure: BaseException | None = None
            try:
                result = work()
            except Killed:
                raise
            except BaseException as error:  # noqa: BLE001 - it is raised where the result is awaited
                failure = error
            if not self._process.alive:
                raise Killed
            self.call_soon(finish, result, failure)
            failure = None  # its traceback holds this frame, and what it holds must go when nobody wants it any more

        def finish(result: Any, failure: BaseException | None) -> None:
            lane.free += 1
            self._next(lane)
            if future.done():
                return
            if failure is None:
                future.set_result(result)
            else:
                future.set_exception(failure)

        self._scheduler.start_thread(self._process, run, self.thread_delay())

    # ---- the rest of what is asked of a loop

    def is_running(self) -> bool:
        """Always, as far as anybody can see."""
        return True

    def is_closed(self) -> bool:
        """Never."""
        return False

    def get_debug(self) -> bool:
        """No."""
        return False

    def set_exception_handler(self, handler: Any) -> None:
        """What the process does about a callback that raises."""
        self._on_exception = handler

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """A callback raised, or a failed future was forgotten."""
        if not self._process.alive or isinstance(context.get("exception"), Killed):
            return
        if self._on_exception is not None:
            self._on_exception(self, context)
        else:
            error = context.get("exception")
            self._scheduler.fail(error if error is not None else AssertionError(str(context)))

    def add_signal_handler(  # type: ignore[override]
        self, sig: int, callback: Callable[..., object], *args: Any
    ) -> None:
        """Signals come through :attr:`signals`."""
        self.signals[sig] = lambda: callback(*args)


class _Lane:
    """The threads of one executor."""

    def __init__(self, threads: int) -> None:
        self.free = threads
        self.waiting: deque[tuple[Callable[[], Any], asyncio.Future[Any]]] = deque()

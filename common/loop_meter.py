"""How busy an event loop is: for how much of the time it did not wait, and by how much its timers were late.

libuv itself counts the time that it spends waiting for events: two readings of a clock per turn of the loop, and
nothing in our code. A timer, ten times a second, sees how late it comes.
"""

from __future__ import annotations

import asyncio
import ctypes
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

import uvloop

TICK: Final = 0.1
"""Seconds between two looks at how late a timer comes."""

WINDOW: Final = 10.0
"""Seconds over which the busy share is told."""

WINDOWS: Final = 6
"""So many windows the longest lateness is told of: a minute."""

OVERLOAD: Final = 0.95
"""Share from which on a loop can do no more."""

LONG: Final = 60.0
"""Seconds of that after which operators are told: bursts are nothing to worry about."""


class LoopLoad:
    """The numbers. No clock of its own: seconds that only grow are passed in."""

    def __init__(self, now: float) -> None:
        self._started = now
        self._window = now, 0.0, 0.0
        self._late = 0.0
        self._former: deque[float] = deque(maxlen=WINDOWS - 1)
        self._overloaded: float | None = None
        self.busy = 0.0
        """Share of the last whole window in which the loop did not wait, 0 to 1."""
        self.processor = 0.0
        """Share of it in which its thread was on a processor: much less if there are too few, or disks are slow."""
        self.busy_seconds = 0.0
        """All the time in which it did not wait."""
        self.ticked = now
        """When the loop turned last."""

    def tick(self, now: float, late: float, waited: float, unused: float) -> None:
        """A timer came, so many seconds ``late``. Since the start the loop has ``waited`` and its thread has not used
        the processor for so many seconds."""
        self.ticked = now
        self._late = max(self._late, late)
        self.busy_seconds = max(self.busy_seconds, now - self._started - waited)
        since, waited_before, unused_before = self._window
        if now - since < WINDOW:
            return
        self.busy = min(1.0, max(0.0, 1.0 - (waited - waited_before) / (now - since)))
        self.processor = min(1.0, max(0.0, 1.0 - (unused - unused_before) / (now - since)))
        if self.busy < OVERLOAD:
            self._overloaded = None
        elif self._overloaded is None:
            self._overloaded = since
        self._window = now, waited, unused
        self._former.append(self._late)
        self._late = 0.0

    @property
    def latest(self) -> float:
        """Seconds: the most that a timer was late in the last minute."""
        return max(self._late, *self._former, 0.0)

    def overloaded(self, now: float) -> float:
        """For how many seconds the loop has done all it can; 0 unless that is for long."""
        seconds = 0.0 if self._overloaded is None else now - self._overloaded
        return seconds if seconds >= LONG else 0.0


class LoopMeter:
    """Keeps :attr:`load` of the running loop up to date until it is closed."""

    def __init__(self, interrupted: Callable[[], bool] = lambda: False) -> None:
        """``interrupted``: do signals end the loop's waiting? What it has waited until then libuv forgets."""
        self._loop = asyncio.get_running_loop()
        self._interrupted = interrupted
        self._idle, self._unused = idle_time(self._loop), unused_time()
        self._waited = 0.0
        self._before = self._idle(), self._unused()
        self._due = self._loop.time() + TICK
        self._timer = self._loop.call_at(self._due, self._tick)
        self.load = LoopLoad(time.monotonic())

    def close(self) -> None:
        """Measure no more: to be called before the loop ends."""
        self._timer.cancel()

    def _tick(self) -> None:
        now = self._loop.time()
        (idle, unused), self._before = self._before, (self._idle(), self._unused())
        self._waited += self._before[1] - unused if self._interrupted() else self._before[0] - idle
        self.load.tick(time.monotonic(), now - self._due, self._waited, self._before[1])
        self._due = now + TICK
        self._timer = self._loop.call_at(self._due, self._tick)


_METRICS_IDLE_TIME: Final = 1  # UV_METRICS_IDLE_TIME of libuv's uv.h


def idle_time(loop: asyncio.AbstractEventLoop) -> Callable[[], float]:
    """How many seconds the loop has waited since now; :func:`unused_time` if it is not uvloop's.

    uvloop has no method for it but hands out its ``uv_loop_t``, and the libuv in it has the function. To be called no
    more once the loop is closed.
    """
    if not isinstance(loop, uvloop.loop.Loop):  # it does not look what it takes for one
        return unused_time()
    try:
        library = ctypes.CDLL(uvloop.loop.__file__)
        configure, idle = library.uv_loop_configure, library.uv_metrics_idle_time
        capsule = uvloop.loop.libuv_get_loop_t_ptr(loop)
    except (OSError, AttributeError):
        return unused_time()
    get_pointer: Any = ctypes.pythonapi.PyCapsule_GetPointer
    get_pointer.argtypes, get_pointer.restype = [ctypes.py_object, ctypes.c_char_p], ctypes.c_void_p
    configure.argtypes, configure.restype = [ctypes.c_void_p, ctypes.c_int], ctypes.c_int
    idle.argtypes, idle.restype = [ctypes.c_void_p], ctypes.c_uint64
    pointer = get_pointer(capsule, None)
    if configure(pointer, _METRICS_IDLE_TIME) != 0:
        return unused_time()
    return lambda: idle(pointer) / 1e9


def unused_time() -> Callable[[], float]:
    """How many seconds this thread has not used a processor since now: the disk and other processes count, too."""
    started, used = time.monotonic(), time.thread_time()
    return lambda: (time.monotonic() - started) - (time.thread_time() - used)

"""Virtual time: one scheduler steps everything there is, in one real thread.

Nothing runs at the same time, and everything random comes from one generator: a seed replays exactly. A thread of a
simulated process is a greenlet that pauses where the real one would wait for the disk or the database.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from random import Random
from typing import TYPE_CHECKING, Final

from greenlet import getcurrent, greenlet

if TYPE_CHECKING:
    from tests.simulation.process import Process

EPOCH: Final = 1_700_000_000.0
"""Unix time at which every simulation starts."""


class Killed(BaseException):
    """Unwinds what a process was doing when it was killed. Nothing it does on the way reaches the world."""


class Scheduler:
    """The clock, and everything that will happen."""

    def __init__(self, seed: int) -> None:
        self.rng = Random(seed)
        self.now = 0.0
        self.steps = 0
        self.current: Process | None = None
        self.failure: BaseException | None = None
        self.echo: Callable[[str], None] | None = None
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = 0
        self._hub = getcurrent()
        self._hash = hashlib.sha256()
        self.processes: list[Process] = []
        self._over = False

    def at(self, when: float, action: Callable[[], None]) -> None:
        """Do this at that time."""
        self._numbers += 1
        heapq.heappush(self._heap, (when, self._numbers, action))

    def after(self, delay: float, action: Callable[[], None]) -> None:
        """Do this after so many seconds."""
        self.at(self.now + delay, action)

    def run(self, until: float, done: Callable[[], bool] | None = None) -> bool:
        """Let things happen until that time, or until ``done``, which is asked every virtual 0.1 s.

        Returns whether it is done. Raises what was told to :meth:`fail`.
        """
        look = self.now
        heap = self._heap
        while heap and heap[0][0] <= until:
            when, _, action = heapq.heappop(heap)
            if when > self.now:
                self.now = when
                if done is not None and when >= look:
                    look = when + 0.1
                    if done():
                        return True
            self.steps += 1
            action()
            if self.failure is not None:
                raise self.failure
        self.now = max(self.now, until)
        return done is not None and done()

    def spawn(self, script: Iterator[float]) -> None:
        """Run a script of the world itself: it yields for how many seconds it sleeps."""

        def step() -> None:
            for delay in script:
                self.after(delay, step)
                return

        self.at(self.now, step)

    def pause(self, seconds: float) -> None:
        """In a thread: let time pass. On a loop, which must not wait, no time passes."""
        thread = getcurrent()
        if thread is self._hub:
            return
        process = self.current
        assert process is not None
        self.after(seconds, lambda: self._resume(process, thread))
        self._hub.switch()

    def start_thread(self, process: Process, work: Callable[[], None], delay: float) -> None:
        """Run ``work`` as a thread of the process."""
        thread = greenlet(work)
        process.threads[thread] = None
        self.after(delay, lambda: self._resume(process, thread))

    def fail(self, failure: BaseException) -> None:
        """The simulation has found something; it ends with the present step, whoever catches what."""
        if self.failure is None and not self._over:
            self.failure = failure

    def trace(self, *words: object) -> None:
        """Something happened that a replay must repeat."""
        line = " ".join(map(str, words))
        self._hash.update(f"{self.now:.6f} {line}\n".encode())
        if self.echo is not None:
            self.echo(f"{self.now:10.6f}  {line}")

    def fingerprint(self) -> str:
        """A hash of all that was traced."""
        return self._hash.hexdigest()

    def dispose(self) -> None:
        """Unwind whatever still waits, with the world fenced off, so that nothing of it runs later."""
        self._over = True
        self._heap.clear()
        for process in self.processes:
            process.alive = False
        for process in self.processes:
            with self.running(process):
                process.dispose()

    @contextmanager
    def running(self, process: Process) -> Iterator[None]:
        """Inside of it, this process is the one that acts."""
        before, self.current = self.current, process
        try:
            yield
        finally:
            self.current = before

    def _resume(self, process: Process, thread: greenlet) -> None:
        if not process.alive or thread.dead:
            return
        if process.stopped_until > self.now:
            self.at(process.stopped_until, lambda: self._resume(process, thread))
            return
        self.current = process
        try:
            thread.switch()
        except Killed:
            pass
        finally:
            self.current = None
        if thread.dead:
            process.threads.pop(thread, None)


class SimLock:
    """A lock between threads of a process; the loop never meets it taken."""

    def __init__(self, scheduler: Callable[[], Scheduler]) -> None:
        self._scheduler = scheduler
        self._held = False

    def __enter__(self) -> None:
        while self._held:
            scheduler = self._scheduler()
            if getcurrent() is scheduler._hub:
                raise AssertionError("the loop waits for a lock that a thread holds while it waits itself")
            scheduler.pause(0.0005)
        self._held = True

    def __exit__(self, *_: object) -> None:
        self._held = False

"""Where a process's time goes: a timer's signal makes the main thread look at its own stack, many times a second.

A look costs some microseconds and what is remembered is bounded. A thread that looked at the others would see them
where they let go of the interpreter, at their system calls, and hardly anywhere else. The kernel's timer asks nobody.

uvloop learns of signals through a socket that holds some hundred of them. So if a loop that is being profiled does not
turn for seconds, a SIGTERM of that moment is lost; supervisord then ends the process by SIGKILL, which is safe.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Final

import msgspec

MOST_STACKS: Final = 20_000
"""Different stacks that are told apart; what comes beyond is counted together."""

DEEPEST: Final = 200
"""Frames of a stack that are looked at, the innermost ones."""

SWITCH: Final = 0.0001
"""Seconds after which other threads must let the main one look, while they are looked at, too; usually 5 ms."""

LOOP: Final = "(event loop)"
"""The outermost function of what an event loop runs. Alone, it waits, or is at work in C."""

OVERFLOW: Final = "(more stacks)"

_ROOT: Final = Path(__file__).resolve().parents[1]
_LOOP_CODE: Final = asyncio.Runner.run.__code__
_ENTERED: Final = 4
"""Bytes of code that are behind a function that has only just been entered."""

_IDLE: Final = frozenset({("threading.py", "wait"), ("thread.py", "_worker"), ("socket.py", "accept")})
"""File and function where threads wait for something to do; these are not counted."""

Stack = tuple[str, tuple[CodeType, ...]]
"""The name of the thread, "" for the main one, and its functions, the outermost first."""


class Profile(msgspec.Struct, frozen=True):
    """``folded``: stacks, the outermost function first, with ``;``, and in how many of the ``looks`` each was seen.

    ``seconds`` that it took; seconds of processor time that the ``main`` thread and the ``others`` used meanwhile.
    """

    seconds: float
    looks: int
    main: float
    others: float
    folded: dict[str, int]


class Busy(Exception):
    """Another profile is being taken."""


class Profiler:
    """Takes one profile at a time. To be made in the main thread; SIGALRM and its timer are this one's for ever.

    The main thread gets the signal, the others only if it has one already. System calls go on by themselves or are
    repeated, as PEP 475 and all of our libraries have it.
    """

    def __init__(self) -> None:
        self._taking = threading.Lock()
        self._looks: Looks | None = None
        signal.signal(signal.SIGALRM, self._look)
        signal.siginterrupt(signal.SIGALRM, False)

    @property
    def active(self) -> bool:
        """Whether a profile is being taken."""
        return self._looks is not None

    def take(
        self, seconds: float, rate: float, wait: Callable[[float], object], *, all_threads: bool = False
    ) -> Profile:
        """Look ``rate`` times a second, while ``wait(seconds)`` lasts. From any thread but the main one.

        With ``all_threads`` at those that are at work, too. Raises :class:`Busy`.
        """
        main = threading.main_thread().ident
        assert main is not None
        if not self._taking.acquire(blocking=False):
            raise Busy
        try:
            clock = time.pthread_getcpuclockid(main)
            started, used, all_used = time.monotonic(), time.clock_gettime(clock), time.process_time()
            looks = self._looks = Looks(1 / rate, started, all_threads=all_threads)
            try:
                with _switching_fast() if all_threads else contextlib.nullcontext():
                    signal.setitimer(signal.ITIMER_REAL, 1 / rate, 1 / rate)
                    wait(seconds)
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
                self._looks = None
            used = time.clock_gettime(clock) - used
            return Profile(
                seconds=time.monotonic() - started,
                looks=looks.total,
                main=used,
                others=max(0.0, time.process_time() - all_used - used),
                folded=looks.folded(),
            )
        finally:
            self._taking.release()

    def _look(self, _: int, frame: FrameType | None) -> None:
        looks = self._looks
        if looks is not None and frame is not None:
            # Whatever is wrong must not be raised in the midst of what the thread is doing.
            with contextlib.suppress(Exception):
                looks.add(time.monotonic(), frame)


class Looks:
    """What was seen, by stack."""

    def __init__(self, interval: float, now: float, *, all_threads: bool) -> None:
        """``interval``: seconds between two looks."""
        self._interval = interval
        self._last = now
        self._all_threads = all_threads
        self._stacks: Counter[Stack] = Counter()
        self.total = 0

    def add(self, now: float, innermost: FrameType) -> None:
        """The main thread is here. What took so long that looks were left out, as C code does, counts for them."""
        count = max(1, round((now - self._last) / self._interval))
        self._last = now
        self.total += count
        self._add(("", codes_of(innermost)), count)
        if self._all_threads:
            for stack in _others():
                self._add(stack, count)

    def _add(self, stack: Stack, count: int) -> None:
        if stack in self._stacks or len(self._stacks) < MOST_STACKS:
            self._stacks[stack] += count
        else:
            self._stacks[OVERFLOW, ()] += count

    def folded(self) -> dict[str, int]:
        """As text, for ``Profile.folded``."""
        folded: Counter[str] = Counter()
        names: dict[CodeType, str] = {}
        for (thread, codes), count in self._stacks.items():
            functions: Iterable[str] = [names.get(code) or names.setdefault(code, name_of(code)) for code in codes]
            folded[";".join([*([thread] if thread else []), *functions])] += count
        return dict(folded)


def codes_of(innermost: FrameType) -> tuple[CodeType, ...]:
    """The functions of a stack, the outermost first; of what starts the event loop, only the loop."""
    codes: list[CodeType] = []
    frame: FrameType | None = innermost
    while frame is not None and (frame.f_lasti <= _ENTERED or frame.f_code.co_filename == __file__):
        # It has taken no time yet: what did is the C code that calls it. Or a look came in the midst of a look.
        frame = frame.f_back
    while frame is not None and len(codes) < DEEPEST:
        codes.append(frame.f_code)
        if frame.f_code is _LOOP_CODE:
            break
        frame = frame.f_back
    codes.reverse()
    return tuple(codes)


def _others() -> list[Stack]:
    """The stacks of all other threads that are at work."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    main = threading.get_ident()
    return [
        (f"(thread {names.get(ident, ident)})", codes_of(frame))
        for ident, frame in sys._current_frames().items()
        if ident != main and names.get(ident) != "control" and not _is_idle(frame.f_code)
    ]


def _is_idle(code: CodeType) -> bool:
    return (code.co_filename.rpartition("/")[2], code.co_name) in _IDLE


@contextlib.contextmanager
def _switching_fast() -> Iterator[None]:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH)
    try:
        yield
    finally:
        sys.setswitchinterval(interval)


def name_of(code: CodeType) -> str:
    """A function with its file, from the project's or a package's directory on: ``gateway/app.py:App.handle``."""
    if code is _LOOP_CODE:
        return LOOP
    path = Path(code.co_filename)
    if path.is_relative_to(_ROOT) and "site-packages" not in path.parts:
        file = path.relative_to(_ROOT).as_posix()
    else:
        file = "/".join(path.parts[-2:])
    # In a folded stack ";" ends a function and " " all of them.
    return f"{file}:{code.co_qualname}".replace(";", ",").replace(" ", "_")

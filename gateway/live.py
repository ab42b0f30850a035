"""Who waits for which shape: requests at the end of a log, woken by hints, by looking, or by their deadline.

A state machine under a given clock; it looks at a shape only through :class:`Watched`. Hints make it fast and may all
be lost: each shape with waiters is looked at once a second, and once more before a deadline is told (engine.md INV-41).
All waiters of a shape at one offset, in one live mode, get the same answer object.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final, Generic, Protocol, TypeVar

from common.lsn import SNAPSHOT_END, Offset
from gateway.shape import ShapeGone
from gateway.wheel import Wheel

LOOK_EVERY: Final = 1.0
"""Seconds between looks at a shape with waiters when no hint comes."""

LINGER: Final = 10.0
"""Seconds a subscription outlives its last waiter: long-polls come back at once."""

A = TypeVar("A")


class Watched(Protocol):
    """A shape that can be waited on (:class:`gateway.shape.Shape`)."""

    @property
    def handle(self) -> str:
        """Its handle."""

    @property
    def partition(self) -> int:
        """Its partition."""

    def last(self, *, written: bool = False) -> Offset:
        """The end of its log, which has just been ``written`` or not. Raises ``ShapeGone``."""


S = TypeVar("S", bound=Watched)
S_contra = TypeVar("S_contra", bound=Watched, contravariant=True)
A_co = TypeVar("A_co", covariant=True)


class Subscriptions(Protocol):
    """Where hints are asked for (:class:`gateway.hints.Hints`)."""

    def want(self, handle: str, partition: int) -> None:
        """Send hints for this handle."""

    def drop(self, handle: str) -> None:
        """No more hints."""


class Answers(Protocol[S_contra, A_co]):
    """Makes the shared answers of one live mode. ``seen`` was sampled before the log was looked at."""

    def seen(self, shape: S_contra) -> int:
        """The LSN that an answer about this shape may claim, now."""

    def changed(self, shape: S_contra, offset: Offset) -> A_co | None:
        """What those at ``offset`` get now that there is more; ``None`` if each must read for itself."""

    def unchanged(self, shape: S_contra, offset: Offset, last: Offset, seen: int) -> A_co | None:
        """What those at ``offset`` get when nothing came until their deadline; ``None`` if each says it by itself."""


class Changed(Generic[A]):
    """The log has grown: the answer, or ``None`` for «read for yourself»."""

    __slots__ = ("answer",)

    def __init__(self, answer: A | None) -> None:
        self.answer = answer


class Expired(Generic[A]):
    """Nothing came until the deadline: the answer, ``None`` for whoever has none to share or is ahead of the log."""

    __slots__ = ("answer",)

    def __init__(self, answer: A | None) -> None:
        self.answer = answer


class Gone:
    """The shape has ended."""

    __slots__ = ()


Outcome = Changed[A] | Expired[A] | Gone


class Waiter(Generic[S, A]):
    """One request that waits; ``ahead`` if its offset lies beyond the log, which may be being replayed."""

    __slots__ = ("_then", "ahead", "answers", "offset", "slot", "watch")

    def __init__(
        self,
        watch: _Watch[S],
        offset: Offset,
        answers: Answers[S, A],
        ahead: bool,
        then: Callable[[Outcome[A]], None],
    ) -> None:
        self.watch = watch
        self.offset = offset
        self.answers = answers
        self.ahead = ahead
        self.slot = 0
        self._then: Callable[[Outcome[A]], None] | None = then

    @property
    def is_waiting(self) -> bool:
        """Whether it has no outcome yet."""
        return self._then is not None

    def settle(self, outcome: Outcome[A]) -> None:
        """Tell the request its outcome; later ones count for nothing."""
        then, self._then = self._then, None
        if then is not None:
            then(outcome)

    def give_up(self) -> None:
        """Let no outcome reach the request."""
        self._then = None


class _Watch(Generic[S]):
    __slots__ = ("idle_since", "last", "shape", "waiters")

    def __init__(self, shape: S, now: float) -> None:
        self.shape = shape
        self.waiters: dict[Waiter[S, Any], None] = {}
        self.last: Offset | None = None
        self.idle_since = now


class Live(Generic[S]):
    """The registry of waiters. ``advance`` must be called with the clock at least every few ticks of the wheel."""

    def __init__(self, subscriptions: Subscriptions, clock: Callable[[], float]) -> None:
        self._subscriptions = subscriptions
        self._clock = clock
        self._watches: dict[str, _Watch[S]] = {}
        self._wheel: Wheel[Waiter[S, Any] | _Watch[S]] = Wheel(clock())
        self.closing = False

    def enter(self, shape: S) -> bool:
        """Subscribe to a shape; ``True`` if that is new, so that what was read of it before may be out of date."""
        if shape.handle in self._watches:
            return False
        watch = _Watch(shape, self._clock())
        self._watches[shape.handle] = watch
        self._wheel.add(self._clock() + LOOK_EVERY, watch)
        self._subscriptions.want(shape.handle, shape.partition)
        return True

    def wait(
        self,
        shape: S,
        offset: Offset,
        last: Offset,
        limit: float,
        answers: Answers[S, A],
        then: Callable[[Outcome[A]], None],
        *,
        ahead: bool = False,
    ) -> Waiter[S, A]:
        """Wait up to ``limit`` seconds for more than ``last``, the log's end as read after :meth:`enter`.

        ``then`` is called once, later, with the :data:`Outcome`, which has what ``answers`` makes; it must not raise.
        Pair with :meth:`leave`, after which it is not called any more.
        """
        self.enter(shape)
        watch = self._watches[shape.handle]
        watch.shape = shape
        waiter = Waiter(watch, offset, answers, ahead, then)
        if watch.last is None or last > watch.last:
            watch.last = last
        watch.waiters[waiter] = None
        waiter.slot = self._wheel.add(self._clock() + (0 if self.closing else limit), waiter)
        return waiter

    async def outcome(
        self,
        shape: S,
        offset: Offset,
        last: Offset,
        limit: float,
        answers: Answers[S, A],
        *,
        ahead: bool = False,
    ) -> Outcome[A]:
        """As :meth:`wait`, for a task."""
        future: asyncio.Future[Outcome[A]] = asyncio.get_running_loop().create_future()

        def then(outcome: Outcome[A]) -> None:
            if not future.done():
                future.set_result(outcome)

        waiter = self.wait(shape, offset, last, limit, answers, then, ahead=ahead)
        try:
            return await future
        finally:
            self.leave(waiter)

    def leave(self, waiter: Waiter[S, A]) -> None:
        """The request is answered, or its client has gone."""
        waiter.give_up()
        # Else the wheel would keep it until the deadline.
        self._wheel.discard(waiter.slot, waiter)
        waiter.watch.waiters.pop(waiter, None)
        waiter.watch.idle_since = self._clock()

    def tail(self, handle: str) -> None:
        """A hint that the log has grown."""
        watch = self._watches.get(handle)
        if watch is not None and watch.waiters:
            self._look(watch, written=True)

    def ended(self, handle: str) -> None:
        """A hint that the shape is gone. Handles are never used again, so it needs no proof."""
        watch = self._watches.get(handle)
        if watch is not None:
            self._end(watch)

    def advance(self, now: float) -> None:
        """Look at the shapes whose turn it is, and answer those whose time is over."""
        expired: dict[_Watch[S], list[Waiter[S, Any]]] = {}
        for item in self._wheel.advance(now):
            if isinstance(item, Waiter):
                if item.is_waiting:
                    expired.setdefault(item.watch, []).append(item)
            else:
                self._turn(item, now)
        for watch, waiters in expired.items():
            self._expire(watch, waiters)

    def close(self) -> None:
        """Answer everybody now, as at their deadline, and whoever still comes at the next tick."""
        self.closing = True
        for watch in list(self._watches.values()):
            self._expire(watch, list(watch.waiters))

    @property
    def waiting(self) -> int:
        """How many requests wait."""
        return sum(len(watch.waiters) for watch in self._watches.values())

    def _turn(self, watch: _Watch[S], now: float) -> None:
        if self._watches.get(watch.shape.handle) is not watch:
            return
        if watch.waiters:
            if not self._look(watch):
                return
        elif now - watch.idle_since >= LINGER:
            self._drop(watch)
            return
        self._wheel.add(now + LOOK_EVERY, watch)

    def _look(self, watch: _Watch[S], *, written: bool = False) -> bool:
        """Read the end of the log and wake whom it concerns; ``False`` if the shape is gone."""
        try:
            last = watch.shape.last(written=written)
        except ShapeGone:
            self._end(watch)
            return False
        except OSError:
            # Each waiter meets the error where it can be answered as one.
            for waiter in list(watch.waiters):
                waiter.settle(Changed(None))
            return watch.last is not None
        grown = watch.last is None or last > watch.last
        watch.last = last
        made: dict[tuple[Answers[S, Any], Offset], Changed[Any]] = {}
        for waiter in list(watch.waiters):
            if not waiter.is_waiting:
                continue
            if waiter.ahead:
                if grown:
                    waiter.settle(Changed(None))
            elif last > max(waiter.offset, SNAPSHOT_END):
                kind = (waiter.answers, waiter.offset)
                if kind not in made:
                    made[kind] = Changed(waiter.answers.changed(watch.shape, waiter.offset))
                waiter.settle(made[kind])
        return True

    def _expire(self, watch: _Watch[S], waiters: list[Waiter[S, Any]]) -> None:
        seen = {answers: answers.seen(watch.shape) for answers in {waiter.answers for waiter in waiters}}
        if not self._look(watch):
            return
        last = watch.last
        assert last is not None
        made: dict[tuple[Answers[S, Any], Offset], Expired[Any]] = {}
        for waiter in waiters:
            if not waiter.is_waiting:
                continue
            if waiter.ahead:
                waiter.settle(Expired(None))
                continue
            answers, offset = kind = (waiter.answers, waiter.offset)
            if kind not in made:
                made[kind] = Expired(answers.unchanged(watch.shape, offset, last, seen[answers]))
            waiter.settle(made[kind])

    def _end(self, watch: _Watch[S]) -> None:
        # First, since whoever is told may come back at once.
        self._drop(watch)
        for waiter in list(watch.waiters):
            waiter.settle(Gone())

    def _drop(self, watch: _Watch[S]) -> None:
        if self._watches.get(watch.shape.handle) is watch:
            del self._watches[watch.shape.handle]
            self._subscriptions.drop(watch.shape.handle)

"""One timer for all deadlines: a wheel of slots, each a short span of time (performance.md 6)."""

from __future__ import annotations

import math
from typing import Final, Generic, TypeVar

TICK: Final = 0.05
"""Seconds per slot: no deadline is early, each is at most this much late."""

T = TypeVar("T")


class Wheel(Generic[T]):
    """Items by deadline, each at most once at a time."""

    __slots__ = ("_done", "_slots")

    def __init__(self, now: float) -> None:
        """All times are seconds of one monotonic clock."""
        self._done = math.floor(now / TICK)
        self._slots: dict[int, dict[T, None]] = {}

    def add(self, deadline: float, item: T) -> int:
        """Let ``item`` come out at the first :meth:`advance` at or after ``deadline``, never at the present one.

        The result is its slot, for :meth:`discard`.
        """
        slot = max(math.ceil(deadline / TICK), self._done + 1)
        self._slots.setdefault(slot, {})[item] = None
        return slot

    def discard(self, slot: int, item: T) -> None:
        """Take an item out before its time; nothing if it has come out."""
        items = self._slots.get(slot)
        if items is not None:
            items.pop(item, None)

    def advance(self, now: float) -> list[T]:
        """What is due, in the order of deadlines."""
        before, self._done = self._done, max(self._done, math.floor(now / TICK))
        # Nothing is ever added to a slot that is over.
        return [item for slot in range(before + 1, self._done + 1) for item in self._slots.pop(slot, ())]

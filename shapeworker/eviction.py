"""Which shapes of a worker may end because there are too many: those that nobody has used for a while (http-api.md 29).

How many end is for the ingester to say, which knows all workers (``ingester/eviction.py``).
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Mapping
from typing import Final

from common.messages import Evict, Survey, Usage
from common.obstacles import Lasting
from shapeworker.holdings import Holdings
from shapeworker.partition import Partition
from shapeworker.shape import Life, Shape

QUIET: Final = 15.0
"""Seconds that a shape must have been unused, as far as is known. Gateways tell every few seconds what was used; and a
worker that has just taken a partition has not heard from them what is."""


class Eviction:
    """Keeps :attr:`Shape.used` of the shapes that are held, and offers those that may end."""

    def __init__(
        self,
        holdings: Holdings,
        is_waited_on: Callable[[str], bool],
        clock: Callable[[], float] = time.time,
    ) -> None:
        """``is_waited_on``: whether a gateway asks for the events of a handle. ``clock`` tells Unix time: last uses are
        kept over restarts."""
        self._holdings = holdings
        self._is_waited_on = is_waited_on
        self._clock = clock
        self._held: Lasting[Partition] = Lasting()
        self._round = 0
        self._offered: list[Shape] = []

    def touch(self, ages: Mapping[str, float]) -> None:
        """These were used, so many seconds ago."""
        now = self._clock()
        for handle, age in ages.items():
            shape = self._holdings.by_handle(handle)
            if shape is not None and now - age > shape.used:
                shape.used = now - age
                self._holdings.partitions[shape.partition].used[handle] = int(shape.used)

    def answer(self, survey: Survey, version: int) -> Usage:
        """Count the shapes, and offer those that may end, the longest unused first; ``version``: of the assignment."""
        now = self._clock()
        held = self._held.seconds(now, self._holdings.partitions.values())
        settled = {partition.number for partition, seconds in held.items() if seconds >= QUIET}
        self._round, self._offered = survey.round, []
        if survey.most:
            free = (shape for shape in self._holdings if shape.partition in settled and self._is_free(shape, now))
            self._offered = heapq.nsmallest(survey.most, free, key=lambda shape: shape.used)
        idle = tuple(now - shape.used for shape in self._offered)
        return Usage(survey.round, version, len(self._holdings), idle)

    def chosen(self, evict: Evict) -> list[tuple[Shape, str]]:
        """The shapes to end, and why: of those offered in that round, the ones that have stayed unused."""
        if evict.round != self._round:
            return []
        now = self._clock()
        first, self._offered = self._offered[: evict.count], []
        return [
            (
                shape,
                f"there are {evict.total} shapes, ELECTRIC_MAX_SHAPES is {evict.limit}, and this one has not been used "
                f"for {now - shape.used:.0f} s",
            )
            for shape in first
            if self._holdings.by_handle(shape.handle) is shape and self._is_free(shape, now)
        ]

    def _is_free(self, shape: Shape, now: float) -> bool:
        return now - shape.used >= QUIET and shape.life is Life.ACTIVE and not self._is_waited_on(shape.handle)

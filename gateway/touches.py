"""Which shapes clients have read lately, told to their workers in batches: the least recently used end first when there
are more than ELECTRIC_MAX_SHAPES (http-api.md 29)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from common.messages import Touched
from gateway.hints import Owners

EVERY: Final = 5.0
"""Seconds between two reports. A shape that workers end has been unused for three times as long."""

BATCH: Final = 10_000
"""Handles in one message."""


class Touches:
    """The handles that were used since the last report, and when."""

    def __init__(
        self,
        owners: Owners,
        tell: Callable[[str, Touched], None],
        clock: Callable[[], float],
    ) -> None:
        """``tell`` sends to a worker, if it is there. ``clock``: monotonic seconds."""
        self._owners = owners
        self._tell = tell
        self._clock = clock
        self._due = clock() + EVERY
        self._used: dict[str, tuple[int, float]] = {}

    def add(self, handle: str, partition: int) -> None:
        """A client asks for this shape."""
        self._used[handle] = partition, self._clock()

    def advance(self, in_use: Iterable[tuple[str, int]]) -> None:
        """Report if it is time; ``in_use``: handles that requests still read or wait on, each with its partition.

        What has no owner is not told: then nobody ends shapes either.
        """
        now = self._clock()
        if now < self._due:
            return
        self._due = now + EVERY
        used, self._used = self._used, {}
        used.update((handle, (partition, now)) for handle, partition in in_use)
        reports: dict[str, dict[str, float]] = {}
        for handle, (partition, at) in used.items():
            worker = self._owners.owner(partition)
            if worker is None:
                continue
            report = reports.setdefault(worker, {})
            report[handle] = now - at
            if len(report) == BATCH:
                self._tell(worker, Touched(reports.pop(worker)))
        for worker, report in reports.items():
            self._tell(worker, Touched(report))

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
    """The handles that were used since the last report."""

    def __init__(
        self,
        owners: Owners,
        tell: Callable[[str, Touched], None],
        now: float,
    ) -> None:
        """``tell`` sends to a worker, if it is there. ``now``: seconds of the clock that :meth:`advance` is given."""
        self._owners = owners
        self._tell = tell
        self._due = now + EVERY
        self._used: dict[str, int] = {}

    def add(self, handle: str, partition: int) -> None:
        """A client asks for this shape."""
        self._used[handle] = partition

    def advance(self, now: float, in_use: Iterable[tuple[str, int]]) -> None:
        """Report if it is time; ``in_use``: handles that requests still read or wait on, each with its partition.

        What has no owner is not told: then nobody ends shapes either.
        """
        if now < self._due:
            return
        self._due = now + EVERY
        used, self._used = self._used, {}
        used.update(in_use)
        reports: dict[str, list[str]] = {}
        for handle, partition in used.items():
            worker = self._owners.owner(partition)
            if worker is not None:
                reports.setdefault(worker, []).append(handle)
        for worker, handles in reports.items():
            for start in range(0, len(handles), BATCH):
                self._tell(worker, Touched(tuple(handles[start : start + BATCH])))

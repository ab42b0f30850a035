"""What holds things back, told to operators: in ``/v1/health`` while it lasts, in the log when it comes and goes.

An obstacle is a line that names the worker, table, shape or setting concerned. Whoever looks at the state of a process
makes the list of what is in the way right now; this remembers since when, and says what is new.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Final, Generic, TypeVar

import msgspec
import structlog

log = structlog.get_logger()

REPEAT: Final = 60.0
"""Seconds between two lines in the log about the same obstacle."""

TOLD: Final = 5
"""Obstacles that are told at once; more would hide the one that matters."""


class Obstacle(msgspec.Struct, frozen=True, array_like=True):
    """``cause`` stays the same while the obstacle lasts, ``text`` may count. ``delays``: new changes cannot reach all
    clients (INV-37), as opposed to what only keeps WAL or makes somebody wait for a new shape."""

    cause: str
    text: str
    delays: bool = False


K = TypeVar("K", bound=Hashable)


class Lasting(Generic[K]):
    """Since when things are as they are. For states without a clock of their own."""

    def __init__(self) -> None:
        self._since: dict[K, float] = {}

    def seconds(self, now: float, present: Iterable[K]) -> dict[K, float]:
        """For each of what is present now, for how long it has been present at every call."""
        self._since = {key: self._since.get(key, now) for key in present}
        return {key: now - since for key, since in self._since.items()}


class ObstacleLog:
    """Tells the log: when an obstacle comes, once a minute while it lasts, and when it has passed."""

    def __init__(self) -> None:
        self._told: dict[str, tuple[float, float]] = {}

    def tell(self, now: float, present: Iterable[Obstacle]) -> None:
        """These are all there are at ``now``, in seconds of a monotonic clock."""
        causes = set()
        for obstacle in present:
            causes.add(obstacle.cause)
            since, told = self._told.get(obstacle.cause, (now, -REPEAT))
            if now - told >= REPEAT:
                self._told[obstacle.cause] = since, now
                log.warning("held back", reason=obstacle.text, delays_clients=obstacle.delays)
        for cause in self._told.keys() - causes:
            since, _ = self._told.pop(cause)
            log.info("no longer held back", cause=cause, seconds=round(now - since))

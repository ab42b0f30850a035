"""How long a worker may keep partitions without an ingester that has the lock: a decision without I/O (engine.md 17.4).

Another stack may be waiting for them. Nobody takes partitions from a process that lives, so it must let go by itself.
"""

from __future__ import annotations

from typing import Final

SILENCE: Final = 30.0
"""Seconds without a word from the ingester. Longer than it takes to start it again, several times over."""

CERTAIN: Final = 3.0
"""Seconds for which the ingester must have said that another instance has the lock: one that was killed and started
again may at first find its own former session, which Postgres has not noticed to be gone."""

STOPPED: Final = 5.0
"""Seconds between two looks from which on this process itself stood still, and may have words to read yet."""


class Lease:
    """Times are seconds of any monotonic clock, passed in. Look at :meth:`lost` every second or so."""

    def __init__(self, now: float) -> None:
        self._heard = now
        self._looked = now
        self._superseded: float | None = None

    def status(self, now: float, superseded: bool) -> None:
        """The ingester said whether another instance has the lock."""
        self._heard = now
        if not superseded:
            self._superseded = None
        elif self._superseded is None:
            self._superseded = now

    def lost(self, now: float) -> str:
        """Why the partitions must be given back, for people; empty while they may be kept."""
        if now - self._looked > STOPPED:
            self._heard += now - self._looked
        self._looked = now
        if self._superseded is not None and now - self._superseded >= CERTAIN:
            return "another instance has the lock"
        if now - self._heard >= SILENCE:
            return f"no word from the ingester for {SILENCE:.0f} s"
        return ""

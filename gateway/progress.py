"""How far changes are readable, per partition: the source of ``global_last_seen_lsn`` (http-api.md 13.3, INV-42)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

_REMEMBERED: Final = 8
"""Generations of which something is known. All but the newest are over; only what is still being answered about their
shapes needs them, and that ends within seconds."""


class Progress:
    """The highest LSN that each partition's worker has said to be applied, per generation. It never goes back.

    Generations are kept apart: a new one may stand for another database, whose LSNs have nothing to do with the old
    ones. A gateway hears of a new generation from the ingester, and of the end of each older shape from its worker
    later: until then the older shape is answered with what was known of its own generation.
    """

    def __init__(self) -> None:
        self._present = 0
        self._lsns: dict[int, dict[int, int]] = {}

    def begin(self, generation: int) -> None:
        """Note the generation the service is in; 0 when it does not know yet. Generations only count up: a lower one
        comes from another storage directory, and nothing known before belongs to it."""
        if generation and generation < self._present:
            self._lsns.clear()
        self._present = generation or self._present

    def applied(self, generation: int, lsn: int, partitions: Iterable[int]) -> None:
        """All commits up to ``lsn`` are readable in the shapes of this generation in these partitions."""
        known = self._lsns.setdefault(generation, {})
        if len(self._lsns) > _REMEMBERED:
            del self._lsns[min(self._lsns)]
        for partition in partitions:
            if lsn > known.get(partition, 0):
                known[partition] = lsn

    def seen(self, partition: int, generation: int) -> int:
        """The LSN that an answer about a shape of this generation may claim, if it is sampled *before* the log's
        position; 0 when nothing is known."""
        return self._lsns.get(generation, {}).get(partition, 0)

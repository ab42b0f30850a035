"""How far changes are readable, per partition: the source of ``global_last_seen_lsn`` (http-api.md 13.3, INV-42)."""

from __future__ import annotations

from collections.abc import Iterable


class Progress:
    """The highest LSN that each partition's worker has said to be applied. It never goes back.

    A new generation forgets all: it may stand for another database, whose LSNs have nothing to do with the old ones.
    """

    def __init__(self) -> None:
        self._generation: int | None = None
        self._lsns: dict[int, int] = {}

    def begin(self, generation: int) -> None:
        """Note the generation the service is in; 0 when it does not know yet."""
        if generation and generation != self._generation:
            self._generation = generation
            self._lsns.clear()

    def applied(self, generation: int, lsn: int, partitions: Iterable[int]) -> None:
        """All commits up to ``lsn`` are readable in the shapes of these partitions; of another generation: nothing."""
        if generation != self._generation:
            return
        for partition in partitions:
            if lsn > self._lsns.get(partition, 0):
                self._lsns[partition] = lsn

    def seen(self, partition: int, generation: int) -> int:
        """The LSN that an answer about a shape of this generation may claim, if it is sampled *before* the log's
        position; 0 when nothing is known."""
        return self._lsns.get(partition, 0) if generation == self._generation else 0

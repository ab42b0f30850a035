"""What may be acknowledged to Postgres: decisions only, no I/O (engine.md 6, 26.2; INV-7, INV-8, INV-9).

A *bound* is exclusive: «every transaction whose commit record starts before it is durable». Postgres asks the same way:
a slot delivers again what starts at or after the acknowledged position.
"""

from __future__ import annotations

from collections.abc import Iterable


class Watermark:
    """The minimum over all partitions of what their owners, present or past, reported durable.

    A partition whose owner is away keeps its bound and so holds the slot back; nothing ever moves backwards, also not
    when a rewind dispatches old transactions again: what was durable stays so.
    """

    def __init__(self, partitions: int, confirmed: int) -> None:
        """``confirmed``: the slot's confirmed flush LSN when the first stream of this process starts."""
        self._bounds = [confirmed] * partitions
        self._acknowledged = confirmed
        self._dispatched = 0
        self._idle: tuple[int, int] | None = None

    def durable(self, partitions: Iterable[int], lsn: int) -> None:
        """The owner of these partitions has made every commit up to and including ``lsn`` durable."""
        bounds = self._bounds
        for partition in partitions:
            if bounds[partition] <= lsn:
                bounds[partition] = lsn + 1

    def dispatched(self, lsn: int) -> None:
        """A commit has been handed to the workers. After a rewind these start again at lower LSNs."""
        self._dispatched = lsn

    def rewound(self, position: int) -> None:
        """The stream starts again at ``position``; nothing of this epoch is dispatched yet."""
        self._dispatched = position - 1
        self._idle = None

    def idle(self, position: int) -> None:
        """A keepalive said, between two transactions, that Postgres has sent all it had before ``position``."""
        self._idle = (position, self._dispatched)

    @property
    def all_durable(self) -> bool:
        """Whether every dispatched commit is durable everywhere."""
        return min(self._bounds) > self._dispatched

    def acknowledged(self) -> int:
        """The position that may be reported as flushed. Never decreases."""
        bound = min(self._bounds)
        if self._idle is not None:
            position, dispatched_then = self._idle
            if bound > dispatched_then:
                bound = max(bound, position)
        self._acknowledged = max(self._acknowledged, bound)
        return self._acknowledged

    def slowest(self) -> tuple[int, int]:
        """``(partition, bound)`` that holds the acknowledgement back, if anything does, for operators."""
        partition = min(range(len(self._bounds)), key=self._bounds.__getitem__)
        return partition, self._bounds[partition]

"""Transactions that the stream has brought, as long as it is not known that new snapshots show them (engine.md H-C).

A server sends a transaction as soon as it is on its disk; to others it becomes visible a moment later, with synchronous
replication much later. Rows read in between would be older than what the clients of a shape may have seen already.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from common.xid import Snapshot

RING: Final = 100_000
"""How many are remembered. Each of a server's sessions has one at most that is not visible yet."""


class Delivered:
    """The latest transactions, by their 64-bit ids, in the order of their commits."""

    def __init__(self) -> None:
        self._ring: deque[int] = deque(maxlen=RING)
        self.add = self._ring.append

    def unseen(self) -> tuple[int, ...]:
        """Those that a snapshot taken now may not show."""
        return tuple(self._ring)

    def shown(self, snapshot: Snapshot) -> None:
        """What one snapshot shows, every later one does."""
        ring = self._ring
        while ring and snapshot.shows(ring[0]):
            ring.popleft()

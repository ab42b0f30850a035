"""Transaction ids and snapshots: which transactions a snapshot already shows.

pgoutput speaks 32-bit xids, snapshots 64-bit ones; everything is widened once and compared in 64 bits (engine.md H-B).
"""

from __future__ import annotations

from typing import Final

import msgspec


def widen(xid: int, anchor: int) -> int:
    """The 64-bit id congruent to the 32-bit ``xid`` nearest to ``anchor``, a recent 64-bit id (engine.md 26.4)."""
    distance = (xid - anchor) & 0xFFFFFFFF
    if distance >= 1 << 31:
        distance -= 1 << 32
    return max(anchor + distance, xid & 0xFFFFFFFF)


_NONE: Final[frozenset[int]] = frozenset()
"""Most snapshots show all below their xmax: no set of its own for each shape that has one."""


class Snapshot(msgspec.Struct, frozen=True):
    """A Postgres snapshot in 64-bit ids, as ``pg_current_snapshot()`` prints it: ``xmin:xmax:xip,…``."""

    xmin: int
    xmax: int
    xip: frozenset[int]

    def shows(self, xid: int) -> bool:
        """Whether the effects of a committed transaction are visible in this snapshot (Postgres docs, 9.27.10)."""
        return xid < self.xmin or (xid < self.xmax and xid not in self.xip)

    @staticmethod
    def parse(text: str) -> Snapshot:
        """Read the output of ``pg_current_snapshot()``. Raises ``ValueError`` on anything else."""
        xmin, xmax, xip = text.split(":")
        running = frozenset(int(part) for part in xip.split(",") if part) if xip else _NONE
        return Snapshot(int(xmin), int(xmax), running)

    def __str__(self) -> str:
        return f"{self.xmin}:{self.xmax}:{','.join(str(xid) for xid in sorted(self.xip))}"

"""WAL positions (LSNs) and log offsets.

An LSN is a plain unsigned 64-bit ``int`` inside Galvanic; the ``X/Y`` notation exists only where Postgres speaks it.
An :class:`Offset` is a place in a shape's log: ``tx`` is the commit LSN of a transaction, ``op`` twice the index of the
change among all published changes of that transaction. Both are pure functions of the WAL (engine.md INV-5).
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

OP_INFINITE: Final = 1 << 63
"""``op`` of an offset written ``<tx>_inf``; above every real ``op``."""

MAX_LSN: Final = (1 << 64) - 1


class Offset(NamedTuple):
    """A position in a shape: ordered by ``tx``, then ``op`` (http-api.md 9.2)."""

    tx: int
    op: int

    def __str__(self) -> str:
        """The canonical text: ``-1``, ``<tx>_<op>`` or ``<tx>_inf``."""
        if self.tx < 0:
            return "-1"
        return f"{self.tx}_inf" if self.op >= OP_INFINITE else f"{self.tx}_{self.op}"

    @property
    def is_virtual(self) -> bool:
        """Whether the offset lies in the snapshot (``0_k`` or ``0_inf``) and not in the log."""
        return self.tx == 0


BEFORE_ALL: Final = Offset(-1, 0)
"""``-1``: before everything."""

SNAPSHOT_END: Final = Offset(0, OP_INFINITE)
"""``0_inf``: the whole snapshot and no later change."""

_OFFSET = re.compile(r"([+-]?\d+)_(inf|[+-]?\d+)", re.ASCII)


def parse_offset(text: str) -> Offset:
    """Read an offset as clients write it (http-api.md 9.1); ``now`` is not an offset and is refused here.

    Raises ``ValueError`` when the text does not follow the grammar or leaves the 64-bit range.
    """
    if text in ("-1", "-1_0"):
        return BEFORE_ALL
    match = _OFFSET.fullmatch(text)
    if match is None:
        raise ValueError(f"not an offset: {text!r}")
    tx = int(match[1])
    op = OP_INFINITE if match[2] == "inf" else int(match[2])
    if not 0 <= tx <= MAX_LSN or not 0 <= op <= OP_INFINITE:
        raise ValueError(f"offset out of range: {text!r}")
    return Offset(tx, op)


def parse_lsn(text: str) -> int:
    """Read Postgres' ``X/Y`` notation. Raises ``ValueError`` on anything else."""
    high, slash, low = text.partition("/")
    if not slash:
        raise ValueError(f"not an LSN: {text!r}")
    return int(high, 16) << 32 | int(low, 16)


def format_lsn(lsn: int) -> str:
    """Write an LSN in Postgres' ``X/Y`` notation."""
    return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"

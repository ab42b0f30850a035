"""The part of ``source.json`` that others than the ingester read: what the storage directory holds, and up to where.

The ingester is its only writer (``ingester/source.py``). Whoever reads takes it as it is at that moment: the file is
replaced as a whole, so it is never half-written.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from common.lsn import parse_lsn

FILE_NAME: Final = "source.json"
FORMAT: Final = 1


class StorageState(msgspec.Struct, frozen=True, kw_only=True):
    """``acknowledged``: every commit at or below it is durable in each active shape of ``generation``."""

    partitions: int
    generation: int
    acknowledged: int


class _File(msgspec.Struct):
    format: int
    partitions: int
    generation: int
    acknowledged: str
    broken: str = ""


def read_storage_state(storage_dir: Path) -> StorageState | None:
    """What the storage directory holds; ``None`` if that cannot be told, or if its shapes are about to end.

    Raises ``OSError``.
    """
    try:
        found = msgspec.json.decode((storage_dir / FILE_NAME).read_bytes(), type=_File)
        acknowledged = parse_lsn(found.acknowledged)
    except (FileNotFoundError, msgspec.DecodeError, ValueError):
        return None
    if found.format != FORMAT or found.broken or found.partitions <= 0:
        return None
    return StorageState(partitions=found.partitions, generation=found.generation, acknowledged=acknowledged)

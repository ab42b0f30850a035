"""Builds pgoutput messages of protocol version 1, for tests of whatever reads them."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final

from common.pgoutput import Relation


class Unchanged:
    """The type of :data:`UNCHANGED`."""


UNCHANGED: Final = Unchanged()
"""A TOASTed value that the update did not touch."""

Value = bytes | None | Unchanged


def begin(lsn: int, xid: int, committed: int = 0) -> bytes:
    """BEGIN of the transaction that commits at ``lsn``."""
    return b"B" + struct.pack(">QqI", lsn, committed, xid)


def commit(lsn: int) -> bytes:
    """COMMIT."""
    return b"C" + struct.pack(">BQQq", 0, lsn, lsn + 8, 0)


def relation(described: Relation) -> bytes:
    """RELATION."""
    columns = b"".join(
        bytes([column.is_key]) + column.name.encode() + b"\0" + struct.pack(">Ii", column.type_oid, column.type_mod)
        for column in described.columns
    )
    head = struct.pack(">I", described.oid) + described.schema.encode() + b"\0" + described.name.encode() + b"\0"
    return b"R" + head + described.identity.encode() + struct.pack(">H", len(described.columns)) + columns


def row(values: Sequence[Value]) -> bytes:
    """TupleData."""
    parts = [struct.pack(">H", len(values))]
    for value in values:
        if value is None:
            parts.append(b"n")
        elif isinstance(value, Unchanged):
            parts.append(b"u")
        else:
            parts.append(b"t" + struct.pack(">I", len(value)) + value)
    return b"".join(parts)


def insert(oid: int, values: Sequence[Value]) -> bytes:
    """INSERT."""
    return b"I" + struct.pack(">I", oid) + b"N" + row(values)


def update(oid: int, old: Sequence[Value], new: Sequence[Value]) -> bytes:
    """UPDATE with its full old row."""
    return b"U" + struct.pack(">I", oid) + b"O" + row(old) + b"N" + row(new)


def delete(oid: int, old: Sequence[Value]) -> bytes:
    """DELETE with its full old row."""
    return b"D" + struct.pack(">I", oid) + b"O" + row(old)


def truncate(oids: Sequence[int]) -> bytes:
    """TRUNCATE of these tables."""
    return b"T" + struct.pack(f">IB{len(oids)}I", len(oids), 0, *oids)

"""Decoding of pgoutput messages, protocol version 1, text format (Postgres docs 55.9).

A message arrives without the replication header. Column values stay the bytes that Postgres' output functions gave, in
UTF-8; ``None`` is NULL. TOASTed values that an UPDATE did not touch are filled in from the old row, which is there
because tables run with REPLICA IDENTITY FULL (engine.md 5.5).
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

Row = list[bytes | None]

BEGIN: Final = ord("B")
COMMIT: Final = ord("C")
RELATION: Final = ord("R")
INSERT: Final = ord("I")
UPDATE: Final = ord("U")
DELETE: Final = ord("D")
TRUNCATE: Final = ord("T")

CHANGES: Final = frozenset((INSERT, UPDATE, DELETE))

_NULL, _TEXT, _UNCHANGED = ord("n"), ord("t"), ord("u")
_FULL, _KEY, _NEW = ord("O"), ord("K"), ord("N")

_SHORT: Final = b"t\0\0\0"
_SAME: Final = b"u\0"
"""Stands for a TOASTed value that an update did not touch; the NUL byte tells it from every text."""

_u16 = struct.Struct(">H").unpack_from
_u32 = struct.Struct(">I").unpack_from
_begin = struct.Struct(">QqI").unpack_from
_column_tail = struct.Struct(">Ii").unpack_from


class ProtocolError(Exception):
    """A message that pgoutput version 1 cannot have sent."""


class IncompleteRow(Exception):
    """A change came without its full old row: the table does not run with REPLICA IDENTITY FULL."""


class RelationColumn(NamedTuple):
    """A published column as the Relation message describes it."""

    name: str
    type_oid: int
    type_mod: int
    is_key: bool


class Relation(NamedTuple):
    """A table as of its next changes. ``identity`` is ``d``, ``n``, ``f`` or ``i`` (pg_class.relreplident)."""

    oid: int
    schema: str
    name: str
    identity: str
    columns: tuple[RelationColumn, ...]


def parse_begin(message: bytes) -> tuple[int, int, int]:
    """``(commit LSN, commit time in µs since 2000-01-01, 32-bit xid)`` of a Begin message."""
    lsn, committed, xid = _begin(message, 1)
    return lsn, committed, xid


def relation_oid(message: bytes) -> int:
    """The relation that a Relation, Insert, Update or Delete message is about."""
    return int(_u32(message, 1)[0])


def parse_relation(message: bytes) -> Relation:
    """A Relation message."""
    (oid,) = _u32(message, 1)
    schema, at = _text(message, 5)
    name, at = _text(message, at)
    identity = chr(message[at])
    (count,) = _u16(message, at + 1)
    at += 3
    columns = []
    for _ in range(count):
        is_key = bool(message[at] & 1)
        column, at = _text(message, at + 1)
        type_oid, type_mod = _column_tail(message, at)
        at += 8
        columns.append(RelationColumn(column, type_oid, type_mod, is_key))
    # An empty namespace stands for pg_catalog.
    return Relation(oid, schema or "pg_catalog", name, identity, tuple(columns))


def parse_insert(message: bytes) -> Row:
    """The new row of an Insert message."""
    if message[5] != _NEW:
        raise ProtocolError(f"insert: unexpected tuple kind {message[5]:#x}")
    row = _values(message, 1)
    if _SAME in row:
        raise IncompleteRow("an unchanged TOAST value came without an old row to take it from")
    return row


def parse_update(message: bytes) -> tuple[Row, Row]:
    """The full ``(old, new)`` rows of an Update message. Raises IncompleteRow when the old row is not there in full."""
    if message[5] != _FULL:
        raise IncompleteRow("an update came without the full old row")
    rows = _values(message, 2)
    count = len(rows) // 2
    old, new = rows[:count], rows[count:]
    if _SAME in new:
        new = [before if value is _SAME else value for before, value in zip(old, new, strict=True)]
    return old, new


def parse_delete(message: bytes) -> Row:
    """The full old row of a Delete message. Raises IncompleteRow when only its key is there."""
    if message[5] == _KEY:
        raise IncompleteRow("a delete came without the full old row")
    if message[5] != _FULL:
        raise ProtocolError(f"delete: unexpected tuple kind {message[5]:#x}")
    return _values(message, 1)


def parse_truncate(message: bytes) -> tuple[int, ...]:
    """The oids of the tables that a Truncate message empties."""
    (count,) = _u32(message, 1)
    return struct.unpack_from(f">{count}I", message, 6)


def _values(message: bytes, tuples: int) -> Row:
    """The values of the one or two tuples of a change, in one list.

    No text of Postgres holds a NUL byte, so those of a message are in its lengths and counts: what looks like the head
    of a text shorter than 256 bytes is one, and splitting finds all such texts at once.
    """
    (count,) = _u16(message, 6)
    first, *shorts = message[8:].split(_SHORT)
    wanted = count * tuples
    if len(shorts) == wanted and tuples == 1:
        return [short[1:] for short in shorts]
    values: Row = []
    _append_others(values, first, 0, count)
    for short in shorts:
        end = short[0] + 1
        values.append(short[1:end])
        if end != len(short):
            _append_others(values, short, end, count)
    if len(values) != wanted:
        raise ProtocolError(f"{len(values)} values in {tuples} tuples of {count} columns")
    return values


def _append_others(values: Row, data: bytes, at: int, count: int) -> None:
    """What stands between two short texts: long ones, NULLs, unchanged ones (:data:`_SAME`), the next tuple's head."""
    end = len(data)
    while at < end:
        kind = data[at]
        if kind == _NULL:
            values.append(None)
            at += 1
        elif kind == _TEXT:
            start = at + 5
            at = start + _u32(data, at + 1)[0]
            values.append(data[start:at])
        elif kind == _UNCHANGED:
            values.append(_SAME)
            at += 1
        elif kind == _NEW and len(values) == count:
            at += 3
        else:
            raise ProtocolError(f"unexpected column kind {kind:#x}")


def _text(message: bytes, at: int) -> tuple[str, int]:
    end = message.index(0, at)
    return message[at:end].decode(), end + 1

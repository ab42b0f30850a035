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
    row, _ = _row(message, 6, None)
    return row


def parse_update(message: bytes) -> tuple[Row, Row]:
    """The full ``(old, new)`` rows of an Update message. Raises IncompleteRow when the old row is not there in full."""
    if message[5] != _FULL:
        raise IncompleteRow("an update came without the full old row")
    old, at = _row(message, 6, None)
    if message[at] != _NEW:
        raise ProtocolError(f"update: unexpected tuple kind {message[at]:#x}")
    new, _ = _row(message, at + 1, old)
    return old, new


def parse_delete(message: bytes) -> Row:
    """The full old row of a Delete message. Raises IncompleteRow when only its key is there."""
    if message[5] == _KEY:
        raise IncompleteRow("a delete came without the full old row")
    if message[5] != _FULL:
        raise ProtocolError(f"delete: unexpected tuple kind {message[5]:#x}")
    row, _ = _row(message, 6, None)
    return row


def parse_truncate(message: bytes) -> tuple[int, ...]:
    """The oids of the tables that a Truncate message empties."""
    (count,) = _u32(message, 1)
    return struct.unpack_from(f">{count}I", message, 6)


def _row(message: bytes, at: int, old: Row | None) -> tuple[Row, int]:
    (count,) = _u16(message, at)
    at += 2
    row: Row = []
    append = row.append
    for number in range(count):
        kind = message[at]
        if kind == _TEXT:
            end = at + 5 + _u32(message, at + 1)[0]
            append(message[at + 5 : end])
            at = end
        elif kind == _NULL:
            append(None)
            at += 1
        elif kind == _UNCHANGED:
            if old is None:
                raise IncompleteRow("an unchanged TOAST value came without an old row to take it from")
            append(old[number])
            at += 1
        else:
            raise ProtocolError(f"unexpected column kind {kind:#x}")
    return row, at


def _text(message: bytes, at: int) -> tuple[str, int]:
    end = message.index(0, at)
    return message[at:end].decode(), end + 1

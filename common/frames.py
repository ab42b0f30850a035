"""Frames: what moves rows, and all that has a place among them, from the ingester to the workers (architecture.md 3).

A fixed header, then records with fixed heads, so that the ingester only copies bytes. The records that are rare have
one of the structs below in them, as MessagePack.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

import msgspec

FRAME_BYTES: Final = 256 * 1024
"""A frame is cut when it has this many bytes or when the replication socket has no more to give."""

_FRAME_HEAD = struct.Struct("<QQ")
_RECORD_HEAD = struct.Struct("<BxxxII")
_BEGIN = struct.Struct("<QQq")
_COMMIT = struct.Struct("<QQ")
_POSITION = struct.Struct("<Q")

POSITION: Final = ord("P")  # first record of an epoch: LSN the stream restarts from, partitions it feeds
BEGIN: Final = ord("B")  # commit LSN, xid (64 bit), commit time; sent before the first change this worker gets
RELATION: Final = ord("R")  # ancestors of the relation, the raw Relation message
CHANGE: Final = ord("C")  # a raw Insert, Update or Delete; index = its number in the transaction
TRUNCATE: Final = ord("T")  # a raw Truncate; index = number of its first relation
COMMIT: Final = ord("E")  # commit LSN, xid; goes to every worker; index = number of changes
ANSWER: Final = ord("A")  # Entered, Subscribed or Refused
GAP: Final = ord("G")  # Gap


def frame_head(epoch: int, seq: int) -> bytes:
    """The 16 bytes a frame starts with; ``seq`` counts the frames of an epoch to one worker from 0, without gaps."""
    return _FRAME_HEAD.pack(epoch, seq)


def record(kind: int, index: int, payload: bytes) -> bytes:
    """One record: kind, index, payload."""
    return _RECORD_HEAD.pack(kind, index, len(payload)) + payload


record_head = _RECORD_HEAD.pack
"""``record_head(kind, index, length)``: for the hot path, which appends head and payload separately."""


def position_record(lsn: int, partitions: tuple[int, ...]) -> bytes:
    """The record that opens an epoch."""
    return record(POSITION, 0, _POSITION.pack(lsn) + b"".join(p.to_bytes(2, "little") for p in partitions))


def parse_position(payload: bytes) -> tuple[int, tuple[int, ...]]:
    """``(LSN, partitions fed)`` of a POSITION record."""
    rest = payload[_POSITION.size :]
    parts = tuple(int.from_bytes(rest[i : i + 2], "little") for i in range(0, len(rest), 2))
    return _POSITION.unpack_from(payload)[0], parts


def begin_record(lsn: int, xid: int, committed_us: int) -> bytes:
    """BEGIN: ``committed_us`` is Postgres' clock in microseconds since 2000-01-01."""
    return record(BEGIN, 0, _BEGIN.pack(lsn, xid, committed_us))


parse_begin = _BEGIN.unpack
"""``(commit LSN, xid, commit time)`` of a BEGIN record."""


def commit_record(lsn: int, xid: int, changes: int) -> bytes:
    """COMMIT of a transaction with this many published changes."""
    return record(COMMIT, changes, _COMMIT.pack(lsn, xid))


parse_commit = _COMMIT.unpack
"""``(commit LSN, xid)`` of a COMMIT record."""


def relation_record(ancestors: tuple[int, ...], message: bytes) -> bytes:
    """RELATION: oids of the partitioned tables above the relation, and the raw message."""
    return record(RELATION, 0, struct.pack(f"<B{len(ancestors)}I", len(ancestors), *ancestors) + message)


def parse_relation_record(payload: bytes) -> tuple[tuple[int, ...], bytes]:
    """``(ancestors, raw Relation message)``."""
    count = payload[0]
    return struct.unpack_from(f"<{count}I", payload, 1), payload[1 + 4 * count :]


def parse_frame(frame: bytes) -> tuple[int, int]:
    """``(epoch, seq)`` of a frame."""
    epoch, seq = _FRAME_HEAD.unpack_from(frame)
    return epoch, seq


def records(frame: bytes) -> Iterator[tuple[int, int, bytes]]:
    """The ``(kind, index, payload)`` of each record of a frame. A payload is a copy and may be kept."""
    unpack = _RECORD_HEAD.unpack_from
    at, size = _FRAME_HEAD.size, len(frame)
    while at < size:
        kind, index, length = unpack(frame, at)
        at += 12
        yield kind, index, frame[at : at + length]
        at += length


# --------------------------------------------------------------------------------------------------------------------
# what rare records hold


class Entered(msgspec.Struct, tag="entered", frozen=True):
    """«From here on I send you the table; what came before, the snapshot after my answer will show.»

    Between two transactions, before the Subscribed or Refused of the same id. A new shape need hold back nothing
    until then, in particular no large transaction that is passing while its table is being published.
    """

    id: int


class Subscribed(msgspec.Struct, tag="subscribed", frozen=True):
    """The worker gets every change of the table after the commit ``position``, the last one dispatched before.

    ``unseen`` are the (64-bit) transactions dispatched so far, in this epoch or a former one, that a snapshot may not
    show yet and must (engine.md H-C, INV-42).
    """

    id: int
    position: int
    unseen: tuple[int, ...]
    table: int = 0


class Refused(msgspec.Struct, tag="refused", frozen=True):
    """The table cannot be published: why, as http-api.md §25 words it, and with which status and patience (s)."""

    id: int
    reason: str
    status: int = 503
    retry_after: int | None = 10


class Gap(msgspec.Struct, frozen=True):
    """«Shapes of this table whose snapshot is older than the position ``since`` may have missed changes: they end.»

    Repeated for every table at the start of each epoch, so that none is missed by who was away (ingester/standing.py).
    """

    table: int
    since: int
    reason: str


Answer = Subscribed | Refused
InFrame = Entered | Answer

decode_answer = msgspec.msgpack.Decoder(InFrame).decode
decode_gap = msgspec.msgpack.Decoder(Gap).decode

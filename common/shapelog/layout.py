"""The layout of a shape's files: names, the header and the index record, byte by byte (docs/storage-format.md).

Pure: values in, bytes out, and back. All numbers are little-endian and unsigned; all checksums are CRC-32C.
"""

from __future__ import annotations

import enum
import struct
from typing import Final, NamedTuple

import google_crc32c

from common.lsn import Offset

VERSION: Final = 1
"""Raised with every change of the layout. A shape of another version is not read but made anew (engine.md 13.10)."""

INDEX_NAME: Final = "log.index"
LOG_NAME: Final = "log.json"

SEPARATOR: Final = b",\n"
"""What follows every item, the last one of a file too."""

HEADER_SIZE: Final = 64
RECORD_SIZE: Final = 48

COMMIT: Final = 1
"""Record flag: a transaction ends here."""

BOUNDARY: Final = 2
"""Record flag: a chunk ends here."""

_MAGIC = b"GALVSHAP"
_HEADER = struct.Struct("<8sIIII36x")
_RECORD = struct.Struct("<QQQQIII")
_CHECKSUM = struct.Struct("<I")
_CHECKED_HEADER = struct.Struct("<8sIIII36xI")
_CHECKED_RECORD = struct.Struct("<QQQQIIII")

_crc = google_crc32c.value


class DamagedLog(Exception):
    """The files of a shape are not what the format says: serve nothing of them, end the shape."""


class SnapshotState(enum.IntEnum):
    """How far the snapshot of a shape is."""

    RUNNING = 0
    COMPLETE = 1
    FAILED = 2


_STATES = tuple(SnapshotState)


class Header(NamedTuple):
    """What a reader checks first: has the shape ended, and how many chunks of its snapshot never change any more.

    ``chunks`` counts *closed* snapshot chunks; with ``COMPLETE`` that is all of them.
    """

    ended: bool
    snapshot: SnapshotState
    chunks: int


NEW: Final = Header(ended=False, snapshot=SnapshotState.RUNNING, chunks=0)


class Record(NamedTuple):
    """A place in the log: everything up to ``end`` are entries at or below ``(lsn, op)``.

    ``running`` is the payload since the last chunk boundary (entries without separators), ``closed`` the number of
    boundaries so far, this one included; ``block_crc`` the checksum of the log's bytes since the record before.
    """

    lsn: int
    op: int
    end: int
    running: int
    closed: int
    flags: int
    block_crc: int

    @property
    def offset(self) -> Offset:
        """The offset of the last entry before ``end``."""
        return Offset(self.lsn, self.op)


def snapshot_name(chunk: int) -> str:
    """The file of the snapshot's chunk with this number, counted from 0."""
    return f"snapshot.{chunk:04d}.json"


def record_position(index: int) -> int:
    """Where in ``log.index`` the record with this number begins."""
    return HEADER_SIZE + RECORD_SIZE * index


def encode_header(header: Header) -> bytes:
    """The header's 64 bytes."""
    body = _HEADER.pack(_MAGIC, VERSION, header.ended, header.snapshot, header.chunks)
    return body + _CHECKSUM.pack(_crc(body))


def decode_header(data: bytes) -> Header | None:
    """The header in these bytes; ``None`` if the checksum says they are torn (read again, or give up).

    Raises :class:`DamagedLog` when they are intact but no header that this version understands.
    """
    if len(data) != HEADER_SIZE:
        return None
    magic, version, ended, snapshot, chunks, crc = _CHECKED_HEADER.unpack(data)
    if crc != _crc(data[:-4]):
        return None
    if magic != _MAGIC or version != VERSION or ended > 1 or snapshot >= len(_STATES):
        raise DamagedLog(f"the header of {INDEX_NAME} is not of format version {VERSION}")
    return Header(ended == 1, _STATES[snapshot], chunks)


def encode_record(lsn: int, op: int, end: int, running: int, closed: int, flags: int, block_crc: int) -> bytes:
    """An index record's 48 bytes; for the fields see :class:`Record`."""
    body = _RECORD.pack(lsn, op, end, running, closed, flags, block_crc)
    return body + _CHECKSUM.pack(_crc(body))


def decode_record(data: bytes, at: int = 0) -> Record | None:
    """The record at ``at``, or ``None`` when there is none: too few bytes, a wrong checksum, flags without meaning."""
    if len(data) < at + RECORD_SIZE:
        return None
    lsn, op, end, running, closed, flags, block_crc, crc = _CHECKED_RECORD.unpack_from(data, at)
    if crc != _crc(data[at : at + RECORD_SIZE - 4]) or not 0 < flags <= COMMIT | BOUNDARY:
        return None
    return Record(lsn, op, end, running, closed, flags, block_crc)

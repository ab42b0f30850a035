"""Which part of a shape answers an offset, and the bytes of that part (http-api.md 12.5, 13).

Files hold items, each followed by a comma and a newline; a body is ``[``, a range of a file, perhaps the up-to-date
item, ``]``. Ranges larger than :data:`SLICE` are sent from the file (:mod:`gateway.extent`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from functools import partial
from typing import Final, NamedTuple

from common.lsn import BEFORE_ALL, MAX_LSN, OP_INFINITE, SNAPSHOT_END, Offset
from common.shapelog.layout import Header, Record, SnapshotState
from common.shapelog.reader import LogRange, ShapeReader
from gateway.extent import Extent, FileBody
from gateway.shape import ShapeGone

SLICE: Final = 64 * 1024
"""The most bytes of a log that one client pins in memory: thousands may stop reading."""

SHARED: Final = 256 * 1024
"""The most bytes of a log in an answer that is made once for all who wait for it."""

PIECE: Final = 256 * 1024
"""Bytes that a thread reads at once."""

GROWTH_POLL: Final = 0.002
SLOWEST_GROWTH_POLL: Final = 0.02
"""Seconds between looks at a snapshot that is being written: while it grows, and once it has not grown for a while."""

FIRST_CHUNK_TIMEOUT: Final = 90.0
NEXT_CHUNK_TIMEOUT: Final = 60.0
GROWTH_TIMEOUT: Final = 90.0
"""Seconds to wait for the first bytes of chunk 0, of a later chunk, and for each further growth of one."""

_SEPARATOR: Final = 2
"""Bytes of the separator; the last one of a body is left out."""

_BEYOND_ALL: Final = Offset(MAX_LSN, OP_INFINITE)


class SnapshotStalled(Exception):
    """The snapshot made no progress for too long."""


class Position(NamedTuple):
    """A range of the log, and the log's last offset when it was found."""

    range: LogRange
    last: Offset

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to return."""
        return self.range.start == self.range.end


def snapshot_chunk(offset: Offset, header: Header) -> int | None:
    """The snapshot chunk that answers ``offset``, or ``None`` when the log does (http-api.md 12.5).

    The chunk may not exist yet while the snapshot is being written.
    """
    if offset == BEFORE_ALL:
        return 0
    if not offset.is_virtual or offset.op >= OP_INFINITE:
        return None
    chunk = offset.op + 1
    return None if header.snapshot is SnapshotState.COMPLETE and chunk >= header.chunks else chunk


def is_closed(chunk: int, header: Header) -> bool:
    """Whether the bytes of this chunk are final."""
    return header.chunks > chunk


def resume_lsn(end: Offset) -> int:
    """The LSN of which clients of events make the offset ``<LSN>_0`` that they resume at, having all up to ``end``.

    Its transaction's own LSN would give them the changes behind its first one again. One more is no commit's LSN, since
    a commit record is longer than a byte: it lies behind this transaction and before any other, and claims no more.
    """
    return end.tx if end.op == 0 else end.tx + 1


def _is_end(offset: Offset, last: Offset) -> bool:
    """Whether ``offset``, though above the log's last one, is the place behind it that :func:`resume_lsn` names."""
    return not last.is_virtual and offset == (resume_lsn(last), 0)


def last_offset(end: Record | None, offset: Offset) -> Offset:
    """The last offset of a log with this end, as it counts for a client at ``offset``: the place behind the end that
    :func:`resume_lsn` names is the end."""
    last = SNAPSHOT_END if end is None else end.offset
    return offset if _is_end(offset, last) else last


def locate(reader: ShapeReader, offset: Offset) -> tuple[Position, Record | None]:
    """What the log has after ``offset``, and the log's end, both as of one look.

    An empty range means that the log really ends there. Raises ``DamagedLog``, ``OSError``.
    """
    part, end = reader.position(offset)
    last = last_offset(end, offset)
    return Position(part._replace(end_offset=last) if part.start == part.end else part, last), end


def rest(reader: ShapeReader, offset: Offset) -> LogRange:
    """All that the log has after ``offset``, over the ends of chunks; empty, with the log's end, if nothing.

    It ends with a transaction. Raises ``DamagedLog``, ``OSError``.
    """
    # In this order: what is committed does not change, so the first of two looks sets the end.
    last = reader.after(_BEYOND_ALL)
    if _is_end(offset, last.end_offset):
        return last._replace(end_offset=offset)
    return last if last.end_offset <= offset else last._replace(start=reader.after(offset).start)


def body(reader: ShapeReader, part: LogRange, tail: bytes) -> bytes:
    """A whole body; ``tail`` is the up-to-date item or nothing. Raises ``DamagedLog``, ``OSError``."""
    # An empty log has no file.
    data = reader.read_log(part.start, part.end - part.start) if part.end > part.start else b""
    return b"[" + _trimmed(data, tail) + tail + b"]"


def file_body(reader: ShapeReader, part: LogRange, tail: bytes) -> FileBody:
    """The same, to be sent from the log's file; its extent raises as :func:`body` when it is read."""
    end = part.end if tail else part.end - _SEPARATOR
    return FileBody(b"[", Extent(reader.log_descriptor, reader.read_log, part.start, end), tail + b"]")


def range_pieces(reader: ShapeReader, part: LogRange) -> Iterator[bytes]:
    """The same without a tail in pieces, for a thread with a reader of its own. Raises as :func:`body`."""
    yield b"["
    for start in range(part.start, part.end, PIECE):
        size = min(PIECE, part.end - start)
        data = reader.read_log(start, size)
        yield data if start + size < part.end else _trimmed(data, b"")
    yield b"]"


def range_length(part: LogRange) -> int:
    """The length of the body that :func:`range_pieces` gives."""
    return part.end - part.start - _SEPARATOR + len(b"[]")


def _trimmed(data: bytes, tail: bytes) -> bytes:
    return data if tail else data[:-_SEPARATOR]


async def await_chunk(header: Callable[[], Header], reader: ShapeReader, chunk: int) -> bool:
    """Wait for the first bytes of a snapshot chunk; ``False`` if the snapshot ended without it.

    Raises ``ShapeGone`` (from ``header`` too, which also fails on a failed snapshot), :class:`SnapshotStalled`.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + (NEXT_CHUNK_TIMEOUT if chunk else FIRST_CHUNK_TIMEOUT)
    pause = GROWTH_POLL
    while True:
        now = header()
        if is_closed(chunk, now):
            return True
        if now.snapshot is SnapshotState.COMPLETE:
            return False
        if _size(reader, chunk) > _SEPARATOR:
            return True
        if loop.time() > deadline:
            raise SnapshotStalled
        pause = await _pause(pause)


async def growing(
    header: Callable[[], Header], reader: ShapeReader, chunk: int
) -> AsyncGenerator[bytes | Extent, None]:
    """The pieces of a snapshot chunk, followed as it grows. It ends only when the chunk is closed (engine.md INV-22).

    Raises ``ShapeGone``, :class:`SnapshotStalled`, ``OSError``; what came before is then worthless.
    """
    loop = asyncio.get_running_loop()
    yield b"["
    at = 0
    deadline = loop.time() + GROWTH_TIMEOUT
    pause = GROWTH_POLL
    while True:
        # In this order: once the header says closed, the size read after it is final.
        closed = is_closed(chunk, header())
        end = (final_size(reader, chunk) if closed else _size(reader, chunk)) - _SEPARATOR
        if at < end:
            yield _chunk_extent(reader, chunk, at, end)
            at = end
            deadline, pause = loop.time() + GROWTH_TIMEOUT, GROWTH_POLL
        if closed:
            break
        if loop.time() > deadline:
            raise SnapshotStalled
        pause = await _pause(pause)
    yield b"]"


def closed_length(header: Header, reader: ShapeReader, chunk: int) -> int | None:
    """The length of the body that a closed chunk makes; ``None`` while it grows. Raises ``ShapeGone``, ``OSError``."""
    if not is_closed(chunk, header):
        return None
    return final_size(reader, chunk) - _SEPARATOR + len(b"[]")


def closed_body(reader: ShapeReader, chunk: int) -> bytes:
    """The whole body that a closed chunk makes. Raises ``ShapeGone``, ``OSError``."""
    size = final_size(reader, chunk)
    data = read_chunk(reader, chunk, 0, size)
    if len(data) != size:
        raise ShapeGone("a closed chunk of the snapshot shrank")
    return b"[" + data[:-_SEPARATOR] + b"]"


def closed_file_body(reader: ShapeReader, chunk: int, length: int) -> FileBody:
    """The same, to be sent from its file; ``length`` as :func:`closed_length` told. Its extent, when it is read, raises
    ``ShapeGone``, ``OSError``."""
    return FileBody(b"[", _chunk_extent(reader, chunk, 0, length - len(b"[]")), b"]")


def _chunk_extent(reader: ShapeReader, chunk: int, start: int, end: int) -> Extent:
    return Extent(partial(reader.snapshot_descriptor, chunk), partial(read_chunk, reader, chunk), start, end)


def closed_pieces(reader: ShapeReader, chunk: int, length: int) -> Iterator[bytes]:
    """The body that a closed chunk makes, for a thread with a reader of its own; ``length`` as :func:`closed_length`
    told. Raises ``OSError``."""
    yield b"["
    end = length - len(b"[]")
    for start in range(0, end, PIECE):
        yield reader.read_snapshot(chunk, start, min(PIECE, end - start))
    yield b"]"


async def await_closed(header: Callable[[], Header], reader: ShapeReader, chunk: int) -> int:
    """Wait until a chunk is closed and return the length of the body it makes. Raises as :func:`growing`."""
    loop = asyncio.get_running_loop()
    size, deadline, pause = -1, loop.time() + GROWTH_TIMEOUT, GROWTH_POLL
    while not is_closed(chunk, header()):
        before, size = size, _size(reader, chunk)
        if size != before:
            deadline, pause = loop.time() + GROWTH_TIMEOUT, GROWTH_POLL
        elif loop.time() > deadline:
            raise SnapshotStalled
        pause = await _pause(pause)
    return final_size(reader, chunk) - _SEPARATOR + len(b"[]")


async def _pause(seconds: float) -> float:
    """Give the snapshot time to grow; returns how much to give it next, if it has not."""
    await asyncio.sleep(seconds)
    return min(2 * seconds, SLOWEST_GROWTH_POLL)


def _size(reader: ShapeReader, chunk: int) -> int:
    """Bytes of a chunk's file; 0 while it is not there. A shape that is gone is told by its header."""
    try:
        return reader.snapshot_size(chunk)
    except FileNotFoundError:
        return 0


def final_size(reader: ShapeReader, chunk: int) -> int:
    """The bytes of a closed chunk's file, the last separator included. Raises ``ShapeGone``, ``OSError``."""
    try:
        return reader.snapshot_size(chunk)
    except FileNotFoundError:
        raise ShapeGone("a closed chunk of the snapshot is gone") from None


def read_chunk(reader: ShapeReader, chunk: int, start: int, size: int) -> bytes:
    """Bytes of a snapshot chunk that are known to be there. Raises ``ShapeGone`` if they are not, ``OSError``."""
    try:
        data = reader.read_snapshot(chunk, start, size)
    except FileNotFoundError:
        data = b""
    if not data:
        raise ShapeGone("a chunk of the snapshot is gone or shrank")
    return data

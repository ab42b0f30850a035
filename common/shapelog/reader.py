"""The reader of a shape: which bytes answer an offset, and those bytes. For other processes than the writer's.

Nothing that can change is kept between calls, but for what the bytes of a record were found to mean. What is read may
be torn by a write under way, or cut by a writer that takes something back; checksums tell, and then the reader looks
again.
"""

from __future__ import annotations

import re
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from common.lsn import SNAPSHOT_END, Offset
from common.shapelog.files import READ, REAL, Files
from common.shapelog.layout import (
    COMMIT,
    HEADER_SIZE,
    INDEX_NAME,
    LOG_NAME,
    RECORD_SIZE,
    DamagedLog,
    Header,
    Record,
    decode_header,
    decode_record,
    record_position,
    snapshot_name,
)
from common.shapelog.recovery import find_end

SLICE_BYTES: Final = 256 << 10
"""The most that a search reads at once."""

_ATTEMPTS = 16
_PAUSE = 0.001
_RECORDS_PER_BLOCK = 64
_RECORDS_AHEAD = 4
"""Read behind the end that was found last: one more than may have come for them to be all."""

_OP = b'"op_position":'
_NUMBER = re.compile(rb"(\d+)[,}]")
_OP_BYTES = len(_OP) + 21
"""An op position with its key, at its longest, and the byte that ends it."""


class LogRange(NamedTuple):
    """Bytes ``start`` to ``end`` of the log: whole items with their separators, the last one at ``end_offset``."""

    start: int
    end: int
    end_offset: Offset


class _Changed(Exception):
    """The index is not what it was when this look at it began."""


class _Committed:
    """One look at the index: its records up to the last commit, read in blocks as needed."""

    __slots__ = ("_blocks", "_fd", "_files", "count", "last", "tail")

    def __init__(self, files: Files, fd: int) -> None:
        self._files = files
        self._fd = fd
        self._blocks: dict[int, bytes] = {}
        self.count = 0
        """How many records there are up to the last commit."""
        self.last: Record | None = None
        """The last commit."""
        self.tail = 0
        """The first record of the block that holds the last commit; that block is in memory."""
        at = (files.size(fd) - HEADER_SIZE) // RECORD_SIZE - 1
        while at >= 0:
            # Behind the last commit there may be records of a transaction being committed, the last of them torn.
            block = self._block(at // _RECORDS_PER_BLOCK)
            record = decode_record(block, at % _RECORDS_PER_BLOCK * RECORD_SIZE)
            if record is not None and record.flags & COMMIT:
                self.count = at + 1
                self.last = record
                self.tail = at - at % _RECORDS_PER_BLOCK
                break
            at -= 1

    def record(self, at: int) -> Record:
        """The record with this number. Raises ``_Changed`` when it is not there any more."""
        found = decode_record(self._block(at // _RECORDS_PER_BLOCK), at % _RECORDS_PER_BLOCK * RECORD_SIZE)
        if found is None:
            raise _Changed
        return found

    def first_after(self, offset: Offset) -> int:
        """The number of the first record above ``offset``; the last one is above it.

        Most requests are near the end, so that is tried first.
        """
        count, tail = self.count, self.tail
        if count == 1 or self.record(count - 2)[:2] <= offset:
            return count - 1
        low, high = (tail, count) if tail == 0 or self.record(tail)[:2] <= offset else (0, tail)
        key: tuple[int, int] = offset
        return bisect_right(range(count), key, lo=low, hi=high, key=lambda at: self.record(at)[:2])

    def first_closing(self, closed: int, start: int) -> int | None:
        """The number of the first record from ``start`` on that ends more than ``closed`` chunks, if there is one."""
        if self.last is None or self.last.closed <= closed:
            return None
        return bisect_right(range(self.count), closed, lo=start, key=lambda at: self.record(at).closed)

    def _block(self, number: int) -> bytes:
        block = self._blocks.get(number)
        if block is None:
            position = record_position(number * _RECORDS_PER_BLOCK)
            block = self._files.pread(self._fd, _RECORDS_PER_BLOCK * RECORD_SIZE, position)
            self._blocks[number] = block
        return block


class ShapeReader:
    """Reads one shape; it goes on doing so when the directory is moved away, and :meth:`header` says that it ended.

    Open it only after the shape's writer has opened it (that is when a log is recovered), or ask :meth:`is_whole`. For
    one thread.
    """

    __slots__ = ("_before", "_directory", "_end", "_files", "_header", "_index", "_log", "_snapshot", "_snapshot_chunk")

    def __init__(self, directory: Path, files: Files = REAL) -> None:
        """Raises ``FileNotFoundError`` when there is no such shape, ``OSError``."""
        self._directory = directory
        self._files = files
        self._log = -1
        self._snapshot = -1
        self._snapshot_chunk = -1
        self._header: tuple[bytes, Header] | None = None
        self._end: tuple[int, bytes, Record | None] = HEADER_SIZE, b"", None
        """The last commit that was found at the end of the index: where, its bytes, and what they mean."""
        self._before: Record | None = None
        """What was the end before, if it is known to be in the log still."""
        self._index = files.open(directory / INDEX_NAME, READ)

    def header(self) -> Header:
        """The header as it is now. Raises :class:`DamagedLog`, ``OSError``."""
        for _ in _attempts():
            data = self._files.pread(self._index, HEADER_SIZE, 0)
            if self._header is not None and self._header[0] == data:
                return self._header[1]
            header = decode_header(data)
            if header is not None:
                self._header = data, header
                return header
        raise DamagedLog(f"the header of {INDEX_NAME} is torn")

    def is_whole(self, acknowledged: int) -> bool:
        """Whether the log can be read as it is although perhaps nobody has recovered it since the machine went down.

        That is so when recovery would keep its last commit. ``acknowledged``: an LSN up to which all is durable, from
        *before* this call. Reads what is above it, so this is for a thread of its own. Raises ``OSError``.
        """
        last = self.last()
        try:
            log = self._files.open(self._directory / LOG_NAME, READ)
        except FileNotFoundError:
            log = None
        try:
            return find_end(self._files, self._index, log, acknowledged).last >= last
        except DamagedLog:
            return False
        finally:
            if log is not None:
                self._files.close(log)

    def last(self) -> Offset:
        """The offset of the last committed entry, ``0_inf`` if there is none (http-api.md 12.4). Raises ``OSError``."""
        end = self.end()
        return SNAPSHOT_END if end is None else end.offset

    def end(self) -> Record | None:
        """The record of the last commit, ``None`` if there is none: while it is the same, so is the log. Raises
        ``OSError``."""
        position, known, end = self._end
        wanted = len(known) + _RECORDS_AHEAD * RECORD_SIZE
        data = self._files.pread(self._index, wanted, position)
        if data == known:
            # It is there, and nothing behind it.
            return end
        if data.startswith(known) and len(data) < wanted:
            # It is there, and so is all that has come since.
            start = (len(data) // RECORD_SIZE - 1) * RECORD_SIZE
            record = decode_record(data, start) if start >= len(known) else None
            if record is not None and record.flags & COMMIT:
                self._before = end
                self._end = position + start, data[start : start + RECORD_SIZE], record
                return record
        self._before = None
        at = (self._files.size(self._index) - HEADER_SIZE) // RECORD_SIZE - 1
        if at >= 0:
            data = self._files.pread(self._index, RECORD_SIZE, record_position(at))
            record = decode_record(data)
            if record is not None and record.flags & COMMIT:
                self._end = record_position(at), data, record
                return record
        # What is behind the last commit is still being written.
        return _Committed(self._files, self._index).last

    def after(self, offset: Offset) -> LogRange:
        """What a request at ``offset`` gets from the log (http-api.md 12.5, last data row).

        The entries above ``offset`` up to the end of the closed chunk that holds the first of them, else up to the last
        commit; an empty range with ``end_offset`` = :meth:`last` when there are none (an offset beyond the end
        included). The log may grow meanwhile: whether ``end_offset`` is its end, and not a chunk boundary inside a
        later transaction, tells only a :meth:`last` called *after* this. Raises :class:`DamagedLog`, ``OSError``.
        """
        return self.position(offset)[0]

    def position(self, offset: Offset) -> tuple[LogRange, Record | None]:
        """As :meth:`after`, and the :meth:`end` that the log had at that very look. Raises as :meth:`after`."""
        before = self._before
        if before is not None and before[:2] == offset:
            # Whoever follows the log asks for what has come since.
            last = self.end()
            if last is not None and self._before is before and last.closed == before.closed:
                return LogRange(before.end, last.end, last.offset), last
        for _ in _attempts():
            try:
                index = _Committed(self._files, self._index)
                return self._after(offset, index), index.last
            except _Changed:
                continue
        raise DamagedLog(f"{INDEX_NAME} has broken records below its last commit")

    def read_log(self, start: int, size: int) -> bytes:
        """``size`` bytes of the log from ``start``, within what :meth:`after` gave.

        Raises :class:`DamagedLog` when the file is shorter than the index says, ``OSError``.
        """
        if size <= 0:
            return b""  # also of a log without entries, which has no file yet
        fd = self.log_descriptor()
        data = self._files.pread(fd, size, start)
        while len(data) < size:
            more = self._files.pread(fd, size - len(data), start + len(data))
            if not more:
                raise DamagedLog(f"{LOG_NAME} is shorter than {INDEX_NAME} says")
            data += more
        return data

    def log_descriptor(self) -> int:
        """The descriptor of the log's file, good until :meth:`close`. Raises ``OSError``; an empty log has no file."""
        if self._log < 0:
            self._log = self._files.open(self._directory / LOG_NAME, READ)
        return self._log

    def snapshot_size(self, chunk: int) -> int:
        """How many bytes the file of this snapshot chunk holds now; final once the header counts the chunk as closed.

        Raises ``FileNotFoundError`` when it does not exist (yet, or any more), ``OSError``.
        """
        return self._files.size(self.snapshot_descriptor(chunk))

    def read_snapshot(self, chunk: int, start: int, size: int) -> bytes:
        """Up to ``size`` bytes of a snapshot chunk; fewer only where its file ends at present.

        Raises ``FileNotFoundError`` as :meth:`snapshot_size`, ``OSError``.
        """
        return self._files.pread(self.snapshot_descriptor(chunk), size, start)

    def snapshot_descriptor(self, chunk: int) -> int:
        """The descriptor of a snapshot chunk's file, good until another chunk is asked for, or :meth:`close`.

        Raises ``FileNotFoundError`` as :meth:`snapshot_size`, ``OSError``.
        """
        if chunk != self._snapshot_chunk:
            fd = self._files.open(self._directory / snapshot_name(chunk), READ)
            if self._snapshot >= 0:
                self._files.close(self._snapshot)
            self._snapshot, self._snapshot_chunk = fd, chunk
        return self._snapshot

    def close(self) -> None:
        """Close the files. May be repeated."""
        for fd in (self._index, self._log, self._snapshot):
            if fd >= 0:
                self._files.close(fd)
        self._index = self._log = self._snapshot = self._snapshot_chunk = -1

    def _after(self, offset: Offset, index: _Committed) -> LogRange:
        last = index.last
        if last is None:
            return LogRange(0, 0, SNAPSHOT_END)
        if last[:2] <= offset:
            return LogRange(last.end, last.end, last.offset)
        at = index.first_after(offset)
        first = index.record(at)
        before = index.record(at - 1) if at else None
        start = before.end if before else 0
        if first.lsn == offset.tx and (before is None or before[:2] < offset):
            start = find_entry(self.read_log, start, first.end, offset.op)
        closing = index.first_closing(before.closed if before else 0, at)
        end = last if closing is None else index.record(closing)
        return LogRange(start, end.end, end.offset)


def _attempts() -> Iterator[None]:
    """Turns at reading what a writer may be writing; late ones wait, for a writer stopped in the middle of it."""
    for attempt in range(_ATTEMPTS):
        if attempt >= _ATTEMPTS // 2:
            time.sleep(_PAUSE)
        yield


def find_entry(read: Callable[[int, int], bytes], start: int, end: int, op: int) -> int:
    """Where in ``start … end``, whole lines of one transaction, the first entry above ``op`` begins.

    ``read(start, size)`` gives bytes of the log. Only a client that invents offsets needs this search: those we give
    out are ends of blocks. Lines without op position (move-ins) belong to the numbered line after them. Memory is
    bounded by a slice, whatever the length of a line: a longer one passes through, and its last op position counts.
    """
    found = start
    position = start
    carry = b""
    line_op: int | None = None
    while position < end:
        data = carry + read(position, min(SLICE_BYTES, end - position))
        base = position - len(carry)
        position = base + len(data)
        complete = data.rfind(b"\n") + 1
        if complete:
            # Ops increase: a slice whose last line is not above `op` need not be looked at line by line.
            last_line = data.rfind(b"\n", 0, complete - 1) + 1
            last_op = _op_position(data, last_line, complete, line_op if last_line == 0 else None)
            if last_op is not None and last_op <= op:
                found = base + complete
            else:
                line = 0
                while line < complete:
                    line_end = data.index(b"\n", line) + 1
                    this_op = _op_position(data, line, line_end, line_op if line == 0 else None)
                    if this_op is not None:
                        if this_op > op:
                            return found
                        found = base + line_end
                    line = line_end
            line_op = None
        # A number cut by the end of the slice is within the bytes carried over, and then read again.
        line_op = _op_position(data, complete, len(data), line_op)
        carry = data[max(complete, len(data) - _OP_BYTES) :]
    return found


def _op_position(data: bytes, start: int, end: int, default: int | None) -> int | None:
    """The number after the last ``"op_position":`` within a line: the one in its headers, not a column's.

    As a key it cannot occur inside a JSON string, where its quotes would be escaped.
    """
    at = data.rfind(_OP, start, end)
    if at < 0:
        return default
    number = _NUMBER.match(data, at + len(_OP), end)
    return int(number[1]) if number else default

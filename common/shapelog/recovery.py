"""Recovery: where a log ends, after whatever happened to its last writer (engine.md INV-26, architecture.md 6).

Records of acknowledged transactions were synced before anybody counted on them, and are believed. All others may have
reached the disk in any order or in part, and count only as long as record and bytes agree without a gap from the first.
"""

from __future__ import annotations

import errno
from bisect import bisect_left
from typing import NamedTuple

import google_crc32c

from common.lsn import SNAPSHOT_END, Offset
from common.shapelog.files import Files, write_all
from common.shapelog.layout import (
    BOUNDARY,
    COMMIT,
    INDEX_NAME,
    LOG_NAME,
    RECORD_SIZE,
    DamagedLog,
    Record,
    decode_record,
    record_position,
)

_SLICE = 1 << 20
_RECORDS_AT_ONCE = 1024


class LogEnd(NamedTuple):
    """The state of a log at its last good commit.

    ``records`` and ``end`` (bytes) are what to keep of ``log.index`` and ``log.json``; ``running`` and ``closed`` say
    where in its chunk the next entry goes. Up to ``durable_records`` and ``durable_end`` everything is acknowledged.
    """

    records: int
    end: int
    last: Offset
    running: int
    closed: int
    durable_records: int
    durable_end: int

    @property
    def unsynced(self) -> bool:
        """Whether records above the acknowledged LSN were kept."""
        return self.records > self.durable_records


EMPTY = LogEnd(records=0, end=0, last=SNAPSHOT_END, running=0, closed=0, durable_records=0, durable_end=0)

_START = Record(lsn=0, op=0, end=0, running=0, closed=0, flags=COMMIT, block_crc=0)
"""Stands for the place before the first record."""


def find_end(files: Files, index: int, log: int | None, acknowledged: int) -> LogEnd:
    """The last commit that may be kept, of a log with the open files ``index`` and ``log`` (``None``: not there).

    ``acknowledged`` is an LSN up to which everything is known to be durable; 0 when nothing is known. Raises
    :class:`DamagedLog` when something at or below it is missing or wrong as far as that shows, ``OSError``.
    """
    count = max(0, files.size(index) - record_position(0)) // RECORD_SIZE
    log_size = files.size(log) if log is not None else 0

    def record(at: int) -> Record | None:
        return decode_record(files.pread(index, RECORD_SIZE, record_position(at)))

    def is_untrusted(at: int) -> bool:
        # Trusted records are whole, so a broken one lies above them and the search stays monotone.
        found = record(at)
        return found is None or found.lsn > acknowledged

    trusted = bisect_left(range(count), True, key=is_untrusted)
    before = _START
    if trusted:
        found = record(trusted - 1)
        if found is None or not found.flags & COMMIT or found.end > log_size:
            raise DamagedLog(f"{INDEX_NAME} or {LOG_NAME} lacks a part that was durable at {acknowledged}")
        before = found
    durable_end = before.end

    kept, last = trusted, before
    for at in range(trusted, count):
        found = record(at)
        if found is None or log is None or not _follows(found, before, log_size):
            _refuse_trusted(files, index, at, count, acknowledged)
            break
        if _checksum(files, log, before.end, found.end) != found.block_crc:
            break
        before = found
        if found.flags & COMMIT:
            kept, last = at + 1, found
    if not kept:
        return EMPTY
    return LogEnd(kept, last.end, last.offset, last.running, last.closed, trusted, durable_end)


def write_again(files: Files, fd: int, start: int, end: int) -> None:
    """Make this part of a file reach the disk with the next sync, whatever became of earlier ones.

    After a failed sync the kernel may show bytes that are not on the disk and count them as clean; if the process died
    before it could end the shape, nobody knows. Raises ``OSError``.
    """
    while start < end:
        data = files.pread(fd, min(_SLICE, end - start), start)
        if not data:
            raise OSError(errno.EIO, "a file became shorter while it was read")
        write_all(files, fd, data, start)
        start += len(data)


def _follows(record: Record, before: Record, log_size: int) -> bool:
    """Whether a record can come right after another one in a log of this size."""
    return (
        before.end < record.end <= log_size
        and before[:2] < record[:2]
        and (before.flags & COMMIT != 0 or record.lsn == before.lsn)
        and record.closed == before.closed + (record.flags & BOUNDARY != 0)
    )


def _checksum(files: Files, log: int, start: int, end: int) -> int:
    """CRC-32C of a range of the log; of what there is of it if the file is shorter."""
    crc = 0
    while start < end:
        data = files.pread(log, min(_SLICE, end - start), start)
        if not data:
            break
        crc = google_crc32c.extend(crc, data)
        start += len(data)
    return crc


def _refuse_trusted(files: Files, index: int, start: int, count: int, acknowledged: int) -> None:
    """Raise :class:`DamagedLog` if acknowledged records lie behind a broken one: cutting there would lose them."""
    while start < count:
        data = files.pread(index, _RECORDS_AT_ONCE * RECORD_SIZE, record_position(start))
        whole = len(data) // RECORD_SIZE
        if not whole:
            return
        for at in range(whole):
            record = decode_record(data, at * RECORD_SIZE)
            if record is not None and record.lsn <= acknowledged:
                raise DamagedLog(f"{INDEX_NAME} is broken below {acknowledged}, where it was durable")
        start += whole

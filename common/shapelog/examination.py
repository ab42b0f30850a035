"""Is a shape on the disk what it should be? Asked by its writer when somebody could not read it (engine.md INV-28).

Readers trust the index and the log for speed; this trusts nothing. A shape that fails is to be ended.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final

import google_crc32c

from common.lsn import SNAPSHOT_END, Offset
from common.shapelog.files import READ, REAL, Files
from common.shapelog.layout import (
    BOUNDARY,
    COMMIT,
    HEADER_SIZE,
    INDEX_NAME,
    LOG_NAME,
    RECORD_SIZE,
    SEPARATOR,
    DamagedLog,
    Header,
    decode_header,
    decode_record,
    record_position,
    snapshot_name,
)

_TORN_LOOKS: Final = 16
_TORN_PAUSE: Final = 0.001
_RECORDS_AT_ONCE: Final = 1024
_SLICE: Final = 1 << 20


def look(directory: Path, files: Files = REAL) -> Header:
    """The header of a shape that can be read: a few system calls. Raises :class:`DamagedLog`, ``OSError``."""
    index = _open(files, directory / INDEX_NAME)
    try:
        for attempt in range(_TORN_LOOKS):
            if attempt:
                time.sleep(_TORN_PAUSE)
            header = decode_header(files.pread(index, HEADER_SIZE, 0))
            if header is not None:
                return header
    finally:
        files.close(index)
    raise DamagedLog(f"the header of {INDEX_NAME} is torn")


def examine(directory: Path, last: Offset, files: Files = REAL) -> None:
    """Read everything of a shape whose log ends at ``last``, or later, and return if all of it fits together.

    Its writer may go on meanwhile. Takes as long as reading the log does: for a thread. Raises :class:`DamagedLog` with
    what is wrong, ``OSError`` when the disk does not let it be read.
    """
    header = look(directory, files)
    if header.ended:
        raise DamagedLog(f"{INDEX_NAME} is marked as ended")
    for chunk in range(header.chunks):
        _check_chunk(files, directory / snapshot_name(chunk))
    index = _open(files, directory / INDEX_NAME)
    try:
        end = _check_records(files, index, directory / LOG_NAME)
    finally:
        files.close(index)
    if end < last:
        raise DamagedLog(f"{INDEX_NAME} ends at {end} instead of {last}")


def _open(files: Files, path: Path) -> int:
    try:
        return files.open(path, READ)
    except (FileNotFoundError, NotADirectoryError):
        raise DamagedLog(f"{path.name} is missing") from None


def _check_chunk(files: Files, path: Path) -> None:
    chunk = _open(files, path)
    try:
        size = files.size(chunk)
        if files.pread(chunk, len(SEPARATOR), max(0, size - len(SEPARATOR))) != SEPARATOR:
            raise DamagedLog(f"{path.name} was cut off")
    finally:
        files.close(chunk)


def _check_records(files: Files, index: int, log_path: Path) -> Offset:
    """Follow the records to the last commit, each with the bytes it speaks of; where the log ends."""
    count = max(0, files.size(index) - record_position(0)) // RECORD_SIZE
    while count:
        # What lies behind the last commit is being written.
        record = decode_record(files.pread(index, RECORD_SIZE, record_position(count - 1)))
        if record is not None and record.flags & COMMIT:
            break
        count -= 1
    if not count:
        return SNAPSHOT_END
    log = _open(files, log_path)
    try:
        end, closed, before = 0, 0, (0, 0)
        for first in range(0, count, _RECORDS_AT_ONCE):
            data = files.pread(index, min(_RECORDS_AT_ONCE, count - first) * RECORD_SIZE, record_position(first))
            for at in range(0, len(data), RECORD_SIZE):
                record = decode_record(data, at)
                if record is None or record.end <= end or record[:2] <= before:
                    raise DamagedLog(f"{INDEX_NAME}: record {first + at // RECORD_SIZE} is broken")
                closed += record.flags & BOUNDARY != 0
                if record.closed != closed or _checksum(files, log, end, record.end) != record.block_crc:
                    raise DamagedLog(f"{LOG_NAME} is broken between {end} and {record.end}")
                end, before = record.end, record[:2]
    finally:
        files.close(log)
    return Offset(*before)


def _checksum(files: Files, log: int, start: int, end: int) -> int:
    crc = 0
    while start < end:
        data = files.pread(log, min(_SLICE, end - start), start)
        if not data:
            return -1
        crc = google_crc32c.extend(crc, data)
        start += len(data)
    return crc

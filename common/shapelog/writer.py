"""The writer of a shape's log: entries in, wire bytes and index records out.

What is written depends only on the transactions and the state before the first of them, never on how the entries were
cut into calls, when buffers were flushed or what failed in between (engine.md INV-24): so a replay repeats bytes and
chunk boundaries exactly. One thread, the worker's loop, calls everything but :meth:`LogWriter.sync`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import google_crc32c

from common.lsn import MAX_LSN, Offset
from common.shapelog.files import CREATE, REAL, UPDATE, Files, SyncedFile, write_all
from common.shapelog.header import HeaderFile
from common.shapelog.layout import (
    BOUNDARY,
    COMMIT,
    LOG_NAME,
    SEPARATOR,
    encode_record,
    record_position,
)
from common.shapelog.recovery import EMPTY, LogEnd, find_end, write_again

BUFFER_BYTES: Final = 1 << 20
"""How much of an open transaction is kept in memory before it goes to the file, unseen by readers."""

_LAST = b',"last":true}}'
_ADDED = len(_LAST) - len("}}")
_extend = google_crc32c.extend
_checksum = google_crc32c.value


class LogWriter:
    """Appends transactions to one shape's log. At most one exists per shape, in one process (engine.md INV-27).

    :attr:`last` is the offset of the last committed entry, ``0_inf`` when there is none. :attr:`unsynced` tells that
    the log holds transactions above the acknowledged LSN that recovery found whole, but perhaps only in the page cache:
    :meth:`sync` before counting them durable. :attr:`header` is for the writer of the snapshot.

    When a write fails with ``OSError``, both files are cut back to where they were and the open transaction stays as it
    is, lines of the failing ``append`` included: :meth:`flush` or :meth:`commit` try again, :meth:`abort` gives up.
    """

    __slots__ = (
        "_chunk_bytes",
        "_closed",
        "_crc",
        "_created",
        "_created_synced",
        "_directory",
        "_end",
        "_files",
        "_held",
        "_held_op",
        "_index_end",
        "_log",
        "_lsn",
        "_named",
        "_open_closed",
        "_open_running",
        "_pieces",
        "_pieces_size",
        "_records",
        "_running",
        "_stuck",
        "_summed",
        "_written",
        "header",
        "last",
        "unsynced",
    )

    def __init__(
        self,
        directory: Path,
        chunk_bytes: int,
        files: Files,
        header: HeaderFile,
        log: SyncedFile | None,
        end: LogEnd,
        *,
        created: bool,
    ) -> None:
        """For :meth:`create` and :meth:`open`. ``created``: names were made that are not known to be on the disk."""
        self.header = header
        self.last = end.last
        self.unsynced = end.unsynced
        self._directory = directory
        self._chunk_bytes = chunk_bytes
        self._files = files
        self._log = log
        # Names made, and how many of them are known to be on the disk: two counters, so that the loop may go on making
        # names while another thread syncs. That of log.json counts as made at its first use, unless something in it
        # was kept (which is acknowledged, or counts already): who made it may have died before he synced it.
        self._created = int(created)
        self._created_synced = 0
        self._named = end.records > 0
        # The committed state.
        self._end = end.end
        self._running = end.running
        self._closed = end.closed
        self._index_end = record_position(end.records)
        # The open transaction: `_written` is the end of its bytes in the file, `_pieces` follow, then the held line.
        # `_crc` sums its bytes since the last record, up to and including the first `_summed` pieces.
        self._lsn = 0
        self._held: bytes | None = None
        self._held_op = -1
        self._pieces: list[bytes] = []
        self._pieces_size = 0
        self._summed = 0
        self._written = end.end
        self._crc = 0
        self._open_running = end.running
        self._open_closed = end.closed
        self._records = b""
        self._stuck: OSError | None = None

    @classmethod
    def create(cls, directory: Path, chunk_bytes: int, files: Files = REAL) -> LogWriter:
        """Make the directory of a new shape, with an empty log, and open it.

        ``chunk_bytes`` is the threshold of http-api.md 12.3. Raises ``FileExistsError`` if there is such a directory,
        ``OSError``.
        """
        _require_positive(chunk_bytes)
        files.mkdir(directory)
        header = HeaderFile.create(directory, files)
        return cls(directory, chunk_bytes, files, header, None, EMPTY, created=True)

    @classmethod
    def open(cls, directory: Path, chunk_bytes: int, acknowledged: int, files: Files = REAL) -> LogWriter:
        """Recover the log of an existing shape and open it.

        ``acknowledged`` is the LSN up to which its transactions are known to be durable (0: nothing is known); above it
        everything is checked, and cut off from the first thing that is wrong. Raises ``FileNotFoundError`` without
        directory, :class:`~common.shapelog.layout.DamagedLog` when the shape cannot be saved, ``OSError``.
        """
        _require_positive(chunk_bytes)
        with contextlib.ExitStack() as on_error:
            header = HeaderFile.open(directory, files)
            on_error.callback(header.close)
            index = header.file.fd
            log: SyncedFile | None = None
            with contextlib.suppress(FileNotFoundError):
                log = SyncedFile(files, files.open(directory / LOG_NAME, UPDATE))
                on_error.callback(log.close)
            end = find_end(files, index, log.fd if log else None, acknowledged)
            # The index first: it must never speak of bytes that are gone.
            if files.size(index) != record_position(end.records):
                files.ftruncate(index, record_position(end.records))
            if log and files.size(log.fd) != end.end:
                files.ftruncate(log.fd, end.end)
            if log and end.unsynced:
                write_again(files, log.fd, end.durable_end, end.end)
                write_again(files, index, record_position(end.durable_records), record_position(end.records))
                log.dirty = header.file.dirty = True
            on_error.pop_all()
        return cls(directory, chunk_bytes, files, header, log, end, created=end.unsynced)

    def append(self, lsn: int, ops: list[int], lines: list[bytes]) -> None:
        """Add entries to the transaction that commits at ``lsn``, opening it if need be.

        ``lines[i]`` is the JSON object of the entry at offset ``(lsn, ops[i])``, without separator or raw newline, with
        ``headers`` as its last member (so it ends with ``}}``); ops increase. Raises ``ValueError`` naming the argument
        that breaks this, and then has taken nothing; ``OSError``, and then has taken all (see the class).
        """
        if not lines:
            return
        held = self._held
        self._check(lsn, ops, lines, self.last)
        if held is None:
            self._lsn = lsn
            body = lines.copy()
        else:
            body = [held, *lines]
        self._held = lines[-1]
        if len(body) > 1:
            # The newest line waits, its place only ends the block with a separator. Payload is what separators are not.
            body[-1] = b""
            block = SEPARATOR.join(body)
            running = self._open_running + len(block) - len(SEPARATOR) * (len(body) - 1)
            if running < self._chunk_bytes:
                self._open_running = running
                self._pieces.append(block)
                self._pieces_size += len(block)
            else:
                self._split(body, ops if held is None else [self._held_op, *ops])
        self._held_op = ops[-1]
        if self._pieces_size >= BUFFER_BYTES:
            self.flush()

    def write(self, transactions: Iterable[tuple[int, list[int], list[bytes]]]) -> Offset | None:
        """Whole transactions, as :meth:`append` takes them: what that and :meth:`commit` do, but with one write to each
        file for all of them, unless a chunk ends in one.

        None of them is without lines, and no transaction is open. Returns the last offset, ``None`` if there are none.
        Raises as those methods do; any number of them, from the first one on, may have been written then.
        """
        data, records = [], []
        end, running, last = self._end, self._running, None
        for lsn, ops, lines in transactions:
            grown = running + sum(map(len, lines)) + _ADDED
            if grown >= self._chunk_bytes:
                if last is not None:
                    self._show(data, records, last, end, running)
                    data, records = [], []
                last = self._write_chunks(lsn, ops, lines)
                end, running = self._end, self._running
                continue
            self._check(lsn, ops, lines, last or self.last)
            body = [*lines, b""]
            body[-2] = body[-2][:-2] + _LAST
            block = SEPARATOR.join(body)
            end, running, last = end + len(block), grown, Offset(lsn, ops[-1])
            data.append(block)
            records.append(encode_record(lsn, last.op, end, running, self._closed, COMMIT, _checksum(block)))
        if last is not None:
            self._show(data, records, last, end, running)
        return last

    def flush(self) -> None:
        """Write what is buffered of the open transaction, unseen by readers until it commits. Raises ``OSError``."""
        if not self._pieces:
            return
        log = self._open_log()
        self._sum_pieces()
        data = b"".join(self._pieces)
        try:
            write_all(self._files, log.fd, data, self._written)
        except OSError:
            self._cut_back(log)
            raise
        self._written += len(data)
        self._pieces.clear()
        self._pieces_size = self._summed = 0

    def commit(self, *, mark_last: bool = True) -> Offset | None:
        """End the open transaction and show it to readers: its last offset, or ``None`` when it has no entry.

        The last line gets ``"last":true`` in its headers (http-api.md 14.5) unless told not to. Raises ``OSError``; the
        transaction is then still open and the commit may be tried again.
        """
        held = self._held
        if held is None:
            return None
        log = self._open_log()
        line = held[:-2] + _LAST if mark_last else held
        running = self._open_running + len(line)
        closed = self._open_closed
        flags = COMMIT
        if running >= self._chunk_bytes:
            running = 0
            closed += 1
            flags |= BOUNDARY
        data = line + SEPARATOR
        if self._pieces:
            self._sum_pieces()
            crc = _extend(self._crc, data)
            data = b"".join([*self._pieces, data])
        else:
            crc = _extend(self._crc, data)
        end = self._written + len(data)
        lsn, op = self._lsn, self._held_op
        records = self._records + encode_record(lsn, op, end, running, closed, flags, crc)
        files = self._files
        index = self.header.file
        try:
            write_all(files, log.fd, data, self._written)
            write_all(files, index.fd, records, self._index_end)
        except OSError:
            self._cut_back(log)
            raise
        log.dirty = index.dirty = True
        self._index_end += len(records)
        self._end, self._running, self._closed = end, running, closed
        self.last = last = Offset(lsn, op)
        self._forget()
        return last

    def abort(self) -> None:
        """Drop the open transaction with everything that was written of it.

        If the disk refuses, the file keeps bytes that nobody looks at, and the next transaction overwrites them.
        """
        written, self._held = self._written, None
        self._forget()
        if self._log and written > self._end:
            with contextlib.suppress(OSError):
                self._files.ftruncate(self._log.fd, self._end)

    def mark_ended(self) -> None:
        """Tell every reader, on its next request, that the shape is gone. Raises ``OSError``."""
        self.header.mark_ended()

    def mark_snapshot_failed(self) -> None:
        """Tell every reader that the snapshot will never be complete. Raises ``OSError``."""
        self.header.mark_snapshot_failed()

    @property
    def idle(self) -> bool:
        """Whether no transaction is open, so that closing loses nothing."""
        return self._held is None

    @property
    def syncing(self) -> bool:
        """Whether another thread is syncing it."""
        log = self._log
        return self.header.file.syncing or (log is not None and log.syncing)

    @property
    def dirty(self) -> bool:
        """Whether something committed or marked is not known to be on the disk yet."""
        log = self._log
        return self.header.file.pending or (log is not None and log.pending) or self._created != self._created_synced

    def sync(self) -> None:
        """Return when all that was committed or marked before the call is on the disk. For any thread.

        The bytes go before the records, names last. Raises ``OSError``: the shape cannot be trusted to become durable
        any more and has to end (engine.md 13.11), a later call will not succeed either. Raises ``ValueError`` after
        :meth:`close`.
        """
        created = self._created
        log = self._log
        if log is not None:
            log.sync()
        self.header.file.sync()
        if created != self._created_synced:
            self._files.sync_directory(self._directory)
            self._files.sync_directory(self._directory.parent)
            self._created_synced = created
        self.unsynced = False

    @contextlib.contextmanager
    def covered(self) -> Iterator[None]:
        """As :meth:`sync`, if the block syncs the whole file system; when it raises, nothing counts as synced."""
        created = self._created
        with contextlib.ExitStack() as files:
            if self._log is not None:
                files.enter_context(self._log.covered())
            files.enter_context(self.header.file.covered())
            yield
        self._created_synced = created
        self.unsynced = False

    def close(self) -> None:
        """Close the files; an open transaction is dropped, nothing is synced. May be repeated; waits for no sync."""
        self.abort()
        self.header.close()
        if self._log is not None:
            self._log.close()

    def _write_chunks(self, lsn: int, ops: list[int], lines: list[bytes]) -> Offset | None:
        try:
            self.append(lsn, ops, lines)
            return self.commit()
        except OSError:
            self.abort()
            raise

    def _show(self, data: list[bytes], records: list[bytes], last: Offset, end: int, running: int) -> None:
        """Write whole transactions, if there are any; what follows is the state behind them."""
        if not data:
            return
        log = self._open_log()
        files = self._files
        index = self.header.file
        entries = b"".join(records)
        try:
            write_all(files, log.fd, b"".join(data), self._end)
            write_all(files, index.fd, entries, self._index_end)
        except OSError:
            self._cut_back(log)
            raise
        log.dirty = index.dirty = True
        self._index_end += len(entries)
        self._end = self._written = end
        self._running = self._open_running = running
        self.last = last

    def _check(self, lsn: int, ops: list[int], lines: list[bytes], last: Offset) -> None:
        """Refuse what does not come after the open transaction, or after the last one."""
        if len(ops) != len(lines):
            raise ValueError(f"ops: {len(ops)} of them for {len(lines)} lines")
        if not lines[-1].endswith(b"}}"):
            raise ValueError("lines: an entry does not end with its headers object")
        if self._held is None:
            if (lsn, ops[0]) <= last or not 0 < lsn <= MAX_LSN:
                raise ValueError(f"lsn, ops: {lsn}_{ops[0]} does not come after {last}")
        elif lsn != self._lsn:
            raise ValueError(f"lsn: {lsn} while the transaction {self._lsn} is open")
        elif ops[0] <= self._held_op:
            raise ValueError(f"ops: {ops[0]} does not come after {self._held_op}")

    def _split(self, body: list[bytes], ops: list[int]) -> None:
        """Take all of ``body`` but its last element, with an index record wherever a chunk reaches its threshold."""
        start = 0
        running = self._open_running
        for at in range(len(body) - 1):
            running += len(body[at])
            if running >= self._chunk_bytes:
                self._take(SEPARATOR.join([*body[start : at + 1], b""]))
                start, running = at + 1, 0
                self._close_chunk(ops[at])
        if start < len(body) - 1:
            self._take(SEPARATOR.join(body[start:]))
        self._open_running = running

    def _take(self, block: bytes) -> None:
        self._pieces.append(block)
        self._pieces_size += len(block)

    def _close_chunk(self, op: int) -> None:
        """Add the record of a chunk that ends with the last piece, inside the open transaction."""
        self._sum_pieces()
        end = self._written + self._pieces_size
        self._open_closed += 1
        self._records += encode_record(self._lsn, op, end, 0, self._open_closed, BOUNDARY, self._crc)
        self._crc = 0

    def _sum_pieces(self) -> None:
        crc = self._crc
        for at in range(self._summed, len(self._pieces)):
            crc = _extend(crc, self._pieces[at])
        self._crc = crc
        self._summed = len(self._pieces)

    def _forget(self) -> None:
        """No transaction is open any more: go on from the committed state."""
        self._held = None
        self._written = self._end
        self._open_running = self._running
        self._open_closed = self._closed
        self._crc = 0
        if self._pieces:
            self._pieces = []
            self._pieces_size = self._summed = 0
        if self._records:
            self._records = b""

    def _open_log(self) -> SyncedFile:
        """The open log, made now if this is its first use. Raises ``OSError``, for ever once a tail is unknown."""
        if self._stuck is not None:
            raise OSError(self._stuck.errno, f"{LOG_NAME} is in an unknown state: {self._stuck.strerror}")
        log = self._log
        if log is None:
            log = self._log = SyncedFile(self._files, self._files.open(self._directory / LOG_NAME, CREATE))
        if not self._named:
            self._named = True
            self._created += 1
        return log

    def _cut_back(self, log: SyncedFile) -> None:
        """After a failed write: remove what it left. If not even that works, refuse any further write, since a shorter
        one could leave a stale record behind it that looks like the end of the log."""
        try:
            self._files.ftruncate(self.header.file.fd, self._index_end)
            self._files.ftruncate(log.fd, self._written)
        except OSError as error:
            self._stuck = error


def _require_positive(chunk_bytes: int) -> None:
    if chunk_bytes <= 0:
        raise ValueError(f"chunk_bytes: must be positive, is {chunk_bytes}")

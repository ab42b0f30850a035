"""The writer of a shape's snapshot: rows in, chunk files out (http-api.md 12.2). Runs in a thread of its own."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from common.shapelog.files import CREATE_NEW, REAL, Files, SyncedFile, write_all
from common.shapelog.header import HeaderFile
from common.shapelog.layout import SEPARATOR, snapshot_name

BLOCK_BYTES: Final = 256 << 10
"""How many bytes of rows are collected before they go to the file."""

UNSYNCED: Final = 16
"""How many closed chunks may not be on the disk yet: rows do not wait for it, and descriptors are not used up."""


class SnapshotWriter:
    """Writes the snapshot of one new shape, once, from the first row to the end marker.

    Readers may follow: the header counts a chunk as closed once all its bytes are in its file, and says COMPLETE once
    there is nothing more to come. The file of the chunk after a closed one need not exist yet. After an ``OSError``, or
    a ``ValueError`` because the shape was closed meanwhile, the snapshot cannot go on: :meth:`fail`.
    """

    __slots__ = (
        "_buffer",
        "_buffered",
        "_chunk",
        "_chunk_bytes",
        "_closed",
        "_directory",
        "_file",
        "_files",
        "_header",
        "_total",
        "_written",
    )

    def __init__(self, directory: Path, chunk_bytes: int, header: HeaderFile, files: Files = REAL) -> None:
        """``chunk_bytes`` is the threshold of http-api.md 12.2; ``header`` that of the shape's LogWriter."""
        if chunk_bytes <= 0:
            raise ValueError(f"chunk_bytes: must be positive, is {chunk_bytes}")
        self._directory = directory
        self._chunk_bytes = chunk_bytes
        self._header = header
        self._files = files
        self._chunk = 0
        self._file: SyncedFile | None = None
        self._closed: deque[SyncedFile] = deque()
        """Those that are whole and not synced yet."""
        self._written = 0
        self._total = 0
        self._buffer: list[bytes] = []
        self._buffered = 0

    def add(self, items: bytes, rows: int) -> None:
        """Add so many items, each followed by the separator, whose newline is the only one. Raises ``OSError``."""
        # The rule counts one byte for each separator.
        total = self._total + len(items) - (len(SEPARATOR) - 1) * rows
        if total < self._chunk_bytes:
            self._total = total
            self._take(items)
            return
        start = end = 0
        while end < len(items):
            item, end = end, items.index(b"\n", end) + 1
            self._total += end - item - (len(SEPARATOR) - 1)
            if self._total >= self._chunk_bytes:
                self._take(items[start:end])
                self._close_chunk(complete=False)
                start = end
        self._take(items[start:])

    def flush(self) -> None:
        """Let readers have the rows added so far. Raises ``OSError``."""
        if not self._buffer:
            return
        file = self._file
        if file is None:
            path = self._directory / snapshot_name(self._chunk)
            file = self._file = SyncedFile(self._files, self._files.open(path, CREATE_NEW))
        data = b"".join(self._buffer)
        write_all(self._files, file.fd, data, self._written)
        file.dirty = True
        self._written += len(data)
        self._buffer.clear()
        self._buffered = 0

    def finish(self, end_line: bytes) -> None:
        """Add the snapshot-end item as the last element and declare the snapshot complete. Raises ``OSError``."""
        self._take(end_line + SEPARATOR)
        self._close_chunk(complete=True)

    def fail(self) -> None:
        """Give up and tell the readers so. May follow any error, also that of a shape closed meanwhile."""
        self.close()
        with contextlib.suppress(OSError, ValueError):
            self._header.mark_snapshot_failed()

    def close(self) -> None:
        """Close what is open."""
        for file in (self._file, *self._closed):
            if file is not None:
                file.close()

    def sync(self) -> None:
        """After :meth:`finish`: return when the whole snapshot is on the disk. Raises ``OSError``.

        Of a large one most chunks were synced on the way, which spreads the load.
        """
        try:
            self._sync_closed(0)
        finally:
            for file in self._closed:
                file.close()
        self._header.file.sync()
        self._files.sync_directory(self._directory)
        self._files.sync_directory(self._directory.parent)

    @contextlib.contextmanager
    def covered(self) -> Iterator[None]:
        """As :meth:`sync`, if the block syncs the whole file system. The header is the log's to cover."""
        with contextlib.ExitStack() as files:
            for file in self._closed:
                files.enter_context(file.covered())
            yield

    def _take(self, block: bytes) -> None:
        if not block:
            return
        self._buffer.append(block)
        self._buffered += len(block)
        if self._buffered >= BLOCK_BYTES:
            self.flush()

    def _close_chunk(self, *, complete: bool) -> None:
        self.flush()
        # Readers first: they need not wait for the disk.
        self._header.close_chunk(complete=complete)
        if self._file is not None:
            self._closed.append(self._file)
            self._file = None
        self._chunk += 1
        self._written = self._total = 0
        self._sync_closed(UNSYNCED)

    def _sync_closed(self, left: int) -> None:
        while len(self._closed) > left:
            file = self._closed.popleft()
            try:
                file.sync()
            finally:
                file.close()

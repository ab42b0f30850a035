"""The header of a shape as its writers share it: the worker's loop and the thread that writes the snapshot."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

from common.shapelog.files import CREATE_NEW, UPDATE, Files, SyncedFile, write_all
from common.shapelog.layout import (
    HEADER_SIZE,
    INDEX_NAME,
    NEW,
    DamagedLog,
    Header,
    SnapshotState,
    decode_header,
    encode_header,
)


class HeaderFile:
    """The open ``log.index`` and the header at its front.

    Every change writes all 64 bytes at once, under a lock; readers in other processes tell a torn read by its checksum.
    The lock also keeps the snapshot's thread from writing to a descriptor that the loop has closed.
    """

    __slots__ = ("_closed", "_files", "_header", "_lock", "file")

    def __init__(self, files: Files, fd: int, header: Header) -> None:
        self.file = SyncedFile(files, fd)
        self._files = files
        self._header = header
        self._lock = threading.Lock()
        self._closed = False

    @classmethod
    def create(cls, directory: Path, files: Files) -> HeaderFile:
        """Make the ``log.index`` of a new shape, with its header.

        Raises ``FileExistsError`` if there is one, ``OSError``.
        """
        with _closed_on_error(files, files.open(directory / INDEX_NAME, CREATE_NEW)) as fd:
            write_all(files, fd, encode_header(NEW), 0)
            header = cls(files, fd, NEW)
        header.file.dirty = True
        return header

    @classmethod
    def open(cls, directory: Path, files: Files) -> HeaderFile:
        """Open that of an existing shape; its only writer does so, hence a torn header is damage.

        Raises ``FileNotFoundError``, :class:`DamagedLog`, ``OSError``.
        """
        with _closed_on_error(files, files.open(directory / INDEX_NAME, UPDATE)) as fd:
            header = decode_header(files.pread(fd, HEADER_SIZE, 0))
            if header is None:
                raise DamagedLog(f"the header of {INDEX_NAME} is torn")
            return cls(files, fd, header)

    @property
    def value(self) -> Header:
        """The header as last written."""
        return self._header

    def mark_ended(self) -> None:
        """Tell every reader that the shape is gone (architecture.md 4.7). Raises ``OSError``."""
        with self._lock:
            self._write(self._header._replace(ended=True))

    def close_chunk(self, *, complete: bool = False) -> None:
        """One more chunk of the snapshot is fully written; with ``complete`` it was the last. Raises ``OSError``."""
        with self._lock:
            state = SnapshotState.COMPLETE if complete else SnapshotState.RUNNING
            self._write(self._header._replace(snapshot=state, chunks=self._header.chunks + 1))

    def mark_snapshot_failed(self) -> None:
        """The snapshot will never be complete. Raises ``OSError``."""
        with self._lock:
            self._write(self._header._replace(snapshot=SnapshotState.FAILED))

    def close(self) -> None:
        """Close ``log.index``; later changes raise ``ValueError``."""
        with self._lock:
            self._closed = True
            self.file.close()

    def _write(self, header: Header) -> None:
        if self._closed:
            raise ValueError(f"{INDEX_NAME} is closed")
        write_all(self._files, self.file.fd, encode_header(header), 0)
        self._header = header
        self.file.dirty = True


@contextlib.contextmanager
def _closed_on_error(files: Files, fd: int) -> Iterator[int]:
    try:
        yield fd
    except BaseException:
        files.close(fd)
        raise

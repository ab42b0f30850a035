"""Access to files: the only module of this package that touches the operating system.

Everything else takes a :class:`Files`, so that tests can put one in its place that tears writes, runs out of space or
loses what was not synced. The real one, :data:`REAL`, is the functions of ``os`` themselves: nothing is added per call.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Protocol

READ: Final = os.O_RDONLY
UPDATE: Final = os.O_RDWR
CREATE: Final = os.O_RDWR | os.O_CREAT
CREATE_NEW: Final = os.O_RDWR | os.O_CREAT | os.O_EXCL
"""The ways to open a file. None appends: writers keep positions themselves, which makes a failed write repeatable."""

_FILE_MODE = 0o644
_DIRECTORY_MODE = 0o755


class Files(Protocol):
    """What the package asks of a file system. All raise ``OSError`` as the system calls of the same name do."""

    def open(self, path: Path, flags: int, /) -> int:
        """Open with :data:`READ`, :data:`UPDATE`, :data:`CREATE` or :data:`CREATE_NEW`; the descriptor."""

    def close(self, fd: int, /) -> None:
        """Give the descriptor back."""

    def pread(self, fd: int, length: int, offset: int, /) -> bytes:
        """Up to ``length`` bytes at ``offset``; fewer only where the file ends."""

    def pwrite(self, fd: int, data: bytes, offset: int, /) -> int:
        """Write at ``offset``; the number of bytes written, which may be fewer than given."""

    def ftruncate(self, fd: int, length: int, /) -> None:
        """Cut the file to ``length`` bytes."""

    def size(self, fd: int, /) -> int:
        """The file's length in bytes."""

    def fdatasync(self, fd: int, /) -> None:
        """Wait until content and length are on the disk."""

    def sync_directory(self, path: Path, /) -> None:
        """Wait until the names in the directory are on the disk."""

    def sync_file_system(self, path: Path, asker: str, /) -> None:
        """Wait until all that was written to the file system of this directory is on the disk, names included.

        Each failure is reported once to each ``asker`` that has asked for this directory before. Raises
        ``NotImplementedError`` where the system cannot do that, or would not tell of a failure.
        """

    def mkdir(self, path: Path, /) -> None:
        """Make one directory."""

    def rename(self, source: Path, target: Path, /) -> None:
        """Move a file or directory within one file system, atomically."""

    def listdir(self, path: Path, /) -> list[str]:
        """The names in a directory, in no order."""

    def is_directory(self, path: Path, /) -> bool:
        """Whether the path is a directory itself (a link to one is not)."""

    def remove(self, path: Path, /) -> None:
        """Remove a file."""

    def rmdir(self, path: Path, /) -> None:
        """Remove an empty directory."""


def _open(path: Path, flags: int, /) -> int:
    return os.open(path, flags, _FILE_MODE)


def _size(fd: int, /) -> int:
    return os.fstat(fd).st_size


def _sync_directory(path: Path, /) -> None:
    with _opened(path) as fd:
        os.fsync(fd)


@contextlib.contextmanager
def _opened(directory: Path) -> Iterator[int]:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield fd
    finally:
        os.close(fd)


_libc = ctypes.CDLL(None, use_errno=True)
_roots: Final[dict[tuple[Path, str], int]] = {}


def _tells_of_failures(release: str) -> bool:
    """Whether ``syncfs`` of this Linux reports that something could not be written (5.8 and later)."""
    numbers = re.match(r"(\d+)\.(\d+)", release)
    return numbers is not None and (int(numbers[1]), int(numbers[2])) >= (5, 8)


_HAS_SYNCFS: Final = hasattr(_libc, "syncfs")
_SYNCFS_TELLS: Final = _HAS_SYNCFS and _tells_of_failures(os.uname().release)


def _sync_file_system(path: Path, asker: str, /) -> None:
    if not _SYNCFS_TELLS:
        raise NotImplementedError("syncfs of Linux 5.8")
    fd = _roots.get((path, asker))
    if fd is None:
        # Kept open: what failed before a descriptor was opened is not reported to it.
        fd = _roots[path, asker] = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    if _libc.syncfs(fd):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(path))


def write_back(directory: Path) -> None:
    """Wait until all that is dirty in the file system of this directory has been written, where the system can do that.

    Promises nothing and tells of no failure; but the syncs of single files that come after it are cheap, and tell. What
    :meth:`Files.sync_file_system` has to report stays unreported, since that has a descriptor of its own.
    """
    if _HAS_SYNCFS:
        with contextlib.suppress(OSError), _opened(directory) as fd:
            _libc.syncfs(fd)


def _mkdir(path: Path, /) -> None:
    os.mkdir(path, _DIRECTORY_MODE)


def _is_directory(path: Path, /) -> bool:
    return stat.S_ISDIR(os.lstat(path).st_mode)


class RealFiles:
    """The operating system's files."""

    open = staticmethod(_open)
    close = staticmethod(os.close)
    pread = staticmethod(os.pread)
    pwrite = staticmethod(os.pwrite)
    ftruncate = staticmethod(os.ftruncate)
    size = staticmethod(_size)
    fdatasync = staticmethod(os.fdatasync)
    sync_directory = staticmethod(_sync_directory)
    sync_file_system = staticmethod(_sync_file_system)
    mkdir = staticmethod(_mkdir)
    rename = staticmethod(os.rename)
    listdir = staticmethod(os.listdir)
    is_directory = staticmethod(_is_directory)
    remove = staticmethod(os.remove)
    rmdir = staticmethod(os.rmdir)


REAL: Final[Files] = RealFiles()


def write_all(files: Files, fd: int, data: bytes, offset: int) -> None:
    """Write all of ``data`` at ``offset``. Raises ``OSError``; then any part of it may have been written."""
    done = files.pwrite(fd, data, offset)
    while done < len(data):
        more = files.pwrite(fd, data[done:], offset + done)
        if more <= 0:
            raise OSError(errno.EIO, "a write made no progress")
        done += more


class SyncedFile:
    """An open file that one thread writes and any thread may sync, also while the first one closes it.

    The writer sets :attr:`dirty` *after* each write that must become durable; :meth:`sync` clears it before it waits,
    so a write can only be synced once too often, never be missed. After a failed sync the kernel may have dropped the
    pages and would report the next one as good, so a failure is kept and raised for ever (engine.md 13.11).
    """

    __slots__ = ("_closing", "_failure", "_files", "_state", "_syncing", "_turn", "dirty", "fd")

    def __init__(self, files: Files, fd: int) -> None:
        self.fd = fd
        self.dirty = False
        self._files = files
        self._state = threading.Lock()
        self._turn = threading.Lock()
        self._syncing = False
        self._closing = False
        self._failure: OSError | None = None

    @property
    def pending(self) -> bool:
        """Whether something written is not known to be on the disk: not synced yet, or just being synced."""
        return self.dirty or self._syncing

    @property
    def syncing(self) -> bool:
        """Whether a sync is under way, for which another one would wait."""
        return self._syncing

    def sync(self) -> None:
        """Return when all that was written before the call is on the disk.

        Raises ``OSError`` when that failed now or ever before, ``ValueError`` after :meth:`close`.
        """
        with self.covered() as fd:
            if fd is not None:
                try:
                    self._files.fdatasync(fd)
                except OSError as error:
                    self._failure = error
                    raise

    @contextlib.contextmanager
    def covered(self) -> Iterator[int | None]:
        """While the block runs, what was written before it is being synced; how is up to the caller.

        Gives the descriptor, or ``None`` if there is nothing to sync. When the block raises, it is as dirty as before.
        Raises as :meth:`sync`.
        """
        # One at a time: whoever finds the file clean must not return while another still waits for the disk.
        with self._turn:
            with self._state:
                if self._closing:
                    raise ValueError("the file is closed")
                if self._failure is not None:
                    raise OSError(self._failure.errno, f"an earlier sync failed: {self._failure.strerror}")
                needed, self.dirty = self.dirty, False
                self._syncing = needed
            try:
                yield self.fd if needed else None
            except BaseException:
                self.dirty |= needed
                raise
            finally:
                with self._state:
                    self._syncing = False
                    if self._closing and needed:
                        self._release()

    def close(self) -> None:
        """Close the file, or have the sync that is under way close it. Never blocks on the disk; may be repeated."""
        with self._state:
            if not self._closing:
                self._closing = True
                if not self._syncing:
                    self._release()

    def _release(self) -> None:
        fd, self.fd = self.fd, -1
        self._files.close(fd)

"""SQLite itself on the simulated disk: a file system for it, and connections that look like the standard library's.

The file system does what SQLite's own for Unix does, as far as it matters here: a journal's name is synced with the
journal's first sync; locks end with their process.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any, Final, TypeVar, cast
from weakref import WeakValueDictionary

import apsw

from tests.simulation.storage_disk import Crash, Disk, File, Process

T = TypeVar("T")

_NAME: Final = "simulated"
_JOURNALS = apsw.SQLITE_OPEN_MAIN_JOURNAL | apsw.SQLITE_OPEN_WAL | apsw.SQLITE_OPEN_SUPER_JOURNAL


def _quietly(process: Process, fallback: T, operation: Callable[..., T], *arguments: Any) -> T:
    """Do it. If the process dies of it, or is dead, SQLite need not know: nothing that it does has an effect any more,
    and whoever called it is told."""
    if process.dead:
        return fallback
    try:
        return operation(*arguments)
    except Crash:
        return fallback
    except OSError as error:
        raise (apsw.FullError if error.errno == errno.ENOSPC else apsw.IOError)(str(error)) from error


class _Vfs(apsw.VFS):
    """Serves all processes. The first part of a path names the process: a connection that is forgotten with its process
    must not do anything in the name of another when it is collected."""

    def __init__(self) -> None:
        super().__init__(_NAME, "", maxpathname=1024, makedefault=True)
        self.processes: WeakValueDictionary[str, Process] = WeakValueDictionary()
        self.locks: dict[int, tuple[Process, File]] = {}
        self._nobody = Process(Disk(Random(0)))
        self._nobody.kill()

    def split(self, name: str) -> tuple[Process, str]:
        """The process, and the path that it means."""
        _, number, path = name.split("/", 2)
        return self.processes.get(number, self._nobody), f"/{path}"

    def xOpen(self, name: Any, flags: list[int]) -> Any:
        process, path = self.split(name.filename() if isinstance(name, apsw.URIFilename) else name)
        return _Opened(self, process, path, flags[0])

    def xDelete(self, filename: str, syncdir: bool) -> None:
        process, path = self.split(filename)
        if not process.dead and process.exists(path):
            _quietly(process, None, process.remove, path)
        if syncdir:
            _quietly(process, None, process.sync_directory, Path(path).parent)

    def xAccess(self, pathname: str, flags: int) -> bool:
        process, path = self.split(pathname)
        return not process.dead and process.exists(path)

    def xFullPathname(self, name: str) -> str:
        return name

    def xRandomness(self, numbytes: int) -> bytes:
        return bytes(range(numbytes % 256))

    def xSleep(self, microseconds: int) -> int:
        return microseconds

    def xCurrentTime(self) -> float:
        return 2460000.5

    def xCurrentTimeInt64(self) -> int:
        return 212345678901234

    def xGetLastError(self) -> tuple[int, str]:
        return 0, ""

    def excepthook(self, *_: object) -> bool:
        """What SQLite could not pass on: nobody needs to see it, the statement has failed."""
        return True


class _Opened:
    def __init__(self, vfs: _Vfs, process: Process, path: str, flags: int) -> None:
        self._vfs = vfs
        self._process = process
        self._path = path
        creates = flags & apsw.SQLITE_OPEN_CREATE
        self._sync_name = bool(creates and flags & _JOURNALS)
        self._fd = _quietly(process, -1, process.open, path, os.O_RDWR | (os.O_CREAT if creates else 0))
        self._node = File() if self._fd < 0 else process.file(self._fd)

    def xRead(self, amount: int, offset: int) -> bytes:
        return _quietly(self._process, bytes(amount), self._process.pread, self._fd, amount, offset)

    def xWrite(self, data: bytes, offset: int) -> None:
        done = 0
        while done < len(data):
            rest = data[done:]
            done += _quietly(self._process, len(rest), self._process.pwrite, self._fd, rest, offset + done)

    def xTruncate(self, newsize: int) -> None:
        _quietly(self._process, None, self._process.ftruncate, self._fd, newsize)

    def xSync(self, flags: int) -> None:
        _quietly(self._process, None, self._process.fdatasync, self._fd)
        if self._sync_name:
            _quietly(self._process, None, self._process.sync_directory, Path(self._path).parent)
            self._sync_name = False

    def xFileSize(self) -> int:
        return _quietly(self._process, 0, self._process.size, self._fd)

    def xLock(self, level: int) -> None:
        locks = self._vfs.locks
        held = locks.get(id(self._node))
        if held is not None and held[0] is not self._process and not held[0].dead:
            raise apsw.BusyError("the file is locked")
        locks[id(self._node)] = (self._process, self._node)

    def xUnlock(self, level: int) -> None:
        held = self._vfs.locks.get(id(self._node))
        if held is not None and held[0] is self._process and not level:
            del self._vfs.locks[id(self._node)]

    def xCheckReservedLock(self) -> bool:
        return False

    def xFileControl(self, op: int, pointer: int) -> bool:
        return False

    def xSectorSize(self) -> int:
        return 4096

    def xDeviceCharacteristics(self) -> int:
        return apsw.SQLITE_IOCAP_POWERSAFE_OVERWRITE

    def xClose(self) -> None:
        self._process.close(self._fd)

    def excepthook(self, *_: object) -> bool:
        """What SQLite could not pass on: nobody needs to see it, the statement has failed."""
        return True


_vfs = _Vfs()
_numbers = itertools.count(1)


def start() -> None:
    """Before a simulation: nothing of the one before is remembered."""
    _vfs.locks.clear()
    apsw.randomness(0)  # seeded anew, by the constant above


def connector(process: Process) -> Callable[[Path], sqlite3.Connection]:
    """What ``shapeworker.catalog.connect`` is, for a process of the simulation."""
    number = str(next(_numbers))
    _vfs.processes[number] = process

    def connect(path: Path) -> sqlite3.Connection:
        return cast(sqlite3.Connection, _Connection(process, f"/{number}{path}"))

    return connect


class _Connection:
    """The calls of ``sqlite3.Connection`` that the catalog uses, with its errors."""

    def __init__(self, process: Process, path: str) -> None:
        self._process = process
        self._path = path
        self._db: apsw.Connection | None = None

    def execute(self, statement: str, values: tuple[Any, ...] = ()) -> _Cursor:
        if self._process.dead:
            raise Crash
        try:
            if self._db is None:
                self._db = apsw.Connection(self._path, vfs=_NAME)
            rows = list(self._db.execute(statement, values))
            changes = self._db.changes()
        except apsw.Error as error:
            if not self._process.dead:
                raise _sqlite_error(error) from error
        if self._process.dead:
            raise Crash
        return _Cursor(rows, changes)

    def __enter__(self) -> _Connection:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        assert self._db is not None
        if self._process.dead:
            raise Crash
        if not self._db.in_transaction:
            return
        if kind is not None:
            self.execute("ROLLBACK")
            return
        try:
            self.execute("COMMIT")
        except sqlite3.Error:
            if self._db.in_transaction:
                self.execute("ROLLBACK")
            raise

    def close(self) -> None:
        if self._db is not None:
            db, self._db = self._db, None
            with contextlib.suppress(apsw.Error):
                db.close(True)
            if self._process.dead:
                raise Crash


class _Cursor:
    def __init__(self, rows: list[Any], changes: int) -> None:
        self._rows = rows
        self.rowcount = changes

    def fetchone(self) -> Any:
        return self._rows[0] if self._rows else None

    def __iter__(self) -> Iterator[Any]:
        return iter(self._rows)


def _sqlite_error(error: apsw.Error) -> sqlite3.Error:
    text = str(error)
    if isinstance(error, apsw.BusyError):
        return sqlite3.OperationalError(f"database is locked: {text}")
    if isinstance(error, (apsw.CorruptError, apsw.NotADBError)):
        return sqlite3.DatabaseError(text)
    return sqlite3.OperationalError(text)

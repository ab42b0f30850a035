"""SQLite for the catalogs: real databases in memory, of which a kill or a power cut leaves what was committed.

The product opens each exclusively and with ``synchronous = FULL``: so it is locked from the first moment here, and a
commit that has returned is durable.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from typing import Any

from tests.simulation.disk import Disk, SimPath
from tests.simulation.process import Process


class SimSqlite:
    """The module ``sqlite3``, as far as a catalog uses it."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk

    def __getattr__(self, name: str) -> Any:
        return getattr(sqlite3, name)

    def connect(self, path: SimPath, **_: object) -> SimDatabase:
        """Open it; locked while another process has it open."""
        return SimDatabase(self._disk, path.parent.name)


class SimDatabase:
    """The open database of one partition. A process that is killed lets go of it."""

    def __init__(self, disk: Disk, partition: str) -> None:
        self._opened = self._closed = False
        self._disk = disk
        self._partition = partition
        self._process: Process = disk.step()
        raw = disk.catalogs.get(partition)
        if raw is None:
            raw = disk.catalogs[partition] = sqlite3.connect(":memory:", isolation_level=None)
        self._raw: sqlite3.Connection = raw

    def execute(self, statement: str, parameters: Any = ()) -> sqlite3.Cursor:
        """Run it; outside of a transaction it commits by itself."""
        self._check()
        verb = statement.split(maxsplit=1)[0].upper() if statement.strip() else "SELECT"
        if verb in ("SELECT", "PRAGMA", "BEGIN"):
            return self._raw.execute(statement, parameters)
        if self._disk.full:
            raise sqlite3.OperationalError("database or disk is full")
        if self._raw.in_transaction and verb != "COMMIT":
            return self._raw.execute(statement, parameters)
        self._wait()
        cursor = self._raw.execute(statement, parameters)
        self._committed()
        return cursor

    def executemany(self, statement: str, rows: Iterable[Any]) -> None:
        """Run it for each row, inside a transaction."""
        assert self._raw.in_transaction
        for parameters in rows:
            self.execute(statement, parameters)

    def __enter__(self) -> SimDatabase:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            self._raw.rollback()
            return
        self._wait()
        self._raw.commit()
        self._committed()

    def close(self) -> None:
        """Let go."""
        self._closed = True
        if self._opened and self._process.alive:
            self._opened = False
            self._raw.rollback()
            del self._disk.owners[self._partition]

    __del__ = close

    def _check(self) -> None:
        self._disk.step()
        if self._closed:
            raise sqlite3.ProgrammingError("Cannot operate on a closed database.")
        if self._opened:
            return
        if self._partition in self._disk.owners:
            raise sqlite3.OperationalError("database is locked")
        self._opened = True
        self._disk.owners[self._partition] = self._process
        if self._raw.in_transaction:
            self._raw.rollback()  # its former owner died within

    def _wait(self) -> None:
        self._disk.scheduler.pause(self._disk.scheduler.rng.random() * self._disk.sync_seconds)
        self._check()

    def _committed(self) -> None:
        self._disk.on_commit(self._partition)
        self._wait()

"""The catalog of one partition: which shapes live in it, in SQLite, opened exclusively.

The lock of the open file is also the ownership of the partition (architecture.md 6): it goes with the process, however
that ends, so a partition has one writer at most (INV-27). Every call blocks on the disk, unless it says that it does
not: worker threads make them.

A shape is entered when it is complete. Until then there is only its directory, which whoever opens the partition next
finds without a row, and ends (INV-16, INV-19).
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from common.shape import ShapeRequest, make_handle
from common.table import Table
from common.xid import Snapshot

FORMAT: Final = 1

RESERVED_US: Final = 10_000_000
"""Handles are given out without a commit: up to so many microseconds ahead of the clock, times count as used up after a
restart, whatever was made of them."""

CREATING: Final = "creating"
"""Only in catalogs of former versions, which entered shapes before they were complete."""
ACTIVE: Final = "active"
ENDED: Final = "ended"

_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS shapes (
    handle       TEXT PRIMARY KEY,
    state        TEXT NOT NULL CHECK (state IN ('creating', 'active', 'ended')),
    request      BLOB NOT NULL,
    relation     BLOB NOT NULL,
    selected     BLOB NOT NULL,
    snapshot     TEXT,
    filter_until TEXT,
    reason       TEXT
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS uses (handle TEXT PRIMARY KEY, used INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS shapes_by_request ON shapes (request);
"""


class CatalogLocked(Exception):
    """Another process owns the partition."""


class CatalogDamaged(Exception):
    """The file is not what Galvanic wrote: nothing in it can be trusted, and it does not pass by itself."""


class ShapeRow(msgspec.Struct, frozen=True, kw_only=True):
    """A shape as the catalog holds it. ``snapshot`` and ``filter_until`` are there as soon as it is active.

    ``used``: when a client last read it, in Unix time, as far as that was remembered.
    """

    handle: str
    state: str
    request: ShapeRequest
    table: Table
    selected: tuple[str, ...]
    snapshot: Snapshot | None = None
    filter_until: int | None = None
    reason: str | None = None
    used: int = 0


@lru_cache(maxsize=256)
def _table(stored: bytes) -> Table:
    # Most shapes have one of few descriptions. One object for all saves memory, and time wherever they are compared.
    return msgspec.msgpack.decode(stored, type=Table)


@lru_cache(maxsize=256)
def _selected(stored: bytes) -> tuple[str, ...]:
    return msgspec.msgpack.decode(stored, type=tuple[str, ...])


def connect(path: Path) -> sqlite3.Connection:
    """The database at ``path``, made if it is missing; every statement commits by itself, no lock is waited for."""
    return sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)


class Complete(NamedTuple):
    """A shape whose files are on the disk: its row may be written."""

    handle: str
    snapshot: Snapshot
    filter_until: int


class _Made(NamedTuple):
    request: ShapeRequest
    table: Table
    selected: tuple[str, ...]


class Catalog:
    """An open, owned catalog. Not for use by two threads at once."""

    def __init__(
        self,
        path: Path,
        connect: Callable[[Path], sqlite3.Connection] = connect,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        """Open and lock; raises :class:`CatalogLocked` at once if somebody else has it, :class:`CatalogDamaged`.
        ``clock``: nanoseconds."""
        self._clock = clock
        self._db = connect(path)
        self._made: dict[str, _Made] = {}
        """The shapes that were made here, and are neither complete nor over."""
        self._doubtful: set[str] = set()
        """Those of which it is not known whether they have been entered."""
        try:
            with _damage_told():
                self._prepare(path)
                self._created = self._reserved = int(self._meta("last_created") or 0)
                """The newest time in a handle, and up to which time none will be given out again after a restart."""
        except BaseException:
            self._db.close()
            raise

    def _prepare(self, path: Path) -> None:
        try:
            self._db.execute("PRAGMA locking_mode = EXCLUSIVE")
            self._db.execute("PRAGMA journal_mode = WAL")
            # What a commit says must survive a power cut: acknowledgements to Postgres build on it (INV-32).
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.execute("BEGIN EXCLUSIVE")
            for statement in _SCHEMA.split(";"):
                self._db.execute(statement)
            self._db.execute("COMMIT")
            # What a process left that died before its sync is seen, but perhaps in the page cache only. It counts from
            # now on, so it has to reach the disk first.
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except sqlite3.OperationalError as error:
            if "locked" in str(error) or "busy" in str(error):
                raise CatalogLocked(str(path)) from None
            raise
        written = self._meta("format")
        if written is None:
            self._set_meta("format", str(FORMAT))
        elif written != str(FORMAT):
            raise CatalogDamaged(f"{path} has format {written}; this version of Galvanic reads format {FORMAT}")

    def close(self) -> None:
        """Give the partition back."""
        self._db.close()

    @property
    def generation(self) -> int:
        """The generation that the shapes in here belong to; 0 in a new catalog."""
        return int(self._meta("generation") or 0)

    def start_generation(self, generation: int, reason: str) -> None:
        """All shapes end, in one transaction; what comes after belongs to ``generation`` (engine.md 3.9)."""
        self._made.clear()
        with _damage_told(), self._db:
            self._db.execute("BEGIN")
            self._db.execute("UPDATE shapes SET state = 'ended', reason = ? WHERE state <> 'ended'", (reason,))
            self._set_meta("generation", str(generation))

    def rows(self) -> list[ShapeRow]:
        """Every shape that is not forgotten. Raises :class:`CatalogDamaged`."""
        try:
            with _damage_told():
                return self._rows()
        except (ValueError, TypeError, msgspec.MsgspecError) as error:
            raise CatalogDamaged(f"a shape's row cannot be read: {error}") from error

    def _rows(self) -> list[ShapeRow]:
        # Few have any, and to look for each would take as long as all the rest.
        used: dict[str, int] = dict(self._db.execute("SELECT handle, used FROM uses"))
        cursor = self._db.execute(
            "SELECT handle, state, request, relation, selected, snapshot, filter_until, reason FROM shapes"
        )
        return [
            ShapeRow(
                handle=handle,
                state=state,
                request=msgspec.msgpack.decode(request, type=ShapeRequest),
                table=_table(table),
                selected=_selected(selected),
                snapshot=None if snapshot is None else Snapshot.parse(snapshot),
                filter_until=None if filter_until is None else int(filter_until),
                reason=reason,
                used=used.get(handle, 0),
            )
            for handle, state, request, table, selected, snapshot, filter_until, reason in cursor
        ]

    def create(self, request: ShapeRequest, table: Table, selected: tuple[str, ...]) -> str:
        """A handle for a new shape, which no shape has had before, whatever the clock says.

        Does not block if :attr:`has_handles`; any thread may call it then.
        """
        created = max(self._clock() // 1000, self._created + 1)
        if created > self._reserved:
            self.reserve()
        self._created = created
        handle = make_handle(request.hash(), created)
        self._made[handle] = _Made(request, table, selected)
        return handle

    @property
    def has_handles(self) -> bool:
        """Whether :meth:`create` does not have to :meth:`reserve` before. Does not block."""
        return self._now() + RESERVED_US // 4 < self._reserved

    def reserve(self) -> None:
        """Have some times to make handles of."""
        reserved = self._now() + RESERVED_US
        with _damage_told():
            self._set_meta("last_created", str(reserved))
        self._reserved = reserved

    def activate(self, shapes: Iterable[Complete]) -> set[str]:
        """The shapes are complete and durable: from now on they survive. Returns the handles of those that had not
        ended before, all entered in one transaction.

        A shape that lives here for the same request still waits for its tombstone, which the disk may have refused, and
        gets it now, so that a restart finds one at most (INV-15).
        """
        complete = [(shape, made) for shape in shapes if (made := self._made.pop(shape.handle, None)) is not None]
        if not complete:
            return set()
        # The commit waits for the disk itself. A sync of the file system behind the commits of many catalogs would not
        # do: what it fails to write of one is in the middle of that catalog's log, and takes with it what comes later.
        try:
            self._enter(complete)
        except BaseException:
            self._doubtful.update(shape.handle for shape, _ in complete)
            raise
        return {shape.handle for shape, _ in complete}

    def _enter(self, complete: Iterable[tuple[Complete, _Made]]) -> None:
        reserved = self._now() + RESERVED_US
        with _damage_told(), self._db:
            self._db.execute("BEGIN")
            # While the disk is waited for anyway.
            self._set_meta("last_created", str(reserved))
            for shape, made in complete:
                request = msgspec.msgpack.encode(made.request)
                self._db.execute(
                    "UPDATE shapes SET state = 'ended', reason = 'a new shape took its place' "
                    "WHERE request = ? AND state <> 'ended'",
                    (request,),
                )
                self._db.execute(
                    "INSERT INTO shapes (handle, state, request, relation, selected, snapshot, filter_until) "
                    "VALUES (?, 'active', ?, ?, ?, ?, ?)",
                    (
                        shape.handle,
                        request,
                        msgspec.msgpack.encode(made.table),
                        msgspec.msgpack.encode(made.selected),
                        str(shape.snapshot),
                        str(shape.filter_until),
                    ),
                )
        self._reserved = reserved

    def end(self, handle: str, reason: str) -> None:
        """The tombstone: from here on the shape no longer exists, also after a crash."""
        if self._made.pop(handle, None) is not None:
            return  # nobody can find it after a restart
        with _damage_told():
            self._db.execute("UPDATE shapes SET state = 'ended', reason = ? WHERE handle = ?", (reason, handle))
        if handle in self._doubtful:
            # A commit that failed may be whole on the disk, and would count after a crash; the next one overwrites it.
            self.reserve()
            self._doubtful.discard(handle)

    def forget(self, handle: str) -> None:
        """Its directory is gone: the tombstone is not needed any more."""
        with _damage_told():
            self._db.execute("DELETE FROM shapes WHERE handle = ? AND state = 'ended'", (handle,))
            self._db.execute("DELETE FROM uses WHERE handle = ?", (handle,))

    def remember(self, used: Mapping[str, int]) -> None:
        """When shapes were last used, in Unix time. Only hints: no right answer hangs on them."""
        with _damage_told(), self._db:
            self._db.execute("BEGIN")
            self._db.executemany(
                "INSERT INTO uses (handle, used) SELECT handle, ? FROM shapes WHERE handle = ? AND state <> 'ended' "
                "ON CONFLICT (handle) DO UPDATE SET used = excluded.used",
                ((time, handle) for handle, time in used.items()),
            )

    def _now(self) -> int:
        return max(self._clock() // 1000, self._created)

    def _meta(self, name: str) -> str | None:
        with _damage_told():
            row = self._db.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        return None if row is None else str(row[0])

    def _set_meta(self, name: str, value: str) -> None:
        self._db.execute(
            "INSERT INTO meta (name, value) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value",
            (name, value),
        )


def set_aside(path: Path) -> Path:
    """Put a damaged catalog out of the way, for whoever wants to look at it; where it is now. Raises ``OSError``."""
    kept = path.with_name(f"{path.name}.damaged-{time.time_ns() // 1000}")
    # What is in the log belongs to this file and would be applied to the next one.
    for suffix in ("-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            os.replace(f"{path}{suffix}", f"{kept}{suffix}")
    os.replace(path, kept)
    return kept


@contextlib.contextmanager
def _damage_told() -> Iterator[None]:
    """SQLite has a class of its own for all errors but those that say: this is no database, or its pages are wrong."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        if type(error) is sqlite3.DatabaseError:
            raise CatalogDamaged(str(error)) from error
        raise

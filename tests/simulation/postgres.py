"""A model of Postgres: transactions in progress, snapshots, WAL that is written before it is flushed, a logical slot.

As in the real one, a transaction's commit record is in the WAL before the transaction becomes visible (much earlier
while a synchronous standby is slow), an asynchronous commit is visible before its record is flushed, and a crash takes
back all that was not flushed and then gives the same positions and ids to others. A change is published iff its table
was a member of the publication at the change's place in the WAL.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from typing import Final

from common.table import Column, Table
from common.xid import Snapshot
from tests.simulation.scheduler import Scheduler

Row = tuple[bytes | None, ...]

INSERT: Final = "I"
UPDATE: Final = "U"
DELETE: Final = "D"
TRUNCATE: Final = "T"

COLUMNS: Final = ("id", "a", "b")


def make_table(oid: int) -> Table:
    """``id`` is the key, ``a`` and ``b`` are texts that may be NULL."""

    def column(name: str, number: int, type_oid: int, type_name: str, key: int | None) -> Column:
        return Column(name, number, type_oid, type_name, -1, type_oid, key is not None, key, "", 0)

    columns = (
        column("id", 1, 23, "int4", 0),
        column("a", 2, 25, "text", None),
        column("b", 3, 25, "text", None),
    )
    return Table(oid, "public", f"t{oid}", "r", "p", columns)


class Change:
    """One change of a row; ``lsn`` is its place in the WAL."""

    __slots__ = ("kind", "lsn", "new", "old", "table")

    def __init__(self, lsn: int, table: int, kind: str, old: Row | None, new: Row | None) -> None:
        self.lsn, self.table, self.kind, self.old, self.new = lsn, table, kind, old, new


class Transaction:
    """``lsn`` is where its commit record starts, ``end`` where that ends; both 0 until it commits."""

    def __init__(self, xid: int, first: int) -> None:
        self.xid = xid
        self.first = first
        self.lsn = 0
        self.end = 0
        self.changes: list[Change] = []


class Version:
    """A version of a row, and which transactions made and removed it."""

    __slots__ = ("row", "xmax", "xmin")

    def __init__(self, xmin: int, row: Row) -> None:
        self.xmin, self.row = xmin, row
        self.xmax: int | None = None


class Slot:
    """A logical slot; ``saved`` is what a crash leaves of ``confirmed``."""

    def __init__(self, confirmed: int) -> None:
        self.confirmed = confirmed
        self.saved = confirmed
        self.reader: object | None = None


class Server:
    """The server and its only database."""

    def __init__(self, scheduler: Scheduler, tables: int) -> None:
        self.scheduler = scheduler
        rng = scheduler.rng
        # Near the wrap of 32 bits, so that it is passed on the way.
        self.next_xid = (1 << 32) - rng.randrange(5, 200)
        self._oldest_xid = self.next_xid
        self.insert = 0x1_0000_0000 + rng.randrange(1 << 20)
        self.flush = self.insert
        self.tables = {oid: make_table(oid) for oid in range(16001, 16001 + tables)}
        self.wal: list[Transaction] = []
        self.running: dict[int, Transaction] = {}
        self.latest_completed = self.next_xid - 1
        self.aborted: set[int] = set()
        self.assigned: list[tuple[int, int]] = []
        """Ids given out, each with the place of its first WAL record."""
        self.heap: dict[int, dict[int, list[Version]]] = {oid: {} for oid in self.tables}
        self.published: dict[int, int] = {}
        self.announced = 0
        """Counts the changes of the publication: after each, Relation messages are sent again."""
        self.locked: set[int] = set()
        self.slot: Slot | None = None
        self.lock_holder: object | None = None
        self.life = 1
        """Counts the crashes; connections of a former life are lost."""
        self.up = True
        self.standby_lag: Callable[[], float] = lambda: 0.0
        self.on_flush: list[Callable[[], None]] = []
        self.on_crash: list[Callable[[], None]] = []

    # ---- reading

    def snapshot(self) -> Snapshot:
        """What a statement that begins now sees."""
        xmax = self.latest_completed + 1
        running = frozenset(xid for xid in self.running if xid < xmax)
        return Snapshot(min(running, default=xmax), xmax, running)

    def rows(self, table: int, snapshot: Snapshot) -> list[Row]:
        """The rows that a snapshot shows, by key."""
        found: list[Row] = []
        for _, versions in sorted(self.heap[table].items()):
            for version in versions:
                if self._shows(snapshot, version.xmin) and not (
                    version.xmax is not None and self._shows(snapshot, version.xmax)
                ):
                    found.append(version.row)
        return found

    def _shows(self, snapshot: Snapshot, xid: int) -> bool:
        return snapshot.shows(xid) and xid not in self.aborted

    # ---- writing

    def advance(self, size: int) -> int:
        """Write a WAL record; where it starts."""
        start = self.insert
        self.insert += size
        return start

    def begin(self) -> Transaction:
        """A transaction that is about to write."""
        transaction = Transaction(self.next_xid, self.advance(self.scheduler.rng.randrange(24, 80)))
        self.next_xid += 1
        self.assigned.append((transaction.xid, transaction.first))
        self.running[transaction.xid] = transaction
        return transaction

    def write(
        self, transaction: Transaction, table: int, kind: str, key: int, values: tuple[bytes | None, ...]
    ) -> None:
        """A change; the caller knows that the row is free (:meth:`is_free`) and is or is not there."""
        lsn = self.advance(self.scheduler.rng.randrange(40, 200))
        versions = self.heap[table].setdefault(key, [])
        live = self.current(table, key, transaction)
        new: Row | None = None if kind == DELETE else (b"%d" % key, *values)
        if live is not None:
            live.xmax = transaction.xid
        if new is not None:
            versions.append(Version(transaction.xid, new))
        transaction.changes.append(Change(lsn, table, kind, live.row if live else None, new))

    def move(self, transaction: Transaction, table: int, key: int, to: int) -> None:
        """An update of the key; both rows are free, the second is not there."""
        lsn = self.advance(100)
        live = self.current(table, key, transaction)
        assert live is not None
        live.xmax = transaction.xid
        new = (b"%d" % to, *live.row[1:])
        self.heap[table].setdefault(to, []).append(Version(transaction.xid, new))
        transaction.changes.append(Change(lsn, table, UPDATE, live.row, new))

    def truncate(self, transaction: Transaction, table: int) -> None:
        """All rows go; the caller holds the table alone."""
        lsn = self.advance(64)
        for key in list(self.heap[table]):
            live = self.current(table, key, transaction)
            if live is not None:
                live.xmax = transaction.xid
        transaction.changes.append(Change(lsn, table, TRUNCATE, None, None))

    def current(self, table: int, key: int, transaction: Transaction) -> Version | None:
        """The version of a row that the transaction sees."""
        for version in reversed(self.heap[table].get(key, [])):
            if version.xmin in self.aborted or (version.xmin in self.running and version.xmin != transaction.xid):
                continue
            gone = version.xmax
            if gone is None or gone in self.aborted or (gone in self.running and gone != transaction.xid):
                return version
        return None

    def is_free(self, table: int, key: int, transaction: Transaction) -> bool:
        """Whether no other running transaction has changed the row."""
        others = self.running.keys() - {transaction.xid}
        return not any(v.xmin in others or v.xmax in others for v in self.heap[table].get(key, []))

    def abort(self, transaction: Transaction) -> None:
        """Roll back."""
        if self.running.pop(transaction.xid, None) is not None:
            self.aborted.add(transaction.xid)
            self._complete(transaction.xid)

    def commit(self, transaction: Transaction, *, synchronous: bool) -> Iterator[float]:
        """A script: the commit record, then perhaps its flush and the standby, then visibility."""
        life = self.life
        rng = self.scheduler.rng
        size = rng.randrange(34, 100)
        transaction.lsn = self.advance(size)
        transaction.end = transaction.lsn + size
        self.wal.append(transaction)
        self.scheduler.trace("commit", transaction.xid, transaction.lsn, len(transaction.changes))
        if synchronous:
            yield rng.random() * 0.01
            if self.life != life:
                return
            self.flush_to(transaction.end)
            lag = self.standby_lag()
            if lag:
                yield lag
        elif rng.random() < 0.3:
            yield rng.random() * 0.01
        if self.life == life:
            self.running.pop(transaction.xid, None)
            self._complete(transaction.xid)

    def flush_to(self, position: int) -> None:
        """The WAL up to there is on the disk."""
        if position > self.flush:
            self.flush = position
            for action in self.on_flush:
                action()

    def _complete(self, xid: int) -> None:
        self.latest_completed = max(self.latest_completed, xid)

    def crash(self) -> None:
        """Everything that was not flushed is gone, its positions and ids are given out again."""
        self.scheduler.trace("postgres crashes", self.flush, self.insert)
        self.up = False
        self.life += 1
        self.wal = [transaction for transaction in self.wal if transaction.end <= self.flush]
        committed = {transaction.xid for transaction in self.wal}
        # An id of which nothing reached the disk is given out again.
        self.assigned = [(xid, first) for xid, first in self.assigned if first < self.flush]
        self.next_xid = max((xid for xid, _ in self.assigned), default=self._oldest_xid - 1) + 1
        self.aborted = {xid for xid, _ in self.assigned if xid not in committed}
        self.running = {}
        self.latest_completed = self.next_xid - 1
        self.insert = self.flush = (self.flush + 7) // 8 * 8
        self.heap = {oid: {} for oid in self.tables}
        self.published = {table: lsn for table, lsn in self.published.items() if lsn < self.flush}
        self.locked.clear()
        for transaction in self.wal:
            self._redo(transaction)
        if self.slot is not None:
            self.slot.confirmed = self.slot.saved
            self.slot.reader = None
        self.lock_holder = None
        for action in self.on_crash:
            action()

    def _redo(self, transaction: Transaction) -> None:
        for change in transaction.changes:
            if change.kind == TRUNCATE:
                for versions in self.heap[change.table].values():
                    versions.clear()
                continue
            for row in (change.old, change.new):
                if row is not None:
                    self.heap[change.table].setdefault(int(row[0] or b""), []).clear()
            if change.new is not None:
                self.heap[change.table][int(change.new[0] or b"")].append(Version(transaction.xid, change.new))

    def checkpoint(self) -> None:
        """The slot's position survives a crash from now on."""
        if self.slot is not None:
            self.slot.saved = self.slot.confirmed

    # ---- the publication

    def is_published(self, change: Change) -> bool:
        """As of the change's place in the WAL."""
        since = self.published.get(change.table)
        return since is not None and since < change.lsn

    def busy(self, table: int) -> bool:
        """Whether a running transaction has written to the table."""
        return any(change.table == table for transaction in self.running.values() for change in transaction.changes)

    def publish(self, table: int) -> Generator[float, None, None]:
        """A script: add a table under a lock that excludes its writers. Gives up when the server crashes."""
        life = self.life
        rng = self.scheduler.rng
        while table not in self.published:
            if table in self.locked or self.busy(table):
                yield rng.random() * 0.02
            else:
                self.locked.add(table)
                try:
                    yield rng.random() * 0.05
                    if self.life != life:
                        return
                    at = self.advance(100)
                    if rng.random() < 0.7:
                        yield rng.random() * 0.02
                        if self.life != life:
                            return
                    self.flush_to(self.insert)
                    self.published[table] = at
                    self.announced += 1
                    self.scheduler.trace("published", table, at)
                finally:
                    if self.life == life:
                        self.locked.discard(table)
            if self.life != life:
                return

"""What must be true: which entries a shape's log has, and what the disk holds if the power goes now."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from common.lsn import SNAPSHOT_END, Offset
from common.shape import ShapeRequest
from common.shapelog.layout import (
    HEADER_SIZE,
    INDEX_NAME,
    LOG_NAME,
    DamagedLog,
    SnapshotState,
    decode_header,
    snapshot_name,
)
from common.shapelog.recovery import find_end
from common.xid import Snapshot
from shapeworker.catalog import ACTIVE, CREATING, ENDED, Catalog, ShapeRow
from tests.simulation.disk import Disk, Node, SimPath
from tests.simulation.postgres import COLUMNS, TRUNCATE, UPDATE, Change, Row, Server, Transaction

EVICTED: Final = "there are "
"""How the reason begins why one shape of too many ends."""

ENDINGS: Final = (
    "it was deleted by request",
    "its table was truncated",
    # A sync that failed: what the kernel has kept of the log is not known any more.
    "its log cannot be synced",
    # It had ended before, but a full disk refused its tombstone.
    "a new shape took its place",
    # Active on the disk already, but its worker had not heard of that yet when the partition moved.
    "its worker gave the partition away before it was complete",
    # ELECTRIC_MAX_SHAPES: see on_eviction.
    EVICTED,
)
"""Why an active shape may end here. Whatever else ends one is something that the product should have survived."""

_STEPS: Final = ((CREATING, ACTIVE), (CREATING, ENDED), (ACTIVE, ENDED))


class Effect(NamedTuple):
    """What a transaction adds to the log of a shape that it counts for."""

    lsn: int
    xid: int
    ops: tuple[int, ...]
    truncates: bool


class View(NamedTuple):
    """What a shape shows of its table."""

    table: int
    selected: tuple[str, ...]


class Cut(NamedTuple):
    """What divides the table's history into a shape's snapshot and its log."""

    snapshot: Snapshot
    filter_until: int

    def counts(self, effect: Effect) -> bool:
        """Whether the transaction belongs into the log (engine.md H-A)."""
        return effect.lsn >= self.filter_until or not self.snapshot.shows(effect.xid)


class Oracle:
    """Knows the whole WAL, and reads the disk as it would be after a power cut."""

    def __init__(self, server: Server, disk: Disk, storage: SimPath) -> None:
        self._server = server
        self._disk = disk
        self._storage = storage
        self._effects: dict[View, list[Effect]] = {}
        self._seen: dict[View, int] = {}
        self._ends: dict[int, tuple[tuple[int, int], Offset]] = {}
        self._whole: set[str] = set()
        self.fail: Callable[[BaseException], None]
        self.on_eviction: Callable[[ShapeRow, int], None]
        """Is told a shape that ended for being one too many, and how many there were in all catalogs with it."""
        self.rows: dict[str, dict[str, ShapeRow]] = {}
        """Partition → handle → what its catalog says durably."""
        self._handles: set[str] = set()
        server.on_crash.append(self._forget)
        disk.on_commit = self._on_catalog

    def _forget(self) -> None:
        self._effects.clear()
        self._seen.clear()

    def _on_catalog(self, partition: str) -> None:
        """A catalog changed: one live shape per request, no handle twice, no active shape ends without need."""
        catalog = Catalog.__new__(Catalog)
        catalog._db = self._disk.catalogs[partition]
        before = self.rows.get(partition, {})
        now = self.rows[partition] = {row.handle: row for row in catalog.rows()}
        alive = self.alive() + sum(
            row.state == ENDED and row.handle in before and before[row.handle].state != ENDED for row in now.values()
        )
        live: dict[ShapeRequest, str] = {}
        for row in now.values():
            if row.state != ENDED and live.setdefault(row.request, row.handle) != row.handle:
                self.fail(AssertionError(f"INV-15: {row.handle} and {live[row.request]} live for one request"))
            was = before.get(row.handle)
            if was is None:
                if row.handle in self._handles:
                    self.fail(AssertionError(f"INV-16: the handle {row.handle} comes again"))
                self._handles.add(row.handle)
            elif was.state == ACTIVE and row.state == ENDED and not (row.reason or "").startswith(ENDINGS):
                self.fail(AssertionError(f"the active shape {row.handle} ends: {row.reason}"))
            elif was.state == ACTIVE and row.state == ENDED and (row.reason or "").startswith(EVICTED):
                self.on_eviction(row, alive)
                alive -= 1
            elif was.state != row.state and (was.state, row.state) not in _STEPS:
                self.fail(AssertionError(f"{row.handle} goes from {was.state} to {row.state}"))

    def alive(self) -> int:
        """How many shapes there are that are complete."""
        return sum(row.state != ENDED for rows in self.rows.values() for row in rows.values())

    # ---- history

    def effects(self, view: View) -> list[Effect]:
        """Of all transactions so far, in commit order, those that change what the view shows."""
        effects = self._effects.setdefault(view, [])
        wal = self._server.wal
        for transaction in wal[self._seen.get(view, 0) :]:
            effect = self._effect(transaction, view)
            if effect is not None:
                effects.append(effect)
        self._seen[view] = len(wal)
        return effects

    def last(self, view: View, cut: Cut, lsn: int) -> Effect | None:
        """The last transaction with a commit LSN up to this one that a log with this cut must have."""
        effects = self.effects(view)
        at = bisect_right(effects, lsn, key=lambda effect: effect.lsn)
        while at:
            at -= 1
            if cut.counts(effects[at]):
                return effects[at]
        return None

    def entries(self, view: View, cut: Cut) -> list[Offset]:
        """The offsets of all entries that a log with this cut must have."""
        return [Offset(e.lsn, op) for e in self.effects(view) if cut.counts(e) for op in e.ops]

    def _effect(self, transaction: Transaction, view: View) -> Effect | None:
        ops: list[int] = []
        truncates = False
        index = 0
        for change in transaction.changes:
            if not self._server.is_published(change):
                continue
            if change.table == view.table:
                if change.kind == TRUNCATE:
                    truncates = True
                else:
                    ops += _ops(change, view.selected, 2 * index)
            index += 1
        if not ops and not truncates:
            return None
        return Effect(transaction.lsn, transaction.xid, tuple(ops), truncates)

    def table(self, view: View) -> dict[str, dict[str, str | None]]:
        """The rows that a client of the view should hold now, by key."""
        rows = self._server.rows(view.table, self._server.snapshot())
        return {key(view.table, row): shown(row, view.selected) for row in rows}

    # ---- the disk

    def active(self, partitions: Iterable[int] | None = None) -> list[ShapeRow]:
        """The active shapes of these partitions, or all, as the catalogs say durably."""
        wanted = None if partitions is None else {f"{partition:02d}" for partition in partitions}
        return [
            row
            for partition, rows in self.rows.items()
            if wanted is None or partition in wanted
            for row in rows.values()
            if row.state == ACTIVE
        ]

    def check_durable(self, lsn: int, partitions: Iterable[int] | None, what: str) -> None:
        """If the power went now, every active shape of these partitions would still have all up to ``lsn``.

        Raises ``AssertionError`` (engine.md INV-7, INV-10, INV-20, INV-32).
        """
        for row in self.active(partitions):
            view, cut = view_of(row), cut_of(row)
            must = self.last(view, cut, lsn)
            has = self._durable_end(row)
            if must is not None and must.truncates:
                raise AssertionError(f"{what} {lsn}: {row.handle} lives although {must.lsn} truncated its table")
            if must is not None and has < Offset(must.lsn, must.ops[-1]):
                raise AssertionError(
                    f"{what} {lsn}: of {row.handle} only {has} would survive a power cut, not {must.lsn}"
                )

    def _durable_end(self, row: ShapeRow) -> Offset:
        directory = self._synced(self._storage / "partitions" / self.partition(row) / "shapes")
        shape = directory.synced_entries.get(row.handle) if directory is not None else None
        index = shape.synced_entries.get(INDEX_NAME) if shape is not None else None
        if shape is None or index is None:
            raise AssertionError(f"the files of the active shape {row.handle} would not survive a power cut")
        if row.handle not in self._whole:
            _check_snapshot(row.handle, shape, index)
            self._whole.add(row.handle)
        log = shape.synced_entries.get(LOG_NAME)
        version = (index.version, log.version if log is not None else -1)
        known = self._ends.get(id(index))
        if known is None or known[0] != version:
            try:
                end = find_end(_Synced(index, log), 0, None if log is None else 1, 0)  # type: ignore[arg-type]
            except DamagedLog as error:
                raise AssertionError(f"{row.handle} would be damaged by a power cut: {error}") from error
            known = self._ends[id(index)] = (version, end.last if end.records else SNAPSHOT_END)
        return known[1]

    def partition(self, row: ShapeRow) -> str:
        """Where the shape lives."""
        return next(name for name, rows in self.rows.items() if row.handle in rows)

    def _synced(self, path: SimPath) -> Node | None:
        node: Node | None = self._disk.root
        for part in path.parts:
            node = None if node is None else node.synced_entries.get(part)
        return node

    def check_log(self, row: ShapeRow, entries: list[Offset]) -> None:
        """The log of an active shape has exactly what it must. Raises ``AssertionError`` (INV-5, INV-17, INV-25)."""
        must = self.entries(view_of(row), cut_of(row))
        if entries != must:
            missing = [str(offset) for offset in must if offset not in set(entries)]
            extra = [str(offset) for offset in entries if offset not in set(must)]
            raise AssertionError(f"the log of {row.handle} lacks {missing[:5]} and has {extra[:5]} too much")


def view_of(row: ShapeRow) -> View:
    """What the shape shows."""
    return View(row.table.oid, row.selected)


def cut_of(row: ShapeRow) -> Cut:
    """Where the shape's log begins."""
    assert row.snapshot is not None
    assert row.filter_until is not None
    return Cut(row.snapshot, row.filter_until)


def key(table: int, row: Row) -> str:
    """A row's key on the wire."""
    assert row[0] is not None
    return f'"public"."t{table}"/"{row[0].decode()}"'


def shown(row: Row, selected: Iterable[str]) -> dict[str, str | None]:
    """A row as a client of these columns holds it."""
    texts = {name: None if value is None else value.decode() for name, value in zip(COLUMNS, row, strict=True)}
    return {name: texts[name] for name in selected}


def _ops(change: Change, selected: tuple[str, ...], op: int) -> list[int]:
    if change.kind != UPDATE:
        return [op]
    assert change.old is not None
    assert change.new is not None
    if change.old[0] != change.new[0]:
        return [op, op + 1]
    return [op] if shown(change.old, selected) != shown(change.new, selected) else []


def _check_snapshot(handle: str, shape: Node, index: Node) -> None:
    header = decode_header(bytes(index.synced[:HEADER_SIZE]))
    if header is None or header.snapshot is not SnapshotState.COMPLETE:
        raise AssertionError(f"INV-20: {handle} is active, but a power cut would leave the header {header}")
    for chunk in range(header.chunks):
        file = shape.synced_entries.get(snapshot_name(chunk))
        if file is None or file.synced != file.data or not file.data:
            raise AssertionError(f"INV-20: {handle} is active, but chunk {chunk} would not survive a power cut")


class _Synced:
    """``common.shapelog.files.Files`` over what is synced: 0 is the index, 1 the log."""

    def __init__(self, index: Node, log: Node | None) -> None:
        self._data = (index.synced, b"" if log is None else log.synced)

    def pread(self, fd: int, length: int, offset: int) -> bytes:
        """Bytes of it."""
        return self._data[fd][offset : offset + length]

    def size(self, fd: int) -> int:
        """Its length."""
        return len(self._data[fd])

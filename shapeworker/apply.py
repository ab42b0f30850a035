"""Transactions into shapes: decode, route, append, publish (architecture.md 5). The worker's hot path.

A change is decoded once, its JSON built once per projection, and the same bytes go to every shape of that projection.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

import structlog

from common import pgoutput
from common.lsn import Offset
from common.messages import BEGIN, CHANGE, COMMIT, RELATION, TRUNCATE, parse_begin, parse_commit, parse_relation_record
from common.pgoutput import DELETE, INSERT, IncompleteRow, Relation, Row
from common.shapelog.layout import DamagedLog
from common.shortage import is_shortage
from shapeworker.projection import Projection, SchemaChanged, transaction_headers
from shapeworker.shape import Life, Shape

log = structlog.get_logger()

SPILL_BYTES = 256 * 1024
"""Of one shape and transaction, kept in memory before they go to its log's file, where nobody sees them yet."""

SPILL_LEAST_BYTES = 16 * 1024
"""The same where a transaction touches very many shapes: smaller writes would cost too much."""

SPILL_TOTAL_BYTES = 32 * 1024 * 1024
"""Of all shapes that a transaction touches, until the least is reached."""

HELD_BYTES: Final = 64 * 1024 * 1024
"""Of changes that new shapes may hold back in memory, all together, until their snapshots are taken; beyond, the one
that holds most is given up."""


class StorageFull(Exception):
    """The machine lacks something (``cause``): no shape is at fault, the worker must wait and be sent it all again."""

    def __init__(self, cause: OSError) -> None:
        super().__init__(str(cause))
        self.cause = cause


class Events(Protocol):
    """What applying leads to. Called on the loop; must not block."""

    def written(self, shape: Shape, end: Offset) -> None:
        """The shape's log has a new end."""

    def ended(self, shape: Shape, reason: str) -> None:
        """The shape cannot go on."""

    def committed(self, lsn: int) -> None:
        """All shapes have what they need of the transactions up to this commit."""


class Group:
    """Shapes of one table that show its rows in the same way, or cannot any more because the table has changed."""

    __slots__ = ("projection", "shapes")

    def __init__(self, projection: Projection | SchemaChanged) -> None:
        self.projection = projection
        self.shapes: list[Shape] = []


class Applier:
    """Applies records in stream order to the shapes it has been given."""

    def __init__(self, events: Events, open_log: Callable[[Shape], None]) -> None:
        """``open_log`` opens and recovers the log of a shape that is touched for the first time since a while."""
        self._events = events
        self._open_log = open_log
        self._shapes: dict[int, dict[str, Shape]] = {}
        self._relations: dict[int, tuple[Relation, tuple[int, ...]]] = {}
        self._groups: dict[int, list[Group]] = {}
        self._projections: dict[int, dict[tuple[object, ...], Projection | SchemaChanged]] = {}
        self._serial = 0
        self._touched: list[Shape] = []
        self._holding: set[Shape] = set()
        self._spill_bytes = SPILL_BYTES
        self._lsn = 0
        self._xid = 0
        self._headers = b""

    # ---- shapes

    def add(self, shape: Shape) -> None:
        """From the next change on. If a transaction is passing, the shape is told of the rest of it, and knows so."""
        shapes = self._shapes.setdefault(shape.table.oid, {})
        if shape.handle not in shapes:
            shapes[shape.handle] = shape
            self._regroup(shape.table.oid)

    def remove(self, shape: Shape) -> None:
        """No more changes for it; what it has of an open transaction is void."""
        self._holding.discard(shape)
        shapes = self._shapes.get(shape.table.oid, {})
        if shapes.pop(shape.handle, None) is not None:
            if not shapes:
                del self._shapes[shape.table.oid]
            self._regroup(shape.table.oid)
        if shape in self._touched:
            self._touched.remove(shape)
            shape.abort()

    # ---- the stream

    def restart(self) -> None:
        """A new epoch: what is half-done is void and comes again; the relations are sent again, too."""
        for shape in self._touched:
            shape.abort()
        self._touched = []
        self._relations.clear()
        self._projections.clear()
        self._groups.clear()

    def record(self, kind: int, index: int, payload: bytes) -> None:
        """One record. Raises :class:`StorageFull`; what fails for one shape ends that shape only."""
        if kind == CHANGE:
            self._change(index, payload)
        elif kind == COMMIT:
            self._commit(*parse_commit(payload))
        elif kind == BEGIN:
            self._lsn, self._xid, _ = parse_begin(payload)
            self._serial += 1
            self._spill_bytes = SPILL_BYTES
            self._headers = transaction_headers(self._lsn, self._xid)
        elif kind == RELATION:
            ancestors, message = parse_relation_record(payload)
            relation = pgoutput.parse_relation(message)
            self._relations[relation.oid] = (relation, ancestors)
            self._projections.pop(relation.oid, None)
            self._groups.pop(relation.oid, None)
        elif kind == TRUNCATE:
            for oid in pgoutput.parse_truncate(payload):
                for group in self._targets(oid):
                    for shape in self._entering(group):
                        self._obstruct(shape, "its table was truncated")

    def _change(self, index: int, payload: bytes) -> None:
        groups = self._targets(pgoutput.relation_oid(payload))
        row: Row | None = None
        old: Row | None = None
        for group in groups:
            shapes = self._entering(group)
            if not shapes:
                continue
            projection = group.projection
            if isinstance(projection, SchemaChanged):
                for shape in shapes:
                    self._obstruct(shape, str(projection))
                continue
            try:
                kind = payload[0]
                op = 2 * index
                lines: tuple[bytes, ...]
                if kind == INSERT:
                    row = row or pgoutput.parse_insert(payload)
                    lines = (projection.insert(row, self._headers, op),)
                elif kind == DELETE:
                    row = row or pgoutput.parse_delete(payload)
                    lines = (projection.delete(row, self._headers, op),)
                else:
                    if row is None or old is None:
                        old, row = pgoutput.parse_update(payload)
                    lines = projection.update(old, row, self._headers, op)
            except IncompleteRow as error:
                for shape in shapes:
                    self._obstruct(shape, f"{error}: REPLICA IDENTITY of the table is not FULL")
                continue
            except Exception as error:
                log.exception("a change could not be turned into JSON", table=shapes[0].table.name)
                for shape in shapes:
                    self._end(shape, f"internal error: {type(error).__name__}")
                continue
            if not lines:
                continue
            for shape in shapes:
                if shape.gather(op, lines) >= self._spill_bytes:
                    self._write(shape, spill=True)

    def _commit(self, lsn: int, xid: int) -> None:
        touched, self._touched = self._touched, []
        while touched:
            shape = touched.pop()
            try:
                self._write(shape, commit=(lsn, xid))
            except StorageFull:
                self._touched = [*touched, shape]
                self.restart()
                raise
        self._events.committed(lsn)

    def _write(self, shape: Shape, *, spill: bool = False, commit: tuple[int, int] = (0, 0)) -> None:
        try:
            if shape.log is None:
                # It was closed for others while this transaction was gathered.
                self._open_log(shape)
            if spill:
                shape.spill(self._lsn)
            end = None if spill else shape.commit(*commit)
            if shape.held_bytes and shape.life is not Life.ENDED:
                self._holding.add(shape)
                self._bound_held()
            if end is not None:
                self._events.written(shape, end)
        except DamagedLog as error:
            self._end(shape, f"its log cannot be opened: {error}")
        except OSError as error:
            if is_shortage(error):
                raise StorageFull(error) from error
            self._end(shape, f"its log cannot be written: {error.strerror}")

    def _bound_held(self) -> None:
        """Keep what new shapes hold back within its bound, at the expense of the greediest."""
        self._holding = {shape for shape in self._holding if shape.held_bytes}
        if sum(shape.held_bytes for shape in self._holding) > HELD_BYTES:
            greediest = max(self._holding, key=lambda shape: shape.held_bytes)
            self._end(greediest, "too many changes came while it waited for its snapshot")

    def _entering(self, group: Group) -> list[Shape]:
        serial = self._serial
        for shape in group.shapes:
            if shape.serial != serial:
                self._enter(shape)
        return [shape for shape in group.shapes if not shape.skips]

    def _enter(self, shape: Shape) -> None:
        try:
            if shape.log is None:
                self._open_log(shape)
        except (OSError, DamagedLog) as error:
            if isinstance(error, OSError) and is_shortage(error):
                raise StorageFull(error) from error
            self._end(shape, f"its log cannot be opened: {error}")
            shape.skips = True
            return
        shape.enter(self._serial, self._lsn, self._xid)
        if not shape.skips:
            self._touched.append(shape)
            share = SPILL_TOTAL_BYTES // len(self._touched)
            self._spill_bytes = min(SPILL_BYTES, max(SPILL_LEAST_BYTES, share))

    def _obstruct(self, shape: Shape, reason: str) -> None:
        if shape.obstruct(reason):
            self._end(shape, reason)

    def _end(self, shape: Shape, reason: str) -> None:
        self.remove(shape)
        self._events.ended(shape, reason)

    def _targets(self, oid: int) -> list[Group]:
        groups = self._groups.get(oid)
        if groups is None:
            groups = self._groups[oid] = self._group(oid)
        return groups

    def _regroup(self, table: int) -> None:
        for oid, (_, ancestors) in self._relations.items():
            if oid == table or table in ancestors:
                self._groups.pop(oid, None)

    def _group(self, oid: int) -> list[Group]:
        if oid not in self._relations:
            return []
        relation, ancestors = self._relations[oid]
        groups: dict[tuple[object, ...], Group] = {}
        for table in (oid, *ancestors):
            for shape in self._shapes.get(table, {}).values():
                view = (shape.table, shape.selected, shape.request.columns is None, shape.request.replica)
                group = groups.get(view)
                if group is None:
                    group = groups[view] = Group(self._projection(relation, shape, view))
                group.shapes.append(shape)
        return list(groups.values())

    def _projection(self, relation: Relation, shape: Shape, view: tuple[object, ...]) -> Projection | SchemaChanged:
        known = self._projections.setdefault(relation.oid, {})
        if view not in known:
            try:
                known[view] = Projection(
                    relation,
                    shape.table,
                    shape.selected,
                    explicit=shape.request.columns is not None,
                    replica=shape.request.replica,
                )
            except SchemaChanged as changed:
                known[view] = changed
        return known[view]

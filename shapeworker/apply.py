"""Transactions into shapes: decode, route, append, publish (architecture.md 5). The worker's hot path.

A change is decoded once, its JSON built once per projection, and the same bytes go to every shape of that projection.
Shapes that the same changes concern get those of many records at once: a record costs next to nothing for each of them.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable
from typing import Final, Protocol

import structlog

from common import pgoutput
from common.frames import BEGIN, CHANGE, COMMIT, RELATION, TRUNCATE, parse_begin, parse_commit, parse_relation_record
from common.lsn import Offset
from common.pgoutput import DELETE, INSERT, UPDATE, IncompleteRow, Relation
from common.shapelog.layout import DamagedLog
from common.shortage import is_shortage
from shapeworker.audience import Audience, Reading, View
from shapeworker.change import Change
from shapeworker.deferred_keys import RETAKEN, TakenKeys
from shapeworker.delivered import Delivered
from shapeworker.projection import Projection, transaction_headers
from shapeworker.shape import Life, Shape

log = structlog.get_logger()

RECORDS: Final = frozenset((BEGIN, CHANGE, COMMIT, RELATION, TRUNCATE))
"""The kinds of records that are for the applier."""

SPILL_BYTES = 256 * 1024
"""Of one shape and transaction, kept in memory before they go to its log's file, where nobody sees them yet."""

SPILL_LEAST_BYTES = 16 * 1024
"""The same where a transaction touches very many shapes: smaller writes would cost too much."""

SPILL_TOTAL_BYTES = 32 * 1024 * 1024
"""Of all shapes that a transaction touches, until the least is reached."""

UNWRITTEN: Final = 50_000
"""Transactions of shapes, each counted in each shape, that may wait to be written together."""

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

    def written(self, shape: Shape, end: Offset, transactions: int) -> None:
        """The shape's log has a new end, so many transactions further on."""

    def ended(self, shape: Shape, reason: str) -> None:
        """The shape cannot go on."""

    def committed(self, lsn: int) -> None:
        """All logs have what they need of the transactions up to this commit."""


class _Batch:
    """Lines of the passing transaction that all of these shapes get."""

    __slots__ = ("lines", "ops", "shapes", "size")

    def __init__(self, shapes: Iterable[Shape]) -> None:
        self.shapes = shapes
        self.ops: list[int] = []
        self.lines: list[bytes] = []
        self.size = 0


class Applier:
    """Applies records in stream order to the shapes it has been given.

    After some frames' records comes :meth:`deliver`, before anything else happens: in between, shapes lack what they
    will get, and what they have got is not in their logs yet. So many small transactions cost each log one write.
    """

    def __init__(self, events: Events, open_log: Callable[[Shape], None], fed: Container[int]) -> None:
        """``open_log`` opens and recovers the log of a shape that is touched for the first time since a while.

        ``fed`` are the partitions that the present epoch feeds: only their shapes get anything. It changes between two
        epochs; what else leaves it has no shapes here any more.
        """
        self.delivered = Delivered()
        self._events = events
        self._open_log = open_log
        self._fed = fed
        self._audiences: dict[int, list[Audience]] = {}
        self._relations: dict[int, tuple[Relation, tuple[int, ...]]] = {}
        self._readings: dict[int, list[Reading]] = {}
        self._serial = 0
        # By the view whose shapes all get what comes, or by just those shapes that a change concerns.
        self._batches: dict[View | tuple[Shape, ...], _Batch] = {}
        # Shapes that the passing transaction counts for, and those with transactions that are not in their logs yet.
        self._touched: list[Shape] = []
        self._unwritten: dict[Shape, None] = {}
        self._waiting = 0
        # Those that have passed and were not told yet: commit LSN, and when that was.
        self._passed: list[tuple[int, int]] = []
        self._holding: set[Shape] = set()
        self._taken_keys = TakenKeys()
        self._spill_bytes = SPILL_BYTES
        self._lsn = 0
        self._xid = 0
        self.committed_us = 0
        """When the transaction was committed that was told last: microseconds since 2000-01-01."""
        self._begun_us = 0
        self._headers = b""

    # ---- shapes

    def add(self, shape: Shape) -> None:
        """From the next change on. If a transaction is passing, the shape is told of the rest of it, and knows so."""
        audiences = self._audiences.setdefault(shape.table.oid, [])
        # There is more than one only after the table was altered in a way that shapes have survived.
        audience = next((a for a in audiences if a.table is shape.table or a.table == shape.table), None)
        if audience is None:
            audience = Audience(shape.table)
            audiences.append(audience)
            self._forget(shape.table.oid)
        if shape not in audience:
            # Its own description is equal, and would only take memory.
            shape.table = audience.table
            audience.add(shape)

    def remove(self, shape: Shape) -> None:
        """No more changes for it; what it has of an open transaction is void."""
        self._holding.discard(shape)
        audiences = self._audiences.get(shape.table.oid, [])
        for audience in audiences:
            if shape in audience:
                audience.remove(shape)
                if not audience:
                    audiences.remove(audience)
                    self._forget(shape.table.oid)
                break
        if not audiences:
            self._audiences.pop(shape.table.oid, None)
        if shape in self._unwritten or shape in self._touched:
            self._unwritten.pop(shape, None)
            if shape in self._touched:
                self._touched.remove(shape)
            shape.abort()
        # Lines that are still to be handed out may be for this one, too.
        shape.serial, shape.skips = self._serial, True

    # ---- the stream

    def restart(self) -> None:
        """A new epoch: what is half-done is void and comes again; the relations are sent again, too."""
        for shape in (*self._touched, *self._unwritten):
            shape.abort()
        self._touched, self._unwritten, self._passed = [], {}, []
        self._batches = {}
        self._relations.clear()
        self._readings.clear()

    def record(self, kind: int, index: int, payload: bytes) -> None:
        """One record. Raises :class:`StorageFull`; what fails for one shape ends that shape only."""
        if kind == CHANGE:
            self._change(index, payload)
        elif kind == COMMIT:
            self._hand_out()
            self._commit(*parse_commit(payload))
            if self._waiting > UNWRITTEN:
                self.deliver()
        elif kind == BEGIN:
            self._lsn, self._xid, self._begun_us = parse_begin(payload)
            self._serial += 1
            self._taken_keys.clear()
            if not self._unwritten:
                self._spill_bytes = SPILL_BYTES
            self._headers = transaction_headers(self._lsn, self._xid)
        elif kind == RELATION:
            ancestors, message = parse_relation_record(payload)
            relation = pgoutput.parse_relation(message)
            self._relations[relation.oid] = (relation, ancestors)
            self._readings.pop(relation.oid, None)
        elif kind == TRUNCATE:
            self._hand_out()
            for oid in pgoutput.parse_truncate(payload):
                for reading in self._targets(oid):
                    self._obstruct_all(reading.audience, "its table was truncated")

    def deliver(self) -> None:
        """Give the shapes what the records so far hold for them, and write what is committed of it.

        Raises :class:`StorageFull`; then nothing counts that was not told to the events.
        """
        self._hand_out()
        while self._unwritten:
            shape, _ = self._unwritten.popitem()
            try:
                self._write(shape)
            except StorageFull:
                shape.abort()
                self.restart()
                raise
        self._waiting = 0
        passed, self._passed = self._passed, []
        for lsn, self.committed_us in passed:
            self._events.committed(lsn)

    def _hand_out(self) -> None:
        batches, self._batches = self._batches, {}
        serial, large = self._serial, []
        for batch in batches.values():
            ops, lines, size = batch.ops, batch.lines, batch.size
            for shape in tuple(batch.shapes):
                if shape.serial != serial:
                    self._enter(shape)
                if not shape.skips and shape.gather(ops, lines, size) >= self._spill_bytes:
                    large.append(shape)
        # Only now, since a later batch may have held lines that go before those of an earlier one.
        for shape in large:
            # What another one had to write can have ended it meanwhile.
            if shape.life is not Life.ENDED:
                self._write(shape, spill=True)

    def _change(self, index: int, payload: bytes) -> None:
        change = Change(index, payload)
        for reading in self._targets(pgoutput.relation_oid(payload)):
            reading.renew()
            for view, reason in reading.changed:
                self._obstruct_all(view.shapes, reason)
            for view, projection in reading.whole:
                lines = self._lines(change, change.kind, projection, view.shapes)
                if lines:
                    self._put(view, view.shapes, change.op, lines)
            if reading.audience.router:
                self._route(change, reading)
            if reading.deferred_key:
                self._watch_key(change, reading)

    def _watch_key(self, change: Change, reading: Reading) -> None:
        try:
            old, new = change.decoded()
        except IncompleteRow:
            # It ends the shapes anyway.
            return
        if self._taken_keys.is_retaken(reading.audience.table.oid, reading.deferred_key, old, new):
            self._obstruct_all(reading.audience, RETAKEN)

    def _put(self, key: View | tuple[Shape, ...], shapes: Iterable[Shape], op: int, lines: tuple[bytes, ...]) -> None:
        batch = self._batches.get(key)
        if batch is None:
            batch = self._batches[key] = _Batch(shapes)
        for line in lines:
            batch.ops.append(op)
            batch.lines.append(line)
            batch.size += len(line)
            op += 1
        if batch.size >= self._spill_bytes:
            self._hand_out()

    def _route(self, change: Change, reading: Reading) -> None:
        """To the shapes whose filters concern the change: an update can be an insert or a delete to them."""
        audience = reading.audience
        try:
            moves = reading.moves(*change.decoded())
        except IncompleteRow as error:
            # It could be in any of them.
            filtered = [shape for shape in audience if shape.filter is not None]
            self._obstruct_all(filtered, f"{error}: REPLICA IDENTITY of the table is not FULL")
            return
        for shape in self._entering(moves.failed):
            shape.filter_failed = True
            self._obstruct(shape, f"its where clause fails: {moves.failed[shape]}")
        for kind, moved in (INSERT, moves.inserted), (UPDATE, moves.updated), (DELETE, moves.deleted):
            if moved:
                for projection, shapes in reading.by_projection(moved):
                    lines = self._lines(change, kind, projection, shapes)
                    if lines:
                        self._put(shapes, shapes, change.op, lines)

    def _lines(self, change: Change, kind: int, projection: Projection, shapes: Iterable[Shape]) -> tuple[bytes, ...]:
        """What the change is for these shapes; nothing if they cannot show it and have been told so."""
        try:
            return change.as_lines(projection, kind, self._headers)
        except IncompleteRow as error:
            reason = f"{error}: REPLICA IDENTITY of the table is not FULL"
        except Exception as error:
            log.exception("a change could not be turned into JSON", relation=pgoutput.relation_oid(change.payload))
            reason = f"internal error: {type(error).__name__}"
        self._obstruct_all(shapes, reason)
        return ()

    def _commit(self, lsn: int, xid: int) -> None:
        # Before anybody can read anything of it.
        self.delivered.add(xid)
        touched, self._touched = self._touched, []
        self._waiting += len(touched)
        for shape in touched:
            if shape.commit(lsn, xid):
                self._unwritten[shape] = None
            if shape.held_bytes:
                self._hold(shape)
        self._passed.append((lsn, self._begun_us))

    def _write(self, shape: Shape, *, spill: bool = False) -> None:
        """What is committed, and of a large transaction also what has come so far."""
        try:
            if shape.log is None:
                # It was closed for others while this transaction was gathered.
                self._open_log(shape)
            transactions = shape.unwritten
            end = shape.write()
            if end is not None:
                self._events.written(shape, end, transactions)
            if spill:
                self._unwritten.pop(shape, None)
                shape.spill(self._lsn)
                if shape.held_bytes:
                    self._hold(shape)
        except DamagedLog as error:
            self._end(shape, f"its log cannot be opened: {error}")
        except OSError as error:
            if is_shortage(error):
                raise StorageFull(error) from error
            self._end(shape, f"its log cannot be written: {error.strerror}")

    def _hold(self, shape: Shape) -> None:
        """Keep what new shapes hold back within its bound, at the expense of the greediest."""
        if shape.life is not Life.ENDED:
            self._holding.add(shape)
        self._holding = {shape for shape in self._holding if shape.held_bytes}
        if sum(shape.held_bytes for shape in self._holding) > HELD_BYTES:
            greediest = max(self._holding, key=lambda shape: shape.held_bytes)
            self._end(greediest, "too many changes came while it waited for its snapshot")

    def _entering(self, shapes: Iterable[Shape]) -> list[Shape]:
        """Those of the shapes to which the passing transaction counts."""
        serial = self._serial
        shapes = list(shapes)
        for shape in shapes:
            if shape.serial != serial:
                self._enter(shape)
        return [shape for shape in shapes if not shape.skips]

    def _enter(self, shape: Shape) -> None:
        if shape.partition not in self._fed:
            # It may have missed what came before; it goes on with the epoch that feeds it, where all that comes again.
            shape.serial, shape.skips = self._serial, True
            return
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
            share = SPILL_TOTAL_BYTES // (len(self._touched) + len(self._unwritten))
            self._spill_bytes = min(SPILL_BYTES, max(SPILL_LEAST_BYTES, share))

    def _obstruct(self, shape: Shape, reason: str) -> None:
        if shape.obstruct(reason):
            self._end(shape, reason)

    def _obstruct_all(self, shapes: Iterable[Shape], reason: str) -> None:
        for shape in self._entering(shapes):
            self._obstruct(shape, reason)

    def _end(self, shape: Shape, reason: str) -> None:
        self.remove(shape)
        self._events.ended(shape, reason)

    def _targets(self, oid: int) -> list[Reading]:
        readings = self._readings.get(oid)
        if readings is None:
            readings = self._readings[oid] = self._read(oid)
        return readings

    def _forget(self, table: int) -> None:
        for oid, (_, ancestors) in self._relations.items():
            if oid == table or table in ancestors:
                self._readings.pop(oid, None)

    def _read(self, oid: int) -> list[Reading]:
        if oid not in self._relations:
            return []
        relation, ancestors = self._relations[oid]
        return [
            Reading(relation, audience) for table in (oid, *ancestors) for audience in self._audiences.get(table, ())
        ]

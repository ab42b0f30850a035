"""From pgoutput messages to frames for the workers: the ingester's hot path (architecture.md 3, 9).

Reads of each message no more than its kind and its relation. Every commit goes to every worker, changes only to those
subscribed to the table or, for a partition, to a partitioned table above it. Memory is bounded by credits: who owns
this object stops reading the replication socket while :attr:`Fanout.blocked` is set.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

from common import pgoutput
from common.frames import (
    ANSWER,
    CHANGE,
    FRAME_BYTES,
    GAP,
    TRUNCATE,
    Gap,
    InFrame,
    begin_record,
    commit_record,
    frame_head,
    position_record,
    record,
    record_head,
    relation_record,
)
from common.messages import encode
from common.xid import widen

PART_BYTES = 32 * 1024
"""Of an open transaction, sent ahead of the rest: workers decode it while the rest is on its way."""

CREDIT_BYTES = 16 * 1024 * 1024
"""Bytes of frames that may be in flight to one worker."""

CREDIT_TOTAL_BYTES = 128 * 1024 * 1024
"""The same to all workers together: with many of them each gets less, but a few frames at least."""

RING = 100_000
"""Dispatched transactions remembered for the visibility check of new shapes (engine.md 26.3)."""


class Lane:
    """What goes to one worker in the present epoch."""

    __slots__ = ("beaten", "begun", "credit", "dealt", "due", "parts", "passed", "seq", "size", "tables", "worker")

    def __init__(self, worker: str, tables: set[int], credit: int) -> None:
        self.worker = worker
        self.tables = tables
        self.parts: list[bytes] = []
        self.size = 0
        self.due = True
        """Whether the worker waits for them: the position of the epoch, or a commit."""
        self.seq = 0
        self.beaten = 0
        self.passed = 0
        self.dealt = 0
        self.credit = credit
        self.begun = False

    @property
    def starved(self) -> bool:
        """Whether as many bytes are in flight as may be."""
        return self.passed - self.dealt >= self.credit


class Fanout:
    """One epoch after the other; ``send(worker, frame)`` gets each finished frame."""

    def __init__(self, send: Callable[[str, bytes], None], xid_anchor: int) -> None:
        self._send = send
        self._lanes: dict[str, Lane] = {}
        self._routes: dict[int, tuple[Lane, ...]] = {}
        self._relations: dict[int, bytes] = {}
        self._ancestors: dict[int, tuple[int, ...]] = {}
        self._answers: list[tuple[str, InFrame]] = []
        self._anchor = xid_anchor
        self._index = 0
        self._lsn = 0
        self._xid = 0
        self._committed_us = 0
        self.epoch = 0
        self.open = False
        self.blocked = False
        self.dispatched = 0
        self.ring: deque[tuple[int, int]] = deque(maxlen=RING)

    def set_anchor(self, xid: int) -> None:
        """A recent 64-bit transaction id, to widen the stream's 32-bit ones by."""
        self._anchor = xid

    @property
    def changes(self) -> int:
        """How many published changes the transaction has that passes or passed last."""
        return self._index

    @property
    def committed_us(self) -> int:
        """When it was committed: Postgres' clock, microseconds since 2000-01-01."""
        return self._committed_us

    # ---- epochs and subscriptions

    def start_epoch(
        self, epoch: int, position: int, feeds: dict[str, tuple[Iterable[int], set[int]]], gaps: Iterable[Gap] = ()
    ) -> None:
        """Forget everything half-done; feed these workers: name → (partitions, tables), from ``position`` on.

        Each is told of all ``gaps`` first.
        """
        told = [record(GAP, 0, encode(gap)) for gap in gaps]
        self.epoch = epoch
        self.open = False
        self.blocked = False
        self.dispatched = position - 1
        self._relations.clear()
        self._lanes = {}
        answers, self._answers = self._answers, []
        credit = max(4 * FRAME_BYTES, min(CREDIT_BYTES, CREDIT_TOTAL_BYTES // max(1, len(feeds))))
        for worker, (partitions, tables) in feeds.items():
            lane = Lane(worker, set(tables), credit)
            self._lanes[worker] = lane
            self._put(lane, position_record(position, tuple(sorted(partitions))))
            for gap in told:
                self._put(lane, gap)
        self._route_anew()
        for worker, answer in answers:
            self.answer(worker, answer)
        self.flush()

    def subscribe(self, worker: str, table: int) -> None:
        """From the next message on this worker gets the table's changes."""
        lane = self._lanes.get(worker)
        if lane is None or table in lane.tables:
            return
        lane.tables.add(table)
        self._route_anew()
        for oid, message in self._relations.items():
            ancestors = self._ancestors.get(oid, ())
            if oid == table or table in ancestors:
                self._put(lane, relation_record(ancestors, message))

    def unsubscribe(self, worker: str, table: int) -> None:
        """The worker needs the table no more."""
        lane = self._lanes.get(worker)
        if lane is not None and table in lane.tables:
            lane.tables.discard(table)
            self._route_anew()

    def answer(self, worker: str, answer: InFrame) -> None:
        """Put an answer into the worker's frames; kept for the next epoch if the worker is not fed now."""
        lane = self._lanes.get(worker)
        if lane is None:
            self._answers.append((worker, answer))
        else:
            self._put(lane, record(ANSWER, 0, encode(answer)))
            self._cut(lane)

    def gap(self, gap: Gap) -> None:
        """Tell every worker; who is not fed now is told at the start of the epoch that feeds it."""
        for lane in self._lanes.values():
            self._put(lane, record(GAP, 0, encode(gap)))
            self._cut(lane)

    def forget(self, worker: str) -> None:
        """The worker is gone: nothing more for it, and its missing credit blocks nobody."""
        if self._lanes.pop(worker, None) is not None:
            self._route_anew()
            self.blocked = bool(self.starved())
        self._answers = [item for item in self._answers if item[0] != worker]

    def wants(self, oid: int) -> bool:
        """Whether any worker gets the changes of this relation."""
        return oid in self._routes

    def set_ancestors(self, oid: int, ancestors: tuple[int, ...]) -> None:
        """Which partitioned tables the relation belongs to, from its parent to the root."""
        if self._ancestors.get(oid, ()) != ancestors:
            self._ancestors[oid] = ancestors
            self._route_anew()

    # ---- flow control

    def credit(self, worker: str, epoch: int, total: int) -> None:
        """A worker has dealt with so many bytes of frames of that epoch in all."""
        lane = self._lanes.get(worker)
        if lane is not None and epoch == self.epoch:
            lane.dealt = max(lane.dealt, total)
            if self.blocked and not lane.starved:
                self.blocked = bool(self.starved())

    def starved(self) -> list[str]:
        """The workers that may not be sent more for now."""
        return [lane.worker for lane in self._lanes.values() if lane.starved]

    def beat(self) -> None:
        """Send an empty frame to whoever was sent none since the last beat: its number shows that one before it, or the
        credit for it, was lost, which otherwise only the next frame would, if the stream had any more to give."""
        for lane in self._lanes.values():
            if lane.seq == lane.beaten:
                self._finish(lane)
            lane.beaten = lane.seq

    @property
    def dealt(self) -> dict[str, int]:
        """How many bytes of frames of this epoch each worker has dealt with."""
        return {lane.worker: lane.dealt for lane in self._lanes.values()}

    @property
    def in_flight(self) -> dict[str, int]:
        """How many bytes each worker was sent in this epoch and has not dealt with yet."""
        return {lane.worker: lane.passed - lane.dealt for lane in self._lanes.values()}

    # ---- the stream

    def message(self, payload: bytes) -> None:
        """One pgoutput message, in order."""
        kind = payload[0]
        if kind in pgoutput.CHANGES:
            lanes = self._routes.get(pgoutput.relation_oid(payload))
            if lanes:
                head = record_head(CHANGE, self._index, len(payload))
                for lane in lanes:
                    if not lane.begun:
                        self._begin(lane)
                    lane.parts.append(head)
                    lane.parts.append(payload)
                    lane.size += 12 + len(payload)
                    if lane.size >= FRAME_BYTES:
                        self._cut(lane)
            self._index += 1
        elif kind == pgoutput.BEGIN:
            self._lsn, self._committed_us, xid = pgoutput.parse_begin(payload)
            self._xid = self._anchor = widen(xid, self._anchor)
            self._index = 0
            self.open = True
        elif kind == pgoutput.COMMIT:
            self._commit()
        elif kind == pgoutput.RELATION:
            self._relation(payload)
        elif kind == pgoutput.TRUNCATE:
            self._truncate(payload)
        # Type, Origin and logical messages carry nothing that a shape could need.

    def flush(self) -> None:
        """Send what has gathered: the replication socket has no more to give for now.

        Postgres sends message by message, so a reader that is fast enough finds it empty after each. What belongs to
        an open transaction is of no use to anybody yet, and waits for more unless it is much.
        """
        for lane in self._lanes.values():
            if lane.due or lane.size >= PART_BYTES:
                self._cut(lane)

    # ---- how

    def _commit(self) -> None:
        self.open = False
        closing = commit_record(self._lsn, self._xid, self._index)
        for lane in self._lanes.values():
            lane.begun = False
            lane.due = True
            self._put(lane, closing)
        self.dispatched = self._lsn
        self.ring.append((self._xid, self._lsn))

    def _relation(self, payload: bytes) -> None:
        oid = pgoutput.relation_oid(payload)
        self._relations[oid] = payload
        lanes = self._routes.get(oid)
        if lanes:
            message = relation_record(self._ancestors.get(oid, ()), payload)
            for lane in lanes:
                self._put(lane, message)

    def _truncate(self, payload: bytes) -> None:
        oids = pgoutput.parse_truncate(payload)
        concerned = {lane.worker: lane for oid in oids for lane in self._routes.get(oid, ())}
        for lane in concerned.values():
            if not lane.begun:
                self._begin(lane)
            self._put(lane, record(TRUNCATE, self._index, payload))
        self._index += len(oids)

    def _begin(self, lane: Lane) -> None:
        lane.begun = True
        self._put(lane, begin_record(self._lsn, self._xid, self._committed_us))

    def _put(self, lane: Lane, data: bytes) -> None:
        lane.parts.append(data)
        lane.size += len(data)
        if lane.size >= FRAME_BYTES:
            self._cut(lane)

    def _cut(self, lane: Lane) -> None:
        if lane.parts:
            self._finish(lane)

    def _finish(self, lane: Lane) -> None:
        frame = b"".join((frame_head(self.epoch, lane.seq), *lane.parts))
        lane.parts = []
        lane.size = 0
        lane.due = False
        lane.seq += 1
        lane.passed += len(frame)
        if lane.starved:
            self.blocked = True
        self._send(lane.worker, frame)

    def _route_anew(self) -> None:
        routes: dict[int, list[Lane]] = {}
        for lane in self._lanes.values():
            for table in lane.tables:
                routes.setdefault(table, []).append(lane)
            for oid, ancestors in self._ancestors.items():
                if oid not in lane.tables and not lane.tables.isdisjoint(ancestors):
                    routes.setdefault(oid, []).append(lane)
        self._routes = {oid: tuple(lanes) for oid, lanes in routes.items()}

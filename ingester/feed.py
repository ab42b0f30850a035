"""From the slot to the fan-out: the stream of one epoch after the other, and what makes it wait (architecture.md 3).

Three things stop the reading for a while: a worker without credit, a relation whose place in a partition tree is still
being looked up, and the end of the process. Status updates go on meanwhile.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

import psycopg
import structlog

from common import pgoutput
from common.config import Settings
from common.crash import CrashOnly
from common.metrics import Histogram, Sample, one
from common.postgres import DATABASE_ERRORS, Connection, Pool, classify
from ingester.group import Group
from ingester.publication import Publication
from ingester.replication import POSTGRES_EPOCH_US, ReplicationStream
from ingester.server import System
from ingester.session import connect_stream
from ingester.slot import check_continuity, end_readers

log = structlog.get_logger()

SLOT_PATIENCE: Final = 30.0
"""Seconds that Postgres gets to notice that the former stream of the slot is closed."""

SLOT_RETRY: Final = 0.1

RELATION_RETRY: Final = 0.5
"""Seconds between two attempts to look a relation up while the stream waits for it."""


class Feed:
    """The stream, when there is one; an ``ingester.replication.Sink``."""

    def __init__(
        self,
        settings: Settings,
        slot: str,
        group: Group,
        admin: Pool,
        crash: CrashOnly,
        on_lost: Callable[[Exception], None],
    ) -> None:
        """``on_lost``: the stream is gone, and why."""
        self._settings = settings
        self._slot = slot
        self._group = group
        self._admin = admin
        self._crash = crash
        self._on_lost = on_lost
        self._connection: Connection | None = None
        self._stream: ReplicationStream | None = None
        self._halts: set[str] = set()
        self._at_boundary: list[Callable[[], None]] = []
        self._adopting: set[int] = set()
        self.publication: Publication | None = None
        """Of the present session; knows how tables belong together."""
        self.stalled = ""
        """Why nothing flows although the stream is there, for people; empty while it flows."""
        self._passed: list[tuple[int, int]] = []
        self._transactions = 0
        self._bytes = 0
        self._operations = Histogram("electric_postgres_replication_transaction_received_operations")
        self._lag = Histogram("electric_postgres_replication_transaction_received_receive_lag")

    @property
    def is_open(self) -> bool:
        """Whether there is a stream."""
        return self._stream is not None

    @property
    def silent(self) -> float:
        """For how many seconds Postgres has sent nothing, although it was asked for a sign of life."""
        return 0.0 if self._stream is None else self._stream.silent

    async def open(self, system: System, status_interval: float) -> None:
        """Stream from the acknowledged position. Raises ``psycopg.Error``, ``DatabaseProblem``, ``OSError``.

        ``system`` is where the stream before was from.
        """
        self._halts.clear()
        self.stalled = ""
        deadline = time.monotonic() + SLOT_PATIENCE
        while True:
            self._connection = await connect_stream(self._settings)
            stream = ReplicationStream(self._connection, self, status_interval)
            try:
                await check_continuity(self._connection, self._slot, system, self._group.flushed)
                await stream.start(self._slot, self._settings.publication_name, self._group.flushed)
            except psycopg.errors.ObjectInUse:
                # The walsender of the former stream is busy and has not noticed yet that nobody listens.
                self.close()
                if time.monotonic() > deadline:
                    raise
                async with self._admin.connection() as connection:
                    await end_readers(connection, self._slot)
                await asyncio.sleep(SLOT_RETRY)
            else:
                self._stream = stream
                return

    def close(self) -> None:
        """End the stream, if there is one, and whatever transaction was passing."""
        if self._stream is not None:
            self._stream.close()
            self._bytes += self._stream.received_bytes
            self._stream = None
        if self._connection is not None:
            # At once and not gracefully: the server may be gone.
            self._connection.pgconn.finish()
            self._connection = None

    def report(self) -> None:
        """Tell Postgres the acknowledged position now."""
        if self._stream is not None:
            self._stream.send_status()

    def halt(self, cause: str) -> None:
        """Stop reading until :meth:`resume` was called for each cause."""
        self._halts.add(cause)
        if self._stream is not None:
            self._stream.pause()

    def resume(self, cause: str) -> None:
        """This cause is no more."""
        if cause in self._halts:
            self._halts.discard(cause)
            if not self._halts and self._stream is not None:
                self._stream.resume()

    def at_boundary(self, action: Callable[[], None]) -> None:
        """Do this between two transactions: now, or right after the commit of the one that is passing."""
        if self._group.fanout.open:
            self._at_boundary.append(action)
        else:
            action()

    def reached_boundary(self) -> None:
        """A transaction ended, or a new epoch voids the one that was passing."""
        actions, self._at_boundary = self._at_boundary, []
        for action in actions:
            action()

    def samples(self) -> list[Sample]:
        """What has come from Postgres."""
        received = self._bytes + (0 if self._stream is None else self._stream.received_bytes)
        return [
            one("electric_postgres_replication_transaction_received_count", self._transactions),
            one("electric_postgres_replication_transaction_received_bytes", received),
            self._operations.sample(),
            self._lag.sample(),
            one("galvanic_stream_silent_seconds", self.silent),
        ]

    # ---- ingester.replication.Sink

    def message(self, payload: bytes) -> None:
        """A pgoutput message."""
        kind = payload[0]
        fanout = self._group.fanout
        if kind == pgoutput.RELATION:
            self.halt("relation")
            self._crash.spawn(self._on_relation(payload), on_failure=self._on_lost)
            return
        fanout.message(payload)
        if kind == pgoutput.COMMIT:
            assert self._group.watermark is not None
            self._group.watermark.dispatched(fanout.dispatched)
            self._passed.append((fanout.changes, fanout.committed_us))
            if self._at_boundary:
                self.reached_boundary()
        if fanout.blocked:
            self.halt("credit")

    def keepalive(self, position: int) -> None:
        """Postgres has sent everything before ``position``."""
        if not self._group.fanout.open and self._group.watermark is not None:
            self._group.watermark.idle(position)

    def drained(self) -> None:
        """The socket is empty for now."""
        self._group.fanout.flush()
        if self._group.fanout.blocked:
            self.halt("credit")
        # Only now: clients wait for what was sent.
        if self._passed:
            self._count_passed()

    def _count_passed(self) -> None:
        now = time.time_ns() // 1000 - POSTGRES_EPOCH_US
        for changes, committed_us in self._passed:
            self._operations.add(changes)
            self._lag.add((now - committed_us) / 1000)
        self._transactions += len(self._passed)
        self._passed.clear()

    def flushed(self) -> int:
        """The position to report."""
        return self._group.flushed

    def lost(self, error: Exception) -> None:
        """The stream is gone."""
        self._on_lost(error)

    # ---- relations

    async def _on_relation(self, payload: bytes) -> None:
        """Learn the relation's ancestors before its changes are routed; the stream waits (engine.md 5.9)."""
        stream, publication, fanout = self._stream, self.publication, self._group.fanout
        assert publication is not None
        oid = pgoutput.relation_oid(payload)
        while self._stream is stream:
            try:
                ancestors = (await publication.announced(oid)).ancestors
            except DATABASE_ERRORS as error:
                reason = f"a relation cannot be looked up: {classify(error).message}"
                if reason != self.stalled:
                    log.warning("the stream waits", oid=oid, reason=reason)
                self.stalled = reason
                await asyncio.sleep(RELATION_RETRY)
                continue
            if self._stream is not stream:
                return
            self.stalled = ""
            fanout.set_ancestors(oid, ancestors)
            fanout.message(payload)
            if fanout.wants(oid) and pgoutput.parse_relation(payload).identity != "f":
                self._crash.spawn(self._adopt_leaf(publication, oid), on_failure=self._on_lost)
            self.resume("relation")
            return

    async def _adopt_leaf(self, publication: Publication, oid: int) -> None:
        if oid not in self._adopting:
            self._adopting.add(oid)
            try:
                await publication.adopt_leaf(oid)
            finally:
                self._adopting.discard(oid)

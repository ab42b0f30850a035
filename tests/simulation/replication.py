"""The replication stream: the connection that the ingester reads, and the walsender at its other end."""

from __future__ import annotations

import asyncio
from collections import deque

from psycopg import errors

from common.pgoutput import Relation, RelationColumn
from common.table import Table
from ingester.replication import Sink, StreamLost
from tests.simulation.database import Database, SimConnection
from tests.simulation.postgres import DELETE, INSERT, TRUNCATE, Change, Transaction
from tests.unit import pgoutput_messages as pgoutput


def relation(table: Table) -> bytes:
    """Its Relation message."""
    columns = tuple(
        RelationColumn(column.name, column.type_oid, -1, column.key_index is not None) for column in table.columns
    )
    return pgoutput.relation(Relation(table.oid, table.schema, table.name, "f", columns))


def change_message(change: Change) -> bytes:
    """Its pgoutput message."""
    if change.kind == TRUNCATE:
        return pgoutput.truncate([change.table])
    if change.kind == INSERT:
        assert change.new is not None
        return pgoutput.insert(change.table, change.new)
    assert change.old is not None
    if change.kind == DELETE:
        return pgoutput.delete(change.table, change.old)
    assert change.new is not None
    return pgoutput.update(change.table, change.old, change.new)


class SimStream:
    """``ingester.replication.ReplicationStream``, and the walsender at its other end."""

    def __init__(self, database: Database, connection: SimConnection, sink: Sink, status_interval: float) -> None:
        self._database = database
        self._server = database.server
        self._connection = connection
        self._sink = sink
        self._interval = status_interval
        self._running = False
        self._paused = False
        self._arrived: deque[bytes | int] = deque()
        self._next: Transaction | None = None
        self._start = 0
        self._sent = 0
        self._transactions = 0
        self._pending: deque[bytes] = deque()
        self._relations: set[int] = set()
        self._announced = -1
        self._scheduled = False
        self._timer: asyncio.TimerHandle | None = None
        self.received_bytes = 0

    # ---- as the product uses it

    async def start(self, _: str, __: str, position: int) -> None:
        """START_REPLICATION."""
        await self._database.wait()
        self._connection.check()
        slot = self._server.slot
        assert slot is not None
        if slot.reader is not None:
            raise errors.ObjectInUse("replication slot is active")
        slot.reader = self
        self._start = self._sent = max(slot.confirmed, position)
        self._database.scheduler.trace("stream starts", self._start)
        self._running = True
        self._paused = False
        self._database.streams.append(self)
        self._connection.process.on_kill.append(self._leave)
        self._server.on_flush.append(self._soon)
        self._loop = asyncio.get_running_loop()
        self.send_status()
        self._on_timer()
        self._soon()

    def pause(self) -> None:
        """Stop handing on."""
        self._paused = True

    def resume(self) -> None:
        """Go on."""
        if self._paused and self._running:
            self._paused = False
            self._loop.call_soon(self._drain)

    @property
    def silent(self) -> float:
        """A connection that is lost says so here."""
        return 0.0

    def send_status(self, *, ask: bool = False) -> None:
        """Report the durable position."""
        if not self._running or not self._connection.process.alive:
            return
        flushed = self._sink.flushed()
        self._database.on_report(flushed)
        life, server = self._connection.life, self._server

        def arrive() -> None:
            if server.life == life and server.slot is not None and flushed > server.slot.confirmed:
                server.slot.confirmed = flushed
                self._database.scheduler.trace("confirmed", flushed)

        self._database.scheduler.after(self._database.scheduler.rng.random() * 0.005, arrive)

    def close(self) -> None:
        """Report once more and stop."""
        self.send_status()
        self._end()

    # ---- failing

    def lose(self) -> None:
        """The connection is lost; the client notices when it reads."""
        if self._running and self._connection.process.alive:
            self._loop.call_soon(self._fail)

    def _fail(self) -> None:
        if self._running:
            self._end()
            self._sink.lost(StreamLost("Postgres ended the replication stream"))

    def _end(self) -> None:
        if self._running:
            self._running = False
            if self._timer is not None:
                self._timer.cancel()
            self._leave()

    def _leave(self) -> None:
        self._running = False
        if self in self._database.streams:
            self._database.streams.remove(self)
            self._server.on_flush.remove(self._soon)
        slot, scheduler = self._server.slot, self._database.scheduler

        def notice() -> None:
            if slot is not None and slot.reader is self:
                slot.reader = None

        scheduler.after(scheduler.rng.random() * (0.02 if scheduler.rng.random() < 0.7 else 2.0), notice)

    def _on_timer(self) -> None:
        if self._running:
            self.send_status()
            self._timer = self._loop.call_later(self._interval, self._on_timer)

    # ---- the walsender

    def _soon(self) -> None:
        if not self._scheduled and self._running:
            self._scheduled = True
            rng = self._database.scheduler.rng
            self._database.scheduler.after(rng.random() * (0.003 if rng.random() < 0.9 else 0.2), self._send)

    def _send(self) -> None:
        """Decode a little and send it."""
        self._scheduled = False
        if not self._running or self._server.life != self._connection.life:
            return
        if len(self._arrived) > 200:
            self._soon()
            return
        rng = self._database.scheduler.rng
        if not self._pending:
            self._decode()
        for _ in range(min(len(self._pending), rng.randrange(1, 40))):
            self._arrived.append(self._pending.popleft())
        wal = self._server.wal
        if not self._pending:
            more = self._transactions < len(wal) and wal[self._transactions].end <= self._server.flush
            if not more:
                self._sent = self._server.flush
            elif self._transactions:
                self._sent = max(self._sent, wal[self._transactions - 1].end)
            if not more or rng.random() < 0.1:
                self._arrived.append(self._sent)
        else:
            more = True
            if rng.random() < 0.05:
                self._arrived.append(self._sent)
        if more:
            self._soon()
        self._loop.call_soon(self._drain)

    def _decode(self) -> None:
        """Messages of the next transactions that are flushed and not skipped."""
        server = self._server
        while self._transactions < len(server.wal) and not self._pending:
            transaction = server.wal[self._transactions]
            if transaction.end > server.flush:
                return
            self._transactions += 1
            if transaction.lsn < self._start:
                continue
            changes = [change for change in transaction.changes if server.is_published(change)]
            if not changes and not self._database.sends_empty:
                continue
            if self._announced != server.announced:
                self._announced = server.announced
                self._relations.clear()
            self._pending.append(pgoutput.begin(transaction.lsn, transaction.xid & 0xFFFFFFFF))
            for change in changes:
                if change.table not in self._relations:
                    self._relations.add(change.table)
                    self._pending.append(relation(server.tables[change.table]))
                self._pending.append(change_message(change))
            self._pending.append(pgoutput.commit(transaction.lsn))

    def _drain(self) -> None:
        if not self._running or self._paused:
            return
        while self._arrived:
            item = self._arrived.popleft()
            if isinstance(item, int):
                self._sink.keepalive(item)
            else:
                self._sink.message(item)
                if self._paused or not self._running:
                    break
        if self._running:
            self._sink.drained()

"""What the product uses of Postgres, over the model: connections, sessions, snapshots."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final

import orjson
import psycopg

from common.frames import Gap
from common.lsn import format_lsn
from common.table import Table
from common.xid import Snapshot
from ingester.membership import Family, NotPublished
from ingester.publication import Published
from ingester.publication_setup import PublicationState
from ingester.server import System
from ingester.slot import SlotState
from ingester.standing import Standing
from shapeworker.snapshot_connection import Batch, DeadlinePassed, Stopped
from shapeworker.snapshot_query import read_columns
from tests.simulation.postgres import Row, Server, Slot
from tests.simulation.process import Process
from tests.simulation.scheduler import Scheduler

if TYPE_CHECKING:
    from tests.simulation.replication import SimStream

VERSION: Final = 180001
PUBLICATION_OID: Final = 7
SYSTEM: Final = "77"
SENT_WITH_ONE: Final = 3
"""Statements sent with the COPY of a group's last snapshot."""


class Database:
    """The server as processes reach it. ``round_trip``: the longest a statement takes, in seconds."""

    def __init__(
        self, server: Server, round_trip: float, *, sends_empty: bool, on_report: Callable[[int], None]
    ) -> None:
        """``sends_empty``: transactions without a published change are sent, as before 15. ``on_report`` is told each
        position that the ingester reports as durable, before the server gets it."""
        self.server = server
        self.scheduler: Scheduler = server.scheduler
        self.round_trip = round_trip
        self.sends_empty = sends_empty
        self.on_report = on_report
        self.streams: list[SimStream] = []
        self.snapshots: list[SimSnapshotConnection] = []
        server.on_crash.append(self.lose_streams)

    def lose_streams(self) -> None:
        """All replication connections are lost."""
        for stream in list(self.streams):
            stream.lose()

    async def wait(self) -> None:
        """A round trip. Raises ``psycopg.OperationalError`` while there is no server."""
        await asyncio.sleep(self.scheduler.rng.random() * self.round_trip)
        self.check(self.server.life)

    def check(self, life: int) -> None:
        """Raises ``psycopg.OperationalError`` when a connection made in that life of the server is lost."""
        if not self.server.up or self.server.life != life:
            raise psycopg.OperationalError("server closed the connection unexpectedly")

    async def script(self, script: Generator[float, None, None]) -> None:
        """Run one of the server's scripts as a statement. It is rolled back when its client gives up or dies."""
        life = self.server.life
        process = self.scheduler.current
        assert process is not None
        process.on_kill.append(script.close)
        try:
            for delay in script:
                await asyncio.sleep(delay)
                self.check(life)
            self.check(life)
        finally:
            script.close()
            process.on_kill.remove(script.close)


class SimConnection:
    """An ordinary or replication connection: a token with the life it belongs to."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.life = database.server.life
        self.closed = False
        self.info = SimpleNamespace(server_version=VERSION)
        self.pgconn = SimpleNamespace(finish=self.finish)
        process = database.scheduler.current
        assert process is not None
        self.process: Process = process

    async def execute(self, _: str) -> SimConnection:
        """A statement of which no more is wanted than that the session lives: it is its own cursor."""
        await self.database.wait()
        self.check()
        return self

    async def fetchone(self) -> tuple[int]:
        """The session's number."""
        return (1,)

    def check(self) -> None:
        """Raises ``psycopg.OperationalError`` once it is lost."""
        if self.closed:
            raise psycopg.OperationalError("the connection is closed")
        self.database.check(self.life)

    def finish(self) -> None:
        """Close it; the server notices after a while."""
        self.closed = True
        server = self.database.server

        def notice() -> None:
            if server.lock_holder is self:
                server.lock_holder = None

        self.database.scheduler.after(self.database.scheduler.rng.random() * 0.5, notice)


class SimPool:
    """``common.postgres.Pool``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[SimConnection]:
        """A connection, for the time of the block."""
        await self._database.wait()
        yield SimConnection(self._database)

    async def close(self) -> None:
        """Nothing to do."""


# --------------------------------------------------------------------------------------------------------------------
# the session: ingester.slot and ingester.publication as ingester.session uses them


class SimSlots:
    """``ingester.slot``."""

    WATCH_SECONDS: Final = 10.0

    def __init__(self, database: Database) -> None:
        self._database = database

    async def server_facts(self, _: SimConnection) -> Any:
        """All is as it should be."""
        await self._database.wait()
        return SimpleNamespace(
            problem=lambda: None,
            in_recovery=False,
            system_identifier=SYSTEM,
            database="db",
            database_oid=5,
            wal_sender_timeout=6.0,
            version=VERSION,
        )

    async def check_continuity(self, *_: object) -> None:
        """It is still the same server."""
        await self._database.wait()

    async def acquire_lock(self, lock: SimConnection, _: str, **__: Any) -> None:
        """Wait until nobody else has it."""
        server = self._database.server
        while server.lock_holder is not None:
            await self._database.wait()
            lock.check()
            await asyncio.sleep(0.1)
        server.lock_holder = lock
        lock.process.on_kill.append(lock.finish)

    async def identify(self, connection: SimConnection) -> System:
        """Always the same server."""
        await self._database.wait()
        connection.check()
        return System(SYSTEM, 1, self._database.server.flush, "db")

    async def ensure_slot(
        self, connection: SimConnection, _: str, *, before_create: Callable[[str], Awaitable[None]], **__: Any
    ) -> SlotState:
        """The slot, made at the first start."""
        await self._database.wait()
        connection.check()
        server = self._database.server
        if server.slot is None:
            await before_create("the slot had to be created")
            # The consistent point comes when the transactions that were running have ended.
            while server.running:
                await asyncio.sleep(0.02)
                connection.check()
            server.flush_to(server.insert)
            server.slot = Slot(server.insert)
            return SlotState(True, server.slot.confirmed)
        return SlotState(False, server.slot.confirmed)

    async def end_readers(self, _: SimConnection, __: str) -> None:
        """The former walsender goes."""
        await self._database.wait()
        if self._database.server.slot is not None:
            self._database.server.slot.reader = None


async def ensure_publication(connection: SimConnection, _: str, **__: Any) -> PublicationState:
    """It is there."""
    await connection.database.wait()
    return PublicationState(PUBLICATION_OID, False, True, False)


async def current_snapshot(connection: SimConnection) -> Snapshot:
    """``pg_current_snapshot()``."""
    await connection.database.wait()
    connection.check()
    return connection.database.server.snapshot()


async def full_xid(connection: SimConnection) -> int:
    """The anchor."""
    return (await current_snapshot(connection)).xmax


async def describe_oids(connection: SimConnection, oids: list[int]) -> dict[int, Table]:
    """The tables with these oids."""
    await connection.database.wait()
    connection.check()
    return {oid: connection.database.server.tables[oid] for oid in oids}


async def describe(connection: SimConnection, schema: str, name: str) -> Table | None:
    """The table of this name."""
    await connection.database.wait()
    connection.check()
    tables = connection.database.server.tables.values()
    return next((table for table in tables if (table.schema, table.name) == (schema, name)), None)


async def version(connection: SimConnection, schema: str, name: str) -> str | None:
    """The version of the table of this name; tables do not change."""
    table = await describe(connection, schema, name)
    return None if table is None else f"version of {table.oid}"


class SimReconciler:
    """``ingester.reconciler.Reconciler``: nobody else touches the publication."""

    def __init__(self, *_: object, **__: object) -> None:
        """Nothing to look at."""

    async def run(self) -> str:
        """For ever."""
        await asyncio.Event().wait()
        return ""


class SimPublication:
    """``ingester.publication.Publication``."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._running: dict[int, asyncio.Task[None]] = {}

    async def ensure_table(self, oid: int, schema: str, name: str) -> Published | NotPublished:
        """Publish it."""
        try:
            await self._database.wait()
            if oid not in self._running:
                task = asyncio.get_running_loop().create_task(self._database.script(self._database.server.publish(oid)))
                self._running[oid] = task
                task.add_done_callback(lambda _: self._running.pop(oid, None))
            await asyncio.shield(self._running[oid])
        except psycopg.Error:
            return NotPublished("Database connection not available")
        return Published()

    async def adopt_leaf(self, oid: int) -> Published | NotPublished:
        """There are no partitions."""
        raise AssertionError(oid)

    standings: Final[dict[int, Standing]] = {}

    def gaps(self) -> list[Gap]:
        """Nobody else touches the publication."""
        return []

    async def announced(self, oid: int) -> Family:
        """There are no partitions."""
        await self._database.wait()
        return Family((), ())

    async def close(self) -> None:
        """Give up."""
        for task in list(self._running.values()):
            task.cancel()


# --------------------------------------------------------------------------------------------------------------------
# snapshots


def copied(table: Table, selected: tuple[str, ...], row: Row) -> bytes:
    """A row as COPY sends it, of the columns that the snapshot query reads. No value here needs an escape."""
    values = dict(zip((column.name for column in table.columns), row, strict=True))
    texts = [values[name] for name in read_columns(table, selected)]
    return b"\t".join(rb"\N" if text is None else text for text in texts) + b"\n"


def copy_statement(table: Table, selected: tuple[str, ...], _: object = None) -> bytes:
    """``shapeworker.snapshot_query.copy_statement``, for :meth:`SimSnapshotConnection.copy`."""
    return orjson.dumps([table.oid, list(selected)])


class SimSnapshotConnection:
    """``shapeworker.snapshot_connection.SnapshotConnection``."""

    server_version = VERSION
    user = "u"

    def __init__(self, database: Database, stop: Any) -> None:
        self._database = database
        self._server = database.server
        self._scheduler = database.scheduler
        self._stop = stop
        self._life = self._server.life
        self._snapshot: Snapshot | None = None
        self._sent: list[bytes] = []
        self._lost = False
        database.snapshots.append(self)
        self._pass(None)

    def lose(self) -> None:
        """The connection is cut."""
        self._lost = True

    def query(self, statement: bytes, deadline: float, parameters: Any = None) -> list[list[bytes | None]]:
        """The statements that taking a snapshot consists of."""
        self._pass(deadline)
        server = self._server
        if b"pg_current_snapshot" in statement:
            self._snapshot = server.snapshot()
            rows = [(table, server.rows(table, self._snapshot)) for table in server.tables]
            self._rows = dict(rows)
            self._pass(deadline)
            asked = re.search(rb"c\.oid = (\d+)", statement)
            found = b"version of %b" % asked[1] if asked and self._scheduler.rng.random() < 0.9 else None
            return [[str(self._snapshot).encode(), format_lsn(server.insert).encode(), SYSTEM.encode(), found]]
        if parameters is not None:
            table = server.tables.get(int(parameters[0]))
            return [] if table is None else [[orjson.dumps(_builtins(table))]]
        if b"flush_lsn" in statement:
            return [[format_lsn(server.flush).encode()]]
        if b"emit_message" in statement:
            server.advance(60)
            server.flush_to(server.insert)
        elif b"COMMIT" in statement or b"ROLLBACK" in statement:
            self._snapshot = None
        return []

    def lend(self, stop: Any) -> bool:
        """To the next snapshot."""
        self._stop = stop
        return not self._lost and self._snapshot is None and self._life == self._server.life

    def copy(self, statement: bytes, first_deadline: float) -> Iterator[Batch]:
        """The rows of the snapshot's table."""
        self.send(statement, first_deadline)
        return self.copied(first_deadline)

    def send(self, statements: bytes, deadline: float) -> None:
        """Several at once."""
        self._pass(deadline)
        self._sent = statements.split(b"; ")

    def rest(self, deadline: float | None) -> list[list[bytes | None]]:
        """What the last of them gives, after a COMMIT."""
        rows: list[list[bytes | None]] = []
        for statement in self._sent:
            rows = self.query(statement, self._scheduler.now + 3600 if deadline is None else deadline)
        return rows

    def copied(self, first_deadline: float, last_deadline: float | None = None) -> Iterator[Batch]:
        """The rows of the next of those sent."""
        if len(self._sent) > SENT_WITH_ONE and self._scheduler.rng.random() < 0.1:
            raise psycopg.errors.DivisionByZero("division by zero")
        oid, selected = orjson.loads(self._sent.pop(0))
        table = self._server.tables[oid]
        rows = [copied(table, tuple(selected), row) for row in self._rows[oid]]
        rng = self._scheduler.rng
        while rows:
            self._pass(first_deadline)
            count = rng.randrange(1, 1 + len(rows))
            yield Batch(rows[:count], pause=rng.random() < 0.5)
            rows = rows[count:]
        self._pass(None)

    def close(self) -> None:
        """Close it."""
        if self in self._database.snapshots:
            self._database.snapshots.remove(self)

    def _pass(self, deadline: float | None) -> None:
        rng = self._scheduler.rng
        self._scheduler.pause(rng.random() * self._database.round_trip * (1 if rng.random() < 0.95 else 50))
        if self._stop.is_set():
            raise Stopped
        if deadline is not None and self._scheduler.now >= deadline:
            raise DeadlinePassed
        if self._lost:
            raise psycopg.OperationalError("terminating connection due to administrator command")
        self._database.check(self._life)


def _builtins(table: Table) -> dict[str, Any]:
    return {
        "oid": table.oid,
        "schema": table.schema,
        "name": table.name,
        "kind": table.kind,
        "persistence": table.persistence,
        "columns": [
            {
                "name": column.name,
                "attnum": column.attnum,
                "type_oid": column.type_oid,
                "type_name": column.type_name,
                "type_mod": column.type_mod,
                "base_oid": column.base_oid,
                "not_null": column.not_null,
                "key_index": column.key_index,
                "generated": column.generated,
                "dims": column.dims,
            }
            for column in table.columns
        ],
    }

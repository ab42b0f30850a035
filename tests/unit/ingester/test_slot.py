"""The lock, its breaker, and the slot (engine.md 3, 28)."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from common.lsn import parse_lsn
from common.postgres import Connection, DatabaseProblem, Kind, Pool, Problem, connect
from deploy.embedded_postgres import EmbeddedPostgres
from ingester.lock import Holder, acquire_lock, stale
from ingester.server import ServerFacts, identify, server_facts
from ingester.slot import (
    Create,
    SlotState,
    Usable,
    check_continuity,
    create_command,
    drop_leftover,
    ensure_slot,
    judge,
)

Connect = Callable[[], Awaitable[Connection]]


class Waits(list[str]):
    """Collects what is said while waiting."""

    def __call__(self, text: str) -> None:
        self.append(text)

    async def until(self, words: str) -> None:
        async def said() -> bool:
            return any(words in text for text in self)

        await eventually(said)


async def eventually(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(120):
        while True:
            if await condition():
                return
            await asyncio.sleep(0.02)


@pytest.fixture
async def admin(database: str) -> AsyncIterator[Pool]:
    pool = Pool(database, "galvanic test admin", 3)
    yield pool
    await pool.close()


@pytest.fixture
async def replication(database: str) -> AsyncIterator[Connect]:
    opened: list[Connection] = []

    async def make() -> Connection:
        opened.append(await connect(database, "galvanic test ingester", replication=True))
        return opened[-1]

    yield make
    for connection in opened:
        await connection.close()


@pytest.fixture
def slot() -> str:
    """Slots are the server's, not the database's."""
    return f"slot_{uuid.uuid4().hex[:12]}"


async def one(connection: Connection, query: str, *parameters: Any) -> Any:
    row = await (await connection.execute(query.encode(), parameters or None)).fetchone()
    return row[0] if row else None


async def ensure(connection: Connection, name: str, admin: Pool, **options: Any) -> tuple[SlotState, list[str]]:
    reasons: list[str] = []

    async def record(reason: str) -> None:
        reasons.append(reason)

    async with asyncio.timeout(120):
        state = await ensure_slot(connection, name, admin=admin, before_create=record, on_waiting=Waits(), **options)
    return state, reasons


ROW: dict[str, Any] = {
    "slot_name": "s",
    "plugin": "pgoutput",
    "slot_type": "logical",
    "database": "app",
    "temporary": False,
    "active": False,
    "active_pid": None,
    "wal_status": "reserved",
    "confirmed_flush_lsn": "1/10",
}


@pytest.mark.parametrize(
    ("change", "options", "verdict"),
    [
        ({}, {}, Usable(0x1_0000_0010)),
        ({"active": True, "active_pid": 7}, {}, Usable(0x1_0000_0010)),
        ({"wal_status": "unreserved"}, {}, Usable(0x1_0000_0010)),
        ({"invalidation_reason": None, "conflicting": False}, {}, Usable(0x1_0000_0010)),
        ({"wal_status": "lost"}, {}, Create("Postgres invalidated the slot (lost)", True)),
        (
            {"wal_status": "lost", "invalidation_reason": "wal_removed"},
            {},
            Create("Postgres invalidated the slot (wal_removed)", True),
        ),
        ({"invalidation_reason": "idle_timeout"}, {}, Create("Postgres invalidated the slot (idle_timeout)", True)),
        ({"conflicting": True}, {}, Create("Postgres invalidated the slot", True)),
        ({"confirmed_flush_lsn": None}, {}, Create("the slot was not created completely", True)),
        ({}, {"recreate": "the publication is new"}, Create("the publication is new", True)),
        ({"temporary": True}, {}, Create("a permanent slot is wanted", True)),
    ],
)
def test_a_slot_of_ours_is_used_or_replaced(
    change: dict[str, Any], options: dict[str, Any], verdict: Usable | Create
) -> None:
    assert judge(ROW | change, database="app", own_pid=7, **options) == verdict


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"plugin": "wal2json"}, Kind.FATAL),
        ({"slot_type": "physical", "plugin": None, "database": None}, Kind.FATAL),
        ({"database": "other"}, Kind.FATAL),
        ({"database": "other", "wal_status": "lost"}, Kind.FATAL),
        ({"active": True, "active_pid": 8}, Kind.RETRY),
        ({"active": True, "active_pid": 8, "wal_status": "lost"}, Kind.RETRY),
    ],
)
def test_a_slot_that_is_not_ours_or_in_use_is_left_alone(change: dict[str, Any], kind: Kind) -> None:
    verdict = judge(ROW | change, database="app", own_pid=7, recreate="because")
    assert isinstance(verdict, Problem)
    assert verdict.kind is kind
    assert "'s'" in verdict.message


def test_a_missing_slot_is_created_for_the_callers_reason() -> None:
    assert judge(None, database="app", own_pid=7) == Create("there was no slot", False)
    assert judge(None, database="app", own_pid=7, recreate="x") == Create("x", False)


@pytest.mark.parametrize(
    ("version", "failover", "command"),
    [
        (140010, True, 'CREATE_REPLICATION_SLOT "s" LOGICAL pgoutput NOEXPORT_SNAPSHOT'),
        (150003, True, "CREATE_REPLICATION_SLOT \"s\" LOGICAL pgoutput (SNAPSHOT 'nothing')"),
        (170001, False, "CREATE_REPLICATION_SLOT \"s\" LOGICAL pgoutput (SNAPSHOT 'nothing')"),
        (170001, True, "CREATE_REPLICATION_SLOT \"s\" LOGICAL pgoutput (SNAPSHOT 'nothing', FAILOVER true)"),
    ],
)
def test_the_command_speaks_each_versions_words(version: int, failover: bool, command: str) -> None:
    assert create_command("s", version, failover=failover).as_string(None) == command


def test_only_a_holder_idle_twice_in_a_row_is_stale() -> None:
    idle = Holder(1, "10:00:00", "galvanic", None, True)
    using = Holder(2, "10:00:00", "galvanic", None, False)
    assert stale(frozenset(), frozenset({idle, using})) == frozenset()
    assert stale(frozenset({idle, using}), frozenset({idle, using})) == {idle}
    assert stale(frozenset({idle}), frozenset({idle._replace(since="10:00:05")})) == frozenset()
    assert stale(frozenset({idle}), frozenset({idle._replace(slot_idle=False)})) == frozenset()


FACTS = ServerFacts(
    version=170002,
    wal_level="logical",
    wal_sender_timeout=60.0,
    in_recovery=False,
    encoding="UTF8",
    may_replicate=True,
    user="u",
    database="d",
    database_oid=1,
    system_identifier="7",
)


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        ({"version": 130012}, Kind.FATAL, "14 or newer"),
        ({"wal_level": "replica"}, Kind.FATAL, "wal_level = logical"),
        ({"in_recovery": True}, Kind.RETRY, "primary"),
    ],
)
def test_servers_that_cannot_be_used_are_named(change: dict[str, Any], kind: Kind, words: str) -> None:
    fields = {name: getattr(FACTS, name) for name in FACTS.__struct_fields__}
    problem = ServerFacts(**fields | change).problem()
    assert problem is not None
    assert problem.kind is kind
    assert words in problem.message


async def test_the_server_tells_what_it_is(admin: Pool, replication: Connect, database: str) -> None:
    async with admin.connection() as connection:
        facts = await server_facts(connection)
        assert facts.problem() is None
        oid = await one(connection, "SELECT oid::int8 FROM pg_database WHERE datname = %s", facts.database)
        assert facts.database_oid == oid
        assert facts.wal_sender_timeout == 60.0
        assert facts.may_replicate
        assert facts.system_identifier
        identifier = await one(connection, "SELECT system_identifier::text FROM pg_control_system()")
    system = await identify(await replication())
    assert system.system_identifier == identifier == facts.system_identifier
    assert system.database == facts.database == database.rsplit("/", 1)[1]
    assert system.timeline == 1
    assert system.wal_lsn > 0


async def test_a_slot_is_made_once_and_then_continued(admin: Pool, replication: Connect, slot: str) -> None:
    connection = await replication()
    made, reasons = await ensure(connection, slot, admin)
    assert made.created
    assert reasons == [made.reason] == ["there was no slot"]
    await connection.close()
    again, reasons = await ensure(await replication(), slot, admin)
    assert again == SlotState(False, made.confirmed_flush)
    assert reasons == []


async def test_a_slot_is_made_anew_on_demand(admin: Pool, replication: Connect, slot: str) -> None:
    connection = await replication()
    first, _ = await ensure(connection, slot, admin)
    async with admin.connection() as other:
        await other.execute("SELECT pg_logical_emit_message(false, 'x', 'y')")
    second, reasons = await ensure(connection, slot, admin, recreate="the publication is new")
    assert second.created
    assert second.confirmed_flush > first.confirmed_flush
    assert reasons == ["the publication is new"]


async def test_a_server_that_knows_no_failover_gets_a_plain_slot(
    admin: Pool, replication: Connect, slot: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = create_command

    def refused(name: str, version: int, *, failover: bool) -> sql.Composed:
        text = real(name, version, failover=failover).as_string(None)
        return sql.SQL(text.replace("FAILOVER", "FAIL_OVER")).format()

    monkeypatch.setattr("ingester.slot.create_command", refused)
    state, _ = await ensure(await replication(), slot, admin)
    assert state.created
    assert capsys.readouterr().out.count("makes no failover slot") == 1
    async with admin.connection() as other:
        assert await one(other, "SELECT failover FROM pg_replication_slots WHERE slot_name = %s", slot) is False


async def test_a_slot_of_todays_servers_fails_over(admin: Pool, replication: Connect, slot: str) -> None:
    await ensure(await replication(), slot, admin)
    async with admin.connection() as other:
        row = await one(other, "SELECT to_jsonb(s) FROM pg_replication_slots s WHERE slot_name = %s", slot)
        assert row.get("failover", True) is True


async def test_a_stream_may_only_go_on_where_it_was(admin: Pool, replication: Connect, slot: str) -> None:
    connection = await replication()
    state, _ = await ensure(connection, slot, admin)
    system = await identify(connection)
    await check_continuity(connection, slot, system, state.confirmed_flush)
    await check_continuity(connection, "no_such_slot", system, 0)
    for other in (system._replace(timeline=system.timeline + 1), system._replace(system_identifier="1")):
        with pytest.raises(DatabaseProblem, match="another server, or another timeline"):
            await check_continuity(connection, slot, other, state.confirmed_flush)
    with pytest.raises(DatabaseProblem, match="somebody else advanced it"):
        await check_continuity(connection, slot, system, state.confirmed_flush - 1)


async def test_a_leftover_slot_is_dropped_unless_somebody_needs_it(
    admin: Pool, replication: Connect, slot: str, database: str
) -> None:
    lock = await connect(database, "galvanic test lock")
    holder = await connect(database, "galvanic test holder")
    try:
        assert not await drop_leftover(lock, slot)
        reader = await replication()
        await ensure(reader, slot, admin)
        await holder.execute("SELECT pg_advisory_lock(hashtext(%s))", [slot])
        assert not await drop_leftover(lock, slot)
        await holder.execute("SELECT pg_advisory_unlock_all()")
        await holder.execute("CREATE PUBLICATION p")
        reader.pgconn.exec_(
            f"START_REPLICATION SLOT \"{slot}\" LOGICAL 0/0 (proto_version '1', publication_names 'p')".encode()
        )
        assert not await drop_leftover(lock, slot)
        await reader.close()

        async def dropped() -> bool:
            return await drop_leftover(lock, slot)

        await eventually(dropped)
        assert await one(lock, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted AND pid = %s",
                         lock.info.backend_pid) == 0  # fmt: skip
    finally:
        await lock.close()
        await holder.close()


async def test_foreign_slots_are_refused_and_kept(
    admin: Pool, replication: Connect, slot: str, postgres_server: EmbeddedPostgres
) -> None:
    connection = await replication()
    async with admin.connection() as other:
        await other.execute("SELECT pg_create_physical_replication_slot(%s)", (slot,))
        with pytest.raises(DatabaseProblem, match="physical slot") as caught:
            await ensure(connection, slot, admin)
        assert caught.value.problem.kind is Kind.FATAL
        await other.execute("SELECT pg_drop_replication_slot(%s)", (slot,))
    elsewhere = await connect(postgres_server.url, "galvanic test")
    try:
        await elsewhere.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput', true)", (slot,))
        with pytest.raises(DatabaseProblem, match="of database 'postgres'"):
            await ensure(connection, slot, admin)
    finally:
        await elsewhere.close()


async def test_creation_waits_for_open_writers_and_says_so(
    admin: Pool, replication: Connect, slot: str, database: str
) -> None:
    writer = await connect(database, "a slow writer")
    await writer.execute("BEGIN")
    await writer.execute("CREATE TABLE public.t ()")
    waits, recorded = Waits(), asyncio.Event()

    async def record(_: str) -> None:
        recorded.set()

    task = asyncio.create_task(
        ensure_slot(await replication(), slot, admin=admin, before_create=record, on_waiting=waits, interval=0.1)
    )
    await waits.until("a slow writer")
    assert recorded.is_set()
    assert not task.done()
    await writer.execute("COMMIT")
    async with asyncio.timeout(120):
        assert (await task).created
    await writer.close()


async def test_giving_up_while_creating_leaves_no_backend_behind(
    admin: Pool, replication: Connect, slot: str, database: str
) -> None:
    writer = await connect(database, "a slow writer")
    await writer.execute("BEGIN")
    await writer.execute("CREATE TABLE public.t ()")
    connection, waits = await replication(), Waits()
    pid = connection.info.backend_pid

    async def record(_: str) -> None:
        pass

    task = asyncio.create_task(
        ensure_slot(connection, slot, admin=admin, before_create=record, on_waiting=waits, interval=0.1)
    )
    await waits.until("a slow writer")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await connection.close()
    async with admin.connection() as other:

        async def gone() -> bool:
            return await one(other, "SELECT true FROM pg_stat_activity WHERE pid = %s", pid) is None

        await eventually(gone)
    await writer.close()


async def test_the_lock_passes_on_when_its_session_ends(admin: Pool, replication: Connect, slot: str) -> None:
    first, second = await replication(), await replication()
    waits = Waits()
    await acquire_lock(first, slot, admin=admin, on_waiting=waits)
    assert waits == []
    task = asyncio.create_task(acquire_lock(second, slot, admin=admin, on_waiting=waits, interval=0.1))
    await waits.until(f"pid {first.info.backend_pid} (galvanic test ingester")
    assert not task.done()
    await first.close()
    async with asyncio.timeout(120):
        await task


async def test_slots_of_other_names_have_other_locks(admin: Pool, replication: Connect, slot: str) -> None:
    waits = Waits()
    async with asyncio.timeout(120):
        await acquire_lock(await replication(), slot, admin=admin, on_waiting=waits)
        await acquire_lock(await replication(), slot + "_b", admin=admin, on_waiting=waits)
    assert waits == []


async def test_a_statement_timeout_does_not_end_the_wait(admin: Pool, replication: Connect, slot: str) -> None:
    first, second = await replication(), await replication()
    waits = Waits()
    await acquire_lock(first, slot, admin=admin, on_waiting=waits)
    await second.execute("SET statement_timeout TO 50")
    task = asyncio.create_task(acquire_lock(second, slot, admin=admin, on_waiting=waits, interval=60))
    await waits.until("waiting again")
    await first.close()
    async with asyncio.timeout(120):
        await task


async def test_the_lock_of_a_session_that_uses_no_slot_is_broken(admin: Pool, replication: Connect, slot: str) -> None:
    dead, heir = await replication(), await replication()
    waits = Waits()
    await acquire_lock(dead, slot, admin=admin, on_waiting=waits)
    await ensure(dead, slot, admin)
    async with asyncio.timeout(120):
        await acquire_lock(heir, slot, admin=admin, on_waiting=waits, interval=0.1)
    assert any(f"ending pid {dead.info.backend_pid}" in text for text in waits)
    with pytest.raises(psycopg.OperationalError):
        await dead.execute("SELECT 1")


async def test_the_lock_of_a_session_that_streams_is_respected(admin: Pool, replication: Connect, slot: str) -> None:
    streaming, waiting = await replication(), await replication()
    waits = Waits()
    await acquire_lock(streaming, slot, admin=admin, on_waiting=waits)
    await ensure(streaming, slot, admin)
    async with admin.connection() as other:
        await other.execute("CREATE PUBLICATION p")
        streaming.pgconn.exec_(
            f"START_REPLICATION SLOT \"{slot}\" LOGICAL 0/0 (proto_version '1', publication_names 'p')".encode()
        )
        task = asyncio.create_task(acquire_lock(waiting, slot, admin=admin, on_waiting=waits, interval=0.05))

        async def looked_at() -> bool:
            return len(waits) >= 5

        await eventually(looked_at)
        assert not task.done()
        assert not any("ending" in text for text in waits)
        with pytest.raises(DatabaseProblem, match="in use by pid") as caught:
            await ensure(await replication(), slot, admin)
        assert caught.value.problem.kind is Kind.RETRY
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.fixture
def small_server() -> Iterator[EmbeddedPostgres]:
    """A server that keeps hardly any WAL for slots."""
    directory = Path(tempfile.mkdtemp(prefix="galvanic-test-slot-"))
    server = EmbeddedPostgres(
        directory,
        fsync=False,
        settings={"max_slot_wal_keep_size": "1MB", "min_wal_size": "32MB", "max_wal_size": "32MB"},
    )
    try:
        server.start()
        yield server
    finally:
        server.stop("immediate")
        shutil.rmtree(directory, ignore_errors=True)
        shutil.rmtree(server.directory, ignore_errors=True)


async def test_an_invalidated_slot_is_replaced(small_server: EmbeddedPostgres, slot: str) -> None:
    pool = Pool(small_server.url, "galvanic test", 2)
    connection = await connect(small_server.url, "galvanic test", replication=True)
    before, _ = await ensure(connection, slot, pool)
    async with pool.connection() as other:
        for _ in range(4):
            await other.execute("SELECT pg_logical_emit_message(false, 'x', 'y'), pg_switch_wal()")
        await other.execute("CHECKPOINT")
        assert await one(other, "SELECT wal_status FROM pg_replication_slots") == "lost"
        after, reasons = await ensure(connection, slot, pool)
        assert after.created
        assert after.confirmed_flush > before.confirmed_flush
        assert "invalidated" in reasons[0]
        assert (
            parse_lsn(await one(other, "SELECT confirmed_flush_lsn FROM pg_replication_slots")) == after.confirmed_flush
        )
    await connection.close()
    await pool.close()

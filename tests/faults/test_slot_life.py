"""What may happen to the slot, and to the storage directory that was fed from it (engine.md 2.3, 3, 28; INV-2).

Either the shapes go on and nothing is missing, or they end with one line that says why, and clients hold what Postgres
does after their refetch.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from deploy.embedded_postgres import EmbeddedPostgres
from tests.faults.generations import (
    SLOT,
    create_table,
    database,
    execute,
    generations,
    insert,
    run_ingester,
    until,
    witness,
)
from tests.pipeline.fixtures import StartStack
from tests.pipeline.reader import HANG_SECONDS
from tests.pipeline.stack import Stack

pytestmark = pytest.mark.timeout(600)

FATAL = 78
_TERMINATE = f"SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = '{SLOT}' AND active"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedPostgres]:
    """A server that keeps hardly any WAL for slots."""
    settings = {"max_slot_wal_keep_size": "1MB", "min_wal_size": "32MB", "max_wal_size": "32MB"}
    with EmbeddedPostgres(tmp_path / "postgres", fsync=False, settings=settings) as running:
        yield running


@pytest.fixture
async def table(private_server: EmbeddedPostgres) -> str:
    """The URL of a database with the table `t`, on a server where nobody else has slots."""
    await create_table(private_server.url)
    return private_server.url


async def restart(stack: Stack) -> None:
    """Starts all processes again after `stack.stop()`."""
    stack.start()
    await stack.wait_active()


async def one_line(stack: Stack, *words: str) -> None:
    """The last new generation was announced by one line with these words."""
    (line,) = generations(stack)
    for word in words:
        assert word in line, line


# --------------------------------------------------------------------------------------------------------------------
# WAL that the server no longer has


@pytest.mark.faults
async def test_invalidated_while_stopped(server: EmbeddedPostgres, start_stack: StartStack) -> None:
    await create_table(server.url)
    stack = await start_stack(server.url)
    async with witness(stack, server.url) as reader:
        await reader.kept()
        await stack.stop()
        await overrun(server.url)
        await until(server.url, "SELECT wal_status FROM pg_replication_slots", "lost")
        await restart(stack)
        await reader.replaced()
    await one_line(stack, "Postgres invalidated the slot")


@pytest.mark.faults
async def test_invalidated_while_in_use(server: EmbeddedPostgres, start_stack: StartStack) -> None:
    await create_table(server.url)
    stack = await start_stack(server.url)
    async with witness(stack, server.url) as reader:
        await reader.kept()
        stack.pause("ingester")
        # The checkpoint waits for the walsender, which ends, and for that has to tell its client.
        overrunning = asyncio.create_task(overrun(server.url))
        await until(server.url, "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'ReplicationSlotDrop'", 1)
        stack.resume("ingester")
        await overrunning
        await reader.replaced()
        await stack.wait_active()
    await one_line(stack, "invalidated")


@pytest.mark.faults
async def test_invalidated_for_being_idle(private_server: EmbeddedPostgres, start_stack: StartStack) -> None:
    """Postgres 18 may give up a slot that nobody has read for long."""
    url = private_server.url
    if int((await execute(url, "SHOW server_version_num"))[0][0]) < 180000:
        pytest.skip("idle_replication_slot_timeout exists since Postgres 18")
    await create_table(url)
    stack = await start_stack(url)
    async with witness(stack, url) as reader:
        await reader.kept()
        await stack.stop()
        await execute(url, "ALTER SYSTEM SET idle_replication_slot_timeout = '1s'", "SELECT pg_reload_conf()")
        # Only a checkpoint looks, and it may be one that has not read the settings or comes too soon.
        looked = "CHECKPOINT", "SELECT invalidation_reason FROM pg_replication_slots"
        async with asyncio.timeout(HANG_SECONDS):
            while await execute(url, *looked) != [("idle_timeout",)]:  # noqa: ASYNC110
                await asyncio.sleep(0.3)
        await execute(url, "ALTER SYSTEM RESET idle_replication_slot_timeout", "SELECT pg_reload_conf()")
        await restart(stack)
        await reader.replaced()
    await one_line(stack, "idle_timeout")


async def overrun(url: str) -> None:
    """More WAL than the server keeps for a slot."""
    for _ in range(4):
        await execute(url, "INSERT INTO t (v) SELECT repeat(md5(i::text), 200) FROM generate_series(1, 500) i")
        await execute(url, "SELECT pg_switch_wal()")
    await execute(url, "CHECKPOINT")


# --------------------------------------------------------------------------------------------------------------------
# other people


@pytest.mark.faults
async def test_dropped_while_stopped_and_while_running(table: str, start_stack: StartStack) -> None:
    stack = await start_stack(table)
    async with witness(stack, table) as reader:
        await reader.kept()
        await stack.stop()
        await execute(table, f"SELECT pg_drop_replication_slot('{SLOT}')")
        await restart(stack)
        await reader.replaced()
        await one_line(stack, "there was no slot")
        await seize(table, f"SELECT pg_drop_replication_slot('{SLOT}')")
        await reader.replaced(2)
    assert len(generations(stack)) == 2


@pytest.mark.faults
async def test_advanced_while_stopped_and_while_running(table: str, start_stack: StartStack) -> None:
    stack = await start_stack(table)
    advance = f"SELECT pg_replication_slot_advance('{SLOT}', pg_current_wal_flush_lsn())"
    async with witness(stack, table) as reader:
        await reader.kept()
        await stack.stop()
        await insert(table)
        await execute(table, advance)
        await restart(stack)
        await reader.replaced()
        await one_line(stack, SLOT, "somebody else advanced it")
        # The stream is lost, and what it would have brought next is skipped before it can begin again.
        stack.pause("ingester")
        await insert(table)
        await seize(table, advance)
        stack.resume("ingester")
        await reader.replaced(2)
    assert "somebody else advanced it" in generations(stack)[-1]


async def seize(url: str, statement: str) -> None:
    """Ends the stream and does something with the slot before it is read again."""
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection, asyncio.timeout(HANG_SECONDS):
        while True:
            await connection.execute(_TERMINATE.encode())
            with contextlib.suppress(psycopg.errors.ObjectInUse, psycopg.errors.ObjectNotInPrerequisiteState):
                await connection.execute(statement.encode())
                return


@pytest.mark.faults
async def test_read_by_somebody_else_at_the_start(table: str, start_stack: StartStack) -> None:
    """Nobody takes a slot from whoever reads it; it is said who that is."""
    stack = await start_stack(table)
    async with witness(stack, table) as reader:
        await reader.kept()
        await stack.stop()
        consumer = await psycopg.AsyncConnection.connect(
            f"{table}?replication=database&application_name=somebody", autocommit=True
        )
        consumer.pgconn.exec_(
            f"START_REPLICATION SLOT {SLOT} LOGICAL 0/0 "
            "(proto_version '1', publication_names 'electric_publication_default')".encode()
        )
        stack.start()
        health = await stack.wait_health("in use by pid")
        assert f"pid {consumer.info.backend_pid} (somebody, from 127.0.0.1)" in health["reason"]
        consumer.pgconn.finish()
        await stack.wait_active()
        await reader.kept()
    assert generations(stack) == []


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        (f"SELECT pg_create_physical_replication_slot('{SLOT}')", "physical slot"),
        (f"SELECT pg_create_logical_replication_slot('{SLOT}', 'test_decoding')", "test_decoding slot"),
    ],
)
async def test_a_slot_that_is_not_ours_is_left_alone(
    private_server: EmbeddedPostgres, tmp_path: Path, statement: str, words: str
) -> None:
    if "test_decoding" in statement and not await has_test_decoding(private_server.url):
        pytest.skip("this server has no output plugin besides pgoutput")
    await execute(private_server.url, statement)
    code, output = await run_ingester(private_server.url, tmp_path / "storage")
    assert code == FATAL
    (line,) = [line for line in output.splitlines() if "cannot go on" in line]
    assert words in line
    assert f"SELECT pg_drop_replication_slot('{SLOT}')" in line
    assert "ELECTRIC_REPLICATION_STREAM_ID" in line
    assert len(await execute(private_server.url, "SELECT FROM pg_replication_slots")) == 1


async def has_test_decoding(url: str) -> bool:
    try:
        await execute(url, "LOAD 'test_decoding'")
    except psycopg.Error:
        return False
    return True


async def test_a_slot_of_another_database_is_left_alone(private_server: EmbeddedPostgres, tmp_path: Path) -> None:
    url = private_server.url
    await execute(url, "CREATE DATABASE other", f"SELECT pg_create_logical_replication_slot('{SLOT}', 'pgoutput')")
    code, output = await run_ingester(database(url, "other"), tmp_path / "storage")
    assert code == FATAL
    assert "pgoutput slot of database 'postgres'" in output
    assert len(await execute(url, "SELECT FROM pg_replication_slots")) == 1


# --------------------------------------------------------------------------------------------------------------------
# storage


@pytest.mark.faults
async def test_an_older_copy_of_the_storage_is_not_continued(
    table: str, start_stack: StartStack, tmp_path: Path
) -> None:
    stack = await start_stack(table)
    backup = tmp_path / "backup"
    async with witness(stack, table) as reader:
        await reader.kept()
        await stack.stop()
        shutil.copytree(stack.storage, backup)
        await restart(stack)
        await reader.kept()
        position = (await execute(table, "SELECT pg_current_wal_flush_lsn()"))[0][0]
        await until(table, f"SELECT confirmed_flush_lsn >= '{position}' FROM pg_replication_slots", True)
        await stack.stop()
        shutil.rmtree(stack.storage)
        shutil.copytree(backup, stack.storage)
        await restart(stack)
        await reader.replaced()
    await one_line(stack, "an older copy of the storage was restored")


@pytest.mark.faults
async def test_without_its_source_file_no_shape_is_trusted(table: str, start_stack: StartStack) -> None:
    """Missing, empty, cut off; and the next start trusts what the one after the loss has made."""
    stack = await start_stack(table)
    async with witness(stack, table) as reader:
        await reader.kept()
        for times, content in enumerate((None, b"", b'{"format": 1, "slot": "elec'), 1):
            await stack.stop()
            if content is None:
                (stack.storage / "source.json").unlink()
            else:
                (stack.storage / "source.json").write_bytes(content)
            await restart(stack)
            await reader.replaced(times)
            assert len(generations(stack)) == times
            assert "source.json is missing or damaged" in generations(stack)[-1]
        await stack.stop()
        await restart(stack)
        await reader.compare()
        assert len(reader.view.ended) == 3
    assert len(generations(stack)) == 3


@pytest.mark.faults
async def test_another_stream_id_on_the_same_storage(table: str, start_stack: StartStack) -> None:
    """The former slot is not dropped, since somebody may want it; but it keeps WAL, so the log says how to."""
    stack = await start_stack(table)
    async with witness(stack, table) as reader:
        await reader.kept()
        await stack.stop()
        stack.environment["ELECTRIC_REPLICATION_STREAM_ID"] = "second"
        await restart(stack)
        await reader.replaced()
    await one_line(stack, "another replication slot: 'electric_slot_second', was 'electric_slot_default'")
    assert f"SELECT pg_drop_replication_slot('{SLOT}')" in stack.log_of("ingester")
    assert (await execute(table, "SELECT count(*) FROM pg_replication_slots"))[0][0] == 2


# --------------------------------------------------------------------------------------------------------------------
# slots that are to go with their process


@pytest.mark.faults
@pytest.mark.parametrize("manual", [False, True])
async def test_a_temporary_slot_goes_at_a_clean_end(table: str, start_stack: StartStack, manual: bool) -> None:
    """The publication goes too, unless people look after it (engine.md 3.3, 4.5)."""
    if manual:
        await execute(
            table, "CREATE PUBLICATION electric_publication_default FOR TABLE t", "ALTER TABLE t REPLICA IDENTITY FULL"
        )
    environment = {
        "CLEANUP_REPLICATION_SLOTS_ON_SHUTDOWN": "true",
        "ELECTRIC_MANUAL_TABLE_PUBLISHING": str(manual).lower(),
    }
    stack = await start_stack(table, environment=environment)
    async with witness(stack, table) as reader:
        await reader.kept()
        await stack.stop()
        assert await execute(table, "SELECT FROM pg_replication_slots") == []
        assert len(await execute(table, "SELECT FROM pg_publication")) == manual
        await restart(stack)
        await reader.replaced()
        # After a crash the slot is still there: nothing is lost.
        stack.kill9("ingester")
        await reader.compare()
        assert len(reader.view.ended) == 1
    assert len(generations(stack)) == 1


@pytest.mark.faults
async def test_who_waits_for_the_lock_drops_nobodys_slot(table: str, start_stack: StartStack) -> None:
    first = await start_stack(table)
    second = await start_stack(table, environment={"CLEANUP_REPLICATION_SLOTS_ON_SHUTDOWN": "true"}, ready=False)
    async with witness(first, table) as reader:
        await second.wait_health("another instance holds the lock")
        await second.stop()
        await reader.kept()
    assert (await execute(table, "SELECT active FROM pg_replication_slots"))[0][0] is True
    assert first.log_of("ingester").count("session opened") == 1


@pytest.mark.faults
async def test_a_slot_with_a_random_name_that_was_left_behind_is_dropped(table: str, start_stack: StartStack) -> None:
    environment = {
        "CLEANUP_REPLICATION_SLOTS_ON_SHUTDOWN": "true",
        "ELECTRIC_TEMPORARY_REPLICATION_SLOT_USE_RANDOM_NAME": "true",
    }
    stack = await start_stack(table, environment=environment)
    names = "SELECT slot_name FROM pg_replication_slots"
    async with witness(stack, table) as reader:
        ((first,),) = await execute(table, names)
        stack.kill9("ingester")
        await reader.replaced()
        ((second,),) = await execute(table, names)
        assert second != first
        await stack.stop()
        assert await execute(table, names) == []
        assert len(await execute(table, "SELECT FROM pg_publication")) == 1
    await one_line(stack, "another replication slot")


# --------------------------------------------------------------------------------------------------------------------
# a slot that cannot be made yet


@pytest.mark.faults
@pytest.mark.parametrize("superuser", [True, False])
async def test_creation_waits_for_open_transactions_and_goes_on_in_silence(
    table: str, start_stack: StartStack, superuser: bool
) -> None:
    """Also where nobody may ask the server for a record of its transactions (engine.md 3.6)."""
    url = table
    if not superuser:
        await execute(table, "CREATE ROLE lowly LOGIN REPLICATION", "GRANT CREATE ON DATABASE postgres TO lowly")
        url = table.replace("postgres@", "lowly@")
    writer = await psycopg.AsyncConnection.connect(table, application_name="slow writer")
    await writer.execute("INSERT INTO t (v) VALUES ('not yet')")
    stack = await start_stack(url, ready=False)
    health = await stack.wait_health("waits for open transactions")
    assert health["status"] == "starting"
    if superuser:
        assert f"pid {writer.info.backend_pid} (slow writer" in health["reason"]
    await writer.commit()
    await writer.close()
    await stack.wait_active()
    await stack.stop()


@pytest.mark.faults
@pytest.mark.parametrize("end", ["stop", "kill"])
async def test_an_end_while_the_slot_is_being_made_leaves_nothing_half_made(
    table: str, start_stack: StartStack, end: str
) -> None:
    writer = await psycopg.AsyncConnection.connect(table)
    await writer.execute("INSERT INTO t (v) VALUES ('not yet')")
    stack = await start_stack(table, ready=False)
    ours = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'galvanic%' AND pid <> pg_backend_pid()"
    creating = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'CREATE_REPLICATION_SLOT%' AND state = 'active'"
    await until(table, creating, 1)
    # Who has not come up yet cannot stop in order.
    await stack.wait_logged("w00", "shapeworker started")
    await stack.wait_health("starting")
    if end == "stop":
        await stack.stop()
        await until(table, ours, 0)
        assert await execute(table, "SELECT FROM pg_replication_slots") == []
        stack.start()
    else:
        stack.kill9("ingester")
    await until(table, creating, 1)
    await writer.commit()
    await writer.close()
    await stack.wait_active()
    async with witness(stack, table) as reader:
        await reader.kept()
    assert len(await execute(table, "SELECT FROM pg_replication_slots")) == 1

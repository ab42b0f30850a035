"""Which server it is: another one, another timeline, one that is not there yet, and clusters of every age.

engine.md 2.3, 2.4, 3.4; INV-2.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import psycopg
import pytest

from deploy.embedded_postgres import EmbeddedPostgres
from deploy.postgres_binaries import find_binaries, run_as, server_account
from tests.faults.generations import (
    SLOT,
    copy_server,
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
from tests.pipeline.stack import Stack

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]

FATAL = 78


@contextlib.asynccontextmanager
async def running(server: EmbeddedPostgres) -> AsyncIterator[EmbeddedPostgres]:
    """The server, started, and stopped at the end."""
    await asyncio.to_thread(server.start)
    try:
        yield server
    finally:
        await asyncio.to_thread(server.stop, "immediate")


async def move(stack: Stack, url: str) -> None:
    """Starts the stopped stack with another DATABASE_URL."""
    stack.environment["DATABASE_URL"] = url
    stack.start()
    await stack.wait_active()


def tool(server: EmbeddedPostgres, name: str, *arguments: str) -> None:
    """Runs a program of Postgres as the server's account."""
    account = server_account()
    result = run_as(account, [str(find_binaries(account) / name), *arguments])
    assert result.returncode == 0, result.stdout


# --------------------------------------------------------------------------------------------------------------------
# another history


async def test_point_in_time_recovery(
    private_server: EmbeddedPostgres, start_stack: StartStack, tmp_path: Path
) -> None:
    """A copy with the slot as it was, recovered to a timeline of its own: its WAL is not the one we have read."""
    url = private_server.url
    await create_table(url)
    stack = await start_stack(url)
    async with witness(stack, url) as reader:
        await reader.kept()
        await stack.stop()
        await asyncio.to_thread(private_server.stop)
        copy = await copy_server(private_server, tmp_path / "copy", restore_command="/bin/false")
        (copy.data_directory / "recovery.signal").touch()
        async with running(copy):
            reader.database = copy.url
            await until(copy.url, "SELECT pg_is_in_recovery()", False)
            assert len(await execute(copy.url, "SELECT FROM pg_replication_slots")) == 1
            await move(stack, copy.url)
            await reader.replaced()
            (line,) = generations(stack)
            assert "the server is on timeline 2, was 1" in line
            await stack.stop()


async def test_a_promoted_standby_with_a_synchronised_slot(
    private_server: EmbeddedPostgres, start_stack: StartStack, tmp_path: Path
) -> None:
    """Postgres 17 and later keep the slot on the standby; even so what was acknowledged may not have come across."""
    url = private_server.url
    if int((await execute(url, "SHOW server_version_num"))[0][0]) < 170000:
        pytest.skip("failover slots exist since Postgres 17")
    await create_table(url)
    standby = await make_standby(private_server, tmp_path, sync_slots=True)
    async with running(standby):
        stack = await start_stack(url)
        async with witness(stack, url) as reader:
            await reader.kept()
            synced = f"SELECT synced AND NOT temporary FROM pg_replication_slots WHERE slot_name = '{SLOT}'"
            await until(standby.url, synced, True)
            await stack.stop()
            await asyncio.to_thread(private_server.stop)
            await execute(standby.url, "SELECT pg_promote()")
            await execute(standby.url, "ALTER SYSTEM RESET primary_conninfo")
            reader.database = standby.url
            await move(stack, standby.url)
            await reader.replaced()
            (line,) = generations(stack)
            assert "timeline 2, was 1" in line
            await stack.stop()


async def make_standby(primary: EmbeddedPostgres, root: Path, *, sync_slots: bool = False) -> EmbeddedPostgres:
    """A standby of the primary, not started yet."""
    conninfo = f"host=127.0.0.1 port={primary.port} user=postgres dbname=postgres"
    settings = {"primary_conninfo": conninfo, "hot_standby_feedback": "on"}
    if sync_slots:
        await execute(primary.url, "SELECT pg_create_physical_replication_slot('standby')")
        settings |= {"primary_slot_name": "standby", "sync_replication_slots": "on"}
    standby = EmbeddedPostgres(root / "standby", fsync=False, settings=settings)
    account = server_account()
    standby._prepare_directory()
    data = str(standby.data_directory)
    await asyncio.to_thread(tool, primary, "pg_basebackup", "-D", data, "-d", conninfo, "-c", "fast", "-X", "stream")
    (standby.data_directory / "standby.signal").touch()
    if not account.is_own:
        os.chown(standby.data_directory / "standby.signal", account.uid, account.gid)
    return standby


async def test_another_server(private_server: EmbeddedPostgres, start_stack: StartStack, tmp_path: Path) -> None:
    url = private_server.url
    await create_table(url)
    stack = await start_stack(url)
    async with running(EmbeddedPostgres(tmp_path / "other", fsync=False)) as other:
        await create_table(other.url)
        async with witness(stack, url) as reader:
            await reader.kept()
            await stack.stop()
            reader.database = other.url
            await move(stack, other.url)
            await reader.replaced()
            (line,) = generations(stack)
            assert "another database server: its system identifier is" in line
            await stack.stop()


async def test_another_database_of_the_server(private_server: EmbeddedPostgres, start_stack: StartStack) -> None:
    """As long as the former database has the slot, it is said how to drop it: slots are the server's."""
    url = private_server.url
    other = database(url, "other")
    await create_table(url)
    await execute(url, "CREATE DATABASE other")
    await create_table(other)
    stack = await start_stack(url)
    async with witness(stack, url) as reader:
        await reader.kept()
        await stack.stop()
        code, output = await run_ingester(other, stack.storage)
        assert code == FATAL
        assert f"SELECT pg_drop_replication_slot('{SLOT}')" in output
        await execute(url, f"SELECT pg_drop_replication_slot('{SLOT}')")
        reader.database = other
        await move(stack, other)
        await reader.replaced()
        (line,) = generations(stack)
        assert "another database: 'other', was 'postgres'" in line


# --------------------------------------------------------------------------------------------------------------------
# a server that cannot be used yet


async def test_absent_at_the_start(private_server: EmbeddedPostgres, start_stack: StartStack) -> None:
    url = private_server.url
    await create_table(url)
    await asyncio.to_thread(private_server.stop)
    stack = await start_stack(url, ready=False)
    health = await stack.wait_health("onnection refused")
    assert health["status"] == "waiting"
    assert "DATABASE_URL: " in health["reason"]
    await asyncio.to_thread(private_server.start)
    await stack.wait_active()
    async with witness(stack, url) as reader:
        await reader.kept()
    await stack.stop()


async def test_a_standby_is_waited_for_until_it_is_promoted(
    private_server: EmbeddedPostgres, start_stack: StartStack, tmp_path: Path
) -> None:
    await create_table(private_server.url)
    async with running(await make_standby(private_server, tmp_path)) as standby:
        stack = await start_stack(standby.url, ready=False)
        await stack.wait_health("DATABASE_URL: the database is a standby in recovery; Galvanic needs the primary")
        await execute(standby.url, "SELECT pg_promote()")
        await stack.wait_active()
        async with witness(stack, standby.url) as reader:
            await reader.kept()
        await stack.stop()


async def test_too_few_connections(private_server: EmbeddedPostgres, start_stack: StartStack) -> None:
    """The server has room for some of what we need only: it is tried again until it has (engine.md 21)."""
    private_server.settings["max_connections"] = "6"
    await asyncio.to_thread(private_server.restart)
    url = private_server.url
    await create_table(url)
    others = [await psycopg.AsyncConnection.connect(url) for _ in range(5)]
    stack = await start_stack(url, ready=False)
    await stack.wait_logged("ingester", "no replication session; trying again")
    assert "too many clients" in stack.log_of("ingester")
    for other in others:
        await other.close()
    private_server.settings["max_connections"] = "100"
    await asyncio.to_thread(private_server.restart)
    await stack.wait_active()
    async with witness(stack, url) as reader:
        await reader.kept()
    await stack.stop()


async def test_a_server_without_logical_wal(private_server: EmbeddedPostgres, tmp_path: Path) -> None:
    private_server.settings["wal_level"] = "replica"
    await asyncio.to_thread(private_server.restart)
    code, output = await run_ingester(private_server.url, tmp_path / "storage")
    assert code == FATAL
    assert "DATABASE_URL: wal_level is 'replica'; set wal_level = logical" in output


# --------------------------------------------------------------------------------------------------------------------
# clusters of every age


@pytest.mark.parametrize(
    "segment",
    ["000000017FFFFFFF000000FE", "00000001FFFFFF00000000F0"],
    ids=["sign bit", "near the end"],
)
async def test_positions_anywhere_in_64_bits(
    private_server: EmbeddedPostgres, start_stack: StartStack, segment: str
) -> None:
    """All other tests begin near 0; here the position passes 2^63 while rows are on their way (engine.md 2.4)."""
    url = private_server.url
    await create_table(url)
    await asyncio.to_thread(private_server.stop)
    await asyncio.to_thread(
        tool, private_server, "pg_resetwal", "-f", "-l", segment, "-D", str(private_server.data_directory)
    )
    await asyncio.to_thread(private_server.start)
    before = await execute(url, "SELECT pg_current_wal_lsn()")
    stack = await start_stack(url)
    async with witness(stack, url) as reader:
        for _ in range(5):
            await insert(url, 10)
            await execute(url, "SELECT pg_switch_wal()")
            await reader.kept()
        # Resume, too: the positions are stored and compared again.
        stack.kill9("ingester", "w00")
        await reader.kept()
    print("WAL from", before, "to", await execute(url, "SELECT pg_current_wal_lsn()"))
    if segment.startswith("000000017FFFFFFF"):
        assert before[0][0].startswith("7FFFFFFF/")
        assert (await execute(url, "SELECT pg_current_wal_lsn()"))[0][0].startswith("80000000/")
    assert generations(stack) == []
    await stack.stop()


@pytest.mark.parametrize("next_xid", [5000, 2**31 - 60, 2**32 - 60], ids=["low", "sign bit", "wrap-around"])
async def test_transaction_ids_of_a_later_epoch(
    private_server: EmbeddedPostgres, start_stack: StartStack, next_xid: int
) -> None:
    """The stream has the lower 32 bits only, which begin again from 3 while rows are on their way."""
    url = private_server.url
    await create_table(url)
    await execute(url, "VACUUM FREEZE", "CHECKPOINT")
    await asyncio.to_thread(private_server.stop)
    data = str(private_server.data_directory)
    options = [
        "-f",
        "-e",
        "5",
        "-x",
        str(next_xid),
        "-u",
        str((next_xid - 10_000_000) % 2**32 if next_xid > 10**8 else 3),
    ]
    await asyncio.to_thread(tool, private_server, "pg_resetwal", *options, "-D", data)
    # The status of transactions is kept in pages of 32768 and segments of 32 pages; the new ones must be there.
    segment = private_server.data_directory / "pg_xact" / f"{next_xid // (32768 * 32):04X}"
    if not segment.exists():
        segment.write_bytes(b"\x00" * 8192 * 32)
        if not server_account().is_own:
            os.chown(segment, server_account().uid, server_account().gid)
    await asyncio.to_thread(private_server.start)
    ((before,),) = await execute(url, "SELECT pg_current_xact_id()::text::bigint")
    assert before >> 32 == 5
    stack = await start_stack(url)
    async with witness(stack, url) as reader:
        for _ in range(8):
            await open_across(url)
            await reader.kept()
        other = await psycopg.AsyncConnection.connect(url)
        await other.execute("INSERT INTO t (v) VALUES ('open meanwhile')")
        await execute(url, *["INSERT INTO t (v) VALUES ('one more')"] * 60)
        stack.kill9("ingester", "w00")
        await reader.compare()
        await other.commit()
        await other.close()
        await reader.kept()
    ((after,),) = await execute(url, "SELECT pg_current_xact_id()::text::bigint")
    print(f"transaction ids from {before} to {after}")
    if next_xid == 2**32 - 60:
        assert after >> 32 == 6
    await stack.stop()


async def open_across(url: str) -> None:
    """A transaction that is open while others commit."""
    async with await psycopg.AsyncConnection.connect(url) as connection:
        await connection.execute("INSERT INTO t (v) VALUES ('long')")
        await execute(url, "INSERT INTO t (v) VALUES ('short')", "UPDATE t SET v = v || '.' WHERE id < 5")
        await connection.commit()

"""The lock: who holds it, whoever holds it in vain, and what its loss does (engine.md 3.1, 3.2)."""

from __future__ import annotations

import asyncio

import psycopg
import pytest

from deploy.embedded_postgres import EmbeddedPostgres
from ingester.waiting import WATCH_SECONDS
from tests.faults.generations import SLOT, create_table, execute, generations, insert, until, witness
from tests.pipeline.fixtures import StartStack

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]

_OURS = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name "


@pytest.fixture
async def table(private_server: EmbeddedPostgres) -> str:
    """The URL of a database with the table `t`, on a server where nobody else has slots."""
    await create_table(private_server.url)
    return private_server.url


async def test_the_lock_of_another_instance_is_waited_for(table: str, start_stack: StartStack) -> None:
    """The other one is at work: it reads the slot. Nothing of its is touched, for as long as it takes."""
    first = await start_stack(table)
    second = await start_stack(table, ready=False)
    async with witness(first, table) as reader:
        health = await second.wait_health("another instance holds the lock")
        holder = (await execute(table, "SELECT pid FROM pg_stat_activity WHERE application_name = 'galvanic lock'"))[0]
        assert health["status"] == "waiting"
        assert f"pid {holder[0]} (galvanic lock, from 127.0.0.1)" in health["reason"]
        assert (await second.health())[0] == 202
        # Two looks, after which remains would be ended.
        await asyncio.sleep(1.3 * WATCH_SECONDS)
        await reader.kept()
        assert first.log_of("ingester").count("session opened") == 1
        assert "ending pid" not in second.log_of("ingester")
        await first.stop()
        await second.wait_active()
    assert "session opened" in second.log_of("ingester")


async def test_a_dead_holder_is_ended(table: str, start_stack: StartStack) -> None:
    """What is left of a lost session: it holds the lock and does nothing, and nobody reads the slot."""
    stack = await start_stack(table)
    async with witness(stack, table) as reader:
        await reader.kept()
        await stack.stop()
        dead = await psycopg.AsyncConnection.connect(table, autocommit=True, application_name="half-dead")
        await dead.execute(f"SELECT pg_advisory_lock(hashtext('{SLOT}'))".encode())
        pid = dead.info.backend_pid
        await insert(table)
        stack.start()
        await stack.wait_health("(half-dead, from 127.0.0.1)")
        await stack.wait_active()
        await reader.kept()
        with pytest.raises(psycopg.OperationalError):
            await dead.execute("SELECT 1")
    assert f"ending pid {pid}," in stack.log_of("ingester")
    assert generations(stack) == []


async def test_a_holder_is_left_alone_while_there_is_no_slot(table: str, start_stack: StartStack) -> None:
    """It may be an instance that is about to make the slot (engine.md 3.2)."""
    holder = await psycopg.AsyncConnection.connect(table, autocommit=True)
    await holder.execute(f"SELECT pg_advisory_lock(hashtext('{SLOT}'))".encode())
    stack = await start_stack(table, ready=False)
    await stack.wait_health(f"pid {holder.info.backend_pid}")
    await asyncio.sleep(1.3 * WATCH_SECONDS)
    await holder.execute("SELECT 1")
    assert "ending pid" not in stack.log_of("ingester")
    await holder.close()
    await stack.wait_active()


@pytest.mark.parametrize(
    "victims",
    ["= 'galvanic lock'", "= 'galvanic ingester'", "LIKE 'galvanic%'"],
    ids=["the lock's connection", "the walsender", "all connections"],
)
async def test_a_lost_session_is_followed_by_another(table: str, start_stack: StartStack, victims: str) -> None:
    stack = await start_stack(table)
    async with witness(stack, table) as reader:
        for number in range(3):
            await insert(table, 1000)
            assert len(await execute(table, f"{_OURS} {victims} AND pid <> pg_backend_pid()")) >= 1
            await insert(table, 1000)
            opened = number + 2
            async with asyncio.timeout(120):
                while stack.log_of("ingester").count("session opened") < opened:  # noqa: ASYNC110
                    await asyncio.sleep(0.1)
            await stack.wait_active()
            await reader.kept()
    # The same session of the slot again: nothing was made anew.
    assert generations(stack) == []


async def test_timeouts_of_the_role_cut_nothing_short(table: str, start_stack: StartStack) -> None:
    """Whatever the operator has set for the role, sessions of ours last (engine.md 28)."""
    await execute(
        table,
        "CREATE ROLE hasty LOGIN SUPERUSER",
        "ALTER ROLE hasty SET statement_timeout = '300ms'",
        "ALTER ROLE hasty SET lock_timeout = '300ms'",
        "ALTER ROLE hasty SET idle_in_transaction_session_timeout = '300ms'",
        "ALTER ROLE hasty SET idle_session_timeout = '300ms'",
        "INSERT INTO t (v) SELECT repeat('x', 1000) FROM generate_series(1, 100000)",
    )
    first = await start_stack(table)
    second = await start_stack(table.replace("postgres@", "hasty@"), ready=False)
    await second.wait_health("another instance holds the lock")
    await asyncio.sleep(2)
    await first.stop()
    await second.wait_active()
    async with witness(second, table) as reader:
        await asyncio.sleep(2)
        await reader.kept()
    assert second.log_of("ingester").count("session opened") == 1
    await until(table, "SELECT count(*) FROM pg_replication_slots WHERE active", 1)

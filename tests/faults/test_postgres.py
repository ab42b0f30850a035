"""Postgres goes away, comes back, forgets what it had not flushed, ends our connections (engine.md 14.4, 21; H-E)."""

from __future__ import annotations

import asyncio
import random

import aiohttp
import pytest

from deploy.embedded_postgres import EmbeddedPostgres
from tests.faults import backends
from tests.faults.scenario import under_load
from tests.pipeline.fixtures import StartStack
from tests.pipeline.fleet import Fleet
from tests.pipeline.reader import Reader
from tests.pipeline.schema import create_schema
from tests.pipeline.stack import Stack
from tests.pipeline.workload import Workload

pytestmark = [pytest.mark.timeout(600), pytest.mark.faults]

AWAY_SECONDS = 10


async def _served(stack: Stack, fleet: Fleet) -> None:
    async with Reader(stack.url, "items", protected=True, monotone_lsn=False) as reader:
        await reader.current()
    assert reader.view.handle == fleet.readers[1].view.handle
    assert not reader.losses + reader.refusals


async def test_stopped_for_a_while(private_server: EmbeddedPostgres, start_stack: StartStack, seed: int) -> None:
    """What exists is served, new shapes are refused with 503 and retry-after, health says why; then it goes on."""
    await create_schema(private_server.url)
    stack = await start_stack(private_server.url, workers=2)
    async with under_load(stack, private_server.url, seed, faults=True) as fleet:
        await asyncio.to_thread(private_server.stop, "fast")
        body = await stack.wait_health("reason")
        assert body["status"] == "starting"
        # libpq's words, with the address.
        await stack.wait_health(f"port {private_server.port} failed")
        assert body["reason"]
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"{stack.url}/v1/shape?table=late_2&offset=-1") as response,
        ):
            assert response.status == 503
            assert int(response.headers["retry-after"]) > 0
            assert str(private_server.port) in (await response.json())["message"]
        await _served(stack, fleet)
        await fleet.run(AWAY_SECONDS)
        await _served(stack, fleet)
        assert not [text for reader in fleet.readers for text in (*reader.losses, *reader.refusals)]
        await asyncio.to_thread(private_server.start)
        await stack.wait_active()
        fleet.add("late_2")
        await fleet.run(2)


async def test_connections_ended_again_and_again(database: str, start_stack: StartStack, seed: int) -> None:
    """``pg_terminate_backend`` of each kind of connection, every second, while shapes are made."""
    await create_schema(database)
    stack = await start_stack(database, workers=2)
    choice = random.Random(seed)
    async with under_load(stack, database, seed, monotone_lsn=False) as fleet:
        for kind in (backends.STREAM, backends.LOCK, backends.ADMIN, backends.SNAPSHOT, "galvanic%"):
            ending = asyncio.create_task(backends.keep_terminating(database, kind, every=0.5))
            fleet.add("late_0", columns=["id", choice.choice(["n", "done", "at", "doc", "tags"])])
            await fleet.run(5)
            assert not ending.done() or ending.result()
            ending.cancel()
            await stack.wait_active()
        assert not [text for reader in fleet.readers for text in reader.losses]


async def test_crash_while_a_shape_is_made_of_what_was_not_flushed(
    private_server: EmbeddedPostgres, start_stack: StartStack, seed: int
) -> None:
    """With ``synchronous_commit = off`` a crash takes commits back that snapshots have shown (engine.md H-E).

    The shape that builds on them must not survive: its positions and transaction ids are given to others.
    """
    private_server.settings["synchronous_commit"] = "off"
    private_server.settings["wal_writer_delay"] = "10s"
    private_server.restart()
    url = private_server.url
    await create_schema(url)
    stack = await start_stack(url, workers=2)
    choice = random.Random(seed)
    workload = Workload(url, seed, writers=3, faults=True)
    async with Fleet(stack, workload, monotone_lsn=False) as fleet:
        workload.start()
        await fleet.current()
        columns = ["title", "n", "done", "price", "at", "doc", "tags", "body"]
        for number in range(4):
            await stack.wait_active()
            for table in ("items", "late_0"):
                fleet.add(table, columns=["id", *columns[number * 2 : number * 2 + 2]])
            await fleet.run(choice.uniform(0, 0.6))
            await asyncio.to_thread(private_server.restart, "immediate")
            await fleet.run(choice.uniform(0.5, 2))
        await stack.wait_active()
        await fleet.current()
        await fleet.rest()


async def test_recovery_takes_its_time(private_server: EmbeddedPostgres, start_stack: StartStack, seed: int) -> None:
    """«the database system is starting up» is something to wait for, again and again."""
    await create_schema(private_server.url)
    stack = await start_stack(private_server.url, workers=2)
    async with under_load(stack, private_server.url, seed, faults=True, monotone_lsn=False) as fleet:
        for _ in range(3):
            await asyncio.to_thread(private_server.stop, "immediate")
            starting = asyncio.create_task(asyncio.to_thread(private_server.start))
            await fleet.run(0.3)
            await starting
        assert "cannot go on" not in stack.log_of("ingester")

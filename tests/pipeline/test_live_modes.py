"""Long-polls and server-sent events, side by side, where logs are cut into small chunks (issue 5, test 4)."""

from __future__ import annotations

import asyncio
import random

import aiohttp
import psycopg
import pytest

from tests.pipeline.fixtures import StartStack
from tests.pipeline.fleet import Fleet
from tests.pipeline.reader import HANG_SECONDS
from tests.pipeline.schema import create_schema
from tests.pipeline.workload import SCALE, Workload

pytestmark = pytest.mark.timeout(600 * max(1, SCALE))

SMALL_CHUNKS = {"ELECTRIC_SHAPE_CHUNK_BYTES_THRESHOLD": "10000"}


async def test_small_chunks_and_kills(database: str, start_stack: StartStack, seed: int) -> None:
    """Transactions of many chunks, workers and ingester killed while they pass; nobody loses or repeats a change."""
    await create_schema(database)
    stack = await start_stack(database, workers=2, environment=SMALL_CHUNKS)
    choice = random.Random(seed)
    workload = Workload(database, seed, writers=2)
    async with Fleet(stack, workload, monotone_lsn=False) as fleet:
        for events in (False, True, True):
            for table in ("bulk", "items", "pairs"):
                fleet.add(table, events=events)
        fleet.add("bulk", columns=["id", "batch"], replica="full", events=True)
        await fleet.complete()
        workload.start()
        for victims in (["w00", "w01"], ["ingester"]):
            large = asyncio.create_task(workload.large(3_000))
            await fleet.run(choice.uniform(0.1, 0.6))
            stack.kill9(*victims)
            await large
            await fleet.run(choice.uniform(0.3, 1))
        await stack.wait_active()
        await fleet.rest()
        by_events = [reader for reader in fleet.readers if reader.events]
        for reader in by_events:
            # No end of a worker or of the ingester touches a stream; those that had a backlog are followed by others.
            assert not reader.losses, f"{reader.name}: {reader.losses}"
            assert not reader.refusals, f"{reader.name}: {reader.refusals}"
            assert reader.streams
        view = by_events[0].view
        query = {**view.query(live=False), "offset": "0_inf"}
    async with aiohttp.ClientSession() as session, session.get(f"{stack.url}/v1/shape", params=query) as page:
        assert "electric-up-to-date" not in page.headers, "the log has only one chunk"
        items = len(await page.json())
        assert items * 20 < len(view.journal.entries), f"{items} items in a chunk"


async def test_rotation(database: str, start_stack: StartStack, seed: int) -> None:
    """A shape that ends under its live clients: each is told once, comes back to the next one, and holds all of it."""
    await create_schema(database)
    stack = await start_stack(database, workers=2, environment=SMALL_CHUNKS)
    workload = Workload(database, seed)
    async with Fleet(stack, workload) as fleet:
        readers = [fleet.add("bulk", events=events) for events in (False, True) for _ in range(4)]
        readers += [fleet.add("bulk", columns=["id", "v"], events=True)]
        for reader in readers:
            reader.may_end = True
        await fleet.current()
        await workload.large(1_000)
        async with await psycopg.AsyncConnection.connect(database, autocommit=True) as connection:
            await connection.execute("TRUNCATE bulk")
        await workload.large(500)
        async with asyncio.timeout(HANG_SECONDS):
            while not all(reader.view.ended and reader.view.rows for reader in readers):
                fleet.check()
                await asyncio.sleep(0.05)
        await fleet.rest()
        for reader in readers:
            assert len(reader.view.ended) == 1
            assert not reader.losses, f"{reader.name}: {reader.losses}"
        assert len({reader.view.handle for reader in readers}) == 2


async def test_a_gateway_takes_leave(database: str, start_stack: StartStack, seed: int) -> None:
    """SIGTERM while clients stream: each stream ends between two batches, as HTTP says; killed ones are just gone."""
    await create_schema(database)
    stack = await start_stack(database, workers=1, environment=SMALL_CHUNKS)
    workload = Workload(database, seed, writers=2)
    async with Fleet(stack, workload, monotone_lsn=False) as fleet:
        readers = [fleet.add(table, events=True) for table in ("items", "items", "pairs", "bulk")]
        workload.start()
        await fleet.current()
        await fleet.run(0.5)
        await stack.stop("g0")
        for reader in readers:
            # Later requests find nobody, but no stream broke off.
            assert not any("ClientPayloadError" in loss for loss in reader.losses), reader.losses
        stack.start("g0")
        await workload.large(1_000)
        await fleet.run(0.5)
        stack.kill9("g0")
        await fleet.run(0.5)
        await fleet.rest()
        assert not any(reader.view.ended for reader in readers)

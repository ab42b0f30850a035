"""Everything dies at once, or something at the worst moment (engine.md 14.6, 21; INV-7, INV-16, INV-22, INV-26)."""

from __future__ import annotations

import asyncio
import random

import aiohttp
import pytest

from deploy.embedded_postgres import EmbeddedPostgres
from tests.faults import backends
from tests.faults.proxy import Proxy
from tests.faults.scenario import under_load
from tests.pipeline.fixtures import StartStack
from tests.pipeline.fleet import Fleet
from tests.pipeline.schema import create_schema, mark
from tests.pipeline.workload import Workload

pytestmark = pytest.mark.timeout(600)


@pytest.mark.faults
async def test_power_cut(private_server: EmbeddedPostgres, start_stack: StartStack, seed: int) -> None:
    """All of Galvanic and Postgres at the same instant, twice, as when the machine goes off.

    Complete shapes keep their handles and every byte; one that was being made ends; what had been committed but was
    not flushed comes again. (That what was not synced may be gone is what tests/simulation/ plays through.)
    """
    url = private_server.url
    await create_schema(url)
    stack = await start_stack(url, workers=2, gateways=2)
    choice = random.Random(seed)
    async with under_load(stack, url, seed, faults=True, monotone_lsn=False) as fleet:
        for _ in range(2):
            fleet.add("bulk", columns=["id", choice.choice(["v", "batch"])])
            await fleet.run(choice.uniform(0, 0.5))
            stack.kill9("ingester", *stack.workers, *stack.gateways)
            await asyncio.to_thread(private_server.restart, "immediate")
            await stack.wait_active()
            await fleet.current()
            await fleet.run(2)


@pytest.mark.faults
async def test_worker_killed_in_the_middle_of_a_transaction(database: str, start_stack: StartStack, seed: int) -> None:
    """Again and again while one transaction passes that is larger than all buffers: nobody ever sees a part of it."""
    await create_schema(database)
    stack = await start_stack(database, workers=2)
    choice = random.Random(seed)
    async with under_load(stack, database, seed, monotone_lsn=False) as fleet:
        bulk = next(reader for reader in fleet.readers if reader.table == "bulk")

        async def watch() -> None:
            # A client that is not up to date may be in the middle of it: it is larger than a chunk.
            while True:
                if bulk.view.up_to_date:
                    seen = sum(key.startswith('"public"."bulk"/"-') for key in bulk.view.rows)
                    assert seen in (0, 60_000), f"{seen} rows of a transaction of 60 000"
                await asyncio.sleep(0.1)

        whole = asyncio.create_task(watch())
        async with await backends.connect(database) as connection:
            await connection.execute(
                "INSERT INTO bulk SELECT -i, -1, repeat(md5(i::text), 20) FROM generate_series(1, 60000) i"
            )
        for _ in range(4):
            await fleet.run(choice.uniform(0.3, 1))
            name = choice.choice(stack.workers)
            stack.kill9(name)
            while stack.log_of(name).count("shapeworker started") < 2:
                await fleet.run(0.1)
        whole.cancel()
        await asyncio.wait([whole])
        assert whole.cancelled(), whole.exception()


async def test_worker_killed_in_the_middle_of_a_snapshot_that_is_read(
    postgres_server: EmbeddedPostgres, database: str, start_stack: StartStack, seed: int
) -> None:
    """The answer breaks off: a client never takes a part of a snapshot for the whole (INV-22), and then gets all."""
    await create_schema(database)
    assert postgres_server.port is not None
    async with Proxy(postgres_server.port) as proxy:
        stack = await start_stack(proxy.through(database))
        workload = Workload(database, seed, writers=1)
        async with Fleet(stack, workload, monotone_lsn=False) as fleet:
            await workload.large(60_000)
            await fleet.current()
            # More than a first answer has, and less than the snapshot.
            proxy.hold_after(200_000, opening=backends.SNAPSHOT.encode())
            async with (
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as session,
                session.get(f"{stack.url}/v1/shape?table=bulk&offset=-1") as response,
            ):
                handle = response.headers["electric-handle"]
                assert await response.content.readany()
                stack.kill9("w00")
                with pytest.raises(aiohttp.ClientPayloadError):
                    await response.content.read()
            proxy.flow()
            await stack.wait_active()
            bulk = fleet.add("bulk")
            await bulk.current()
            assert bulk.view.handle != handle, "a snapshot that was never complete came back (INV-16)"
            workload.start()
            await fleet.run(1)
            await fleet.rest()


@pytest.mark.faults
async def test_ingester_killed_while_partitions_move(database: str, start_stack: StartStack, seed: int) -> None:
    """Workers come and go and the one who decides dies: no partition is lost or held twice (INV-39, INV-40)."""
    await create_schema(database)
    stack = await start_stack(database, workers=2)
    choice = random.Random(seed)
    async with under_load(stack, database, seed, monotone_lsn=False) as fleet:
        for number in range(4):
            if number % 2:
                await stack.stop_worker(stack.workers[0])
            else:
                stack.add_worker()
            await fleet.run(choice.uniform(0, 1.5))
            stack.kill9("ingester")
            await stack.wait_balanced()
            await fleet.run(1)


@pytest.mark.faults
async def test_ingester_killed_between_dispatch_and_acknowledgement(
    database: str, start_stack: StartStack, seed: int
) -> None:
    """What workers have written but Postgres was not told of comes again, and is not written again (INV-24)."""
    await create_schema(database)
    stack = await start_stack(database, workers=2)
    async with under_load(stack, database, seed, monotone_lsn=False) as fleet:
        for _ in range(3):
            entries = fleet.readers[0].view.journal.entries
            before = len(entries)
            await mark(database)
            # The row is with the clients long before its position is acknowledged (every half second).
            while len(entries) == before:
                fleet.check()
                await asyncio.sleep(0.005)
            stack.kill9("ingester")
            await stack.wait_active()
            await fleet.run(1)

"""The network between Galvanic and Postgres fails in every way it can (engine.md 14.4, 14.6, 21; INV-31).

No shape ends, no byte changes, existing data is served on, and all goes on by itself.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable

import psycopg
import pytest

from deploy.embedded_postgres import EmbeddedPostgres
from tests.faults import backends
from tests.faults.proxy import Direction, Proxy
from tests.faults.scenario import losses, under_load
from tests.pipeline.fixtures import StartStack
from tests.pipeline.fleet import Fleet
from tests.pipeline.reader import HANG_SECONDS, Reader
from tests.pipeline.schema import create_schema
from tests.pipeline.stack import Stack
from tests.pipeline.workload import Workload

pytestmark = pytest.mark.timeout(600)

WAL_SENDER_TIMEOUT = 5


@pytest.fixture
async def proxy(postgres_server: EmbeddedPostgres) -> AsyncIterator[Proxy]:
    """Between the stack and Postgres."""
    assert postgres_server.port is not None
    async with Proxy(postgres_server.port) as proxy:
        yield proxy


async def _start(proxy: Proxy, database: str, start_stack: StartStack) -> Stack:
    await create_schema(database)
    async with await psycopg.AsyncConnection.connect(database, autocommit=True) as connection:
        await connection.execute(
            f"ALTER DATABASE {connection.info.dbname} SET wal_sender_timeout = '{WAL_SENDER_TIMEOUT}s'".encode()
        )
    return await start_stack(proxy.through(database), workers=2)


async def _served(stack: Stack, fleet: Fleet) -> None:
    """A client that comes now gets what there is of a shape that exists."""
    async with Reader(stack.url, "items", protected=True, monotone_lsn=False) as reader:
        await reader.current()
    assert reader.view.handle == fleet.readers[1].view.handle
    assert not losses_of(reader)


def losses_of(reader: Reader) -> list[str]:
    return reader.losses + reader.refusals


async def _through(
    proxy: Proxy, database: str, start_stack: StartStack, seed: int, fault: Callable[[Stack, Fleet], Awaitable[None]]
) -> Stack:
    stack = await _start(proxy, database, start_stack)
    async with under_load(stack, database, seed) as fleet:
        await fault(stack, fleet)
        await stack.wait_active()
        await fleet.run(2)
        # The gateway serves what is on the disk: clients do not notice that Postgres is away.
        assert not losses(fleet), losses(fleet)[:5]
    return stack


@pytest.mark.faults
async def test_connections_cut(proxy: Proxy, database: str, start_stack: StartStack, seed: int) -> None:
    """RST on the stream, on the lock, on everything, in the middle of a transaction, and an orderly end."""
    choice = random.Random(seed)

    async def fault(stack: Stack, fleet: Fleet) -> None:
        for opening in (backends.STREAM, backends.LOCK, backends.ADMIN, ""):
            proxy.cut(opening.encode())
            await fleet.run(choice.uniform(0.2, 1))
            await stack.wait_active()
        proxy.cut_after(200_000, opening=backends.STREAM.encode())
        await proxy.was_cut.wait()
        await stack.wait_active()
        proxy.half_close("to client", backends.STREAM.encode())
        await fleet.run(1)

    await _through(proxy, database, start_stack, seed, fault)


@pytest.mark.faults
async def test_flapping(proxy: Proxy, database: str, start_stack: StartStack, seed: int) -> None:
    """Now it is there, now it is not: refused, cut, slow."""
    choice = random.Random(seed)

    async def fault(stack: Stack, fleet: Fleet) -> None:
        for _ in range(8):
            await proxy.refuse()
            proxy.cut()
            await fleet.run(choice.uniform(0.05, 0.8))
            proxy.delay = choice.choice([0, 0, 0.05])
            await proxy.admit()
            await fleet.run(choice.uniform(0.05, 1.5))
        proxy.delay = 0
        await _served(stack, fleet)

    await _through(proxy, database, start_stack, seed, fault)


@pytest.mark.faults
@pytest.mark.parametrize("directions", [("to server", "to client"), ("to server",), ("to client",)], ids="+".join)
async def test_blackhole(
    proxy: Proxy, database: str, start_stack: StartStack, seed: int, directions: tuple[Direction, ...]
) -> None:
    """Nobody says anything any more, for twice ``wal_sender_timeout``: Postgres gives the walsender up.

    A line that is dead both ways is noticed without a word from the other side, and health says so.
    """

    async def fault(stack: Stack, fleet: Fleet) -> None:
        while len(await backends.backends(database, backends.STREAM)) != 1:
            await fleet.run(0.1)
        proxy.blackhole(*directions)
        await fleet.run(2 * WAL_SENDER_TIMEOUT)
        if len(directions) == 2:
            await stack.wait_logged("ingester", "no replication session; trying again")
            status, body = await stack.health()
            assert status == 202, body
            assert body["reason"], body
        await _served(stack, fleet)
        proxy.flow()

    await _through(proxy, database, start_stack, seed, fault)


async def test_cut_in_the_middle_of_a_snapshot(proxy: Proxy, database: str, start_stack: StartStack, seed: int) -> None:
    """Clients of a snapshot that breaks off get no end of it, refetch, and have all (engine.md 28; INV-16, INV-22)."""
    stack = await _start(proxy, database, start_stack)
    workload = Workload(database, seed, writers=2)
    async with Fleet(stack, workload) as fleet:
        await workload.large(30_000)
        workload.start()
        await fleet.current()
        # Of some 750, 480 and 420 kB: 30 000 rows as text. What else a connection passes is a few hundred bytes.
        for size, columns in ((300_000, ["id", "v"]), (200_000, ["id", "batch"]), (5_000, ["id"])):
            proxy.cut_after(size, opening=backends.SNAPSHOT.encode())
            reader = fleet.add("bulk", columns=columns)
            async with asyncio.timeout(HANG_SECONDS):
                await proxy.was_cut.wait()
            await reader.current()
        logs = "".join(stack.log_of(name) for name in stack.workers)
        assert logs.count('reason="Database connection not available"') == 3
        await fleet.run(1)
        await fleet.rest()


@pytest.mark.faults
@pytest.mark.parametrize("standing", ["workers", "credits"])
async def test_keepalives_go_on_while_the_stream_waits(
    proxy: Proxy, database: str, start_stack: StartStack, seed: int, standing: str
) -> None:
    """A walsender that is not read from must not give us up: status updates go on (engine.md 21, bug 42)."""
    stack = await _start(proxy, database, start_stack)
    async with under_load(stack, database, seed) as fleet:
        walsender = await backends.backends(database, backends.STREAM)
        seconds = WAL_SENDER_TIMEOUT - 1.5 if standing == "workers" else 2 * WAL_SENDER_TIMEOUT
        names = stack.workers if standing == "workers" else stack.workers[:1]
        stack.pause(*names)
        try:
            # More than the credit of a worker, so that the stream does wait.
            large = asyncio.create_task(fleet.workload.large(10_000, width=2_000))
            await asyncio.sleep(seconds)
        finally:
            stack.resume(*names)
        await large
        await fleet.run(2)
        if standing == "workers":
            assert await backends.backends(database, backends.STREAM) == walsender
        assert "terminating walsender" not in stack.log_of("ingester")
        assert "no replication session" not in stack.log_of("ingester")

"""The memory of the processes does not grow with transactions, snapshots, or clients that do not read (INV-11).

The full sizes are in tests/faults/test_memory.py.
"""

from __future__ import annotations

import aiohttp

from tests.pipeline.bulk import BulkReader, create_tables, expected, insert
from tests.pipeline.fixtures import StartStack
from tests.pipeline.memory import check_peaks, peak_mb
from tests.pipeline.stalled import StalledClients

SEND_TIMEOUT = 2


async def test_large_transaction(database: str, start_stack: StartStack) -> None:
    """100 MB for two shapes, and one that is made while it passes and need not hold it back."""
    await create_tables(database)
    await insert(database, "wide", 1, 100)
    stack = await start_stack(database, workers=1, keep_alive=False)
    readers = [BulkReader(stack.url, "wide"), BulkReader(stack.url, "wide", ["id", "body"])]
    for reader in readers:
        await reader.follow(100)
    await insert(database, "wide", 101, 10_000)
    late = BulkReader(stack.url, "wide", ["id", "batch"])
    for reader in (late, *readers):
        assert await reader.follow(10_100) == await expected(database, "wide", reader.columns)
        assert reader.refetches == 0
    check_peaks(stack, 130)


async def stalled_clients(database: str, start_stack: StartStack, count: int, limit_mb: int) -> None:
    """Clients that stop reading a snapshot, a catch-up, the answer to a long-poll, events; others are served on."""
    await create_tables(database)
    await insert(database, "wide", 1, 1000)
    stack = await start_stack(
        database,
        environment={"ELECTRIC_TCP_SEND_TIMEOUT": f"{SEND_TIMEOUT}s", "ELECTRIC_LONG_POLL_TIMEOUT": "120000"},
        keep_alive=False,
    )
    reader = BulkReader(stack.url, "wide")
    await reader.follow(1000)
    await insert(database, "wide", 1001, 1000)
    await reader.follow(2000)
    early = reader.offset
    await insert(database, "wide", 2001, 2)
    await reader.follow(2002)
    place = f"/v1/shape?table=wide&handle={reader.handle}"
    gateway = stack.pid("g0")
    before = peak_mb(gateway)
    async with (
        StalledClients(stack.port, count // 2) as snapshots,
        StalledClients(stack.port, count - count // 2) as catchers_up,
        StalledClients(stack.port, count - count // 4) as pollers,
        StalledClients(stack.port, count // 4) as streamers,
        StalledClients(stack.port, 20) as modest,
    ):
        # 20 kB: more than they take, but little enough for the kernel, which then has to cut them off.
        await modest.ask(f"{place}&offset={early}")
        await modest.answered()
        await pollers.ask(f"{place}&offset={reader.offset}&live=true")
        await streamers.ask(f"{place}&offset={reader.offset}&live=true&live_sse=true")
        await snapshots.ask(f"{place}&offset=0_0")
        await catchers_up.ask(f"{place}&offset=0_inf")
        await insert(database, "wide", 2003, 24)
        for stalled in (snapshots, catchers_up, pollers, streamers):
            await stalled.answered()
        await reader.follow(2026)
        assert (await BulkReader(stack.url, "wide").follow(2026)) == await expected(database, "wide")
        for stalled in (snapshots, catchers_up, pollers, streamers, modest):
            await stalled.cut(gateway)
    print(f"gateway: {before} MB, then {peak_mb(gateway)} MB")
    async with aiohttp.ClientSession() as session, session.get(f"{stack.url}/v1/health") as response:
        assert response.status == 200
    check_peaks(stack, limit_mb)


async def test_clients_that_stop_reading(database: str, start_stack: StartStack) -> None:
    await stalled_clients(database, start_stack, 200, 125)

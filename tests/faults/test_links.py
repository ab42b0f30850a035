"""The tcp links between ingester, workers and gateways fail (engine.md 20.3, 20.5; INV-6, INV-38, INV-40, INV-41).

Hints may all be lost, frames not one: a gap is noticed and everything comes again.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from typing import NamedTuple

import pytest

from tests.faults.proxy import Proxy
from tests.faults.relay import StatusRelay
from tests.faults.scenario import under_load
from tests.pipeline.fixtures import StartStack
from tests.pipeline.schema import create_schema
from tests.pipeline.stack import Stack
from tests.ports import free_port

pytestmark = [pytest.mark.timeout(600), pytest.mark.faults]

GRACE = 5
"""Seconds after which the ingester gives a silent worker up."""


class Links(NamedTuple):
    """A stack that speaks tcp, with a proxy on each way: to the ingester from each worker, and to the workers."""

    stack: Stack
    stream: dict[str, Proxy]
    relay: StatusRelay


@pytest.fixture
async def exits() -> AsyncIterator[contextlib.AsyncExitStack]:
    async with contextlib.AsyncExitStack() as exits:
        yield exits


async def _start(database: str, start_stack: StartStack, exits: contextlib.AsyncExitStack, workers: int = 2) -> Links:
    await create_schema(database)
    stream, status = free_port(), free_port()
    names = [f"w{number:02}" for number in range(workers)]
    proxies = {name: await exits.enter_async_context(Proxy(stream)) for name in names}
    relay = await exits.enter_async_context(StatusRelay(f"tcp://127.0.0.1:{status}"))
    stack = await start_stack(
        database,
        workers=workers,
        environment={
            "GALVANIC_STREAM_ENDPOINT": f"tcp://127.0.0.1:{stream}",
            "GALVANIC_STATUS_ENDPOINT": f"tcp://127.0.0.1:{status}",
            "GALVANIC_WORKER_HOST": "127.0.0.1",
        },
        environments={
            "g": {"GALVANIC_STATUS_ENDPOINT": relay.endpoint},
            **{name: {"GALVANIC_STREAM_ENDPOINT": f"tcp://127.0.0.1:{proxies[name].port}"} for name in names},
        },
    )
    return Links(stack, proxies, relay)


async def test_stream_to_workers_is_cut(
    database: str, start_stack: StartStack, exits: contextlib.AsyncExitStack, seed: int
) -> None:
    """Mid-transaction, mid-frame, all at once, half, refused for a while: whatever frames were lost come again."""
    choice = random.Random(seed)
    links = await _start(database, start_stack, exits)
    async with under_load(links.stack, database, seed, monotone_lsn=False) as fleet:
        for round_number in range(3):
            large = asyncio.create_task(fleet.workload.large(40_000))
            name = choice.choice(list(links.stream))
            if round_number % 3 == 0:
                links.stream[name].cut_after(choice.randint(100_000, 2_000_000))
                await links.stream[name].was_cut.wait()
            elif round_number % 3 == 1:
                await fleet.run(0.3)
                for proxy in links.stream.values():
                    await proxy.refuse()
                    proxy.cut()
                await fleet.run(choice.uniform(0.1, 3))
                for proxy in links.stream.values():
                    await proxy.admit()
            else:
                await fleet.run(0.3)
                links.stream[name].half_close(choice.choice(["to client", "to server"]))
            await large
            await fleet.run(1)
    for reader in fleet.readers:
        assert not reader.losses, reader.losses


async def test_stream_to_a_worker_goes_silent(
    database: str, start_stack: StartStack, exits: contextlib.AsyncExitStack, seed: int
) -> None:
    """For less than the grace: its partitions wait. For longer: they move; and it takes part again afterwards."""
    links = await _start(database, start_stack, exits)
    async with under_load(links.stack, database, seed, monotone_lsn=False) as fleet:
        # As much less as a slow machine may add to it.
        links.stream["w01"].blackhole()
        await fleet.run(GRACE * 0.2)
        links.stream["w01"].flow()
        await fleet.run(2)
        assert "a worker is silent" not in links.stack.log_of("ingester")
        for times, directions in enumerate(([], ["to client"]), 1):
            links.stream["w01"].blackhole(*directions)  # type: ignore[arg-type]
            while links.stack.log_of("ingester").count("a worker is silent") < times:
                await fleet.run(0.2)
            await fleet.run(GRACE)
            links.stream["w01"].flow()
            await links.stack.wait_balanced()
            await fleet.run(2)


async def test_all_hints_lost(
    database: str, start_stack: StartStack, exits: contextlib.AsyncExitStack, seed: int
) -> None:
    """Workers' events reach no gateway: live requests are answered all the same, from looking (INV-41)."""
    links = await _start(database, start_stack, exits)
    async with under_load(links.stack, database, seed, monotone_lsn=False) as fleet:
        for proxy in links.relay.events:
            proxy.blackhole()
        # What was on its way comes with the first of them; nobody hears of the second.
        for _ in range(2):
            await fleet.moved()
        for proxy in links.relay.events:
            proxy.flow()
        await fleet.run(2)


async def test_links_of_the_gateway_are_cut(
    database: str, start_stack: StartStack, exits: contextlib.AsyncExitStack, seed: int
) -> None:
    """Requests to workers and their replies are lost: they are asked again; nothing is made twice (INV-15)."""
    choice = random.Random(seed)
    links = await _start(database, start_stack, exits)
    async with under_load(links.stack, database, seed, monotone_lsn=False) as fleet:
        for number in range(8):
            proxies = list(links.relay.proxies.values())
            fleet.add("late_0", columns=["id", ("n", "done", "at", "doc", "tags", "price", "title", "body")[number]])
            await fleet.run(choice.uniform(0, 0.1))
            if number % 2:
                for proxy in proxies:
                    proxy.cut()
            else:
                proxy = choice.choice(proxies)
                proxy.blackhole()
                await fleet.run(choice.uniform(0.5, 2))
                proxy.cut()
                proxy.flow()
            await fleet.current()
    handles = [reader.view.handle for reader in fleet.readers if reader.table == "late_0"]
    assert len(set(handles)) == len(handles)

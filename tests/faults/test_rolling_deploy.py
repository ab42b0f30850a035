"""A second stack on the same storage directory and slot: it waits, serves what there is, and takes over (engine.md 17).

Clients follow their shapes through one address, as behind a load balancer. They keep handles, offsets and bytes; none
of them sees a 409 or a 5xx for a shape that existed (INV-36, INV-39).
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import random
from collections.abc import AsyncIterator

import aiohttp
import psycopg
import pytest

from tests.faults.proxy import Proxy
from tests.pipeline.fixtures import StartStack
from tests.pipeline.fleet import Fleet
from tests.pipeline.reader import Reader
from tests.pipeline.schema import create_schema, mark
from tests.pipeline.stack import Stack
from tests.pipeline.workload import SCALE, Workload

pytestmark = pytest.mark.timeout(600 * max(1, SCALE))

_SUPERVISORD = ("i", "w", "g")
"""The order in which supervisord.conf stops programs."""


class Service:
    """One address in front of stacks that share storage, database and slot, and clients behind it."""

    def __init__(self, proxy: Proxy, fleet: Fleet) -> None:
        self.proxy = proxy
        self.fleet = fleet

    def switch(self, stack: Stack) -> None:
        """New connections lead to this stack; those that are there stay where they are."""
        self.proxy.server_port = stack.port
        self.fleet.stack = stack

    def refused(self) -> list[str]:
        """What clients were refused with: 5xx and 429."""
        return [text for reader in self.fleet.readers for text in reader.refusals]


@contextlib.asynccontextmanager
async def service(database: str, seed: int, stack: Stack) -> AsyncIterator[Service]:
    """Clients of every kind of shape, all of which must live from now on."""
    async with Proxy(stack.port) as proxy:
        workload = Workload(database, seed, writers=2)
        fleet = Fleet(stack, workload, monotone_lsn=False, url=f"http://127.0.0.1:{proxy.port}")
        async with fleet:
            await fleet.established()
            yield Service(proxy, fleet)


async def second(start_stack: StartStack, database: str, first: Stack) -> Stack:
    """A stack beside the first one, which has the lock."""
    stack = await start_stack(database, workers=2, storage=first.storage, ready=False)
    await stack.wait_health("another instance holds the lock")
    status, body = await stack.health()
    assert (status, body["status"]) == (202, "waiting")
    return stack


async def take_over(start: Stack) -> None:
    """Wait until the stack is active with all its workers."""
    await start.wait_active()
    await start.wait_balanced()


async def compare(fleet: Fleet, stack: Stack) -> None:
    """Read every shape from this stack: same handle and bytes as the clients have from wherever they got them."""
    for known in fleet.readers:
        until = known.view.offset
        journal = copy.deepcopy(known.view.journal)
        async with contextlib.AsyncExitStack() as opened:
            reader = Reader(
                stack.url, known.table, columns=known.columns, replica=known.view.replica, monotone_lsn=False
            )
            await opened.enter_async_context(reader)
            await reader.current()
            assert reader.view.handle == known.view.handle
            different = journal.difference(reader.view.journal, until)
            assert different is None, f"{known.name} from {stack.url}: {different}"
            assert not reader.refusals


async def test_waits_serves_and_takes_over(database: str, start_stack: StartStack, seed: int) -> None:
    await create_schema(database)
    a = await start_stack(database, workers=2)
    async with service(database, seed, a) as clients:
        fleet = clients.fleet
        b = await second(start_stack, database, a)
        await compare(fleet, b)
        # New rows of A reach a client that waits at B.
        async with Reader(b.url, "marker", monotone_lsn=False) as reader:
            await reader.current()
            before = len(reader.view.journal.entries)
            await mark(database)
            await reader._until(lambda: len(reader.view.journal.entries) > before, "a row that A wrote")
        # What does not exist is neither made nor wrongly denied.
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"{b.url}/v1/shape?table=late_0&offset=-1") as answer,
        ):
            assert answer.status == 503
            assert answer.headers["retry-after"] == "5"
            assert "lock" in await answer.text()

        clients.switch(b)
        handles = [reader.view.handle for reader in fleet.readers]
        await asyncio.gather(a.stop(*_SUPERVISORD), take_over(b))
        await fleet.run(1)
        assert [reader.view.handle for reader in fleet.readers] == handles
        assert not clients.refused()
        fleet.add("late_0")
        await fleet.rest()


async def test_a_gateway_alone_serves_what_there_is(database: str, start_stack: StartStack, seed: int) -> None:
    await create_schema(database)
    stack = await start_stack(database)
    async with service(database, seed, stack) as clients:
        fleet = clients.fleet
        async with asyncio.timeout(120):
            await fleet.workload.stop()
        lsn = await mark(database)
        for reader in fleet.readers:
            await reader.at_rest(lsn)
        await stack.stop(*_SUPERVISORD)
        stack.start("g0")
        await stack.wait_health("no word from the ingester")
        await compare(fleet, stack)


@pytest.mark.faults
@pytest.mark.parametrize("order", [("",), _SUPERVISORD, ("g", "w", "i")], ids=["at-once", "ingester-first", "last"])
async def test_there_and_back_under_load(
    database: str, start_stack: StartStack, seed: int, order: tuple[str, ...]
) -> None:
    choice = random.Random(seed)
    await create_schema(database)
    old = await start_stack(database, workers=2)
    async with service(database, seed, old) as clients:
        fleet = clients.fleet
        new = await second(start_stack, database, old)
        for round_number in range(max(2, round(2 * SCALE))):
            large = asyncio.create_task(fleet.workload.large(20_000))
            await fleet.run(choice.uniform(0.2, 1.5))
            clients.switch(new)
            started = asyncio.get_running_loop().time()
            await asyncio.gather(old.stop(*order), take_over(new))
            print(f"from SIGTERM to active and balanced: {asyncio.get_running_loop().time() - started:.1f} s")
            added = fleet.add(f"late_{round_number}", columns=["id", "title"])
            await large
            await fleet.run(1)
            await added.current()
            old.start()
            await old.wait_health("another instance holds the lock")
            await compare(fleet, old)
            old, new = new, old
        assert not [text for reader in fleet.readers if reader.protected for text in reader.refusals]
        await fleet.rest()


@pytest.mark.faults
async def test_a_whole_stack_dies_while_another_waits(database: str, start_stack: StartStack, seed: int) -> None:
    await create_schema(database)
    a = await start_stack(database, workers=2, keep_alive=False)
    async with service(database, seed, a) as clients:
        b = await second(start_stack, database, a)
        large = asyncio.create_task(clients.fleet.workload.large(20_000))
        await clients.fleet.run(0.5)
        # Nobody says goodbye; clients may be ahead of what was durable, never of what B finds.
        clients.switch(b)
        for name in ("ingester", *a.workers, *a.gateways):
            a.lose(name)
        await take_over(b)
        await large
        await clients.fleet.run(1)
        assert not clients.refused()
        await clients.fleet.rest()


@pytest.mark.faults
async def test_the_ingester_dies_while_another_waits(database: str, start_stack: StartStack, seed: int) -> None:
    await create_schema(database)
    a = await start_stack(database, workers=2)
    async with service(database, seed, a) as clients:
        fleet = clients.fleet
        b = await second(start_stack, database, a)
        a.kill9("ingester")
        # It is started again, and finds that B was faster; its workers make room.
        await a.wait_health("another instance holds the lock")
        for worker in a.workers:
            await a.wait_logged(worker, "giving all partitions back")
        await take_over(b)
        # Clients are still with A, whose gateway reads what B writes.
        await fleet.run(3)
        await compare(fleet, a)
        clients.switch(b)
        await fleet.run(1)
        b.kill9("ingester")
        await b.wait_health("another instance holds the lock")
        await take_over(a)
        await compare(fleet, b)
        assert not clients.refused()
        # Only a stack that is active can promise more than what is in a shape itself.
        clients.switch(a)
        clients.proxy.cut()
        await fleet.rest()


@pytest.mark.faults
async def test_a_worker_dies_while_another_stack_waits(database: str, start_stack: StartStack, seed: int) -> None:
    choice = random.Random(seed)
    await create_schema(database)
    a = await start_stack(database, workers=2)
    async with service(database, seed, a) as clients:
        b = await second(start_stack, database, a)
        for _ in range(max(2, round(2 * SCALE))):
            a.kill9(choice.choice(a.workers))
            await clients.fleet.run(choice.uniform(0.5, 8))
        await take_over(a)
        assert (await b.health())[1]["status"] == "waiting"
        assert not any("waiting for partitions" in b.log_of(worker) for worker in b.workers)
        await compare(clients.fleet, b)
        await clients.fleet.rest()


@pytest.mark.faults
async def test_nobody_takes_partitions_from_a_living_process(database: str, start_stack: StartStack, seed: int) -> None:
    await create_schema(database)
    a = await start_stack(database, workers=1)
    async with service(database, seed, a) as clients:
        fleet = clients.fleet
        b = await second(start_stack, database, a)
        a.pause("w00")
        clients.switch(b)
        a.lose("ingester")
        body = await b.wait_health("another process still holds them")
        assert "32 partitions have no worker yet" in body["reason"]
        assert "fuser -v" in body["reason"]
        await compare(fleet, b)
        a.resume("w00")
        # It has not heard of its ingester for longer than its lease.
        await a.wait_logged("w00", "no word from the ingester")
        await take_over(b)
        await fleet.run(1)
        assert not clients.refused()
        await fleet.rest()


@pytest.mark.faults
async def test_who_loses_the_lock_lets_go(database: str, start_stack: StartStack, seed: int) -> None:
    await create_schema(database)
    a = await start_stack(database, workers=2)
    async with service(database, seed, a) as clients:
        b = await second(start_stack, database, a)
        with psycopg.connect(database, autocommit=True) as admin:
            admin.execute(
                "SELECT pg_terminate_backend(l.pid) FROM pg_locks l JOIN pg_stat_activity s USING (pid)"
                " WHERE l.locktype = 'advisory' AND l.granted AND s.datname = current_database()"
                " AND s.application_name = 'galvanic lock'"
            )
        await take_over(b)
        await a.wait_health("another instance holds the lock")
        await compare(clients.fleet, a)
        clients.switch(b)
        # Its ingester still knows what its workers held; it must not tell them to take it again.
        a.kill9("w00")
        await clients.fleet.run(4)
        assert "waiting for partitions" not in a.log_of("w00")
        assert not clients.refused()
        await clients.fleet.rest()

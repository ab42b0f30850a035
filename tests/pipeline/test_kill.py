"""`kill -9` of each process and a crash of Postgres, under load (issue 2, test 3; INV-21, 24, 26, 30 and 31).

Afterwards every shape equals Postgres, no shape that was there has ended, no byte differs from what was served before.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable

import psycopg
import pytest

from deploy.embedded_postgres import EmbeddedPostgres
from tests.pipeline.fixtures import StartStack
from tests.pipeline.fleet import Fleet
from tests.pipeline.schema import create_schema
from tests.pipeline.stack import Stack
from tests.pipeline.workload import SCALE, Workload

pytestmark = pytest.mark.timeout(600 * max(1, SCALE))

_ROUNDS = max(1, round(2 * SCALE))


async def _kill_and_compare(
    database: str, start_stack: StartStack, seed: int, fault: Callable[[Stack], Awaitable[None]]
) -> None:
    """Readers before, during and after `fault`, twice; `fault` must end something each time."""
    await create_schema(database)
    stack = await start_stack(database, workers=2)
    choice = random.Random(seed)
    workload = Workload(database, seed, writers=3, faults=True)
    async with Fleet(stack, workload, monotone_lsn=False) as fleet:
        workload.start()
        fleet.add_every_kind()
        await workload.large(8_000)
        await fleet.complete()
        for round_number in range(_ROUNDS):
            table = f"late_{round_number % 3}"
            fleet.add(table)
            # The fault comes while a large transaction is on its way, and perhaps while a snapshot is being taken.
            large = asyncio.create_task(workload.large(15_000, width=50))
            await fleet.run(choice.uniform(0.2, 1))
            fleet.add("bulk", columns=["id", "batch", "v"][: 1 + round_number % 3], replica="full")
            await asyncio.sleep(choice.uniform(0, 0.3))
            await fault(stack)
            fleet.add(table, columns=["id", "title"])
            fleet.add("items", columns=["id", ("n", "done", "price", "at", "doc", "tags")[round_number % 6]])
            await fleet.run(choice.uniform(1, 3))
            with contextlib.suppress(psycopg.OperationalError):
                # A crash of Postgres takes the transaction with it, or comes too late for it.
                await large
        await stack.wait_active()
        await fleet.current()
        await fleet.rest()


async def test_ingester(database: str, start_stack: StartStack, seed: int) -> None:
    async def fault(stack: Stack) -> None:
        stack.kill9("ingester")

    await _kill_and_compare(database, start_stack, seed, fault)


async def test_workers(database: str, start_stack: StartStack, seed: int) -> None:
    choice = random.Random(seed)

    async def fault(stack: Stack) -> None:
        for name in choice.sample(stack.workers, len(stack.workers)):
            stack.kill9(name)
            await asyncio.sleep(choice.uniform(0.2, 1.5))

    await _kill_and_compare(database, start_stack, seed, fault)


async def test_gateway(database: str, start_stack: StartStack, seed: int) -> None:
    async def fault(stack: Stack) -> None:
        stack.kill9("g0")

    await _kill_and_compare(database, start_stack, seed, fault)


async def test_all_at_once(database: str, start_stack: StartStack, seed: int) -> None:
    async def fault(stack: Stack) -> None:
        stack.kill9("ingester", *stack.workers, *stack.gateways)

    await _kill_and_compare(database, start_stack, seed, fault)


async def test_postgres(private_server: EmbeddedPostgres, start_stack: StartStack, seed: int) -> None:
    async def fault(stack: Stack) -> None:
        await asyncio.to_thread(private_server.restart, "immediate")

    await _kill_and_compare(private_server.url, start_stack, seed, fault)

"""Processes that stand still (SIGSTOP): others go on, the slot waits, operators are told who it is (INV-12, INV-37).

Afterwards everything is as Postgres says.
"""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from common.shape import partition_of_handle
from deploy.embedded_postgres import EmbeddedPostgres
from tests.faults.backends import STREAM, backends, confirmed_flush
from tests.pipeline.fixtures import StartStack
from tests.pipeline.fleet import Fleet
from tests.pipeline.memory import check_peaks
from tests.pipeline.reader import Reader
from tests.pipeline.schema import create_schema
from tests.pipeline.workload import SCALE, Workload

pytestmark = pytest.mark.timeout(900 * max(1, SCALE))


async def test_a_worker_for_a_moment(database: str, start_stack: StartStack, seed: int) -> None:
    await _stop_worker(database, start_stack, seed, 8)


@pytest.mark.faults
async def test_a_worker_for_a_minute(database: str, start_stack: StartStack, seed: int) -> None:
    await _stop_worker(database, start_stack, seed, 60)


async def _stop_worker(database: str, start_stack: StartStack, seed: int, seconds: float) -> None:
    await create_schema(database)
    stack = await start_stack(database, workers=2)
    workload = Workload(database, seed, writers=3)
    async with Fleet(stack, workload) as fleet:
        await fleet.established()
        owners = await stack.wait_balanced()
        others = [reader for reader in fleet.readers if reader.table == "items" and _owner(reader, owners) != "w01"]
        stack.pause("w01")
        started = asyncio.get_running_loop().time()
        # More than credits allow, so that the stream must give the worker up to go on.
        await workload.large(60_000)
        body = await stack.wait_health("worker w01 has been silent")
        assert body["status"] != "active"
        body = await stack.wait_health("still holds")
        assert "partitions, which wait for it" in body["reason"]
        pinned = await confirmed_flush(database)
        while asyncio.get_running_loop().time() - started < seconds:
            await _moves(fleet, others)
        assert await confirmed_flush(database) == pinned, "the slot waits for it"
        await stack.wait_logged("ingester", "worker w01 has been silent")
        stack.resume("w01")
        await stack.wait_active()
        await stack.wait_balanced()
        await fleet.rest()
        await stack.wait_logged("ingester", "no longer held back")
    check_peaks(stack)


def _owner(reader: Reader, owners: dict[int, str]) -> str:
    assert reader.view.handle is not None
    number = partition_of_handle(reader.view.handle, len(owners))
    assert number is not None
    return owners[number]


async def _moves(fleet: Fleet, readers: list[Reader]) -> None:
    """Waits until each of these has seen more changes."""
    before = [len(reader.view.journal.entries) for reader in readers]
    async with asyncio.timeout(120):
        while not all(len(reader.view.journal.entries) > seen for reader, seen in zip(readers, before, strict=True)):
            await fleet.run(0.2)


@pytest.mark.faults
async def test_gateway_and_ingester(private_server: EmbeddedPostgres, start_stack: StartStack, seed: int) -> None:
    """Nobody waits for a gateway; an ingester that Postgres has given up begins anew."""
    url = private_server.url
    await create_schema(url)
    private_server.settings = {"wal_sender_timeout": "3s"}
    await asyncio.to_thread(private_server.restart)
    stack = await start_stack(url, workers=2)
    workload = Workload(url, seed, writers=2)
    async with Fleet(stack, workload, monotone_lsn=False) as fleet:
        await fleet.established()
        stack.pause("g0")
        before = await confirmed_flush(url)
        await fleet.run(5)
        assert await confirmed_flush(url) > before, "what is durable is acknowledged, whoever reads it"
        stack.resume("g0")
        stack.pause("ingester")
        await fleet.run(6)
        stack.resume("ingester")
        await stack.wait_logged("ingester", "this process stood still")
        # Either finds the loss first: Postgres has ended the stream, and frames were lost on connections given up.
        async with asyncio.timeout(120):
            while stack.log_of("ingester").count("epoch started") < 2:  # noqa: ASYNC110 - another process writes it
                await asyncio.sleep(0.1)
        await stack.wait_active()
        await fleet.rest()
    check_peaks(stack)


@pytest.mark.faults
async def test_walsender(database: str, start_stack: StartStack, seed: int) -> None:
    """Its silence is noticed by asking, and told."""
    await create_schema(database)
    stack = await start_stack(database, workers=1)
    workload = Workload(database, seed, writers=2)
    async with Fleet(stack, workload, monotone_lsn=False) as fleet:
        workload.start()
        fleet.add_every_kind()
        await fleet.current()
        (walsender,) = await backends(database, STREAM)
        os.kill(walsender, signal.SIGSTOP)
        try:
            body = await stack.wait_health("Postgres has sent nothing for")
            assert body["status"] != "active"
        finally:
            os.kill(walsender, signal.SIGCONT)
        await stack.wait_active()
        await fleet.rest()

"""Processes that stand still (SIGSTOP): others go on, the slot waits, operators are told who it is (INV-12, INV-37).

Afterwards everything is as Postgres says.
"""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from deploy.embedded_postgres import EmbeddedPostgres
from shapeworker.lease import SILENCE
from tests.faults.backends import STREAM, backends, confirmed_flush, insert_position
from tests.pipeline.fixtures import StartStack
from tests.pipeline.fleet import Fleet
from tests.pipeline.memory import check_peaks
from tests.pipeline.reader import HANG_SECONDS
from tests.pipeline.schema import create_schema
from tests.pipeline.stack import owner_of
from tests.pipeline.workload import SCALE, Workload

pytestmark = pytest.mark.timeout(900 * max(1, SCALE))


async def test_a_worker_for_a_moment(database: str, start_stack: StartStack, seed: int) -> None:
    await _stop_worker(database, start_stack, seed, 8)


@pytest.mark.faults
async def test_a_worker_for_longer_than_its_lease(database: str, start_stack: StartStack, seed: int) -> None:
    await _stop_worker(database, start_stack, seed, SILENCE + 5)


async def _stop_worker(database: str, start_stack: StartStack, seed: int, seconds: float) -> None:
    await create_schema(database)
    stack = await start_stack(database, workers=2)
    workload = Workload(database, seed, writers=3)
    async with Fleet(stack, workload) as fleet:
        await fleet.established()
        owners = await stack.wait_balanced()
        written = [reader for reader in fleet.readers if reader.table not in ("bulk", "marker")]
        others = [reader for reader in written if owner_of(reader.view.handle, owners) != "w01"]
        assert others
        stack.pause("w01")
        # It cannot have taken part in this commit, nor said so. Until then the slot may follow what is not committed.
        await workload.large(1)
        pinned = await insert_position(database)
        started = asyncio.get_running_loop().time()
        # More than credits allow, so that the stream must give the worker up to go on.
        await workload.large(60_000)
        body = await stack.wait_health("worker w01 has been silent")
        assert body["status"] != "active"
        body = await stack.wait_health("still holds")
        assert "partitions, which wait for it" in body["reason"]
        while asyncio.get_running_loop().time() - started < seconds:
            await fleet.see_more(others)
        assert await confirmed_flush(database) <= pinned, "the slot waits for it"
        await stack.wait_logged("ingester", "worker w01 has been silent")
        stack.resume("w01")
        await stack.wait_active()
        await stack.wait_balanced()
        await fleet.rest()
        await stack.wait_logged("ingester", "no longer held back")
    check_peaks(stack)


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
        # What is durable is acknowledged, whoever reads it.
        async with asyncio.timeout(HANG_SECONDS):
            while await confirmed_flush(url) <= before:
                await fleet.run(0.2)
        stack.resume("g0")
        stack.pause("ingester")
        await fleet.run(6)
        stack.resume("ingester")
        await stack.wait_logged("ingester", "this process stood still")
        # Either finds the loss first: Postgres has ended the stream, and frames were lost on connections given up.
        async with asyncio.timeout(HANG_SECONDS):
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
        while len(found := await backends(database, STREAM)) != 1:
            await fleet.run(0.1)
        (walsender,) = found
        os.kill(walsender, signal.SIGSTOP)
        try:
            body = await stack.wait_health("Postgres has sent nothing for")
            assert body["status"] != "active"
        finally:
            os.kill(walsender, signal.SIGCONT)
        await stack.wait_active()
        await fleet.rest()

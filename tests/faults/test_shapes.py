"""Shapes come and go in masses and at the wrong moment (engine.md 28; INV-15, INV-16, INV-22, INV-33)."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import AsyncIterator

import aiohttp
import pytest

from tests.faults import backends
from tests.pipeline.fixtures import StartStack
from tests.pipeline.fleet import Fleet
from tests.pipeline.reader import HANG_SECONDS
from tests.pipeline.schema import create_schema, mark
from tests.pipeline.stack import Stack
from tests.pipeline.workload import Workload

pytestmark = pytest.mark.timeout(600)

CLIENTS = 1000
SHAPES, DESCRIPTORS = 700, 512


@contextlib.asynccontextmanager
async def _http(stack: Stack) -> AsyncIterator[aiohttp.ClientSession]:
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=HANG_SECONDS)
    async with aiohttp.ClientSession(f"{stack.url}/", connector=connector, timeout=timeout) as session:
        yield session


async def _delete(session: aiohttp.ClientSession, query: str) -> int:
    async with session.delete(f"v1/shape?{query}") as response:
        return response.status


def _directories(stack: Stack) -> set[str]:
    return {path.name for path in stack.storage.glob("partitions/*/shapes/*")}


async def _only(stack: Stack, handles: set[str]) -> None:
    """Wait until these shapes are the only ones on the disk, and the trash is empty."""
    deadline = asyncio.get_running_loop().time() + HANG_SECONDS
    while (found := _directories(stack)) != handles or list(stack.storage.glob("partitions/*/trash/*")):
        assert asyncio.get_running_loop().time() < deadline, f"{found} on the disk instead of {handles}"
        await asyncio.sleep(0.5)


@pytest.mark.faults
async def test_a_thousand_requests_and_deletions_of_one_shape(
    database: str, start_stack: StartStack, seed: int
) -> None:
    """Never two living handles, never a deleted one again, and one directory in the end."""
    await create_schema(database)
    stack = await start_stack(database, workers=2, gateways=2)
    choice = random.Random(seed)
    clock = asyncio.get_running_loop().time
    deleted: dict[str, float] = {}
    served: list[tuple[float, str]] = []

    async with _http(stack) as session:

        async def read() -> None:
            await asyncio.sleep(choice.uniform(0, 4))
            while True:
                asked = clock()
                try:
                    async with session.get("v1/shape?table=items&offset=-1") as response:
                        body = await response.read()
                except aiohttp.ClientPayloadError:
                    continue  # it ended while it was being read
                if response.status == 200:
                    assert len(json.loads(body)) > 500
                    served.append((asked, response.headers["electric-handle"]))
                    return
                # It ended while it was being made: ask again, as every client does.
                assert response.status in (409, 503), (response.status, body)
                await asyncio.sleep(choice.uniform(0, 0.2))

        async def end() -> None:
            for _ in range(20):
                await asyncio.sleep(choice.uniform(0, 0.3))
                async with session.get("v1/shape?table=items&offset=now") as response:
                    handle = response.headers.get("electric-handle")
                if handle is not None and await _delete(session, f"handle={handle}") == 202:
                    deleted.setdefault(handle, clock())

        await asyncio.gather(end(), end(), *(read() for _ in range(CLIENTS)))
        async with session.get("v1/shape?table=items&offset=-1") as response:
            survivor = response.headers["electric-handle"]
    assert deleted, "nothing was deleted"
    late = [handle for asked, handle in served if handle in deleted and asked > deleted[handle] + 1]
    assert not late, "a handle was served after its end"
    assert survivor not in deleted
    await _only(stack, {survivor})


@pytest.mark.faults
async def test_made_and_deleted_in_a_loop(database: str, start_stack: StartStack, seed: int) -> None:
    """No directory, no table and no position of the slot stays behind; handles are never used twice."""
    await create_schema(database)
    stack = await start_stack(database, workers=2)
    workload = Workload(database, seed, writers=2)
    async with Fleet(stack, workload) as fleet, _http(stack) as session:
        workload.start()
        await fleet.current()
        handles = []
        for number in range(100):
            table = ("items", "pairs", "late_0", "bare")[number % 4]
            async with session.get(f"v1/shape?table={table}&offset=-1") as response:
                assert response.status == 200, await response.text()
                handles.append(response.headers["electric-handle"])
                if number % 3:
                    await response.read()
            assert await _delete(session, f"table={table}") == 202
            assert await _delete(session, f"handle={handles[-1]}") == 404
            fleet.check()
        assert len(set(handles)) == len(handles)
        assert fleet.readers[0].view.handle is not None
        await _only(stack, {fleet.readers[0].view.handle})
        await backends.acknowledged(database, await mark(database))
        await fleet.rest()


async def test_deleted_while_it_is_read_waited_for_and_moved(database: str, start_stack: StartStack, seed: int) -> None:
    """During its snapshot: no clean end of what is not complete. During a long-poll: 409. While it moves: once."""
    await create_schema(database)
    stack = await start_stack(database)
    await Workload(database, seed).large(60_000)
    async with _http(stack) as session:
        async with session.get("v1/shape?table=bulk&offset=-1") as response:
            handle = response.headers["electric-handle"]
            assert await _delete(session, f"handle={handle}") == 202
            with contextlib.suppress(aiohttp.ClientPayloadError):
                body = await response.read()
                # It was quicker than we: then it is whole.
                assert len(json.loads(body)) == 40_001
        assert await _delete(session, f"handle={handle}") == 404
        async with session.get(f"v1/shape?table=bulk&handle={handle}&offset=0_0") as response:
            assert response.status == 409
            successor = response.headers["electric-handle"]
        assert successor != handle
        assert await _delete(session, f"handle={successor}") == 202
        async with session.get("v1/shape?table=pairs&offset=-1") as response:
            handle, offset = response.headers["electric-handle"], response.headers["electric-offset"]
        async with session.get(f"v1/shape?table=pairs&handle={handle}&offset={offset}") as response:
            offset = response.headers["electric-offset"]
        waiting = asyncio.create_task(
            session.get(f"v1/shape?table=pairs&handle={handle}&offset={offset}&live=true").__aenter__()
        )
        await asyncio.sleep(0.3)
        assert await _delete(session, f"handle={handle}") == 202
        response = await waiting
        assert response.status == 409
        response.release()
        # All partitions are looked at anew when workers come; a deletion finds the shape before, meanwhile or after.
        handles = []
        for table in ("items", "bare", "late_0", "late_1"):
            async with session.get(f"v1/shape?table={table}&offset=-1") as response:
                handles.append(response.headers["electric-handle"])
        stack.add_worker()
        for handle in handles:
            async with asyncio.timeout(HANG_SECONDS):
                while (status := await _delete(session, f"handle={handle}")) != 202:
                    assert status == 503
            assert await _delete(session, f"handle={handle}") == 404
        await stack.wait_balanced()
        await _only(stack, set())


@pytest.mark.faults
async def test_more_shapes_than_descriptors(database: str, start_stack: StartStack, seed: int) -> None:
    """Many more shapes, all written and all read, than files that a process may open."""
    width = 12
    async with await backends.connect(database) as connection:
        columns = ", ".join(f"c{number} integer DEFAULT {number}" for number in range(width))
        await connection.execute(f"CREATE TABLE wide (id integer PRIMARY KEY, {columns})".encode())
        await connection.execute("INSERT INTO wide (id) SELECT generate_series(1, 3)")
    stack = await start_stack(database, descriptors=DESCRIPTORS)
    choice = random.Random(seed)
    chosen = choice.sample(range(1, 1 << width), SHAPES)
    queries = [
        "v1/shape?table=wide&columns=id," + ",".join(f"c{bit}" for bit in range(width) if number >> bit & 1)
        for number in chosen
    ]
    async with _http(stack) as session:
        handles: dict[str, str] = {}
        gate = asyncio.Semaphore(20)

        async def make(query: str) -> None:
            async with gate:
                while True:
                    async with session.get(f"{query}&offset=-1") as response:
                        if response.status == 200:
                            handles[query] = response.headers["electric-handle"]
                            return
                        assert response.status in (429, 503), await response.text()
                    await asyncio.sleep(0.2)

        await asyncio.gather(*map(make, queries))
        assert len(set(handles.values())) == SHAPES
        for number in range(3):
            async with await backends.connect(database) as connection:
                await connection.execute(f"UPDATE wide SET c{number} = -1, c{number + 5} = -1".encode())

        async def follow(query: str) -> None:
            async with gate, session.get(f"{query}&handle={handles[query]}&offset=0_inf") as response:
                assert response.status == 200, await response.text()
                changes = (await response.json())[:-1]
            names = set(query.rpartition("=")[2].split(","))
            touched = sum(not names.isdisjoint((f"c{number}", f"c{number + 5}")) for number in range(3))
            assert len(changes) == 3 * touched
            assert all(text == "-1" for change in changes for name, text in change["value"].items() if name != "id")

        await backends.acknowledged(database, await backends.insert_position(database))
        await asyncio.gather(*map(follow, queries))
    for name in (*stack.workers, *stack.gateways):
        assert "Traceback" not in stack.log_of(name)
    assert len(_directories(stack)) == SHAPES

"""ELECTRIC_MAX_SHAPES: what is unused for longest ends, wherever it is; never what somebody waits on."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest

from tests.pipeline.fixtures import StartStack
from tests.pipeline.reader import HANG_SECONDS
from tests.pipeline.schema import create_schema
from tests.pipeline.stack import Stack


def _handles(stack: Stack) -> set[str]:
    return {path.name for path in stack.storage.glob("partitions/*/shapes/*")}


async def _become(stack: Stack, wanted: set[str]) -> None:
    """Wait until these shapes are the only ones on the disk."""
    deadline = asyncio.get_running_loop().time() + HANG_SECONDS
    while (found := _handles(stack)) != wanted:
        assert wanted <= found, f"{wanted - found} ended, too"
        assert asyncio.get_running_loop().time() < deadline, f"{found} on the disk instead of {wanted}"
        await asyncio.sleep(0.5)


@pytest.mark.faults
async def test_the_least_recently_used_shapes_end_but_never_one_with_waiting_clients(
    database: str, start_stack: StartStack
) -> None:
    await create_schema(database)
    stack = await start_stack(database, workers=2, gateways=2, environment={"ELECTRIC_MAX_SHAPES": "3"})
    statuses: list[int] = []
    async with aiohttp.ClientSession(f"{stack.url}/") as session:

        async def ask(query: str) -> tuple[int, str]:
            async with session.get(f"v1/shape?table=items&{query}") as response:
                await response.read()
                return response.status, response.headers.get("electric-handle", "")

        handles = []
        for number in range(7):
            status, handle = await ask(f"where=id>{number}&offset=-1")
            assert status == 200
            handles.append(handle)
        assert len(_handles(stack)) == 7

        async def wait() -> None:
            while True:
                status, _ = await ask(f"where=id>0&offset=0_inf&handle={handles[0]}&live=true")
                statuses.append(status)

        async def touch() -> None:
            while True:
                status, _ = await ask(f"where=id>2&offset=0_inf&handle={handles[2]}")
                statuses.append(status)
                await asyncio.sleep(1)

        clients = [asyncio.create_task(wait()), asyncio.create_task(touch())]
        await _become(stack, {handles[0], handles[2], handles[6]})
        logs = "".join(stack.log_of(name) for name in stack.workers)
        assert "there are 7 shapes, ELECTRIC_MAX_SHAPES is 3, and this one has not been used for" in logs
        status, handle = await ask(f"where=id>4&offset=0_0&handle={handles[4]}")
        assert status == 409
        assert handle not in ("", handles[4])
        # That one is new, and so the shape unused for longest is one too many.
        await _become(stack, {handles[0], handles[2], handle})
        for client in clients:
            client.cancel()
        await asyncio.gather(*clients, return_exceptions=True)
        assert set(statuses) == {200}

        # Last uses are kept over a restart: the shape that was used last stays. Gateways report each 5 s.
        for _ in range(12):
            assert (await ask(f"where=id>2&offset=0_inf&handle={handles[2]}"))[0] == 200
            await asyncio.sleep(1)
    await stack.stop()
    stack.environment["ELECTRIC_MAX_SHAPES"] = "1"
    stack.start()
    await stack.wait_active()
    await _become(stack, {handles[2]})

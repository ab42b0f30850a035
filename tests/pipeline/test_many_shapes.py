"""Many shapes are made at the same time, while their table is written: each equals Postgres."""

from __future__ import annotations

import asyncio
import json

import aiohttp
import psycopg
import pytest

from tests.pipeline.fixtures import StartStack
from tests.pipeline.fleet import Fleet
from tests.pipeline.schema import create_schema
from tests.pipeline.workload import SCALE, Workload

pytestmark = pytest.mark.timeout(600 * max(1, SCALE))

_AT_A_TIME = 20


async def test_shapes_made_by_the_dozen_under_load_equal_postgres(
    database: str, start_stack: StartStack, seed: int
) -> None:
    """With a worker killed in the middle, so that some are made again, and clauses that fail among them."""
    await create_schema(database)
    stack = await start_stack(database, workers=2)
    workload = Workload(database, seed)
    async with Fleet(stack, workload, monotone_lsn=False) as fleet, aiohttp.ClientSession() as session:

        async def fails(number: int) -> None:
            query = {"table": "items", "offset": "-1", "where": f"1000 / (id - {number}) > 1"}
            async with session.get(f"{stack.url}/v1/shape", params=query) as response:
                # 200 if there is no such row, 503 while the worker is away.
                assert response.status in (200, 400, 409, 503), await response.text()

        workload.start()
        await fleet.current()
        for burst in range(3):
            bad = [asyncio.create_task(fails(number)) for number in range(burst, burst + 3)]
            for number in range(_AT_A_TIME):
                low = 40 * number + burst
                fleet.add("items", where="n BETWEEN $1 AND $2", params=[str(low), str(low + 35)])
            if burst == 1:
                await asyncio.sleep(0.3)
                # What is not complete is lost with its worker, however long that takes to come back and say so.
                for reader in fleet.readers:
                    reader.may_end = True
                stack.kill9("w00")
            await asyncio.gather(*bad)
            await fleet.current()
            for reader in fleet.readers:
                reader.may_end = False
        await fleet.run(1)
        await fleet.rest()


async def test_thousands_of_rows_in_hundreds_of_shapes(database: str, start_stack: StartStack) -> None:
    """Every row is in exactly one of the shapes; a large one is made at the same time."""
    async with await psycopg.AsyncConnection.connect(database, autocommit=True) as connection:
        await connection.execute("CREATE TABLE parts (id int PRIMARY KEY, shape int, body text)")
        await connection.execute(
            "INSERT INTO parts SELECT i, i % 200, repeat('x', 300) FROM generate_series(1, 4000) i"
        )
    stack = await start_stack(database)
    found: dict[int, list[int]] = {}

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=_AT_A_TIME)) as session:

        async def get(where: str) -> list[int]:
            query = {"table": "parts", "offset": "-1", "where": where}
            async with session.get(f"{stack.url}/v1/shape", params=query) as response:
                assert response.status == 200, await response.text()
                return sorted(int(item["value"]["id"]) for item in json.loads(await response.read()) if "value" in item)

        async def one(number: int) -> None:
            found[number] = await get(f"shape = {number}")

        whole = asyncio.create_task(get("id > 0"))
        await asyncio.gather(*map(one, range(200)))
        assert await whole == list(range(1, 4001))
    assert found == {number: [id for id in range(1, 4001) if id % 200 == number] for number in range(200)}

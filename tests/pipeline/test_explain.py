"""Clauses are explained, and are one shape however they are spelled: through all processes."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import aiohttp
import psycopg

from tests.pipeline.fixtures import StartStack
from tests.pipeline.reader import HANG_SECONDS
from tests.pipeline.schema import create_schema


async def _published(database: str) -> set[str]:
    async with await psycopg.AsyncConnection.connect(database) as connection:
        found = await connection.execute("SELECT tablename FROM pg_publication_tables")
        return {name for (name,) in await found.fetchall()}


async def test_a_clause_is_explained_without_making_a_shape(database: str, start_stack: StartStack) -> None:
    await create_schema(database)
    stack = await start_stack(database, workers=2, environment={"ELECTRIC_INSECURE": "", "ELECTRIC_SECRET": "s3cret"})

    async def ask(path: str, status: int, **query: str) -> Any:
        parameters = {"table": "items", "secret": "s3cret"} | query
        async with session.get(f"{stack.url}{path}", params=parameters) as response:
            body = await response.json(content_type=None)
            assert response.status == status, body
            return body

    async with aiohttp.ClientSession() as session:
        found = await ask("/v1/explain", 200, where="n = $1 AND id % 2 = 0", **{"params[1]": "5"})
        assert found["table"] == '"public"."items"'
        assert found["parsed"] == """(("n" = '5'::int4) AND (("id" % '2'::int8) = '0'::int4))"""
        assert found["columns"] == [{"name": "id", "type": "int8"}, {"name": "n", "type": "int4"}]
        assert (found["cost"], found["residual"], found["advice"]) == ("constant", found["parsed"], None)
        assert found["access"]["lookups"] == [
            {"index": "hash", "columns": ["n"], "entries": 1, "conditions": ["n = '5'"]}
        ]
        scanned = await ask("/v1/explain", 200, where="lower(title) = 'x'", columns="id,title")
        assert (scanned["cost"], scanned["access"]["lookups"]) == ("scan", [])
        assert "ILIKE" in scanned["advice"]
        whole = await ask("/v1/explain", 200)
        assert (whole["cost"], whole["parsed"], whole["sql"]) == ("everything", None, 'SELECT * FROM "public"."items"')
        async with await psycopg.AsyncConnection.connect(database) as connection:
            for answer in (found, scanned, whole):
                await connection.execute(b"EXPLAIN " + answer["sql"].encode())
        assert await _published(database) == set()
        assert list(stack.storage.glob("partitions/*/shapes/*")) == []

        command = [sys.executable, "-m", "deploy", "explain", "--table", "items", "--where", "n=$1", "--param", "1=5"]
        process = await asyncio.create_subprocess_exec(*command, env=stack.environment, stdout=asyncio.subprocess.PIPE)
        printed, _ = await asyncio.wait_for(process.communicate(), HANG_SECONDS)
        assert "hash of n: n = '5'" in printed.decode()

        await ask("/v1/explain", 401, secret="wrong")
        for wrong in (
            {"where": "n = = 1"},
            {"where": "N  =  /* $2 */ $2", "params[1]": "1"},
            {"where": "zz=1"},
            {"where": "n + 1"},
            {"where": "n = 'x'"},
            {"where": "n = 1", "params[2]": "1"},
            {"table": "nope"},
            {"columns": "title", "where": "n = 1"},
        ):
            explained = await ask("/v1/explain", 400, **wrong)
            assert explained == await ask("/v1/shape", 400, offset="-1", **wrong)
        assert await _published(database) == set()


async def test_spellings_are_one_shape_also_for_who_only_reads(database: str, start_stack: StartStack) -> None:
    await create_schema(database)
    stack = await start_stack(database, workers=2, environment={"ELECTRIC_ENABLE_INTEGRATION_TESTING": "true"})

    async def handle(where: str, *params: str, url: str = stack.url) -> str:
        query = {"table": "items", "columns": "id", "offset": "-1", "where": where}
        query |= {f"params[{number}]": value for number, value in enumerate(params, 1)}
        async with session.get(f"{url}/v1/shape", params=query) as response:
            assert response.status == 200, await response.text()
            return response.headers["electric-handle"]

    async with aiohttp.ClientSession() as session:
        plain = await handle("n<5")
        assert await handle(" N  <  5 -- five") == plain
        assert await handle("n/**/<\n5", "unused") == plain
        given = await handle("n<$1", "5")
        assert given != plain
        assert await handle("N < $2", "x", "5") == given
        assert await handle("\"n\" < 5 AND title <> 'N  < 5'") != await handle("\"n\" < 5 AND title <> 'n < 5'")
        # The description of a complete shape is what is found without a worker.
        async with asyncio.timeout(HANG_SECONDS):
            while len(list(stack.storage.glob("partitions/*/shapes/*/shape.json"))) < 4:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        reader = await start_stack(database, storage=stack.storage, ready=False)
        await reader.wait_health("another instance holds the lock")
        assert await handle("N<5 /* again */", url=reader.url) == plain
        assert await handle("n  < $3", "x", "y", "5", url=reader.url) == given
        query = {"table": "items", "columns": "id", "where": "N<5"}
        async with session.delete(f"{stack.url}/v1/shape", params=query) as response:
            assert response.status == 202
        assert await handle("n < 5") != plain

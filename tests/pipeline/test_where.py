"""Shapes with filters: under load they hold what Postgres says, whatever moves in and out; bad clauses get a 400."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import aiohttp
import psycopg
import pytest

from tests.pipeline.fixtures import StartStack
from tests.pipeline.fleet import Fleet
from tests.pipeline.reader import HANG_SECONDS
from tests.pipeline.schema import ITEMS, create_schema
from tests.pipeline.workload import SCALE, Workload

pytestmark = pytest.mark.timeout(600 * max(1, SCALE))


def clauses(choice: random.Random) -> list[tuple[str, list[str]]]:
    """One of each access path over `items`, with constants at random, so that rows move in and out all the time."""
    low = choice.randrange(1, 900)
    return [
        ("id % $1 = 0", [str(choice.randint(2, 5))]),  # no index: every row is evaluated
        ("done = $1 AND n > 200", [choice.choice(["true", "false"])]),
        ("n IN ($1, $2, 7) OR done IS NOT TRUE", [str(low), str(low + 1)]),
        ("n BETWEEN $1 AND $2", [str(low), str(low + 300)]),
        ("n < $1", [str(low)]),
        ("title LIKE $1", [choice.choice(["plain%", "%4", "row 1%", "%_"])]),
        ("title ILIKE '%ROW%' AND id > 10", []),
        ("title IS NULL OR price >= $1", [f"{choice.randrange(140)}.25"]),
        ("tags @> ARRAY[$1]", [f"plain{choice.randrange(10)}"]),
        ("$1 = ANY (tags) AND n > 100", [f"plain{choice.randrange(10)}"]),
        ("doc @> '{\"a\": [1]}' AND NOT done", []),
        ("length(body) > 2500 OR at < '2020-01-01'", []),
        ("NOT (title ~ $1) AND price IS DISTINCT FROM 1", ["[02468]$"]),
        ("CASE WHEN done THEN n ELSE id END > $1", [str(low)]),
    ]


async def test_filtered_shapes_equal_postgres_under_load(database: str, start_stack: StartStack, seed: int) -> None:
    await create_schema(database)
    stack = await start_stack(database, workers=2)
    choice = random.Random(seed)
    workload = Workload(database, seed)
    async with Fleet(stack, workload, protected=True) as fleet:
        for number, (where, params) in enumerate(clauses(choice)):
            columns = choice.choice([None, ["id", "title"], ["id", "body", "n"]])
            fleet.add("items", columns, choice.choice(["default", "full"]), where, params)
            if number == 7:
                await fleet.current()
                workload.start()
        fleet.add("items")
        for table in choice.sample(ITEMS[1:], 2):
            fleet.add(table, where="n > 500 AND id < 800")
        fleet.add("bare", where="n IS NULL OR uid LIKE 'a%'")
        fleet.add("pairs", where="slot < $1 AND room <> 'r1'", params=["60"])
        fleet.add("Mixed Case", where='"is ""it"" so" AND "Id" > 3')
        await fleet.current()
        await fleet.run(4)
        async with asyncio.timeout(HANG_SECONDS):
            while min(fleet.moves().values()) < 60:
                await fleet.run(0.5)
        await fleet.rest()


async def test_filtered_shapes_of_partitioned_tables(database: str, start_stack: StartStack, seed: int) -> None:
    """Leaves with other columns in another order, rows that move between them, a leaf with a shape of its own."""
    setup = """
        CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy');
        CREATE TABLE tree (id int, region int, n int, feeling mood, PRIMARY KEY (id, region))
          PARTITION BY LIST (region);
        CREATE TABLE tree_1 PARTITION OF tree FOR VALUES IN (1);
        CREATE TABLE tree_2 (feeling mood, gone text, n int, region int NOT NULL, id int NOT NULL);
        ALTER TABLE tree_2 DROP COLUMN gone;
        ALTER TABLE tree ATTACH PARTITION tree_2 FOR VALUES IN (2);
        CREATE TABLE marker (id bigserial PRIMARY KEY);
        INSERT INTO tree SELECT i, 1 + i % 2, i, (ARRAY['sad', 'ok', 'happy'])[1 + i % 3]::mood
        FROM generate_series(1, 60) i;
    """
    async with await psycopg.AsyncConnection.connect(database) as connection:
        await connection.execute(setup.encode())
    stack = await start_stack(database, workers=2)
    choice = random.Random(seed)
    async with (
        await psycopg.AsyncConnection.connect(database, autocommit=True) as connection,
        Fleet(stack, Workload(database, seed), protected=True) as fleet,
    ):
        fleet.add("tree", where="n > 30")
        fleet.add("tree", columns=["id", "region"], where="feeling >= $1 AND n <= 40", params=["ok"])
        fleet.add("tree", where="region = 2", replica="full")
        fleet.add("tree_2", where="feeling = 'sad' OR n % 2 = 0")
        await fleet.current()
        for _ in range(60):
            values = {"id": choice.randint(1, 70), "n": choice.randint(1, 60), "region": choice.randint(1, 2)}
            feeling = choice.choice(["sad", "ok", "happy", None])
            statement = choice.choice(
                [
                    "UPDATE tree SET n = %(n)s, feeling = %(feeling)s WHERE id = %(id)s",
                    "UPDATE tree SET region = %(region)s WHERE id = %(id)s",
                    "DELETE FROM tree WHERE id = %(id)s",
                    "INSERT INTO tree SELECT %(id)s, %(region)s, %(n)s, %(feeling)s "
                    "WHERE NOT EXISTS (SELECT FROM tree WHERE id = %(id)s)",
                ]
            )
            await connection.execute(statement, values | {"feeling": feeling})
        await fleet.rest()


async def test_what_is_wrong_with_a_clause_is_told(database: str, start_stack: StartStack) -> None:
    await create_schema(database)
    stack = await start_stack(database)

    async def errors(**query: str) -> Any:
        parameters = {"table": "items", "offset": "-1"} | query
        async with session.get(f"{stack.url}/v1/shape", params=parameters) as response:
            body = await response.json()
            assert response.status == 400, body
            return body["errors"]

    async with aiohttp.ClientSession() as session:
        assert await errors(where="i = = 1") == {"where": ['At location 19: syntax error at or near "="']}
        assert await errors(where="zz = 1") == {"where": ["At location 0: unknown reference zz"]}
        assert await errors(where="n = $1") == {"where": ["At location 4: parameter $1 was not provided"]}
        found = await errors(where="n = $1", **{"params[1]": "x"})
        assert found == {"where": ["At location 4: invalid syntax for type int4: x"]}
        assert "where" in await errors(where="id IN (SELECT id FROM pairs)")
        found = await errors(where="1000 / (n - 7) > 1")
        assert found == {"where": ["The where clause fails for a row of the table: division by zero"]}
        long = " OR ".join(f"title = '{number}'" for number in range(200))
        assert await errors(where=f"{long} OR zz") == {"where": [f"At location {len(long) + 4}: unknown reference zz"]}


async def test_filters_survive_a_crash_and_end_with_what_they_read(
    database: str, start_stack: StartStack, seed: int
) -> None:
    await create_schema(database)
    stack = await start_stack(database, environment={"ELECTRIC_TWEAKS_PUBLICATION_REFRESH_PERIOD": "500ms"})
    fleet = Fleet(stack, Workload(database, seed), monotone_lsn=False)
    async with (
        await psycopg.AsyncConnection.connect(database, autocommit=True) as connection,
        aiohttp.ClientSession() as session,
    ):

        async def get(query: dict[str, str]) -> aiohttp.ClientResponse:
            async with session.get(f"{stack.url}/v1/shape", params=query) as response:
                await response.read()
                return response

        async def end(query: dict[str, str], statement: str) -> aiohttp.ClientResponse:
            """Does something that ends a shape. Returns the answer to who asks for it anew."""
            first = await get(query | {"offset": "-1"})
            assert first.status == 200
            await connection.execute(statement.encode())
            async with asyncio.timeout(HANG_SECONDS):
                known = query | {"handle": first.headers["electric-handle"], "offset": "0_inf"}
                while (await get(known)).status == 200:  # noqa: ASYNC110
                    await asyncio.sleep(0.1)
            return await get(query | {"offset": "-1"})

        async with fleet:
            reading = fleet.add("items", ["id", "title"], where="n > $1", params=["500"])
            fleet.add("items", ["id", "title"], where="done")
            await fleet.complete()
            stack.kill9(*stack.workers)
            await connection.execute("UPDATE items SET n = 1000 - n, done = id % 3 = 0 WHERE id < 400")
            await fleet.rest()
            assert reading.view.journal.entries
        division = {"table": "late_0", "columns": "id", "where": "100 / n > 0"}
        assert (await end(division, "UPDATE late_0 SET n = 0 WHERE id = 1")).status == 400
        renamed = {"table": "late_1", "columns": "id", "where": "n > 5"}
        assert (await end(renamed, "ALTER TABLE late_1 RENAME COLUMN n TO m")).status == 400
        # Nobody writes to it, and no column changes: only a look at the catalog finds it.
        await connection.execute("CREATE TYPE mood AS ENUM ('sad', 'happy'); ALTER TABLE late_2 ADD feeling mood")
        altered = {"table": "late_2", "columns": "id", "where": "feeling > 'sad'"}
        again = await end(altered, "ALTER TYPE mood ADD VALUE 'ok' BEFORE 'happy'")
        assert again.status == 200
        assert (await end(altered, "ALTER TYPE mood RENAME VALUE 'sad' TO 'blue'")).status == 400


async def test_a_filter_that_fails_late_is_refused_and_no_log_quotes_the_row(
    database: str, start_stack: StartStack
) -> None:
    """Rows are served before the one that fails is read. Clients start again once, and then are told."""
    async with await psycopg.AsyncConnection.connect(database, autocommit=True) as connection:
        await connection.execute(
            "CREATE TABLE t (id int PRIMARY KEY, v text NOT NULL, body text);"
            "INSERT INTO t SELECT i, i, repeat('x', 100) FROM generate_series(1, 60000) i;"
            "UPDATE t SET v = 'hunter2' WHERE id = 60000"
        )
        stack = await start_stack(database)
        query = {"table": "t", "where": "v::int > 0", "offset": "-1"}

        async def statuses() -> list[int]:
            """What a client gets that starts again after each 409, until it holds all or is refused."""
            found, asked = [], dict(query)
            async with aiohttp.ClientSession() as session, asyncio.timeout(HANG_SECONDS):
                while True:
                    try:
                        async with session.get(f"{stack.url}/v1/shape", params=asked) as response:
                            body = await response.text()
                            headers = response.headers
                    except aiohttp.ClientPayloadError:
                        # The shape ended while it was answered.
                        continue
                    found.append(response.status)
                    assert found.count(409) <= 1, found
                    if response.status == 409:
                        asked = dict(query)
                    elif response.status == 200 and "electric-up-to-date" not in headers:
                        asked |= {"handle": headers["electric-handle"], "offset": headers["electric-offset"]}
                    else:
                        assert response.status == 200 or "The where clause fails for a row" in body, body
                        return found

        first = await statuses()
        assert first[-1] == 400, first
        assert await statuses() == [400]
        await connection.execute("UPDATE t SET v = 1 WHERE id = 60000")
        repaired = await statuses()
        assert set(repaired) == {200}
        # In the stream: the shape ends, and the next one fails as well.
        await connection.execute("UPDATE t SET v = 'hunter2' WHERE id = 60000")
        await stack.wait_logged("w00", "its where clause fails: invalid input syntax for type int4")
        # What has ended is served for some milliseconds more.
        assert (await statuses())[-1] == 400
        assert await statuses() == [400]
        assert "InvalidTextRepresentation (22P02)" in stack.log_of("w00")
        for name in ("ingester", "w00", "g0"):
            assert "hunter2" not in stack.log_of(name)

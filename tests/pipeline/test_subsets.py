"""Subset snapshots: what clients are told and sent, and that rows and stream together are what Postgres holds."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import Coroutine
from typing import Any, NamedTuple

import aiohttp
import psycopg
import pytest

from tests.pipeline import oracle
from tests.pipeline.fixtures import StartStack
from tests.pipeline.reader import HANG_SECONDS
from tests.pipeline.stack import Stack
from tests.pipeline.subset_view import SubsetView
from tests.pipeline.workload import SCALE

pytestmark = pytest.mark.timeout(600 * max(1, SCALE))

_WH = """
    CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy');
    CREATE TABLE wh (id int PRIMARY KEY, n int, v text, feeling mood, doc json);
    INSERT INTO wh SELECT i, CASE WHEN i = 1 THEN 0 ELSE i END, 'v' || i, 'ok', '{}' FROM generate_series(1, 6) i;
    CREATE TABLE never (id int PRIMARY KEY);
"""


class Answer(NamedTuple):
    """An answer as it came."""

    status: int
    headers: Any
    body: bytes

    @property
    def json(self) -> Any:
        """The body."""
        return json.loads(self.body)

    @property
    def ids(self) -> list[str]:
        """The keys of the rows of a subset, in their order."""
        return [item["value"]["id"] for item in self.json["data"]]

    @property
    def errors(self) -> Any:
        """What is wrong with the request."""
        assert self.status == 400, self
        return self.json["errors"]


class Client:
    """Asks a stack, as a client of the columns of `wh`, for whatever it is told."""

    def __init__(self, stack: Stack, session: aiohttp.ClientSession) -> None:
        self._url = f"{stack.url}/v1/shape"
        self._session = session

    async def get(self, table: str = "wh", **query: str) -> Answer:
        """A GET; `columns` and `offset` have defaults."""
        parameters = {"table": table, "offset": "-1"} | query
        async with self._session.get(self._url, params=parameters) as response:
            return Answer(response.status, response.headers, await response.read())

    async def subset(self, **query: str) -> Answer:
        """A GET with `subset__` before each name."""
        return await self.get(**{f"subset__{name}": value for name, value in query.items()})

    async def post(self, body: bytes | dict[str, Any], **query: str) -> Answer:
        """A POST."""
        parameters = {"table": "wh", "offset": "-1"} | query
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        async with self._session.post(self._url, params=parameters, data=data) as response:
            return Answer(response.status, response.headers, await response.read())


async def _run(database: str, *statements: str) -> None:
    async with await psycopg.AsyncConnection.connect(database, autocommit=True) as connection:
        for statement in statements:
            await connection.execute(statement.encode())


async def test_subsets_are_answered_as_the_reference_answers(database: str, start_stack: StartStack) -> None:
    await _run(database, _WH)
    stack = await start_stack(database)
    async with aiohttp.ClientSession() as session:
        client = Client(stack, session)
        first = await client.get(offset="now", log="changes_only")
        handle = first.headers["electric-handle"]
        assert first.headers["electric-offset"] == "0_inf"
        assert (first.headers["electric-has-data"], first.headers["electric-up-to-date"]) == ("false", "")
        assert first.headers["etag"].startswith(f'"{handle}:now:0_inf:')
        assert [item["headers"]["control"] for item in first.json] == ["up-to-date"]
        # A snapshot of changes has no rows, and one end.
        start = await client.get(offset="-1", log="changes_only")
        assert start.headers["electric-offset"] == "0_0"
        assert [item["headers"]["control"] for item in start.json] == ["snapshot-end"]
        then = await client.get(offset="0_0", handle=handle, log="changes_only")
        assert then.headers["electric-offset"] == "0_inf"
        assert [item["headers"]["control"] for item in then.json] == ["up-to-date"]
        ours = {"log": "changes_only", "handle": handle, "offset": "0_inf"}

        page = await client.get(
            **ours, subset__where="n > 1", subset__order_by="n DESC", subset__limit="2", subset__offset="2"
        )
        assert page.status == 200
        assert page.ids == ["4", "3"]
        assert page.headers["cache-control"] == "no-cache"
        assert page.headers["electric-snapshot"] == "true"
        assert page.headers["electric-handle"] == handle
        assert page.headers["electric-offset"] == "0_inf"
        assert json.loads(page.headers["electric-schema"])["id"] == {"type": "int4", "not_null": True, "pk_index": 0}
        for name in ("etag", "electric-cursor", "electric-has-data", "electric-up-to-date"):
            assert name not in page.headers
        assert page.body.startswith(b'{"metadata":{"snapshot_mark":')
        assert b'}, "data": [{"key":' in page.body
        metadata = page.json["metadata"]
        mark = metadata["snapshot_mark"]
        assert 0 <= mark < 2**31
        assert int(metadata["database_lsn"]) > 0
        assert int(metadata["xmin"]) <= int(metadata["xmax"])
        assert metadata["xip_list"] == []
        expected = {"operation": "insert", "relation": ["public", "wh"], "snapshot_mark": mark}
        assert page.json["data"][0]["headers"] == expected
        assert page.json["data"][0]["key"] == '"public"."wh"/"4"'
        again = await client.get(**ours, subset__where="n > 1", subset__order_by="n DESC", subset__limit="2")
        assert again.ids == ["6", "5"]
        assert again.json["metadata"]["snapshot_mark"] != mark

        # Every way to say it.
        assert (await client.subset(where="n = $1", params='{"1":"4"}')).ids == ["4"]
        assert (await client.subset(where="n = $1", params='{"1":4}')).ids == ["4"]
        assert (await client.get(subset__where="n = $1", **{"subset__params[1]": "4"})).ids == ["4"]
        assert (await client.get(**{"subset[where]": "n = 2"})).ids == ["2"]
        assert (await client.subset(where="n = ANY ($1::int[])", params='{"1":"{2,3}"}', order_by="id")).ids == [
            "2",
            "3",
        ]
        assert (await client.subset(where="feeling = 'ok' AND id = 1")).ids == ["1"]
        assert (await client.subset(where="true = true", order_by="v ASC NULLS FIRST, id")).ids == list("123456")
        assert (await client.subset(where="")).json["data"] != []
        assert (await client.subset(where="n > 1000")).body.endswith(b', "data": []}')
        assert (await client.subset(order_by="1, id DESC", limit="1")).ids == ["6"]
        flat = {"where": "n > $1", "params": {"1": 2}, "order_by": "id", "limit": 2, "where_expr": {"type": "func"}}
        posted = await client.post(flat, **ours)
        assert posted.ids == ["3", "4"]
        assert posted.headers["cache-control"] == "no-cache"
        assert posted.headers["electric-offset"] == "0_inf"
        assert "electric-schema" in posted.headers
        nested = {"subset": {"where": "n > 2", "order_by": "id DESC", "limit": 1, "offset": 1}}
        assert (await client.post(nested, **ours)).ids == ["5"]
        whole = {"table": "wh", "offset": "-1", "subset": {"where": "n = 2"}}
        async with session.post(f"{stack.url}/v1/shape", json=whole) as response:
            assert [item["value"]["id"] for item in (await response.json())["data"]] == ["2"]
        assert len((await client.post({"subset": {}}, **ours)).ids) == 6

        # Other shapes, other parameters.
        assert (await client.subset(where="n = 2")).headers["electric-offset"] == "0_0"
        both = await client.get(where="n > 3 OR n = 1", subset__where="n < 6", subset__order_by="id")
        assert both.ids == ["4", "5"]
        some = await client.get(columns="id,v", subset__where="n < 3", subset__order_by="id")
        assert some.json["data"][0]["value"] == {"id": "1", "v": "v1"}
        live = await client.get(**ours, live="true", subset__where="n = 2")
        assert live.ids == ["2"]
        assert "electric-schema" not in live.headers
        # What Electric calls an error here it does not return (http-api.md 18.8).
        for name in ("live_sse", "experimental_live_sse"):
            events = await client.get(**ours, live="true", **{name: "true"}, subset__where="n = 2")
            assert (events.status, events.ids, events.headers["content-type"]) == (
                200,
                ["2"],
                live.headers["content-type"],
            )
            assert events.headers["electric-snapshot"] == "true"
        alone = await client.get(**ours, live_sse="true", subset__where="n = 2")
        assert alone.errors == {"live_sse": ["can't be true unless live is also true"]}
        wrong = await client.get(**ours | {"handle": "1-1"}, subset__where="n = 2")
        assert wrong.status == 409
        assert wrong.headers["electric-handle"] == handle
        async with session.head(f"{stack.url}/v1/shape?table=wh&offset=-1&subset__where=n=2") as head:
            assert (head.status, head.headers["electric-snapshot"]) == (200, "true")

        # No subset at all.
        for body in (b"", b"{}", b'{"log":"changes_only"}'):
            log = await client.post(body, **ours)
            assert log.status == 200
            assert [item["headers"]["control"] for item in log.json] == ["up-to-date"]
            assert log.headers["cache-control"] == "no-cache"
            assert "etag" in log.headers


async def test_what_is_wrong_with_a_subset_is_told(database: str, start_stack: StartStack) -> None:
    await _run(database, _WH)
    stack = await start_stack(database)
    async with aiohttp.ClientSession() as session:
        client = Client(stack, session)

        async def errors(**query: str) -> Any:
            return (await client.subset(**query)).errors["subset"]

        assert await errors(where="nope = 1") == {"where": ["At location 0: unknown reference nope"]}
        assert await errors(where="n = $1") == {"where": ["At location 4: parameter $1 was not provided"]}
        assert await errors(where="n = $1", params='{"2":"1"}') == {
            "params": ["Parameters must be numbered sequentially, starting from 1"]
        }
        assert await errors(where="id IN (SELECT id FROM wh)") == {"where": ["Subqueries are not allowed in subsets"]}
        assert await errors(order_by="nope") == {"order_by": ["At location 18: unknown reference nope"]}
        assert await errors(order_by="lower(v)") == {
            "order_by": ["At location 18: FuncCall expressions are not allowed in ORDER BY clauses"]
        }
        assert await errors(order_by="id; DROP TABLE wh") == {"order_by": ["Unexpected `;` in order by"]}
        assert "where" in await errors(where="feeling = 'glad'")
        assert await errors(where="1 / (n - 3) > 0") == {"where": "division by zero"}
        assert await errors(where="v::int > 1") == {"where": 'invalid input syntax for type integer: "v1"'}
        assert await errors(order_by="doc") == {"order_by": ["could not identify an ordering operator for type json"]}
        # Nothing was made for a request that was refused (http-api.md 5).
        assert (await client.get(table="never", subset__where="nope")).status == 400
        assert (await client.get(table="never", subset__order_by="nope")).status == 400
        assert (await client.get(table="never", queryable_columns="nope,id")).errors == {
            "queryable_columns": ["The following queryable columns are not found on the table: nope"]
        }
        async with await psycopg.AsyncConnection.connect(database) as connection:
            found = await connection.execute("SELECT count(*) FROM pg_publication_tables WHERE tablename = 'never'")
            assert await found.fetchone() == (0,)

        # Columns that may not be asked about.
        allowed = {"queryable_columns": "id,n", "columns": "id,n"}
        assert (await client.get(**allowed, subset__where="n = 2")).ids == ["2"]
        assert (await client.get(**allowed, subset__where="v = 'v2'")).errors == {
            "subset": {"where": ["At location 0: unknown reference v"]}
        }
        assert (await client.get(**allowed, subset__order_by="n, v")).errors == {
            "subset": {"order_by": ["At location 21: unknown reference v"]}
        }
        assert (await client.get(queryable_columns="n", subset__where="n = 2")).errors == {
            "queryable_columns": ["The list of queryable columns must include all primary key columns, missing: id"]
        }
        bad = await client.post(b"{bad")
        assert (bad.status, bad.json["error"]) == (400, "Invalid JSON in request body")
        assert bad.headers["cache-control"] == "max-age=0, private, must-revalidate"
        assert (await client.post(b"[1]")).json == {"error": "Request body must be a JSON object"}
        limit = await client.post({"limit": "x", "order_by": "id"})
        assert limit.errors == {"subset": {"limit": ["is invalid"]}}
        assert limit.headers["cache-control"] == "no-cache"
        assert "surrogate-control" not in limit.headers
        refused = await client.post({"where": "x" * 8_000_001})
        assert (refused.status, refused.json) == (413, {"error": "Request body too large"})


_ITEMS = """
    CREATE TABLE items (id int PRIMARY KEY, n int, title text, body text);
    CREATE TABLE others (id int PRIMARY KEY, n int);
    CREATE TABLE marker (id bigserial PRIMARY KEY);
    INSERT INTO items SELECT i, i % 50, 'row ' || i, repeat('x', 200) FROM generate_series(1, 400) i;
"""


async def _write(database: str, choice: random.Random, until: asyncio.Event) -> None:
    """Transactions of a few changes each, some held open for a while, some rolled back."""
    async with await psycopg.AsyncConnection.connect(database) as connection:
        while not until.is_set():
            with contextlib.suppress(psycopg.errors.UniqueViolation, psycopg.errors.DeadlockDetected):
                for _ in range(choice.randint(1, 6)):
                    id, n = choice.randint(1, 450), choice.randint(0, 49)
                    statement = choice.choice(
                        [
                            "UPDATE items SET n = %(n)s, title = title || '.' WHERE id = %(id)s",
                            "UPDATE items SET title = md5(title) WHERE id BETWEEN %(id)s AND %(id)s + 5",
                            "DELETE FROM items WHERE id = %(id)s",
                            "INSERT INTO items VALUES (%(id)s, %(n)s, 'new') ON CONFLICT (id) DO UPDATE SET n = %(n)s",
                            "UPDATE items SET id = 1000 - id WHERE id = %(id)s",
                            "INSERT INTO others VALUES (%(id)s, %(n)s) ON CONFLICT DO NOTHING",
                        ]
                    )
                    await connection.execute(statement, {"id": id, "n": n})
                if choice.random() < 0.2:
                    await asyncio.sleep(choice.random() / 5)
                if choice.random() < 0.1:
                    await connection.rollback()
            await connection.commit()
            await asyncio.sleep(choice.random() / 50)


class _Follower:
    """Asks for subsets and follows the stream in turns; survives what the official client survives."""

    def __init__(self, client: Client, shape: dict[str, str], choice: random.Random) -> None:
        self.view = SubsetView()
        self.shape = shape
        self.subsets = 0
        self._client = client
        self._choice = choice

    async def follow(self, until: asyncio.Event) -> None:
        """Until told to stop."""
        while not until.is_set():
            if self._choice.random() < 0.4:
                await self.subset(self._random_subset())
            elif self.view.offset != "now":
                await self.read(live=self._choice.random() < 0.5)
            # So that the log runs ahead of the client.
            await asyncio.sleep(self._choice.random() / 10)

    async def subset(self, subset: dict[str, Any]) -> list[str]:
        """One subset, by either method."""
        before = self.view.offset
        while True:
            query = {"table": "items"} | self.shape | self.view.query()
            if self._choice.random() < 0.5:
                got = await self._try(self._client.post(subset, **query))
            else:
                parameters = {f"subset__{name}": _text(value) for name, value in subset.items()}
                got = await self._try(self._client.get(**query, **parameters))
            if got is not None:
                break
        self.subsets += 1
        keys = self.view.accept_subset(got.headers, got.body)
        assert before in ("now", self.view.offset), "the client was moved"
        return keys

    async def read(self, live: bool) -> None:
        """One request for the log."""
        query = {"table": "items"} | self.shape | self.view.query() | ({"live": "true"} if live else {})
        if got := await self._try(self._client.get(**query)):
            self.view.accept_log(got.headers, got.body)

    async def rest(self, lsn: int) -> None:
        """Read on until all up to this LSN is there."""
        async with asyncio.timeout(HANG_SECONDS):
            while not (self.view.up_to_date and self.view.lsn >= lsn):
                await self.read(live=False)
                await asyncio.sleep(0.02)

    async def _try(self, asking: Coroutine[Any, Any, Answer]) -> Answer | None:
        try:
            got = await asking
        except (aiohttp.ClientError, ConnectionError, TimeoutError):
            await asyncio.sleep(0.1)
            return None
        if got.status == 503:
            await asyncio.sleep(0.1)
            return None
        assert got.status == 200, got
        return got

    def _random_subset(self) -> dict[str, Any]:
        choice = self._choice
        low = choice.randint(1, 400)
        return choice.choice(
            [
                {"where": "id >= $1 AND id < $2", "params": {"1": low, "2": low + 60}},
                {"where": "n < $1 OR title LIKE 'row%'", "params": {"1": "25"}, "order_by": "n DESC, id", "limit": 40},
                {"order_by": "title, id", "limit": 30, "offset": choice.randint(0, 100)},
                {"where": "true = true"},
            ]
        )


def _text(value: Any) -> str:
    return json.dumps(value) if isinstance(value, dict) else str(value)


async def test_rows_and_stream_together_are_what_postgres_holds(
    database: str, start_stack: StartStack, seed: int
) -> None:
    await _run(database, _ITEMS)
    stack = await start_stack(database, workers=2, gateways=2)
    choice = random.Random(seed)
    done, quiet = asyncio.Event(), asyncio.Event()
    shapes = [
        {"log": "changes_only"},
        {"log": "changes_only", "where": "n < 20 OR id > 300"},
        {"log": "changes_only", "columns": "id,n", "replica": "full"},
        {"log": "full"},
    ]
    async with aiohttp.ClientSession() as session:
        client = Client(stack, session)
        handles = []
        for shape in shapes:
            # A shape that is lost with its worker before it is complete is a 409, which is not what this is about.
            made = await client.get("items", **shape | {"offset": "-1"})
            assert made.status == 200
            handles.append(made.headers["electric-handle"])
        async with asyncio.timeout(HANG_SECONDS):
            while not stack.are_complete(handles):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        followers = [_Follower(client, shape, random.Random(choice.random())) for shape in shapes]
        writers = [asyncio.create_task(_write(database, random.Random(choice.random()), quiet)) for _ in range(3)]
        following = [asyncio.create_task(follower.follow(done)) for follower in followers]
        for victims in [], stack.gateways, stack.workers:
            stack.kill9(*victims)
            enough = [follower.subsets + 5 * SCALE for follower in followers]
            async with asyncio.timeout(HANG_SECONDS * SCALE):
                while any(follower.subsets < count for follower, count in zip(followers, enough, strict=True)):
                    for task in (*writers, *following):
                        if task.done():
                            task.result()
                    await asyncio.sleep(0.05)
        quiet.set()
        await asyncio.gather(*writers)
        done.set()
        await asyncio.gather(*following)
        lsn = await _position(database)
        for follower in followers:
            await follower.rest(lsn)
            columns = follower.shape["columns"].split(",") if "columns" in follower.shape else None
            expected = await oracle.select(database, "items", columns, follower.shape.get("where"))
            view = follower.view
            assert view.applied > 0
            known = {key: row for key, row in expected.items() if key in view.rows}
            different = oracle.difference(known, view.rows)
            assert different is None, f"{follower.shape}: {different}"
            # And what a client asks for at rest is all that there is.
            assert set(await follower.subset({"where": "true"})) == set(expected)
            assert oracle.difference(expected, view.rows) is None
        assert sum(follower.view.dropped for follower in followers) > 0, "no change came that a subset had shown"


async def _position(database: str) -> int:
    """A WAL position above all that was written, with a commit behind it."""
    async with await psycopg.AsyncConnection.connect(database, autocommit=True) as connection:
        found = await connection.execute("SELECT (pg_current_wal_insert_lsn() - '0/0'::pg_lsn)::bigint")
        row = await found.fetchone()
        await connection.execute("UPDATE items SET n = n WHERE id = (SELECT min(id) FROM items)")
    assert row is not None
    return int(row[0])


async def test_a_large_subset_survives_its_worker_and_ends_with_its_client(
    database: str, start_stack: StartStack
) -> None:
    await _run(
        database,
        "CREATE TABLE large (id int PRIMARY KEY, body text)",
        "INSERT INTO large SELECT i, repeat(md5(i::text), 30) FROM generate_series(1, 20000) i",
    )
    stack = await start_stack(database, workers=2)
    running = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
        "AND application_name = 'galvanic subset' AND state <> 'idle'"
    )
    async with (
        aiohttp.ClientSession() as session,
        await psycopg.AsyncConnection.connect(database, autocommit=True) as connection,
        await psycopg.AsyncConnection.connect(database) as other,
    ):
        client = Client(stack, session)

        async def until_running(count: int) -> None:
            async with asyncio.timeout(HANG_SECONDS):
                while (await (await connection.execute(running.encode())).fetchone()) != (count,):  # noqa: ASYNC110
                    await asyncio.sleep(0.02)

        first = await client.get("large", log="changes_only")
        ours = {"log": "changes_only", "handle": first.headers["electric-handle"], "offset": "0_inf"}
        async with asyncio.timeout(HANG_SECONDS):
            while not stack.are_complete([first.headers["electric-handle"]]):  # noqa: ASYNC110
                await asyncio.sleep(0.05)

        await other.execute("LOCK TABLE large")
        asking = asyncio.create_task(client.get("large", **ours, subset__order_by="id"))
        await until_running(1)
        stack.kill9(*stack.workers)
        await other.rollback()
        answer = await asking
        assert answer.status == 200
        assert answer.ids == [str(number) for number in range(1, 20_001)]

        await until_running(0)
        await other.execute("LOCK TABLE large")
        asking = asyncio.create_task(client.get("large", **ours, subset__order_by="id"))
        await until_running(1)
        asking.cancel()
        await until_running(0)
        await other.rollback()
        async with asyncio.timeout(HANG_SECONDS):
            while list((stack.storage / "subsets").glob("*")):  # noqa: ASYNC110
                await asyncio.sleep(0.02)

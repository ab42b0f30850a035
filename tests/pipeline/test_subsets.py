"""Subset snapshots: what clients are told and sent, and that rows and stream together are what Postgres holds."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import aiohttp
import psycopg
import pytest

from tests.pipeline.fixtures import StartStack
from tests.pipeline.stack import Stack
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

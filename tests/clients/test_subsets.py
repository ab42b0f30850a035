"""The unchanged npm package asks for subsets, by both methods, and merges them with its stream (issue 5)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.clients.follower import Follower, install_client
from tests.pipeline import oracle
from tests.pipeline.fixtures import StartStack

pytestmark = pytest.mark.timeout(900)

_SCHEMA = """
CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy');
CREATE TABLE notes (id bigint PRIMARY KEY, title text, n integer, feeling mood, at timestamptz);
INSERT INTO notes SELECT i, 'note ' || i, i, 'ok', now() FROM generate_series(1, 200) i;
"""


@pytest.fixture(scope="module", autouse=True)
def _client() -> None:
    install_client()


class SubsetFollower(Follower):
    """A stream that is asked for subsets."""

    async def request(self, **subset: Any) -> int:
        """Loads a subset into the shape. Returns how many rows it had."""
        event = await self._command({"request": subset})
        assert "requested" in event, event
        assert set(event["metadata"]) == {"snapshot_mark", "xmin", "xmax", "xip_list", "database_lsn"}
        return int(event["requested"])

    async def fetch(self, **subset: Any) -> list[dict[str, str | None]]:
        """The rows of a subset."""
        event = await self._command({"fetch": subset})
        assert "fetched" in event, event
        rows: list[dict[str, str | None]] = event["fetched"]
        return rows

    async def refused(self, **subset: Any) -> tuple[int, Any]:
        """Status and body of a refusal."""
        event = await self._command({"fetch": subset})
        assert "refused" in event, event
        return event["refused"], event["body"]

    def _arguments(self) -> list[str]:
        return ["subsets.mjs", f"{self.url}/v1/shape", json.dumps(self.params), json.dumps(self.options)]


def _compare(name: str, *arguments: Any) -> dict[str, Any]:
    return {"type": "func", "name": name, "args": list(arguments)}


def _column(name: str) -> dict[str, Any]:
    return {"type": "ref", "column": name}


def _parameter(number: int) -> dict[str, Any]:
    return {"type": "val", "paramIndex": number}


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_subsets_and_stream_are_what_postgres_holds(
    database: str, start_stack: StartStack, tmp_path: Path, method: str
) -> None:
    async with await psycopg.AsyncConnection.connect(database, autocommit=True) as connection:

        async def run(*statements: str) -> int:
            """Runs them. Returns a WAL position that is above them."""
            for statement in statements:
                await connection.execute(statement.encode())
            found = await connection.execute("SELECT (pg_current_wal_insert_lsn() - '0/0'::pg_lsn)::bigint")
            row = await found.fetchone()
            await connection.execute("UPDATE notes SET at = now() WHERE id = 200")
            assert row is not None
            return int(row[0])

        await connection.execute(_SCHEMA)
        stack = await start_stack(database, workers=2)
        options = {"log": "changes_only", "offset": "now", "subsetMethod": method}
        async with SubsetFollower(stack.url, {"table": "notes"}, tmp_path, options) as follower:
            # Before the stream knows where it is.
            assert await follower.request(where="n > $1 AND n <= $2", params={"1": "10", "2": "20"}) == 10
            lsn = await run("UPDATE notes SET title = 'new' WHERE id = 15", "DELETE FROM notes WHERE id = 16")
            await follower.reach(lsn)
            held = await follower.rows()
            assert len(held) == 9
            assert held['"public"."notes"/"15"']["title"] == "new"

            # While it is live, and what comes between two subsets is not lost to the first one.
            where = _compare(
                "and", _compare("gte", _column("n"), _parameter(1)), _compare("in", _column("n"), _parameter(2))
            )
            assert await follower.request(
                whereExpr=where,
                params={"1": "30", "2": "{30,31,32,5}"},
                orderByExpr=[{"column": "n", "direction": "desc", "nulls": "last"}],
                limit=2,
            ) == 2  # fmt: skip
            await run("UPDATE notes SET title = 'between' WHERE id = 12")
            assert await follower.request(where="true = true", orderBy="id", limit=5, offset=100) == 5
            lsn = await run(
                "UPDATE notes SET id = -id WHERE id IN (31, 104)", "INSERT INTO notes VALUES (500, 'last', 1)"
            )
            await follower.reach(lsn)
            held = await follower.rows()
            assert held['"public"."notes"/"12"']["title"] == "between"
            expected = await oracle.select(database, "notes", ["id", "title", "n", "feeling"])
            for key, row in held.items():
                assert {name: value for name, value in row.items() if name != "at"} == expected[key]
            assert {'"public"."notes"/"-31"', '"public"."notes"/"500"', '"public"."notes"/"105"'} <= held.keys()
            assert '"public"."notes"/"31"' not in held

            rows = await follower.fetch(where="id = ANY($1)", params={"1": "{7,9007199254740993}"})
            assert [row["id"] for row in rows] == ["7"]
            assert await follower.fetch(where="feeling = $1", params={"1": "happy"}) == []
            status, body = await follower.refused(where="nope = 1")
            assert status == 400
            assert body["errors"] == {"subset": {"where": ["At location 0: unknown reference nope"]}}
            status, _ = await follower.refused(orderBy="lower(title)")
            assert status == 400
            many = ",".join(str(number) for number in range(1, 5000))
            if method == "POST":
                assert len(await follower.fetch(where="id = ANY($1)", params={"1": f"{{{many}}}"})) > 190
            else:
                assert (await follower.refused(where="id = ANY($1)", params={"1": f"{{{many}}}"}))[0] == 414
            assert follower.refetches == 0


async def test_a_full_shape_can_be_asked_for_a_part_first(
    database: str, start_stack: StartStack, tmp_path: Path
) -> None:
    async with await psycopg.AsyncConnection.connect(database, autocommit=True) as connection:
        await connection.execute(_SCHEMA)
    stack = await start_stack(database)
    async with SubsetFollower(stack.url, {"table": "notes", "where": "n > 100"}, tmp_path) as follower:
        rows = await follower.fetch(orderBy="n DESC", limit=3)
        assert [row["n"] for row in rows] == ["200", "199", "198"]
        await follower.reach(0)
        assert len(await follower.rows()) == 100

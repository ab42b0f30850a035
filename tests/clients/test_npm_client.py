"""The unchanged npm package follows tables through everything (issue 2, test 1; client-expectations.md)."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest

from tests.clients.follower import Follower, install_client
from tests.pipeline import oracle
from tests.pipeline.fixtures import StartStack

pytestmark = pytest.mark.timeout(900)

_SCHEMA = """
CREATE TABLE notes (id bigint PRIMARY KEY, title text, n integer, done boolean, at timestamptz, doc jsonb, f real);
INSERT INTO notes SELECT i, 'note ' || i, i, i % 2 = 0, now(), '{"a": [1, null]}', i / 4.0
  FROM generate_series(1, 20) i;
CREATE TABLE wide (id integer PRIMARY KEY, v text);
INSERT INTO wide SELECT i, repeat(md5(i::text), 32) FROM generate_series(1, 20000) i;
"""


@pytest.fixture(scope="module", autouse=True)
def _client() -> None:
    install_client()


class _Table:
    """A table, its follower, and SQL that both must agree about."""

    def __init__(self, name: str, url: str, follower: Follower) -> None:
        self.name = name
        self.url = url
        self.follower = follower
        self._ticks = 0

    async def run(self, *statements: str) -> None:
        """Runs each statement in a transaction of its own, then compares client and SELECT at rest."""
        # Only commits after the table was published show in LSNs.
        await self.follower.reach(0)
        async with await psycopg.AsyncConnection.connect(self.url, autocommit=True) as connection:
            for statement in statements:
                await connection.execute(statement.encode())
            found = await connection.execute("SELECT (pg_current_wal_insert_lsn() - '0/0'::pg_lsn)::bigint")
            row = await found.fetchone()
            # A commit above that position, so that the client is told of one.
            self._ticks += 1
            await connection.execute(f"INSERT INTO {self.name} (id) VALUES ({900_000 + self._ticks})".encode())
        assert row is not None
        await self.follower.reach(int(row[0]))
        different = oracle.difference(await oracle.select(self.url, self.name), await self.follower.rows())
        assert different is None, different


@pytest.mark.parametrize("events", [False, True], ids=["long-polls", "events"])
async def test_client_follows_a_table_through_everything(
    database: str, start_stack: StartStack, tmp_path: Path, events: bool
) -> None:
    """By events with chunks of 10 kB, where the reference loses rows (client-expectations.md 11)."""
    async with await psycopg.AsyncConnection.connect(database) as connection:
        await connection.execute(_SCHEMA)
    environment = {"ELECTRIC_SHAPE_CHUNK_BYTES_THRESHOLD": "10000"} if events else {}
    stack = await start_stack(database, workers=2, environment=environment)
    async with Follower(stack.url, {"table": "notes"}, tmp_path, {"liveSse": events}) as follower:
        notes = _Table("notes", database, follower)
        await notes.run()
        await notes.run(
            "INSERT INTO notes (id, title, at) VALUES (9007199254740993, 'quote '' \" \\ / 🜁', '0044-03-15 BC')",
            "BEGIN; INSERT INTO notes (id) SELECT generate_series(100, 400); DELETE FROM notes WHERE id = 150; COMMIT",
        )
        assert follower.operations["delete"] == 1
        await notes.run("UPDATE notes SET title = 'new', n = NULL WHERE id <= 5", "UPDATE notes SET done = NOT done")
        assert follower.operations["update"] >= 5
        await notes.run("DELETE FROM notes WHERE id BETWEEN 6 AND 10")
        deleted, inserted = follower.operations["delete"], follower.operations["insert"]
        await notes.run("UPDATE notes SET id = -id WHERE id IN (1, 2)", "UPDATE notes SET id = 2 WHERE id = -1")
        assert follower.operations["delete"] == deleted + 3
        # Three halves of key changes and the tick.
        assert follower.operations["insert"] == inserted + 4
        assert follower.refetches == 0

        await notes.run("TRUNCATE notes", "INSERT INTO notes (id, title) VALUES (1, 'after the truncate')")
        assert follower.refetches >= 1

        refetches = follower.refetches
        await stack.stop()
        async with await psycopg.AsyncConnection.connect(database) as connection:
            await connection.execute("INSERT INTO notes (id, title) VALUES (2, 'while all was down')")
        stack.start()
        await notes.run("UPDATE notes SET title = 'after the restart' WHERE id = 1")
        stack.kill9("ingester", *stack.workers, *stack.gateways)
        await notes.run("DELETE FROM notes WHERE id = 1", "INSERT INTO notes (id, title) VALUES (3, 'after the crash')")
        assert follower.refetches == refetches, "a restart made the client fetch anew"
        if events:
            await notes.run(*[f"UPDATE notes SET n = {n}" for n in range(5)])
            assert (follower.streams > 0, follower.polls) == (True, 0)
            assert "Falling back" not in follower.warnings


async def test_client_fetches_a_snapshot_of_20_megabytes(
    database: str, start_stack: StartStack, tmp_path: Path
) -> None:
    async with await psycopg.AsyncConnection.connect(database) as connection:
        await connection.execute(_SCHEMA)
    stack = await start_stack(database)
    async with Follower(stack.url, {"table": "wide"}, tmp_path) as follower:
        wide = _Table("wide", database, follower)
        await wide.run()
        await wide.run("UPDATE wide SET v = v || '.' WHERE id % 10 = 0", "DELETE FROM wide WHERE id % 7 = 0")
        assert follower.operations["update"] == 2000
        assert follower.refetches == 0

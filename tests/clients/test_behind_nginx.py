"""The npm package, unchanged, behind the shipped nginx configuration: kept, compressed, collapsed answers are right."""

from __future__ import annotations

import contextlib
from pathlib import Path

import psycopg
import pytest

from tests.clients.follower import Follower, install_client
from tests.pipeline import oracle
from tests.pipeline.fixtures import StartStack
from tests.pipeline.nginx import Nginx, find_nginx

pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.skipif(find_nginx() is None, reason="nginx is not installed (Debian package nginx)"),
]

FOLLOWERS = 3

_SCHEMA = """
CREATE TABLE notes (id bigint PRIMARY KEY, title text);
INSERT INTO notes SELECT i, repeat('note ' || i, 20) FROM generate_series(1, 3000) i;
"""


async def test_followers_share_requests_and_agree(database: str, start_stack: StartStack, tmp_path: Path) -> None:
    install_client()
    async with await psycopg.AsyncConnection.connect(database, autocommit=True) as connection:
        await connection.execute(_SCHEMA)
        # Snapshots of several chunks, so that compressed ones are among them.
        environment = {"ELECTRIC_SHAPE_CHUNK_BYTES_THRESHOLD": "100000"}
        stack = await start_stack(database, gateways=2, environment=environment)
        with Nginx(stack.port) as nginx:
            async with contextlib.AsyncExitStack() as running:
                followers = []
                for number in range(FOLLOWERS):
                    directory = tmp_path / str(number)
                    directory.mkdir()
                    follower = Follower(nginx.url, {"table": "notes"}, directory)
                    followers.append(await running.enter_async_context(follower))
                for follower in followers:
                    await follower.reach(0)
                for step in range(5):
                    await connection.execute("UPDATE notes SET title = title || %s WHERE id <= 50", [str(step)])
                    await connection.execute("DELETE FROM notes WHERE id = %s", [3000 - step])
                    found = await connection.execute("SELECT (pg_current_wal_insert_lsn() - '0/0'::pg_lsn)::bigint")
                    row = await found.fetchone()
                    assert row is not None
                    # A commit above that position, so that the clients are told of one.
                    await connection.execute("INSERT INTO notes VALUES (%s, '')", [9000 + step])
                    rows = await oracle.select(database, "notes")
                    for follower in followers:
                        await follower.reach(int(row[0]))
                        different = oracle.difference(rows, await follower.rows())
                        assert different is None, different
                assert [follower.refetches for follower in followers] == [0] * FOLLOWERS
            assert " HIT" in nginx.accesses

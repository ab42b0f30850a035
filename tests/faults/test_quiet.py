"""A database in which nothing happens that concerns us: the slot follows nevertheless (INV-8, INV-19).

And operators are told what new shapes wait for.
"""

from __future__ import annotations

import asyncio

import aiohttp
import psycopg

from deploy.embedded_postgres import EmbeddedPostgres
from tests.faults.backends import confirmed_flush
from tests.pipeline.fixtures import StartStack
from tests.pipeline.reader import Reader
from tests.pipeline.schema import create_schema

_HANG_SECONDS = 120


async def _follows(url: str) -> None:
    """Writes what is not published, and waits until the slot has passed it."""
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        await connection.execute("INSERT INTO noise SELECT repeat('x', 1000) FROM generate_series(1, 100)")
        await connection.execute("SELECT pg_switch_wal()")
        found = await connection.execute("SELECT (pg_current_wal_lsn() - '0/0'::pg_lsn)::bigint")
        row = await found.fetchone()
        assert row is not None
    async with asyncio.timeout(_HANG_SECONDS):
        while await confirmed_flush(url) < row[0]:  # noqa: ASYNC110 - it changes in Postgres
            await asyncio.sleep(0.1)


async def test_the_slot_follows(private_server: EmbeddedPostgres, start_stack: StartStack) -> None:
    url = private_server.url
    await create_schema(url)
    # Keepalives come every half of it.
    private_server.settings = {"wal_sender_timeout": "2s"}
    await asyncio.to_thread(private_server.restart)
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        await connection.execute("CREATE TABLE noise (t text)")
    stack = await start_stack(url, workers=2)
    await _follows(url)  # without any shape
    async with Reader(stack.url, "items") as reader:
        await reader.current()
        await _follows(url)

        # A shape that cannot be created: its table is locked, by name and process.
        async with await psycopg.AsyncConnection.connect(url) as locker:
            await locker.execute("LOCK TABLE pairs IN ROW EXCLUSIVE MODE")
            pid = locker.info.backend_pid
            async with aiohttp.ClientSession() as session:
                creating = asyncio.ensure_future(session.get(f"{stack.url}/v1/shape?table=pairs&offset=-1"))
                body = await stack.wait_health("publishing table public.pairs has waited")
                assert body["status"] == "active", "nothing that exists is delayed"
                assert f"process {pid} holds (idle in transaction)" in body["reason"]
                await stack.wait_logged("ingester", "publishing table public.pairs")
                await _follows(url)
                await locker.rollback()
                (await creating).close()

        # A shape that ends.
        async with Reader(stack.url, "bare") as ending:
            await ending.current()
            async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
                await connection.execute("ALTER TABLE bare DROP COLUMN note")
                await connection.execute("INSERT INTO bare VALUES ('x', 1)")
            await ending.stop()
        await _follows(url)

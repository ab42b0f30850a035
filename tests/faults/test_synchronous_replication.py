"""Commits that are in the WAL, and in the stream, before anybody can see them (engine.md H-C)."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import psycopg
import pytest

from deploy.embedded_postgres import EmbeddedPostgres
from tests.faults.generations import create_table, execute, generations, until, witness
from tests.pipeline.fixtures import StartStack
from tests.pipeline.reader import Reader

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]


async def _subset(url: str, where: str) -> Any:
    """The rows of a subset of `t`, for whoever has all of its stream."""
    query = {"table": "t", "offset": "now", "subset__where": where}
    async with aiohttp.ClientSession() as session, session.get(f"{url}/v1/shape", params=query) as response:
        assert response.status == 200, await response.read()
        return (await response.json())["data"]


async def test_a_commit_that_waits_for_its_standby_is_in_every_shape_once(
    private_server: EmbeddedPostgres, start_stack: StartStack
) -> None:
    """The stream has delivered it when a shape is made, and a snapshot does not show it yet: so none is taken."""
    url = private_server.url
    await create_table(url)
    stack = await start_stack(url)
    async with witness(stack, url) as reader:
        await reader.kept()
        await execute(url, "ALTER SYSTEM SET synchronous_standby_names = 'nobody'", "SELECT pg_reload_conf()")
        writer = await psycopg.AsyncConnection.connect(url, autocommit=True)
        hanging = asyncio.create_task(writer.execute("INSERT INTO t (v) VALUES ('in the WAL, not visible')"))
        await until(url, "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'", 1)
        held = "in the WAL, not visible"
        async with asyncio.timeout(120):
            while all(row["v"] != held for row in reader.view.rows.values()):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        assert await execute(url, f"SELECT FROM t WHERE v = '{held}'") == []
        # A shape of its own: other columns.
        late = Reader(stack.url, "t", columns=["id", "v"]).start()
        retaken = "SELECT count(*) > 0 FROM pg_stat_activity WHERE application_name = 'galvanic snapshot'"
        await until(url, retaken, True)
        # Nor would rows without it be any good to a client that has it already.
        asking = asyncio.create_task(_subset(stack.url, f"v = '{held}'"))
        await asyncio.sleep(1)
        assert late.view.rows == {}
        assert not hanging.done()
        assert not asking.done()
        await execute(url, "ALTER SYSTEM RESET synchronous_standby_names", "SELECT pg_reload_conf()")
        await hanging
        await writer.close()
        assert [row["value"]["v"] for row in await asking] == [held]
        await late.current()
        lsn = (await execute(url, "SELECT (pg_current_wal_insert_lsn() - '0/0'::pg_lsn)::bigint"))[0][0]
        await reader.kept()
        await late.at_rest(lsn)
        await late.verify(url)
        await late.stop()
        # In the snapshot: the stream has it before the shape, whose snapshot therefore must show it.
        assert sum(row["v"] == held for row in late.view.rows.values()) == 1
    assert generations(stack) == []
    await stack.stop()

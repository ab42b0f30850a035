"""Everything but the replication through PgBouncer in transaction mode (engine.md H-G, 21 pooled-connections)."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.embedded_postgres import EmbeddedPostgres
from tests.faults.generations import create_table, database, execute, insert, run_ingester, witness
from tests.faults.pooler import Pooler, find_pooler
from tests.faults.proxy import Proxy
from tests.pipeline.fixtures import StartStack
from tests.pipeline.fleet import Fleet
from tests.pipeline.reader import HANG_SECONDS, Reader
from tests.pipeline.schema import create_schema
from tests.pipeline.workload import Workload

pytestmark = [
    pytest.mark.faults,
    pytest.mark.timeout(600),
    pytest.mark.skipif(find_pooler() is None, reason="pgbouncer is not installed (Debian package pgbouncer)"),
]

FATAL = 78


@pytest.fixture
def pooler(private_server: EmbeddedPostgres) -> Iterator[Pooler]:
    """Before the private server."""
    assert private_server.port is not None
    with Pooler(private_server.port) as running:
        yield running


async def test_shapes_of_every_kind_through_the_pooler(
    private_server: EmbeddedPostgres, pooler: Pooler, start_stack: StartStack, seed: int
) -> None:
    url = private_server.url
    await create_schema(url)
    stack = await start_stack(url, workers=2, environment={"ELECTRIC_POOLED_DATABASE_URL": pooler.url})
    workload = Workload(url, seed, writers=2)
    async with Fleet(stack, workload) as fleet:
        workload.start()
        fleet.add_every_kind()
        await fleet.current()
        # While it is written, a table that nobody has published yet.
        fleet.add("late_0")
        await fleet.moved()
        await fleet.rest()
    assert "login attempt" in pooler.log
    await stack.stop()


async def test_the_pooler_may_die_during_a_snapshot(private_server: EmbeddedPostgres, start_stack: StartStack) -> None:
    """The shape that was being made is made again; those that were there do not even notice."""
    url = private_server.url
    await create_table(url)
    await execute(
        url,
        "CREATE TABLE big (id bigint PRIMARY KEY, v text)",
        # 26 MB: sockets on the way may hold 10 of it, which the server has sent then.
        "INSERT INTO big SELECT i, repeat(md5(i::text), 10) FROM generate_series(1, 80000) i",
    )
    assert private_server.port is not None
    async with Proxy(private_server.port) as proxy:
        with Pooler(proxy.port) as pooler:
            stack = await start_stack(url, environment={"ELECTRIC_POOLED_DATABASE_URL": pooler.url})
            async with witness(stack, url) as reader:
                # A table that the stream has not shown yet would make it wait for the pooler, to look up its partition
                # tree.
                await reader.kept()
                # Nothing else comes near.
                proxy.hold_after(1_000_000)
                big = Reader(stack.url, "big").start()
                async with asyncio.timeout(HANG_SECONDS):
                    await proxy.was_cut.wait()
                copying = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'COPY%'"
                assert (await execute(url, f"{copying} AND state = 'active'"))[0][0] == 1
                pooler.kill()
                await reader.kept()
                proxy.flow()
                await asyncio.to_thread(pooler.start)
                await big.current()
                await reader.kept()
                await big.at_rest(await insert(url))
                await big.verify(url)
                await big.stop()
                assert (await execute(url, copying))[0][0] == 0
            await stack.stop()


async def test_the_pooler_under_the_wrong_name(
    private_server: EmbeddedPostgres, pooler: Pooler, tmp_path: Path
) -> None:
    """A pooler cannot carry the replication; nor does the lock stay behind in one of its sessions."""
    code, output = await run_ingester(pooler.url, tmp_path / "storage")
    assert code == FATAL, output
    (line,) = [line for line in output.splitlines() if "cannot go on" in line]
    assert "DATABASE_URL: " in line
    assert "give that as ELECTRIC_POOLED_DATABASE_URL" in line
    locks = await execute(private_server.url, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'")
    assert locks == [(0,)]


async def test_a_pooled_url_that_is_wrong_is_the_one_that_is_named(
    private_server: EmbeddedPostgres, pooler: Pooler, start_stack: StartStack, tmp_path: Path
) -> None:
    url = private_server.url
    await execute(url, "CREATE DATABASE other")
    for wrong, words in (
        (pooler.url.replace("postgres@", "nobody@"), "ELECTRIC_POOLED_DATABASE_URL: "),
        (database(url, "nothing"), 'ELECTRIC_POOLED_DATABASE_URL: .*database "nothing" does not exist'),
    ):
        code, output = await run_ingester(url, tmp_path / "storage", ELECTRIC_POOLED_DATABASE_URL=wrong)
        assert code == FATAL, output
        assert words.partition(".*")[0] in output
        assert words.rpartition(".*")[2] in output.replace('\\"', '"')
    stack = await start_stack(
        url, environment={"ELECTRIC_POOLED_DATABASE_URL": database(pooler.url, "other")}, ready=False
    )
    await stack.wait_health("ELECTRIC_POOLED_DATABASE_URL leads to another server or database (database 'other')")
    await stack.stop()
    pooler.kill()
    stack.environment["ELECTRIC_POOLED_DATABASE_URL"] = pooler.url
    stack.start()
    await stack.wait_health("ELECTRIC_POOLED_DATABASE_URL: ")
    await asyncio.to_thread(pooler.start)
    await stack.wait_active()
    await stack.stop()

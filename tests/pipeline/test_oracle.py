"""Shapes created under load equal Postgres at rest, whatever writers do (issue 2, test 2; INV-17, INV-31)."""

from __future__ import annotations

import asyncio
import contextlib
import random

import psycopg
import pytest

from deploy.embedded_postgres import EmbeddedPostgres
from tests.pipeline.fixtures import StartStack
from tests.pipeline.fleet import Fleet
from tests.pipeline.schema import create_schema
from tests.pipeline.workload import SCALE, Workload

pytestmark = pytest.mark.timeout(600 * max(1, SCALE))


async def test_shapes_created_while_writers_run(database: str, start_stack: StartStack, seed: int) -> None:
    await create_schema(database)
    stack = await start_stack(database, workers=2)
    choice = random.Random(seed)
    workload = Workload(database, seed)
    async with Fleet(stack, workload, protected=True) as fleet:
        await fleet.readers[0].current()
        workload.start()
        # The first shapes of all tables come while they are being written, so publishing them is under load, too.
        await fleet.run(1)
        *_, bulk = fleet.add_every_kind()
        await bulk.current()
        large = asyncio.create_task(workload.large(round(40_000 * SCALE)))
        for table in ("late_0", "late_1", "late_2"):
            await fleet.run(choice.uniform(0.2, 1.0))
            fleet.add(table, replica=choice.choice(["default", "full"]))
            fleet.add(table, columns=["id", "title"])
            fleet.add("bulk", columns=["id", "batch", "v"][: choice.randint(1, 3)], replica="full")
        await large
        fleet.add("items", columns=["id", "done", "at"])
        await fleet.current()
        await fleet.moved()
        await fleet.rest()
    for kind in ("short", "long", "rolled back", "savepoints", "undone savepoints", "key changes", "large"):
        assert workload.stats[kind], f"the workload had no {kind!r}: {workload.stats}"
    assert len(bulk.view.journal.entries) >= 40_000 * SCALE


async def test_shapes_created_while_transactions_are_open(database: str, start_stack: StartStack, seed: int) -> None:
    """Open transactions straddle everything: publishing the table, the snapshot, later shapes on the same table."""
    await create_schema(database)
    stack = await start_stack(database, workers=2)
    choice = random.Random(seed)
    workload = Workload(database, seed, writers=2)
    async with Fleet(stack, workload, protected=True) as fleet:
        workload.start()
        published: set[str] = set()
        for round_number in range(round(6 * max(1, SCALE))):
            table = ("late_0", "late_1", "late_0", "late_2", "late_1", "late_2")[round_number % 6]
            async with await psycopg.AsyncConnection.connect(database) as early:
                await _insert(early, table, 200_000 + round_number * 10)
                reader = fleet.add(
                    table, columns=["id", "title", ("n", "done", "at", "doc", "tags", "price")[round_number % 6]]
                )
                await fleet.run(choice.uniform(0.1, 0.8))
                async with await psycopg.AsyncConnection.connect(database) as late:
                    await early.execute("SAVEPOINT half")
                    await _insert(early, table, 200_001 + round_number * 10)
                    await early.execute(choice.choice(["RELEASE SAVEPOINT half", "ROLLBACK TO SAVEPOINT half"]))
                    if choice.random() < 0.5:
                        await early.commit()
                    await _insert(late, table, 200_002 + round_number * 10)
                    await fleet.run(choice.uniform(0.1, 0.5))
                    await early.commit()
                    if table not in published:
                        # Publishing waits for all writers of the table; a table that is published does not wait.
                        await late.commit()
                        published.add(table)
                    await reader.current()
                    await _insert(late, table, 200_003 + round_number * 10)
                    await late.commit()
        await fleet.rest()


async def test_one_shape_is_created_once(database: str, start_stack: StartStack, seed: int) -> None:
    """Concurrent first requests share one creation, also through two gateways (http-api.md 10.3)."""
    await create_schema(database)
    stack = await start_stack(database, workers=2, gateways=2)
    workload = Workload(database, seed, writers=2)
    async with Fleet(stack, workload, protected=True, monotone_lsn=False) as fleet:
        workload.start()
        readers = [fleet.add("items") for _ in range(12)]
        await fleet.current()
        await fleet.run(1)
        await fleet.rest()
        assert len({reader.view.handle for reader in readers}) == 1
        first = readers[0].view.journal
        for other in readers[1:]:
            shared = min(first.entries.keys() | {readers[0].view.offset}, default=readers[0].view.offset)
            assert first.difference(other.view.journal, max(shared, other.view.offset)) is None


async def test_commits_that_still_wait_for_a_standby(
    private_server: EmbeddedPostgres, start_stack: StartStack, seed: int
) -> None:
    """The stream shows transactions that no snapshot shows yet; a shape created then must not lose them (H-C, INV-17).

    One was dispatched before the shapes came, so their snapshots must wait for it; the other one comes while they
    wait and stays invisible, so their logs must have it although its commit lies before the snapshot in the WAL.
    """
    url = private_server.url
    await create_schema(url)
    stack = await start_stack(url, workers=2)
    async with Fleet(stack, Workload(url, seed), protected=True) as fleet:
        before = fleet.add("late_0")
        await fleet.current()
        async with (
            await psycopg.AsyncConnection.connect(url, autocommit=True) as admin,
            await psycopg.AsyncConnection.connect(url, autocommit=True) as first,
            await psycopg.AsyncConnection.connect(url, autocommit=True) as second,
        ):
            await _set_standby(admin, "nobody")
            try:
                first_row, first_commit = await _waiting_insert(admin, first, 300_000)
                await fleet.holds(before, first_row)
                for name in ("title", "n", "done", "at", "doc"):
                    fleet.add("late_0", columns=["id", name])
                await fleet.run(1)
                second_row, second_commit = await _waiting_insert(admin, second, 400_000)
                await fleet.holds(before, second_row)
                # Ends the wait of this transaction alone, which is then visible.
                await admin.execute("SELECT pg_cancel_backend(%s)", [first.info.backend_pid])
                await first_commit
                # On a slow machine the second commit may have come before a shape did, which then waits for it, too.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(20):
                        await fleet.current()
                assert not second_commit.done()
            finally:
                await _set_standby(admin, "")
            await second_commit
        await fleet.rest()
        for reader in fleet.readers[1:]:
            assert {first_row, second_row} <= reader.view.rows.keys()


async def _set_standby(admin: psycopg.AsyncConnection, name: str) -> None:
    await admin.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{name}'")
    await admin.execute("SELECT pg_reload_conf()")


async def _waiting_insert(
    admin: psycopg.AsyncConnection, connection: psycopg.AsyncConnection, row: int
) -> tuple[str, asyncio.Task[None]]:
    """Inserts rows until a commit waits for the standby, which it does as soon as all of Postgres knows of it."""
    while True:
        row += 1
        commit = asyncio.create_task(_insert(connection, "late_0", row))
        while not commit.done():
            found = await admin.execute(
                "SELECT FROM pg_stat_activity WHERE pid = %s AND wait_event = 'SyncRep'", [connection.info.backend_pid]
            )
            if found.rowcount:
                return f'"public"."late_0"/"{row}"', commit
            await asyncio.sleep(0.01)
        await commit


async def _insert(connection: psycopg.AsyncConnection, table: str, row: int) -> None:
    await connection.execute(f"INSERT INTO {table} (id, title) VALUES (%s, 'open')", [row])

"""Small snapshots that are read together: each has exactly its rows, and none suffers from another."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest
from psycopg import sql

from shapeworker import snapshot_start
from shapeworker.snapshot import Snapshots
from shapeworker.snapshot_connection import Stopped
from shapeworker.snapshot_failure import SnapshotFailed
from shapeworker.snapshot_group import CAUTION_SECONDS, LARGEST, GroupSizes, read_group
from shapeworker.snapshot_member import SnapshotTaken
from tests.unit.shapeworker.test_snapshot import SERIES, Bench, Sink

TABLE = "CREATE TABLE t (id int PRIMARY KEY, v text)"


@pytest.fixture
async def bench(database: str) -> AsyncIterator[Bench]:
    async with await psycopg.AsyncConnection.connect(database, autocommit=True) as connection:
        bench = Bench(database, connection)
        bench.snapshots = Snapshots(database, threads=1)
        bench.closing = [bench.snapshots]
        yield bench
        for snapshots in bench.closing:
            await snapshots.close()


async def take(bench: Bench, *conditions: str, **rest: Any) -> list[tuple[Sink, SnapshotTaken | BaseException]]:
    """Snapshots that are asked for at the same moment; what came of each."""
    plans = [await bench.plan(condition=sql.SQL(text), **rest) for text in conditions]
    sinks = [Sink() for _ in plans]
    taken = (bench.take(plan, sink) for plan, sink in zip(plans, sinks, strict=True))
    return list(zip(sinks, await asyncio.gather(*taken, return_exceptions=True), strict=True))


def ids(sink: Sink) -> list[int]:
    assert sink.calls[-1] == "finish"
    return sorted(int(row["id"]) for row in sink.values())


async def test_they_share_a_transaction_and_each_has_its_rows(bench: Bench) -> None:
    await bench.execute(TABLE, SERIES.format(100))
    found = await take(bench, *(f"id % 10 = {n}" for n in range(10)), "false")
    for n, (sink, _) in enumerate(found[:10]):
        assert ids(sink) == [id for id in range(1, 101) if id % 10 == n]
    assert ids(found[10][0]) == []
    outcomes = {(taken.snapshot, taken.filter_until) for _, taken in found if isinstance(taken, SnapshotTaken)}
    assert len(outcomes) == 1
    assert [taken.rows for _, taken in found if isinstance(taken, SnapshotTaken)] == [10] * 10 + [0]
    assert bench.readable == 11


async def test_rows_that_come_after_the_snapshot_are_in_none(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    await bench.execute(TABLE, SERIES.format(2))

    def late(*arguments: Any) -> Any:
        with psycopg.connect(bench.url) as writer:
            writer.execute("INSERT INTO t VALUES (3)")
        return read_group(*arguments)

    monkeypatch.setattr("shapeworker.snapshot_work.read_group", late)
    found = await take(bench, "id > 1", "id > 0")
    assert [ids(sink) for sink, _ in found] == [[2], [1, 2]]


async def test_the_connection_is_kept_and_replaced_when_it_is_lost(bench: Bench) -> None:
    await bench.execute(TABLE, SERIES.format(10))
    backends = "SELECT array_agg(pid) FROM pg_stat_activity WHERE application_name = 'galvanic snapshot'"
    await take(bench, "id = 1", "id = 2")
    (first,) = await bench.one(backends)
    await take(bench, "id = 1", "id = 2")
    assert await bench.one(backends) == [first]
    await bench.execute(f"SELECT pg_terminate_backend({first}, 60000)")
    for conditions in (("id = 1", "id = 2"), ("id = 3",)):
        assert [len(ids(sink)) for sink, _ in await take(bench, *conditions)] == [1] * len(conditions)
    assert await bench.one(backends) != [first]


async def test_one_that_fails_does_not_hurt_the_others(bench: Bench) -> None:
    await bench.execute(TABLE, SERIES.format(20))
    found = await take(bench, "id = 1", "1 / (id - 7) > 5", "id = 2", "no_such_column = 1", "id = 3")
    assert [ids(found[n][0]) for n in (0, 2, 4)] == [[1], [2], [3]]
    failures = [found[1][1], found[3][1]]
    assert all(isinstance(failure, SnapshotFailed) for failure in failures)
    assert [failure.status for failure in failures if isinstance(failure, SnapshotFailed)] == [400, 409]
    assert "division by zero" in str(failures[0])
    assert [found[n][0].end for n in (1, 3)] == [b"", b""]


async def test_a_large_one_is_read_by_itself(bench: Bench) -> None:
    await bench.execute(TABLE, "INSERT INTO t SELECT i, repeat('x', 1000) FROM generate_series(1, 2000) i")
    found = await take(bench, "id = 1", "id > 0", "id = 2")
    assert [ids(sink) for sink, _ in found] == [[1], list(range(1, 2001)), [2]]
    assert "flush" in found[1][0].calls, "its readers need not wait for the end"


async def test_a_slow_one_holds_nobody_up(bench: Bench) -> None:
    bench.snapshots = Snapshots(bench.url, threads=2)
    bench.closing.append(bench.snapshots)
    await bench.execute(TABLE, SERIES.format(1), "CREATE TABLE gate (id int)")
    held = await bench.other()
    async with held:
        await held.execute("SELECT pg_advisory_lock(4711)")
        slow = asyncio.create_task(take(bench, "pg_advisory_lock(4711) IS NOT NULL AND id = 1"))
        quick = asyncio.create_task(take(bench, "id = 1", "id = 2"))
        async with asyncio.timeout(60):
            assert [ids(sink) for sink, _ in await quick] == [[1], []]
        assert not slow.done()
        await held.execute("SELECT pg_advisory_unlock(4711)")
    ((sink, _),) = await slow
    assert ids(sink) == [1]


async def test_one_that_is_not_wanted_any_more_leaves_the_others(bench: Bench) -> None:
    await bench.execute(TABLE, SERIES.format(3))
    held = await bench.other()
    async with held:
        await held.execute("LOCK TABLE t IN ACCESS EXCLUSIVE MODE")
        sinks = [Sink(), Sink()]
        plans = [await_plan(bench, n) for n in (1, 2)]
        tasks = [asyncio.create_task(bench.take(await plan, sink)) for plan, sink in zip(plans, sinks, strict=True)]
        await waits_for_a_lock(bench)
        tasks[0].cancel()
        await asyncio.wait([tasks[0]])
        assert tasks[0].cancelled()
        await held.rollback()
    await tasks[1]
    assert ids(sinks[1]) == [2]
    assert sinks[0].calls == []


async def test_when_nobody_wants_them_the_server_is_told(bench: Bench) -> None:
    await bench.execute(TABLE)
    held = await bench.other()
    async with held:
        await held.execute("LOCK TABLE t IN ACCESS EXCLUSIVE MODE")
        tasks = [asyncio.create_task(bench.take(await await_plan(bench, n))) for n in (1, 2)]
        await waits_for_a_lock(bench)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        await bench.quiet()


async def test_a_lock_that_does_not_come_is_told_to_all(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    await bench.execute(TABLE)
    monkeypatch.setattr(snapshot_start, "LOCK_SECONDS", 0.2)
    held = await bench.other()
    async with held:
        await held.execute("LOCK TABLE t IN ACCESS EXCLUSIVE MODE")
        for _, failure in await take(bench, "id = 1", "id = 2"):
            assert isinstance(failure, SnapshotFailed)
            assert failure.message == "Snapshot timed out while waiting for a table lock"


async def test_a_table_that_was_altered_meanwhile_ends_those_concerned(bench: Bench) -> None:
    await bench.execute(TABLE, SERIES.format(2))
    narrow = await bench.plan(condition=sql.SQL("id = 1"), selected=("id",), explicit=True)
    wide = await bench.plan(condition=sql.SQL("id = 1"), required=frozenset({"v"}))
    await bench.execute("ALTER TABLE t ALTER v TYPE varchar(10)")
    sink = Sink()
    taken, failure = await asyncio.gather(bench.take(narrow, sink), bench.take(wide), return_exceptions=True)
    assert isinstance(taken, SnapshotTaken)
    assert ids(sink) == [1]
    assert isinstance(failure, SnapshotFailed)
    assert failure.status == 409


async def test_one_that_is_refused_when_its_snapshot_is_known(bench: Bench) -> None:
    await bench.execute(TABLE, SERIES.format(2))
    plans = [await await_plan(bench, n) for n in (1, 2)]
    sinks = [Sink(), Sink()]
    outcomes = await asyncio.gather(
        bench.take(plans[0], sinks[0], lambda: False), bench.take(plans[1], sinks[1]), return_exceptions=True
    )
    assert isinstance(outcomes[0], Stopped)
    assert sinks[0].calls == []
    assert ids(sinks[1]) == [2]


async def test_a_disk_that_refuses_one(bench: Bench) -> None:
    class Full(Sink):
        def finish(self, end_line: bytes) -> None:
            raise OSError(28, "No space left on device")

    await bench.execute(TABLE, SERIES.format(2))
    plans = [await await_plan(bench, n) for n in (1, 2)]
    sink = Sink()
    outcomes = await asyncio.gather(bench.take(plans[0], Full()), bench.take(plans[1], sink), return_exceptions=True)
    assert isinstance(outcomes[0], OSError)
    assert ids(sink) == [2]


async def test_all_unseen_transactions_of_the_group_must_show(bench: Bench) -> None:
    await bench.execute(TABLE)
    writer = await bench.other()
    async with writer:
        cursor = await writer.execute("INSERT INTO t VALUES (5) RETURNING pg_current_xact_id()::text::bigint")
        row = await cursor.fetchone()
        assert row is not None
        plans = [await bench.plan(condition=sql.SQL("id = 5"), unseen=unseen) for unseen in ((), (row[0],))]
        sinks = [Sink(), Sink()]
        tasks = [asyncio.create_task(bench.take(plan, sink)) for plan, sink in zip(plans, sinks, strict=True)]
        await asyncio.sleep(0.2)
        assert not any(task.done() for task in tasks)
        await writer.commit()
        await asyncio.gather(*tasks)
    assert [ids(sink) for sink in sinks] == [[5], [5]]


def test_a_table_whose_groups_are_given_up_gets_smaller_ones_for_a_while() -> None:
    sizes = GroupSizes()
    assert sizes.limit(1, 0.0) == LARGEST
    sizes.given_up(1, 20, 0.0)
    assert (sizes.limit(1, 1.0), sizes.limit(2, 1.0)) == (5, LARGEST)
    sizes.given_up(1, 3, 1.0)
    assert sizes.limit(1, 2.0) == 1
    assert sizes.limit(1, 1.0 + CAUTION_SECONDS) == LARGEST


async def await_plan(bench: Bench, id: int) -> Any:
    return await bench.plan(condition=sql.SQL(f"id = {id}"))


async def waits_for_a_lock(bench: Bench) -> None:
    """Until a snapshot does."""
    query = (
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'galvanic snapshot' "
        "AND wait_event_type = 'Lock' AND datname = current_database()"
    )
    async with asyncio.timeout(60):
        waits = 0
        while not waits:
            await asyncio.sleep(0.02)
            waits = await bench.one(query)

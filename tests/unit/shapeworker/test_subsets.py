"""Reading subsets: what the rows show, what is kept, what is refused, what stops a query."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import pytest_asyncio

from common.lsn import Offset
from common.shape import ShapeRequest
from common.subset import SubsetRequest
from common.table import describe
from common.xid import Snapshot
from shapeworker import snapshot_start, subset_reading, subsets
from shapeworker.delivered import RING, Delivered
from shapeworker.endings import ShapeEnded
from shapeworker.filters import make_filter
from shapeworker.requests import CannotCreate
from shapeworker.shape import Life, Shape
from shapeworker.spool import ABANDONED_SECONDS, INLINE_BYTES
from shapeworker.subsets import Subsets

PATIENCE = 60.0
"""Seconds after which something hangs."""

_SETUP = """
    CREATE TABLE t (id int PRIMARY KEY, n int, v text);
    INSERT INTO t SELECT i, i % 10, 'v' || i FROM generate_series(1, 100) i;
"""


class Bench:
    """A database with a table, and the subsets of its shapes."""

    def __init__(self, url: str, storage: Path, connection: psycopg.AsyncConnection) -> None:
        self.url = url
        self.storage = storage
        self.connection = connection
        self.delivered = Delivered()
        self.subsets = Subsets(url, storage, self.delivered, turns=2)

    async def execute(self, *statements: str) -> None:
        for statement in statements:
            await self.connection.execute(statement.encode())

    async def one(self, query: str) -> Any:
        row = await (await self.connection.execute(query.encode())).fetchone()
        assert row is not None
        return row[0]

    async def shape(self, where: str | None = None, name: str = "t", columns: tuple[str, ...] | None = None) -> Shape:
        table = await describe(self.connection, "public", name)
        assert table is not None
        request = ShapeRequest(schema="public", table=name, where=where, columns=columns)
        selected = tuple(sorted(columns or (column.name for column in table.columns)))
        return Shape(
            handle="1-1", request=request, table=table, selected=selected, partition=0, storage=self.storage,
            filter_=make_filter(request, table),
        )  # fmt: skip

    async def read(self, shape: Shape, **subset: Any) -> Any:
        """The answer as a client would parse it."""
        async with asyncio.timeout(PATIENCE), self.subsets.read(shape, SubsetRequest(**subset)) as result:
            body = (self.storage / result.file).read_bytes() if result.file else result.body
            assert len(body) == result.size
            return json.loads(body)

    async def ids(self, shape: Shape, **subset: Any) -> list[int]:
        return [int(item["value"]["id"]) for item in (await self.read(shape, **subset))["data"]]

    async def refused(self, shape: Shape, **subset: Any) -> CannotCreate:
        with pytest.raises(CannotCreate) as caught:
            await self.read(shape, **subset)
        return caught.value

    async def until_running(self, count: int) -> None:
        """Wait until so many of our queries run."""
        query = (
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
            "AND application_name = 'galvanic subset' AND state <> 'idle'"
        )
        async with asyncio.timeout(PATIENCE):
            while await self.one(query) != count:  # noqa: ASYNC110
                await asyncio.sleep(0.02)

    def spooled(self) -> list[Path]:
        return [path for path in self.storage.rglob("*") if path.is_file()]


@pytest_asyncio.fixture
async def bench(database: str, tmp_path: Path) -> AsyncIterator[Bench]:
    async with await psycopg.AsyncConnection.connect(database, autocommit=True) as connection:
        bench = Bench(database, tmp_path, connection)
        await bench.execute(*_SETUP.split(";")[:2])
        yield bench
        bench.subsets.close()


async def test_rows_are_those_of_both_conditions_in_the_order_asked_for(bench: Bench) -> None:
    shape = await bench.shape("n = 1 OR n = 2")
    assert await bench.ids(shape, where="id < 30 OR id > 95", order_by="n DESC, id") == [2, 12, 22, 1, 11, 21]
    assert await bench.ids(shape, where="id < $1", params={"1": "13"}, order_by="id DESC", limit=2, offset=1) == [11, 2]
    assert await bench.ids(shape, order_by="id", limit=2**63 - 1, offset=2**63 - 1) == []
    assert len(await bench.ids(shape)) == 20
    await bench.execute('CREATE TABLE odd (id int PRIMARY KEY, "?column?" int, "count" int)')
    await bench.execute("INSERT INTO odd VALUES (1, 3, 0), (2, 1, 0), (3, 2, 0)")
    odd = await bench.shape(name="odd")
    assert await bench.ids(odd, order_by='"?column?"') == [2, 3, 1], "the column, and not the result of that name"


async def test_the_metadata_speaks_of_the_transaction_that_read_the_rows(bench: Bench) -> None:
    shape = await bench.shape()
    async with await psycopg.AsyncConnection.connect(bench.url) as other:
        await other.execute("UPDATE t SET v = 'unseen' WHERE id = 1")
        open_xid = await (await other.execute("SELECT pg_current_xact_id()::text")).fetchone()
        assert open_xid is not None
        await bench.execute("UPDATE t SET v = 'seen' WHERE id = 2")
        before = await bench.one("SELECT (pg_current_wal_insert_lsn() - '0/0'::pg_lsn)::bigint")
        found = await bench.read(shape, where="id < 3", order_by="id")
    metadata = found["metadata"]
    assert [item["value"]["v"] for item in found["data"]] == ["v1", "seen"]
    assert open_xid[0] in metadata["xip_list"]
    assert int(metadata["xmin"]) <= int(open_xid[0]) < int(metadata["xmax"])
    assert int(metadata["database_lsn"]) >= before
    for item in found["data"]:
        assert item["headers"]["snapshot_mark"] == metadata["snapshot_mark"]


async def test_rows_wait_until_they_show_all_that_was_delivered(bench: Bench) -> None:
    """A transaction can be in the stream before anybody can see it: with synchronous replication, for long."""
    shape = await bench.shape()
    async with await psycopg.AsyncConnection.connect(bench.url) as other:
        await other.execute("UPDATE t SET v = 'new' WHERE id = 1")
        row = await (await other.execute("SELECT pg_current_xact_id()::text")).fetchone()
        assert row is not None
        bench.delivered.add(int(row[0]))
        reading = asyncio.create_task(bench.read(shape, where="id = 1"))
        await bench.until_running(1)
        assert not reading.done()
        await other.commit()
    assert (await reading)["data"][0]["value"]["v"] == "new"
    assert bench.delivered.unseen() == (), "what was seen once need not be waited for again"


def test_what_was_delivered_is_forgotten_once_it_was_seen() -> None:
    delivered = Delivered()
    for xid in (5, 7, 6, 9):
        delivered.add(xid)
    delivered.shown(Snapshot(6, 9, frozenset((6,))))
    assert delivered.unseen() == (6, 9)
    delivered.shown(Snapshot(10, 10, frozenset()))
    assert delivered.unseen() == ()
    for xid in range(RING + 5):
        delivered.add(xid)
    assert len(delivered.unseen()) == RING


async def test_a_large_result_is_a_file_as_long_as_it_is_needed(bench: Bench) -> None:
    await bench.execute("INSERT INTO t SELECT i, i % 10, repeat('x', 1000) FROM generate_series(1000, 3000) i")
    shape = await bench.shape()
    async with bench.subsets.read(shape, SubsetRequest(order_by="id")) as result:
        assert result.file.startswith("subsets/")
        assert result.size > INLINE_BYTES
        assert len(json.loads((bench.storage / result.file).read_bytes())["data"]) == 2101
        assert bench.spooled() == [bench.storage / result.file]
    assert bench.spooled() == []
    async with bench.subsets.read(shape, SubsetRequest(order_by="id", limit=50)) as result:
        assert (result.file, bench.spooled()) == ("", [])


async def test_what_a_killed_worker_left_behind_is_removed(bench: Bench) -> None:
    bench.subsets.sweep()
    folder = bench.storage / "subsets"
    folder.mkdir()
    for name in ("old", "new"):
        (folder / name).write_text("[")
    os.utime(folder / "old", (time.time() - ABANDONED_SECONDS - 1,) * 2)
    bench.subsets.sweep()
    assert bench.spooled() == [folder / "new"]


async def test_a_query_ends_with_whoever_wanted_it(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    # Nothing else would end it.
    monkeypatch.setattr(subsets, "ANSWER_SECONDS", 1000.0)
    monkeypatch.setattr(snapshot_start, "LOCK_SECONDS", 1000.0)
    shape = await bench.shape()
    async with await psycopg.AsyncConnection.connect(bench.url) as other:
        await other.execute("LOCK TABLE t")
        reading = asyncio.create_task(bench.read(shape))
        await bench.until_running(1)
        reading.cancel()
        async with asyncio.timeout(PATIENCE):
            with pytest.raises(asyncio.CancelledError):
                await reading
        await bench.until_running(0)
    assert bench.spooled() == []
    assert len(await bench.ids(shape, where="id < 4")) == 3


async def test_at_most_so_many_are_read_at_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subsets, "QUEUE_SECONDS", 0.05)
    shape = await bench.shape()
    async with await psycopg.AsyncConnection.connect(bench.url) as other:
        await other.execute("LOCK TABLE t")
        reading = [asyncio.create_task(bench.ids(shape, where="id < 4")) for _ in range(2)]
        await bench.until_running(2)
        refusal = await bench.refused(shape)
        assert (refusal.status, refusal.retry_after, refusal.known) == (503, 10, True)
        assert b"ELECTRIC_DB_POOL_SIZE" in refusal.body
        await other.rollback()
    assert [len(ids) for ids in await asyncio.gather(*reading)] == [3, 3]


async def test_a_query_that_takes_too_long_is_given_up(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subsets, "ANSWER_SECONDS", 1.0)
    await bench.execute("CREATE TABLE big (id int PRIMARY KEY, v text)")
    await bench.execute("INSERT INTO big SELECT i, repeat('x', 100) FROM generate_series(1, 20000) i")
    shape = await bench.shape(name="big")
    slow = " AND ".join(f"v NOT LIKE '%y%x%{number}%'" for number in range(1500))
    refusal = await bench.refused(shape, where=slow)
    assert (refusal.status, refusal.retry_after, refusal.known) == (503, 10, True)
    await bench.until_running(0)


async def test_connections_are_used_again_and_replaced_when_they_are_lost(bench: Bench) -> None:
    shape = await bench.shape()
    ours = "FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'galvanic subset'"
    pids = f"SELECT array_agg(pid) {ours}"
    await bench.read(shape)
    first = await bench.one(pids)
    await bench.read(shape)
    assert await bench.one(pids) == first
    await bench.refused(shape, where="1 / (n - 3) > 0")
    await bench.read(shape)
    assert await bench.one(pids) != first, "one whose statement failed is not used again"
    await bench.execute(f"SELECT pg_terminate_backend(pid) {ours}")
    async with asyncio.timeout(PATIENCE):
        while await bench.one(f"SELECT count(*) {ours}"):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    assert len(await bench.ids(shape)) == 100
    bench.subsets.sweep()
    assert await bench.one(pids) is not None, "it was needed a moment ago"


async def test_errors_are_told_to_those_they_concern(bench: Bench) -> None:
    shape = await bench.shape()

    def body(refusal: CannotCreate) -> tuple[int, Any]:
        return refusal.status, json.loads(refusal.body)

    status, answer = body(await bench.refused(shape, where="1 / (n - 3) > 0"))
    assert (status, answer["errors"]) == (400, {"subset": {"where": "division by zero"}})
    status, answer = body(await bench.refused(shape, where="zz"))
    assert (status, answer["errors"]) == (400, {"subset": {"where": ["At location 0: unknown reference zz"]}})
    status, answer = body(await bench.refused(shape, order_by="zz"))
    assert (status, answer["errors"]) == (400, {"subset": {"order_by": ["At location 18: unknown reference zz"]}})
    status, answer = body(await bench.refused(shape, where="v = 'x'", queryable=("id",)))
    assert (status, answer["errors"]) == (400, {"subset": {"where": ["At location 0: unknown reference v"]}})
    await bench.execute("CREATE TABLE docs (id int PRIMARY KEY, doc json)")
    docs = await bench.shape(name="docs")
    status, answer = body(await bench.refused(docs, order_by="doc"))
    assert "ordering operator" in answer["errors"]["subset"]["order_by"][0]
    bench.subsets.system("1")
    assert (await bench.refused(shape)).status == 503, "another cluster"
    bench.subsets.system("")


async def test_no_rows_of_a_server_that_was_set_back(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = await bench.shape()
    position = await bench.one("SELECT (pg_current_wal_insert_lsn() - '0/0'::pg_lsn)::bigint")
    monkeypatch.setattr(Shape, "last", property(lambda _: Offset(position + 10**12, 0)))
    assert (await bench.refused(shape)).status == 503


async def test_a_shape_that_ends_meanwhile_or_does_not_fit_its_table_is_over(bench: Bench) -> None:
    shape = await bench.shape()
    async with await psycopg.AsyncConnection.connect(bench.url) as other:
        await other.execute("LOCK TABLE t")
        reading = asyncio.create_task(bench.read(shape))
        await bench.until_running(1)
        shape.life, shape.reason = Life.ENDED, "it was deleted"
        await other.rollback()
        with pytest.raises(ShapeEnded, match="deleted"):
            await reading
    shape = await bench.shape()
    await bench.execute("ALTER TABLE t RENAME COLUMN v TO w")
    with pytest.raises(ShapeEnded):
        await bench.read(shape)


async def test_nothing_is_told_that_a_crash_of_the_server_could_take_back(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(subset_reading, "await_flush", lambda _, position, __: asked.append(position))
    found = await bench.read(await bench.shape(), where="id = 1")
    assert asked == [int(found["metadata"]["database_lsn"])]

"""Looking tables up: once for all who ask together, anew when anything about the table has changed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import psycopg
import pytest

from common import table as table_module
from common.postgres import Pool
from common.table import describe
from common.table_version import is_told_by_version, version
from shapeworker import descriptions as module
from shapeworker.descriptions import Descriptions

ALTERATIONS = (
    "ALTER TABLE t ADD c int",
    "ALTER TABLE t DROP c",
    "ALTER TABLE t RENAME v TO w",
    "ALTER TABLE t ALTER w TYPE varchar(7)",
    "ALTER TABLE t ALTER w TYPE varchar(9)",
    "ALTER TABLE t ALTER w SET NOT NULL",
    'ALTER TABLE t ALTER w TYPE varchar(9) COLLATE "C"',
    "ALTER TABLE t DROP CONSTRAINT t_pkey",
    "ALTER TABLE t ADD PRIMARY KEY (w, id)",
    "ALTER TABLE t SET UNLOGGED",
    "ALTER TABLE t SET LOGGED",
    "ALTER TABLE t ADD g int GENERATED ALWAYS AS (id * 2) STORED",
    "ALTER TABLE t ALTER g DROP EXPRESSION",
    "ALTER TABLE t SET SCHEMA elsewhere; ALTER TABLE elsewhere.t SET SCHEMA public",
    "DROP TABLE t; CREATE TABLE t (id int PRIMARY KEY, v text)",
)


class Bench:
    def __init__(self, url: str, connection: psycopg.AsyncConnection, monkeypatch: pytest.MonkeyPatch) -> None:
        self.connection = connection
        self.pool = Pool(url, "test", 3, prepares=True)
        self.descriptions = Descriptions(self.pool)
        self.looks = 0

        async def watched(*arguments: str) -> table_module.Table | None:
            self.looks += 1
            return await describe(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(module, "describe", watched)

    async def execute(self, statement: str) -> None:
        await self.connection.execute(statement.encode())


@pytest.fixture
async def bench(database: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    async with await psycopg.AsyncConnection.connect(database, autocommit=True) as connection:
        bench = Bench(database, connection, monkeypatch)
        await bench.execute("CREATE SCHEMA elsewhere; CREATE TABLE t (id int PRIMARY KEY, v text)")
        yield bench
        await bench.pool.close()


async def test_a_table_is_described_once_as_long_as_nothing_changes(bench: Bench) -> None:
    first = await bench.descriptions.of("public", "t")
    assert first.table == await describe(bench.connection, "public", "t")
    assert first.version
    await bench.execute("INSERT INTO t VALUES (1); ANALYZE t")
    await bench.execute("VACUUM t")
    found = await asyncio.gather(*(bench.descriptions.of("public", "t") for _ in range(20)))
    assert all(description is first for description in found)
    assert bench.looks == 1
    bench.descriptions.forget()
    await bench.descriptions.of("public", "t")
    assert bench.looks == 2


async def test_whatever_changes_is_seen_at_once(bench: Bench) -> None:
    for statement in ALTERATIONS:
        before = await bench.descriptions.of("public", "t")
        await bench.execute(statement)
        after = await bench.descriptions.of("public", "t")
        assert after.table == await describe(bench.connection, "public", "t")
        assert after.version != before.version, statement


async def test_what_is_equal_is_one_object(bench: Bench) -> None:
    before = await bench.descriptions.of("public", "t")
    await bench.execute("ALTER TABLE t SET (fillfactor = 90)")
    after = await bench.descriptions.of("public", "t")
    assert after.version != before.version
    assert after.table is before.table


async def test_types_that_may_be_altered_are_looked_up_each_time(bench: Bench) -> None:
    await bench.execute("CREATE TYPE mood AS ENUM ('sad'); CREATE TABLE m (id int PRIMARY KEY, v mood[])")
    first = await bench.descriptions.of("public", "m")
    assert first.table is not None
    assert not is_told_by_version(first.table)
    assert first.version == ""
    await bench.execute("ALTER TYPE mood ADD VALUE 'happy'")
    assert (await bench.descriptions.of("public", "m")).table == await describe(bench.connection, "public", "m")


async def test_who_asks_while_a_look_is_under_way_gets_a_later_one(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    going, go_on = asyncio.Event(), asyncio.Event()

    async def slow(connection: psycopg.AsyncConnection, schema: str, name: str) -> table_module.Table | None:
        found = await describe(connection, schema, name)
        going.set()
        await go_on.wait()
        return found

    monkeypatch.setattr(module, "describe", slow)
    early = asyncio.create_task(bench.descriptions.of("public", "t"))
    await going.wait()
    await bench.execute("ALTER TABLE t ADD c int")
    late = asyncio.create_task(bench.descriptions.of("public", "t"))
    await asyncio.sleep(0)
    go_on.set()
    described = await late
    assert described.table is not None
    assert described.table.column("c") is not None
    assert described.version == await version(bench.connection, "public", "t")
    # It was altered while it was being described: nobody may take that for what the version means.
    assert (await early).version == ""


async def test_a_table_that_is_not_there(bench: Bench) -> None:
    assert (await bench.descriptions.of("public", "nothing")).table is None
    await bench.execute("CREATE TABLE nothing (id int)")
    assert (await bench.descriptions.of("public", "nothing")).table is not None


async def test_an_error_is_for_those_who_asked_then(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: object) -> None:
        raise psycopg.OperationalError("the connection is lost")

    with monkeypatch.context() as broken:
        broken.setattr(module, "version", fail)
        for outcome in await asyncio.gather(
            *(bench.descriptions.of("public", "t") for _ in range(2)), return_exceptions=True
        ):
            assert isinstance(outcome, psycopg.OperationalError)
    assert (await bench.descriptions.of("public", "t")).table is not None

"""What somebody may do to the publication while shapes are followed: what cannot be right ends, all else goes on."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from functools import partial

import aiohttp
import psycopg
import pytest

from tests.faults.generations import generations
from tests.faults.mortal import Mortal, compare, stopped_at_last, until, written
from tests.pipeline.fixtures import StartStack
from tests.pipeline.reader import HANG_SECONDS
from tests.pipeline.schema import mark
from tests.pipeline.stack import Stack

PUBLICATION = "electric_publication_default"
PERIOD = {"ELECTRIC_TWEAKS_PUBLICATION_REFRESH_PERIOD": "1s"}
LONG_PERIOD = {"ELECTRIC_TWEAKS_PUBLICATION_REFRESH_PERIOD": "3600s"}
WRITES = ("UPDATE t SET v = v + 1 WHERE id = 1", "INSERT INTO t (id) SELECT max(id) + 1 FROM t")


@pytest.fixture
async def connection(database: str) -> AsyncIterator[psycopg.AsyncConnection]:
    async with await psycopg.AsyncConnection.connect(database, autocommit=True) as connection:
        await connection.execute(
            "CREATE TABLE marker (id bigserial PRIMARY KEY); CREATE TABLE t (id int PRIMARY KEY, v int DEFAULT 0);"
            "CREATE TABLE u (id int PRIMARY KEY, v int); INSERT INTO t VALUES (1), (2); INSERT INTO u VALUES (1, 1)"
        )
        yield connection


@contextlib.asynccontextmanager
async def followed(stack: Stack, *tables: str) -> AsyncIterator[list[Mortal]]:
    """Readers of these tables that may end, complete; stopped afterwards."""
    readers = [Mortal(stack.url, table) for table in tables]
    async with stopped_at_last(readers):
        for reader in readers:
            reader.start()
        for reader in readers:
            await reader.current()
        yield readers


async def execute(connection: psycopg.AsyncConnection, statements: str) -> None:
    for statement in statements.replace("{p}", PUBLICATION).split(";"):
        await connection.execute(statement.encode())


async def members(connection: psycopg.AsyncConnection) -> list[str]:
    cursor = await connection.execute("SELECT tablename FROM pg_publication_tables ORDER BY 1")
    return [row[0] for row in await cursor.fetchall()]


async def published(connection: psycopg.AsyncConnection, *tables: str) -> None:
    """Waits until exactly these tables are in the publication."""
    async with asyncio.timeout(HANG_SECONDS):
        while await members(connection) != sorted(tables):  # noqa: ASYNC110
            await asyncio.sleep(0.1)


def renewed(stack: Stack, readers: list[Mortal], generations_before: int) -> bool:
    """Whether another generation began and all these shapes have ended."""
    return len(generations(stack)) > generations_before and all(reader.over for reader in readers)


FAULTS = {
    "dropped": "DROP PUBLICATION {p}",
    "recreated": "DROP PUBLICATION {p}; CREATE PUBLICATION {p} FOR TABLE t, u, marker",
    "inserts only": "ALTER PUBLICATION {p} SET (publish = 'insert')",
    "via root": "ALTER PUBLICATION {p} SET (publish_via_partition_root = true)",
    "inserts only for a moment": "ALTER PUBLICATION {p} SET (publish = 'insert'); UPDATE t SET v = -1; "
    "ALTER PUBLICATION {p} SET (publish = 'insert, update, delete, truncate')",
}


@pytest.mark.faults
async def test_a_publication_that_cannot_be_trusted_starts_a_new_generation(
    database: str, connection: psycopg.AsyncConnection, start_stack: StartStack
) -> None:
    """Also on a table that nobody writes to; and afterwards the publication is as it must be."""
    stack = await start_stack(database, workers=2, environment=PERIOD)
    async with followed(stack, "t", "u", "marker") as readers, written(database, WRITES):
        for name, statements in FAULTS.items():
            for reader in readers:
                reader.view.ended.clear()
            before = len(generations(stack))
            await execute(connection, statements)
            await until(
                partial(renewed, stack, readers, before),
                readers,
                partial("shapes that end: {}".format, name),
            )
            # In the new generation, all of them: a table that was out of the publication may end its shape before.
            lsn = await mark(database)
            for reader in readers:
                await reader.seen(lsn)
        operations = (
            "SELECT pubinsert AND pubupdate AND pubdelete AND pubtruncate AND NOT pubviaroot FROM pg_publication"
        )
        assert await (await connection.execute(operations)).fetchall() == [(True,)]
        for reader in readers:
            await reader.current()
        ended = [len(reader.view.ended) for reader in readers]
        await asyncio.sleep(3)  # three looks, none of which has anything to find
        assert [len(reader.view.ended) for reader in readers] == ended
    async with followed(stack, "t", "u", "marker") as readers:
        await compare(database, readers)


@pytest.mark.faults
async def test_a_fault_between_two_sessions_is_found_at_the_start(
    database: str, connection: psycopg.AsyncConnection, start_stack: StartStack
) -> None:
    """With nobody there to look: the publication altered for a while, a table out of it for a while."""
    stack = await start_stack(database, environment=LONG_PERIOD)
    async with followed(stack, "t", "u", "marker") as (t, u, marker):
        await asyncio.sleep(1)
        await stack.stop()
        await execute(
            connection,
            "ALTER PUBLICATION {p} DROP TABLE t; UPDATE t SET v = 7; ALTER PUBLICATION {p} ADD TABLE t",
        )
        stack.start()
        await until(lambda: t.over, [t, u, marker], lambda: "the end of the shape of t")
        await compare(database, [t, u, marker])
        assert not u.over
        assert not marker.over
    await stack.stop()
    await execute(connection, FAULTS["inserts only for a moment"])
    stack.start()
    async with followed(stack, "t", "u", "marker") as readers:
        assert {t.view.handle, u.view.handle}.isdisjoint({reader.view.handle for reader in readers})
        await compare(database, readers)


async def test_generated_columns_are_published_again_and_only_shapes_that_have_one_may_end(
    database: str, connection: psycopg.AsyncConnection, start_stack: StartStack
) -> None:
    """Without them Postgres refuses updates and deletes of such a table, so that only inserts can show it."""
    await connection.execute(
        "CREATE TABLE g (id int PRIMARY KEY, v int, w int GENERATED ALWAYS AS (v + 1) STORED); INSERT INTO g VALUES (1)"
    )
    stack = await start_stack(database, environment=PERIOD)
    async with followed(stack, "g", "t", "marker") as readers:
        g, *others = readers
        await execute(
            connection,
            "BEGIN; ALTER PUBLICATION {p} SET (publish_generated_columns = none); INSERT INTO g VALUES (2); COMMIT",
        )
        await until(lambda: g.over, readers, lambda: "the end of the shape of g")
        async with asyncio.timeout(HANG_SECONDS):
            query = "SELECT pubgencols FROM pg_publication"
            while await (await connection.execute(query)).fetchone() != ("s",):  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        await connection.execute("UPDATE g SET v = 6; UPDATE t SET v = 6")
        await asyncio.sleep(3)
        await connection.execute("UPDATE g SET v = 7; UPDATE t SET v = 7")
        await compare(database, readers)
        assert not any(reader.over for reader in others)


@pytest.mark.faults
async def test_a_publication_for_all_tables_is_left_as_it_is(
    database: str, connection: psycopg.AsyncConnection, start_stack: StartStack
) -> None:
    await execute(connection, "CREATE PUBLICATION {p} FOR ALL TABLES WITH (publish_generated_columns = stored)")
    stack = await start_stack(database, environment=PERIOD)
    async with followed(stack, "t", "marker") as readers, written(database, WRITES):
        await asyncio.sleep(3)
        await connection.execute("DROP TABLE u; CREATE TABLE u (id int PRIMARY KEY); INSERT INTO u VALUES (9)")
        assert not any(reader.over for reader in readers)
        async with followed(stack, "u") as more:
            await connection.execute("UPDATE u SET id = 10")
            await compare(database, more)
    async with followed(stack, "t", "marker") as readers:
        await compare(database, readers)
    cursor = await connection.execute("SELECT puballtables FROM pg_publication")
    assert await cursor.fetchall() == [(True,)]


async def test_tables_that_no_shape_needs_leave_the_publication(
    database: str, connection: psycopg.AsyncConnection, start_stack: StartStack
) -> None:
    """And come back with the next shape, however the two meet; those added by hand stay."""
    stack = await start_stack(database, workers=2, environment=PERIOD)
    await connection.execute("CREATE TABLE by_hand (id int)")
    await execute(connection, "ALTER PUBLICATION {p} ADD TABLE by_hand")
    async with followed(stack, "u", "marker") as readers, written(database, WRITES):
        handle = None
        for pause in (0.0, 0.7, 1.4, 2.1, 2.8, 3.5):
            async with followed(stack, "t") as (reader,):
                # A deleted shape is served for some milliseconds more.
                while reader.view.handle in (handle, None):
                    reader.check()
                    await asyncio.sleep(0.01)
                handle = reader.view.handle
            async with (
                aiohttp.ClientSession() as session,
                session.delete(f"{stack.url}/v1/shape?handle={handle}") as response,
            ):
                assert response.status == 202, await response.text()
            await asyncio.sleep(pause)
        await published(connection, "by_hand", "marker", "u")
        async with followed(stack, "t") as (again,):
            await published(connection, "by_hand", "marker", "t", "u")
            await asyncio.sleep(3)
            assert await members(connection) == ["by_hand", "marker", "t", "u"]
            assert not again.over
        assert not any(reader.over for reader in readers)
    async with followed(stack, "t", "u", "marker") as readers:
        await compare(database, readers)


@pytest.mark.faults
async def test_with_manual_publishing_nothing_is_altered(
    database: str, connection: psycopg.AsyncConnection, start_stack: StartStack
) -> None:
    await execute(
        connection,
        "CREATE PUBLICATION {p} FOR TABLE t, u, marker WITH (publish_generated_columns = stored);"
        "ALTER TABLE t REPLICA IDENTITY FULL; ALTER TABLE u REPLICA IDENTITY FULL;"
        "ALTER TABLE marker REPLICA IDENTITY FULL",
    )
    stack = await start_stack(database, environment=PERIOD | {"ELECTRIC_MANUAL_TABLE_PUBLISHING": "true"})
    async with followed(stack, "t", "marker") as readers, written(database, WRITES):
        t, marker = readers
        await execute(connection, "ALTER PUBLICATION {p} DROP TABLE t")
        await until(lambda: bool(t.refusals), readers, lambda: "a refusal")
        assert "is missing from the publication" in t.refusals[-1]
        assert "ELECTRIC_MANUAL_TABLE_PUBLISHING" in t.refusals[-1]
        await asyncio.sleep(2)
        assert await members(connection) == ["marker", "u"]
        await execute(connection, "ALTER PUBLICATION {p} ADD TABLE t")
        await t.current()
        assert not marker.over
    async with followed(stack, "t", "marker") as readers:
        await compare(database, readers)
    assert await members(connection) == ["marker", "t", "u"]

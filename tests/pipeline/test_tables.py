"""Tables of every kind through the real processes: partitions, generated columns, tables that change or cannot be."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import aiohttp
import psycopg
import pytest

from tests.pipeline.fixtures import StartStack
from tests.pipeline.reader import HANG_SECONDS, Reader
from tests.pipeline.schema import mark
from tests.pipeline.stack import Stack


@pytest.fixture
async def connection(database: str) -> AsyncIterator[psycopg.AsyncConnection]:
    async with await psycopg.AsyncConnection.connect(database, autocommit=True) as connection:
        await connection.execute("CREATE TABLE marker (id bigserial PRIMARY KEY)")
        yield connection


async def followed(
    stack: Stack, *tables: str, columns: list[str] | None = None, mortal: tuple[str, ...] = ()
) -> list[Reader]:
    """Readers of these tables and of the marker, up to date once; only shapes of ``mortal`` tables may end."""
    readers = [Reader(stack.url, table, columns=columns, protected=table not in mortal).start() for table in tables]
    readers.append(Reader(stack.url, "marker", protected=True).start())
    for reader in readers:
        await reader.current()
    return readers


async def compare(database: str, readers: list[Reader]) -> None:
    """At rest every reader holds what Postgres says; stops them."""
    lsn = await mark(database)
    for reader in readers:
        await reader.at_rest(lsn)
        await reader.verify(database)
        await reader.stop()


async def ended(reader: Reader) -> None:
    """Wait until the reader's shape has ended, and stop it."""
    async with asyncio.timeout(HANG_SECONDS):
        while not reader.view.ended:
            reader._complete_since = None  # a settled shape may end here: that is what is waited for
            reader.check()
            await asyncio.sleep(0.05)
    await reader.stop()


async def test_partitions_by_root_and_leaf(
    database: str, connection: psycopg.AsyncConnection, start_stack: StartStack
) -> None:
    """A root shows all its leaves' changes under its own name, also those of leaves that come later (engine.md 4.7)."""
    await connection.execute(
        """
        CREATE TABLE parts (id int, region text, v text, PRIMARY KEY (id, region)) PARTITION BY LIST (region);
        CREATE TABLE parts_eu PARTITION OF parts FOR VALUES IN ('eu');
        CREATE TABLE parts_us PARTITION OF parts FOR VALUES IN ('us') PARTITION BY RANGE (id);
        CREATE TABLE parts_us_1 PARTITION OF parts_us FOR VALUES FROM (0) TO (100);
        INSERT INTO parts VALUES (1, 'eu', 'a'), (2, 'us', 'b');
        """
    )
    stack = await start_stack(database, workers=2)
    readers = await followed(stack, "parts", "parts_eu", "parts_us", "parts_us_1")
    for statement in (
        "INSERT INTO parts VALUES (3, 'eu', 'c'), (4, 'us', 'd')",
        "UPDATE parts SET v = 'e' WHERE id IN (1, 4)",
        "UPDATE parts SET region = 'us' WHERE id = 3",
        "DELETE FROM parts WHERE id = 2",
        "CREATE TABLE parts_as PARTITION OF parts FOR VALUES IN ('as')",
        "INSERT INTO parts VALUES (5, 'as', 'n')",
    ):
        await connection.execute(statement)
    # A leaf that was attached runs without full old rows for a moment; once it has been seen it does not.
    async with asyncio.timeout(HANG_SECONDS):
        identity = "SELECT relreplident FROM pg_class WHERE relname = 'parts_as'"
        while await (await connection.execute(identity)).fetchone() != ("f",):  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    await connection.execute("UPDATE parts SET v = 'changed' WHERE id = 5")
    await compare(database, readers)


async def test_truncating_a_leaf_ends_leaf_and_root_but_no_sibling(
    database: str, connection: psycopg.AsyncConnection, start_stack: StartStack
) -> None:
    await connection.execute(
        """
        CREATE TABLE parts (id int PRIMARY KEY) PARTITION BY RANGE (id);
        CREATE TABLE low PARTITION OF parts FOR VALUES FROM (0) TO (10);
        CREATE TABLE high PARTITION OF parts FOR VALUES FROM (10) TO (20);
        INSERT INTO parts VALUES (1), (11);
        """
    )
    stack = await start_stack(database)
    root, low, high, marker = await followed(stack, "parts", "low", "high", mortal=("parts", "low"))
    await connection.execute("TRUNCATE low")
    await ended(root)
    await ended(low)
    await compare(database, [high, marker])


async def test_changes_of_a_table_end_only_the_shapes_they_concern(
    database: str, connection: psycopg.AsyncConnection, start_stack: StartStack
) -> None:
    await connection.execute(
        "CREATE TABLE t (id int PRIMARY KEY, a text, b text); INSERT INTO t VALUES (1, 'a', 'b');"
        "CREATE TABLE other (id int PRIMARY KEY)"
    )
    stack = await start_stack(database)
    everything, other, marker = await followed(stack, "t", "other", mortal=("t",))
    some, second_marker = await followed(stack, "t", columns=["id", "a"])
    await connection.execute("ALTER TABLE t ADD COLUMN c text; INSERT INTO t VALUES (2, 'x', 'y', 'z')")
    await ended(everything)
    await connection.execute("INSERT INTO other VALUES (1)")
    await compare(database, [some, second_marker])
    again, *rest = await followed(stack, "t")
    await compare(database, [again, other, marker, *rest])


async def test_keys_that_two_rows_have_for_a_while(
    database: str, connection: psycopg.AsyncConnection, start_stack: StartStack
) -> None:
    """A DEFERRABLE primary key lets rows move over each other; what cannot be told in changes ends the shapes."""
    await connection.execute(
        "CREATE TABLE t (id int PRIMARY KEY DEFERRABLE, v text);"
        "INSERT INTO t SELECT i, 'row ' || i FROM generate_series(1, 5) i"
    )
    stack = await start_stack(database)
    readers = await followed(stack, "t", mortal=("t",))
    part = Reader(stack.url, "t", where="v <> 'row 2'")
    part.may_end = True
    part.start()
    await part.current()
    await connection.execute("UPDATE t SET v = v || '!' WHERE id = 5")
    await connection.execute("UPDATE t SET id = id + 10 WHERE id = 4")
    await compare(database, readers)
    assert not readers[0].view.ended
    again = await followed(stack, "t", mortal=("t",))
    await connection.execute("UPDATE t SET id = id + 1")
    await ended(again[0])
    last = await followed(stack, "t")
    await compare(database, [part, *again[1:], *last])


async def test_stored_generated_columns_and_untouched_toast(
    database: str, connection: psycopg.AsyncConnection, start_stack: StartStack
) -> None:
    await connection.execute(
        """
        CREATE TABLE g (id int PRIMARY KEY, n int, twice int GENERATED ALWAYS AS (n * 2) STORED, big text);
        ALTER TABLE g ALTER big SET STORAGE EXTERNAL;
        INSERT INTO g (id, n, big) SELECT i, i, repeat(md5(i::text), 200) FROM generate_series(1, 5) i;
        """
    )
    stack = await start_stack(database)
    readers = await followed(stack, "g")
    await connection.execute("UPDATE g SET n = n + 1; UPDATE g SET id = 9 WHERE id = 5; INSERT INTO g (id) VALUES (7)")
    await compare(database, readers)


async def test_generated_columns_that_a_foreign_publication_lacks_are_asked_for(
    database: str, connection: psycopg.AsyncConnection, start_stack: StartStack
) -> None:
    """Also if only the filter reads them; shapes without them are made."""
    name = "electric_publication_default"
    await connection.execute(
        "CREATE TABLE g (id int PRIMARY KEY, n int, twice int GENERATED ALWAYS AS (n * 2) STORED);"
        "INSERT INTO g (id, n) SELECT i, i FROM generate_series(1, 9) i; ALTER TABLE g REPLICA IDENTITY FULL;"
        f"CREATE PUBLICATION {name} FOR TABLE g".encode()
    )
    stack = await start_stack(database, environment={"ELECTRIC_MANUAL_TABLE_PUBLISHING": "true"})
    url = f"{stack.url}/v1/shape?table=g&offset=-1"
    async with aiohttp.ClientSession() as session:
        for query in ("", "&columns=id&where=twice>6"):
            async with session.get(url + query) as response:
                body = await response.json()
                assert response.status == 503, query
                assert "does not publish generated columns" in body["message"]
        # Who begins "now" needs no snapshot, and is told by the next request.
        async with session.get(f"{stack.url}/v1/shape?table=g&offset=now") as response:
            assert (response.status, response.headers["electric-offset"]) == (200, "0_inf")
            handle = response.headers["electric-handle"]
        resumed = f"{stack.url}/v1/shape?table=g&offset=0_inf&live=true&handle={handle}"
        async with session.get(resumed) as response:
            assert response.status == 503
        async with session.get(url + "&columns=id,n&where=n>3") as response:
            assert response.status == 200
        await stack.wait_logged("w00", f'ALTER PUBLICATION \\"{name}\\" SET (publish_generated_columns = stored);')
        await connection.execute(f"ALTER PUBLICATION {name} SET (publish_generated_columns = stored)".encode())
        async with session.get(url + "&columns=id&where=twice>6") as response:
            assert response.status == 200
            assert (await response.text()).count('"operation":"insert"') == 6
        async with session.get(resumed) as response:
            assert response.status == 409
            assert response.headers["electric-handle"] != handle


async def test_what_cannot_be_a_shape_is_refused_by_name(
    database: str, connection: psycopg.AsyncConnection, start_stack: StartStack
) -> None:
    await connection.execute(
        "CREATE UNLOGGED TABLE fleeting (id int PRIMARY KEY); CREATE VIEW seen AS SELECT 1 AS id;"
        "CREATE TABLE t (id int PRIMARY KEY, v int, w int GENERATED ALWAYS AS (v) VIRTUAL)"
    )
    stack = await start_stack(database)
    cases = {
        "table=nope": ("table", 'Table "public"."nope" does not exist.'),
        "table=seen": ("table", 'Table "public"."seen" does not exist.'),
        "table=pg_catalog.pg_class": ("table", 'Table "pg_catalog"."pg_class" does not exist.'),
        "table=fleeting": ("table", "unlogged"),
        "table=t": ("columns", "The following columns are generated and cannot be included in the shape: w"),
        "table=t&columns=id&where=w=1": ("where", "column w is generated and not part of the stream"),
        "table=t&columns=v": ("columns", "must include all primary key columns, missing: id"),
        "table=t&columns=id,x": ("columns", "The following columns are not found on the table: x"),
        "table=t&columns=id&where=v%3D%27x%27": ("where", "invalid syntax for type int4"),
    }
    async with aiohttp.ClientSession() as session:
        for query, (field, text) in cases.items():
            async with session.get(f"{stack.url}/v1/shape?{query}&offset=-1") as response:
                body = await response.json()
                assert response.status == 400, query
                assert text in body["errors"][field][0], query
        async with session.get(f"{stack.url}/v1/shape?table=t&columns=id,v&offset=-1") as response:
            assert response.status == 200


async def test_a_deleted_shape_is_gone_at_once_and_made_anew_on_request(
    database: str, connection: psycopg.AsyncConnection, start_stack: StartStack
) -> None:
    await connection.execute("CREATE TABLE t (id int PRIMARY KEY)")
    stack = await start_stack(database, workers=2, gateways=2)
    reader, marker = await followed(stack, "t", mortal=("t",))
    handle = reader.view.handle
    async with aiohttp.ClientSession() as session:
        async with session.delete(f"{stack.url}/v1/shape?handle={handle}") as response:
            assert response.status == 202
        await ended(reader)
        async with session.delete(f"{stack.url}/v1/shape?handle={handle}") as response:
            assert response.status == 404
        async with session.get(f"{stack.url}/v1/shape?table=t&offset=-1&handle={handle}") as response:
            assert response.status == 200
            assert response.headers["electric-handle"] != handle
    again, second_marker = await followed(stack, "t")
    await connection.execute("INSERT INTO t VALUES (1)")
    await compare(database, [again, marker, second_marker])

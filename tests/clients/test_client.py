"""What the client's own suite asks of a server, one thing at a time (http-api.md 32, client-expectations.md)."""

from __future__ import annotations

import asyncio
from typing import Final

import aiohttp
import pytest

from tests.clients import traffic
from tests.clients.lineup import NO_HANDLE_YET, Lineup, Way
from tests.clients.subject import Subject

pytestmark = pytest.mark.timeout(300)

WAYS: Final = [Way("current"), Way("old"), Way("current", sse=True), Way("old", sse=True)]


@pytest.mark.parametrize("way", WAYS, ids=str)
async def test_values_have_the_types_of_their_columns(lineup: Lineup, way: Way) -> None:
    table = f'electric_test."issues for {way}.1"'
    await traffic.run(
        lineup.database,
        f"""CREATE SCHEMA IF NOT EXISTS electric_test;
        CREATE TYPE mood_{way} AS ENUM ('sad', 'ok', 'very happy');
        CREATE TYPE pair_{way} AS (a int, b text);
        CREATE DOMAIN digits_{way} AS int CHECK (VALUE > 0);
        CREATE TABLE {table} (
          "the id" int8, part text, "has,comma" int4, "has""quote" text, small int2, big int8, f4 float4, f8 float8,
          yes bool, doc jsonb, raw json, ints int4[], nested int8[][], texts text[], floats float8[],
          feeling mood_{way}, feelings mood_{way}[], pair pair_{way}, d digits_{way},
          ds digits_{way}[], n numeric, u uuid, at timestamptz, day date, b bytea, i interval, nothing text,
          PRIMARY KEY ("the id", part));
        INSERT INTO {table} VALUES (
          1, 'a/b', 7, 'quo"ted', -32768, 9223372036854775807, 0.1, 1e300, false,
          '{{"a": [1, null]}}', '[1]', '{{1,NULL,3}}', '{{{{9007199254740993,2}},{{3,4}}}}',
          ARRAY['a,b', NULL, 'c"d', 'NULL', ''], '{{NaN,Infinity,-Infinity,1.5}}', 'very happy', '{{sad,"very happy"}}',
          '(1,"x y")', 5, '{{5,9}}', 12345678901234567890.12, 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11',
          '2026-11-23T02:00:00.5+02', '2026-11-23', '\\xdeadbeef', '1 day 2 hours', NULL)""",
    )
    driver = await lineup.follow("typed", table, way)
    await driver.until("typed", upToDate=True)
    assert await driver.call("keys", name="typed") == [f'"electric_test"."issues for {way}..1"/"1"/"a//b"']
    initial = {
        "the id": ["bigint", "1"],
        "part": ["string", "a/b"],
        "has,comma": ["number", "7"],
        'has"quote': ["string", 'quo"ted'],
        "small": ["number", "-32768"],
        "big": ["bigint", "9223372036854775807"],
        "f4": ["number", "0.1"],
        "f8": ["number", "1e+300"],
        "yes": ["boolean", False],
        # The driver leaves JSON as it comes.
        "doc": ["string", '{"a": [1, null]}'],
        "raw": ["string", "[1]"],
        "ints": [["number", "1"], None, ["number", "3"]],
        "nested": [[["bigint", "9007199254740993"], ["bigint", "2"]], [["bigint", "3"], ["bigint", "4"]]],
        "texts": [["string", "a,b"], None, ["string", 'c"d'], ["string", "NULL"], ["string", ""]],
        "floats": [["number", "NaN"], ["number", "Infinity"], ["number", "-Infinity"], ["number", "1.5"]],
        "feeling": ["string", "very happy"],
        "feelings": [["string", "sad"], ["string", "very happy"]],
        "pair": ["string", '(1,"x y")'],
        "d": ["string", "5"],
        "ds": [["string", "5"], ["string", "9"]],
        "n": ["string", "12345678901234567890.12"],
        "u": ["string", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"],
        "at": ["string", "2026-11-23 00:00:00.5+00"],
        "day": ["string", "2026-11-23"],
        "b": ["string", "\\xdeadbeef"],
        "i": ["string", "P1DT2H"],
        "nothing": None,
    }
    assert await driver.call("typed", name="typed") == [initial]

    changed = (
        """yes = true, big = -9007199254740993, ints = '{}', floats = NULL, "has,comma" = NULL, "has""quote" = ''"""
    )
    await traffic.run(lineup.database, f"UPDATE {table} SET {changed}")
    await driver.until("typed", operations={"insert": 1, "update": 1, "delete": 0}, upToDate=True)
    expected = initial | {
        "yes": ["boolean", True],
        "big": ["bigint", "-9007199254740993"],
        "ints": [],
        "floats": None,
        "has,comma": None,
        'has"quote': ["string", ""],
    }
    assert await driver.call("typed", name="typed") == [expected]

    # Version 1.0 joins the names as they are, so its users quote them.
    names = ["has,comma", 'has"quote', "the id", "part"]
    columns = names if way.package == "current" else ['"has,comma"', '"has""quote"', '"the id"', "part"]
    await lineup.follow("few", table, way, columns=columns)
    await driver.until("few", upToDate=True)
    assert await driver.call("typed", name="few") == [{name: expected[name] for name in names}]
    await lineup.check()


@pytest.mark.parametrize("way", WAYS, ids=str)
async def test_errors_are_told_and_can_be_mended(lineup: Lineup, way: Way) -> None:
    await traffic.run(
        lineup.database,
        f"CREATE TABLE mended_{way} (id int PRIMARY KEY); INSERT INTO mended_{way} VALUES (1), (2)",
    )
    driver = await lineup.driver("client")
    broken = lineup.options(f"mended_{way}", where="1 x 1")
    body = {
        "message": "Invalid request",
        "errors": {"where": ['At location 17: syntax error at or near "x"']},
    }
    await driver.call("open", name="broken", package=way.package, options=broken)
    state = await driver.until("broken", errors=lambda errors: errors)
    assert [(error["status"], error["body"]) for error in state["errors"]] == [(400, body)]

    mended = {"params": lineup.options(f"mended_{way}", where="id > 1")["params"]}
    await driver.call("open", name="mended", package=way.package, options=broken, retry=mended)
    await driver.until("mended", upToDate=True)
    assert await driver.call("rows", name="mended") == [{"id": "2"}]


@pytest.mark.parametrize("way", WAYS, ids=str)
async def test_a_deleted_shape_is_fetched_anew(lineup: Lineup, way: Way) -> None:
    table = f"deleted_{way}"
    await traffic.run(lineup.database, f"CREATE TABLE {table} (id int PRIMARY KEY); INSERT INTO {table} VALUES (1)")
    driver = await lineup.follow(table, table, way)
    handle = (await driver.until(table, upToDate=True))["handle"]
    for refetches in range(1, 4):
        async with (
            aiohttp.ClientSession() as session,
            session.delete(f"{lineup.url}/v1/shape", params={"table": table, "handle": handle}) as answer,
        ):
            assert answer.status == 202
        await traffic.run(lineup.database, f"INSERT INTO {table} VALUES ({refetches + 1})")
        await driver.until(table, refetches=refetches)
        state = await driver.until(table, upToDate=True, refetches=refetches)
        assert state["handle"] != handle
        handle = state["handle"]
        subject = Subject(driver, table, {"name": table})
        await subject.reach(refetches + 1)
        await subject.compare(lineup.database)
    await lineup.check(warnings=[NO_HANDLE_YET])


@pytest.mark.parametrize("way", WAYS, ids=str)
async def test_streams_of_one_process_do_not_silence_each_other(lineup: Lineup, way: Way) -> None:
    """Each remembers cursors and handles for all streams of its process (client-expectations.md 7)."""
    table = f"shared_{way}"
    await traffic.run(lineup.database, f"CREATE TABLE {table} (id int PRIMARY KEY); INSERT INTO {table} VALUES (1)")
    driver = await lineup.driver("client")
    subjects = []
    for number in range(4):
        name = f"{table} {number}"
        await lineup.follow(name, table, way)
        await driver.until(name, upToDate=True)
        subjects.append(Subject(driver, table, {"name": name}))
        await subjects[-1].compare(lineup.database)
        await traffic.run(lineup.database, f"INSERT INTO {table} VALUES ({number + 2})")
        if number == 1:
            await driver.call("close", name=f"{table} 0")
            del subjects[0]
    for subject in subjects:
        await subject.reach(5)
        await subject.compare(lineup.database)
    await lineup.check()


@pytest.mark.parametrize("way", WAYS, ids=str)
async def test_a_stream_resumes_where_another_left_off(lineup: Lineup, way: Way) -> None:
    table = f"resumed_{way}"
    await traffic.run(
        lineup.database,
        f"CREATE TABLE {table} (id int PRIMARY KEY, v text); INSERT INTO {table} SELECT i FROM generate_series(1, 9) i",
    )
    driver = await lineup.follow(table, table, way)
    await driver.until(table, upToDate=True)
    await traffic.run(lineup.database, *[f"UPDATE {table} SET v = 'x' WHERE id = {number}" for number in (1, 2, 3)])
    left = await driver.until(table, operations={"insert": 9, "update": 3, "delete": 0}, upToDate=True)
    await driver.call("close", name=table)
    await traffic.run(lineup.database, f"DELETE FROM {table} WHERE id = 5", f"INSERT INTO {table} VALUES (10)")
    place = {"offset": left["offset"], "handle": left["handle"]}
    await lineup.follow("resumed", table, way, place=place)
    state = await driver.until("resumed", upToDate=True, operations={"insert": 1, "update": 0, "delete": 1})
    assert state["refetches"] == 0
    await lineup.check()


async def test_old_values_come_with_replica_full(lineup: Lineup) -> None:
    await traffic.run(
        lineup.database,
        "CREATE TABLE whole (id int PRIMARY KEY, a text, b int); INSERT INTO whole VALUES (1, 'x', 1)",
    )
    driver = await lineup.driver("client")
    await driver.call("open", name="whole", options=lineup.options("whole", replica="full"))
    await driver.until("whole", upToDate=True)
    await traffic.run(lineup.database, "UPDATE whole SET a = 'y'", "UPDATE whole SET b = NULL, a = 'z'")
    state = await driver.until("whole", operations={"insert": 1, "update": 2, "delete": 0}, upToDate=True)
    assert state["oldValues"] == [{"a": "x"}, {"a": "y", "b": "1"}]
    assert await driver.call("rows", name="whole") == [{"id": "1", "a": "z", "b": None}]


@pytest.mark.parametrize("way", WAYS, ids=str)
async def test_a_table_that_is_made_again_is_followed_again(lineup: Lineup, way: Way) -> None:
    table = f"remade_{way}"
    create = f"CREATE TABLE {table} (id int PRIMARY KEY, v text)"
    await traffic.run(lineup.database, create, f"INSERT INTO {table} VALUES (1, 'first')")
    driver = await lineup.driver("client")
    # A client that does not give up, as most are told to be.
    await lineup.follow(table, table, way, retry={})
    await driver.until(table, upToDate=True)
    await traffic.run(lineup.database, f"DROP TABLE {table}; {create}; INSERT INTO {table} VALUES (2, 'second')")
    subject = Subject(driver, table, {"name": table})
    await subject.reach(2)
    await traffic.run(lineup.database, f"INSERT INTO {table} VALUES (3, 'third')")
    await subject.reach(3)
    await subject.compare(lineup.database)


@pytest.mark.parametrize("way", WAYS[:3], ids=str)
async def test_a_refresh_tells_of_commits_elsewhere(lineup: Lineup, way: Way) -> None:
    """A shape that nobody writes to moves on with the database: packages line shapes up by that.

    Not version 1.0 by events, which goes on with events at once, without the refresh.
    """
    quiet, busy = f"quiet_{way}", f"busy_{way}"
    for table in (quiet, busy):
        await traffic.run(lineup.database, f"CREATE TABLE {table} (id int PRIMARY KEY)")
    driver = await lineup.driver("client")
    for table in (quiet, busy):
        await lineup.follow(table, table, way)
        await driver.until(table, upToDate=True)
    for number in range(5):
        await traffic.run(lineup.database, f"INSERT INTO {busy} VALUES ({number})")
        wanted = await driver.until(busy, operations={"insert": number + 1, "update": 0, "delete": 0}, upToDate=True)
        async with asyncio.timeout(180):
            while int((await driver.call("state", name=quiet))["lsn"]) < int(wanted["lsn"]):
                await driver.call("refresh", name=quiet)
    await lineup.check()

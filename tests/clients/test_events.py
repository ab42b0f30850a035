"""Clients that follow live by server-sent events, with chunks that fill while they do (client-expectations.md 11)."""

from __future__ import annotations

import pytest

from tests.clients import traffic
from tests.clients.lineup import Lineup, Way
from tests.clients.subject import Subject

pytestmark = pytest.mark.timeout(300)


WAYS = [Way("current", sse=True), Way("old", sse=True)]


@pytest.mark.parametrize("way", WAYS, ids=str)
async def test_a_stream_that_breaks_off_is_resumed_without_repetition(lineup: Lineup, way: Way) -> None:
    """Transactions of several changes, of which the reference repeats all but the first; Shape would not show it."""
    table = f"broken_off_{way}"
    await traffic.run(lineup.database, f"CREATE TABLE {table} (id int PRIMARY KEY, v int)")
    driver = await lineup.follow(table, table, way)
    await driver.until(table, upToDate=True)
    for number in range(5):
        await traffic.run(
            lineup.database,
            f"INSERT INTO {table} SELECT {number} * 3 + i, 0 FROM generate_series(1, 3) i",
            f"UPDATE {table} SET v = v + 1 WHERE id > {number} * 3",
        )
        seen = {"insert": 3 * (number + 1), "update": 3 * (number + 1), "delete": 0}
        await driver.until(table, operations=seen)
        await driver.call("refresh", name=table)
    # Had the last one been repeated, it would have been so before this.
    await traffic.run(lineup.database, f"DELETE FROM {table} WHERE id IN (1, 2)")
    state = await driver.until(table, operations={**seen, "delete": 2})
    assert (state["complaints"], state["errors"]) == ([], [])
    await Subject(driver, table, {"name": table}).settle(lineup.database)


@pytest.mark.parametrize("way", WAYS, ids=str)
async def test_no_row_is_lost_where_a_chunk_is_full(lineup: Lineup, way: Way) -> None:
    """Transactions of four chunks each, which subscribers are handed whole; the reference loses most of their rows."""
    table = f"events_{way}"
    await traffic.run(lineup.database, f"CREATE TABLE {table} (id int PRIMARY KEY, one int, v text)")
    driver = await lineup.follow(table, table, way)
    await driver.until(table, upToDate=True)
    await driver.call("watch", name=table, column="one")
    for number in range(10):
        await traffic.run(
            lineup.database,
            f"INSERT INTO {table} SELECT {number} * 40 + i, 1, repeat('x', 1000) FROM generate_series(1, 40) i",
        )
    subject = Subject(driver, table, {"name": table})
    await subject.reach(400)
    await subject.compare(lineup.database)
    sums = await driver.call("sums", name=table)
    assert {count % 40 for count in sums} == {0}
    asked = await driver.call("requests")
    assert not any("live=true" in note["url"] and "live_sse=true" not in note["url"] for note in asked), asked
    await lineup.check()

"""Clients that follow live by server-sent events, with chunks that fill while they do (client-expectations.md 11)."""

from __future__ import annotations

import pytest

from tests.clients import traffic
from tests.clients.lineup import Lineup, Way
from tests.clients.subject import Subject

pytestmark = pytest.mark.timeout(300)


@pytest.mark.parametrize("way", [Way("current", sse=True), Way("old", sse=True)], ids=str)
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

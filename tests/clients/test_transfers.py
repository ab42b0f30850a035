"""Transfers between two tables, which packages that promise it never see by halves."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.clients import traffic
from tests.clients.driver import HANG_SECONDS
from tests.clients.lineup import Lineup, Way
from tests.clients.traffic import TOTAL, Traffic
from tests.pipeline.fixtures import StartStack

pytestmark = pytest.mark.timeout(600)

_ACCOUNTS = ("checking", "savings")
_SUM = "SELECT (SELECT sum(amount) FROM checking) + (SELECT sum(amount) FROM savings)"


async def test_transfers_are_seen_whole(database: str, start_stack: StartStack, tmp_path: Path, seed: int) -> None:
    """By the transactional multi-shape stream and by PGlite, each over two shapes (client-expectations.md 3).

    With chunks of the default size: with small ones PGlite's client, 1.0.14, stops for good when it is told to refresh
    a second time while it still fetches chunks: it then takes its own prefetched request, which it had aborted.
    """
    await traffic.create(database)
    stack = await start_stack(database, workers=2)
    async with Lineup(stack.url, database, tmp_path) as lineup:
        await lineup.add_multi(transactional=True, tables=_ACCOUNTS)
        await lineup.add_pglite(tables=_ACCOUNTS)
        await lineup.rest()
        multi, pglite = lineup.drivers["multi"], lineup.drivers["pglite"]
        await multi.call("watch", name="transactional", column="amount")
        await pglite.call("watch", name="insert", sql=_SUM)
        async with Traffic(database, seed), asyncio.timeout(HANG_SECONDS):
            await asyncio.sleep(4)
            for driver, name in ((multi, "transactional"), (pglite, "insert")):
                while await driver.call("seen", name=name) <= 20:  # noqa: ASYNC110
                    await asyncio.sleep(0.5)
        await lineup.rest()
        for seen in (
            await multi.call("sums", name="transactional"),
            await pglite.call("sums", name="insert"),
        ):
            sums = [int(value) for value in seen]
            assert set(sums) == {TOTAL}
        await lineup.check(refetches=0)


async def test_transfers_inside_a_table_are_seen_whole_by_shapes(
    database: str, start_stack: StartStack, tmp_path: Path
) -> None:
    """A `Shape` tells its subscribers of whole transactions as long as none is larger than a chunk."""
    await traffic.create(database)
    stack = await start_stack(database)
    async with Lineup(stack.url, database, tmp_path) as lineup:
        subjects = [await lineup.add_client("checking", way) for way in (Way("current"), Way("old"))]
        await lineup.rest()
        client = lineup.drivers["client"]
        for subject in subjects:
            await client.call("watch", **subject.place, column="amount")
        for number in range(1, traffic.ACCOUNTS):
            await traffic.run(
                database,
                f"UPDATE checking SET amount = amount - 7 WHERE id = {number}; "
                f"UPDATE checking SET amount = amount + 7 WHERE id = {number + 1}",
            )
        await lineup.rest()
        for subject in subjects:
            sums = await client.call("sums", **subject.place)
            assert set(sums) == {TOTAL // 2}
        await lineup.check(refetches=0)

"""All packages at once through load, refetch, restart and crashes, compared with Postgres at rest (http-api.md 32)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.clients import traffic
from tests.clients.lineup import NO_HANDLE_YET, Lineup, Way
from tests.clients.traffic import Traffic
from tests.pipeline.fixtures import StartStack
from tests.pipeline.nginx import Nginx, find_nginx
from tests.pipeline.stack import Stack

pytestmark = pytest.mark.timeout(900)

SMALL_CHUNKS = {"ELECTRIC_SHAPE_CHUNK_BYTES_THRESHOLD": "10000"}


async def _line_up(lineup: Lineup, *, pglite: bool) -> None:
    await lineup.add_client("notes", Way("current"))
    await lineup.add_client("notes", Way("current"), "n < 25")
    await lineup.add_client("notes", Way("old"))
    await lineup.add_client("notes", Way("current", sse=True))
    await lineup.add_client("notes", Way("old", sse=True))
    await lineup.add_client("checking", Way("current", sse=True), "amount > 900 OR id >= 1000000")
    await lineup.add_client("checking", Way("old"), "id % 2 = 0 OR id >= 1000000")
    await lineup.add_react("notes")
    await lineup.add_react("savings", sse=True)
    await lineup.add_collection("notes")
    await lineup.add_collection("checking", sse=True)
    await lineup.add_collection("notes", "progressive")
    await lineup.add_collection("notes", "on-demand")
    await lineup.add_collection("savings", "on-demand", sse=True)
    await lineup.add_multi(transactional=False)
    if pglite:
        await lineup.add_pglite()


async def _story(lineup: Lineup, stack: Stack, seed: int, seconds: float, warnings: Sequence[str] = ()) -> None:
    """Load; TRUNCATE under load; a restart with changes meanwhile; `kill -9` of everything under load.

    `warnings` are expected once a shape was fetched anew.
    """
    warnings = [NO_HANDLE_YET, *warnings]
    await lineup.rest()
    async with Traffic(lineup.database, seed):
        await asyncio.sleep(seconds)
    await lineup.rest()
    await lineup.check(refetches=0)

    async with Traffic(lineup.database, seed + 1):
        await asyncio.sleep(seconds / 2)
        await traffic.run(lineup.database, "TRUNCATE notes, checking, savings")
        await asyncio.sleep(seconds / 2)
    await lineup.rest()
    await lineup.check(warnings=warnings)
    before = {subject.title: (await subject.state()).get("refetches") for subject in lineup.subjects}

    await stack.stop()
    async with Traffic(lineup.database, seed + 2):
        await asyncio.sleep(seconds / 2)
    stack.start()
    await lineup.rest()
    # Version 1.0 gives up when events break off.
    lineup.leave("old_sse")
    async with Traffic(lineup.database, seed + 3):
        await asyncio.sleep(seconds / 2)
        stack.kill9("ingester", *stack.workers, *stack.gateways)
        await asyncio.sleep(seconds / 2)
    await lineup.rest()
    await lineup.check(warnings=warnings)
    after = {subject.title: (await subject.state()).get("refetches") for subject in lineup.subjects}
    assert after.items() <= before.items(), "a restart made packages fetch anew"


@pytest.mark.parametrize(
    "chunks", [pytest.param({}, id="default", marks=pytest.mark.faults), pytest.param(SMALL_CHUNKS, id="small")]
)
async def test_all_packages_hold_what_postgres_says(
    database: str, start_stack: StartStack, tmp_path: Path, seed: int, chunks: dict[str, str]
) -> None:
    await traffic.create(database)
    stack = await start_stack(database, workers=2, environment=chunks)
    async with Lineup(stack.url, database, tmp_path) as lineup:
        # PGlite's client stops for good with small chunks: test_transfers.py says when.
        await _line_up(lineup, pglite=not chunks)
        await _story(lineup, stack, seed, seconds=2)


@pytest.mark.faults
@pytest.mark.skipif(find_nginx() is None, reason="nginx is not installed (Debian package nginx)")
async def test_all_packages_hold_it_behind_nginx(
    database: str, start_stack: StartStack, tmp_path: Path, seed: int
) -> None:
    """Packages warn of answers that a cache should not have kept, and the line-up fails on each warning.

    But one stream may still be handed the end of a shape that another of its process knows to be gone: it asks again,
    past the cache, and that must do.
    """
    await traffic.create(database)
    stack = await start_stack(database, workers=2)
    with Nginx(stack.port) as nginx:
        async with Lineup(nginx.url, database, tmp_path) as lineup:
            await _line_up(lineup, pglite=True)
            await _story(lineup, stack, seed, seconds=2, warnings=["to bypass the stale cache (attempt 1/3)"])

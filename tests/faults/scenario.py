"""What every fault scenario shares: shapes that must live, light load on them, and the comparison afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Sequence
from typing import Final

import psycopg

from tests.faults import backends
from tests.pipeline.fleet import Fleet
from tests.pipeline.stack import Stack
from tests.pipeline.workload import Workload

MIXED: Final = (2_000, 8_000)
"""Rows of the larger transactions that come between the small ones: more than one frame, and more than a shape gathers
before it writes."""

FEW: Final = (200, 1_000)
"""The same where the disk is small."""

UNSEEN: Final = 8
"""How many of these transactions may have come that clients have not seen: as many as in a silence of ten seconds."""


@contextlib.asynccontextmanager
async def under_load(
    stack: Stack,
    url: str,
    seed: int,
    *,
    writers: int = 2,
    rows: Sequence[int] = MIXED,
    faults: bool = False,
    monotone_lsn: bool = True,
) -> AsyncIterator[Fleet]:
    """Complete shapes of every kind, which no fault may end, while small and large transactions come.

    Afterwards the stack must become active by itself, every reader hold what Postgres does, and no byte differ from
    what was served before. ``url`` is where the writers go, past any proxy; ``faults``: they may lose it.
    """
    workload = Workload(url, seed, writers=writers, faults=faults)
    async with Fleet(stack, workload, monotone_lsn=monotone_lsn) as fleet:
        await fleet.established()
        mixing = asyncio.create_task(_mix(fleet, rows, faults))
        try:
            yield fleet
        finally:
            mixing.cancel()
            await asyncio.wait([mixing])
        if not mixing.cancelled():
            mixing.result()
        await stack.wait_active()
        await fleet.current()
        await fleet.rest()


async def _mix(fleet: Fleet, rows: Sequence[int], faults: bool) -> None:
    bulk = next(reader for reader in fleet.readers if reader.table == "bulk")
    unseen: list[int] = []
    for count in itertools.cycle(rows):
        try:
            unseen.append(await backends.insert_position(fleet.workload.url))
            await fleet.workload.large(count)
        except psycopg.OperationalError:
            if not faults:
                raise
        await asyncio.sleep(1)
        # On a slow machine readers would fall behind ever more.
        while len(unseen := [lsn for lsn in unseen if lsn > bulk.view.lsn]) > UNSEEN:  # noqa: ASYNC110
            await asyncio.sleep(0.1)


def losses(fleet: Fleet) -> list[str]:
    """What readers lost on the way: broken connections and refusals."""
    return [text for reader in fleet.readers for text in (*reader.losses, *reader.refusals)]

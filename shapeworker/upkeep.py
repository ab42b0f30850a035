"""What a worker does now and then so that nothing piles up: empty the trash, write down when shapes were used."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Final

from shapeworker.catalog import CatalogDamaged
from shapeworker.holdings import Holdings

SWEEP: Final = 10.0
"""Seconds between two emptyings of the trash."""

REMEMBER: Final = 60.0
"""Seconds between two writings down of when shapes were last used: what a worker that dies may forget."""


async def sweep(holdings: Holdings, *sweeps: Callable[[], object]) -> None:
    """Have the partitions' trash emptied, and call ``sweeps``, for ever. They block, in a thread."""
    while True:
        await asyncio.sleep(SWEEP)
        for call in sweeps:
            await asyncio.to_thread(call)
        for partition in list(holdings.partitions.values()):
            with contextlib.suppress(OSError):
                await asyncio.to_thread(partition.sweep)


async def remember_uses(holdings: Holdings, disk: Executor) -> None:
    """Write down when shapes were last used, for ever; ``disk`` is the thread that owns the catalogs."""
    while True:
        await asyncio.sleep(REMEMBER)
        for partition in list(holdings.partitions.values()):
            used, partition.used = partition.used, {}
            if used:
                # A full disk, or a partition that has just gone: then they are forgotten.
                with contextlib.suppress(sqlite3.Error, CatalogDamaged):
                    await asyncio.get_running_loop().run_in_executor(disk, partition.catalog.remember, used)

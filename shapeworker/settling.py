"""Complete shapes become durable and active, many at a time (engine.md INV-16, INV-19, INV-20).

The order, for all shapes of a group: what they hold is put on the disk, then that they hold it (``shape.json``), then
their rows are entered into the catalogs. Whoever comes while a group is at it goes with the next one.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path
from typing import Final, NamedTuple

import structlog

from common.shapelog.description import Description, sync_description, write_description
from common.shapelog.files import REAL, Files
from common.shapelog.snapshot import SnapshotWriter
from common.shapelog.whole_sync import WholeSync
from common.shapelog.writer import LogWriter
from shapeworker.catalog import CatalogDamaged, Complete
from shapeworker.holdings import Holdings
from shapeworker.shape import Life, Shape

LOGGED: Final = 10
"""Tables that a line of the log names at most."""

PAUSE: Final = 0.1
"""Seconds between two groups: larger ones cost less, but a shape that its worker loses before is made again, which its
clients notice."""

log = structlog.get_logger()

Failure = OSError | sqlite3.Error | CatalogDamaged


class _Item(NamedTuple):
    shape: Shape
    log: LogWriter
    """The shape's own, which it has no more once it has ended."""
    snapshot: SnapshotWriter
    done: asyncio.Future[bool]


class Settling:
    """Makes shapes durable whose snapshots are complete, and enters them into their catalogs."""

    def __init__(self, storage: Path, holdings: Holdings, disk: Executor, files: Files = REAL) -> None:
        """``disk`` is the thread that owns the catalogs."""
        self._storage = storage
        self._holdings = holdings
        self._disk = disk
        self._files = files
        self.whole = WholeSync(storage, "settling", files)
        self._waiting: list[_Item] = []
        self._running: asyncio.Task[None] | None = None

    def open(self) -> None:
        """Have failures of the disk reported from now on; to be called before any shape is made. Blocks on the disk."""
        self.whole.sync()

    async def settle(self, shape: Shape, snapshot: SnapshotWriter) -> bool:
        """Returns when the shape is in its catalog; ``False`` if it has ended meanwhile.

        Raises ``OSError``, ``sqlite3.Error``, ``CatalogDamaged``; then it has to end.
        """
        done: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        assert shape.log is not None
        self._waiting.append(_Item(shape, shape.log, snapshot, done))
        if self._running is None or self._running.done():
            self._running = asyncio.get_running_loop().create_task(self._run())
        return await done

    def close(self) -> None:
        """Give up; the shapes are lost with the worker."""
        if self._running is not None:
            self._running.cancel()

    async def _run(self) -> None:
        while self._waiting:
            group, self._waiting = [item for item in self._waiting if not item.done.done()], []
            try:
                await self._settle(group)
            except BaseException:
                for item in group:
                    item.done.cancel()
                raise
            await asyncio.sleep(PAUSE)

    async def _settle(self, group: list[_Item]) -> None:
        loop = asyncio.get_running_loop()
        for item in group:
            # From here on its commits hold back the durable position; what it wrote before is synced right now.
            item.shape.settling = True
        together = self.whole.pays(len(group))
        failures = await loop.run_in_executor(None, self._sync, group, together, self._holdings.generation)
        whole: list[_Item] = []
        for item in group:
            if error := failures.get(item.shape.handle):
                _fail(item, error)
            elif item.shape.life is Life.ENDED:
                _tell(item, False)
            else:
                whole.append(item)
        await self._enter(whole)

    async def _enter(self, group: list[_Item]) -> None:
        by_partition: dict[int, list[_Item]] = {}
        for item in group:
            by_partition.setdefault(item.shape.partition, []).append(item)

        def enter() -> dict[int, set[str] | Failure]:
            found: dict[int, set[str] | Failure] = {}
            for catalog, number, rows in work:
                try:
                    found[number] = catalog.activate(rows)
                except (sqlite3.Error, CatalogDamaged) as error:
                    found[number] = error
            return found

        # A shape that lives is in a partition that is held.
        work = [
            (self._holdings.partitions[number].catalog, number, [_complete(item.shape) for item in items])
            for number, items in by_partition.items()
        ]
        results = await asyncio.get_running_loop().run_in_executor(self._disk, enter) if work else {}
        tables: Counter[str] = Counter()
        for number, items in by_partition.items():
            result = results[number]
            for item in items:
                if not isinstance(result, set):
                    _fail(item, result)
                    continue
                tables[item.shape.table.name] += item.shape.handle in result
                _tell(item, item.shape.handle in result)
        if tables:
            log.info("shapes are complete", shapes=tables.total(), tables=dict(tables.most_common(LOGGED)))

    # ---- in a thread

    def _sync(self, group: list[_Item], together: bool, generation: int) -> dict[str, Failure]:
        """Returns what went wrong, by handle."""
        failures: dict[str, Failure] = {}

        def each(step: Callable[[_Item], None]) -> None:
            for item in group:
                if item.shape.handle in failures or item.shape.life is Life.ENDED:
                    continue
                try:
                    step(item)
                except OSError as error:
                    failures[item.shape.handle] = error
                except ValueError:
                    continue  # closed meanwhile: it has ended

        def describe(item: _Item) -> None:
            request, schema = item.shape.request, item.shape.schema
            description = Description(generation=generation, request=request, schema=schema)
            write_description(item.shape.directory, description, self._files)

        if not (together and self.whole.cover(files for item in group for files in (item.log, item.snapshot))):
            together = False
            each(_sync_one)
        # Now that all it promises is on the disk.
        each(describe)
        if not (together and self.whole.sync()):
            each(lambda item: sync_description(item.shape.directory, self._files))
        return failures


def _sync_one(item: _Item) -> None:
    item.snapshot.sync()
    item.log.sync()


def _complete(shape: Shape) -> Complete:
    assert shape.snapshot is not None
    return Complete(shape.handle, shape.snapshot, shape.filter_until)


def _tell(item: _Item, active: bool) -> None:
    if not item.done.done():
        item.done.set_result(active)


def _fail(item: _Item, error: Failure) -> None:
    if not item.done.done():
        item.done.set_exception(error)

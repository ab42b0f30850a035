"""Taking partitions and giving them back, as the ingester assigns them (architecture.md 2.1)."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path

import msgspec
import structlog

from common.messages import Assign
from shapeworker.apply import Applier
from shapeworker.catalog import CatalogLocked, ShapeRow
from shapeworker.endings import Endings
from shapeworker.filters import Filter, InvalidWhere, make_filter
from shapeworker.holdings import Holdings
from shapeworker.partition import Partition, open_partition
from shapeworker.shape import Life, Shape
from shapeworker.sync import Syncer

log = structlog.get_logger()

LOCK_RETRY = (0.05, 0.25)
"""Seconds between two attempts to take what a former owner still holds: at first, and after LOCK_WARNING."""

LOCK_WARNING = 1.0
"""Seconds after which waiting for partitions is worth telling."""


class Ownership:
    """Carries out one assignment at a time; a newer one supersedes what an older one still waits for."""

    def __init__(
        self,
        storage: Path,
        holdings: Holdings,
        applier: Applier,
        syncer: Syncer,
        endings: Endings,
        disk: Executor,
        on_held: Callable[[int], None],
        on_release: Callable[[int], None],
        on_blocked: Callable[[tuple[int, ...], str], None],
        open_partition: Callable[[Path, int, int], tuple[Partition, list[ShapeRow]]] = open_partition,
    ) -> None:
        """``on_held(version)``: the worker now holds exactly what this assignment says. ``on_release(partition)``: from
        now on it is not this worker's. ``on_blocked(partitions, reason)``: these cannot be taken yet."""
        self._storage = storage
        self._holdings = holdings
        self._applier = applier
        self._syncer = syncer
        self._endings = endings
        self._disk = disk
        self._on_held = on_held
        self._on_release = on_release
        self._on_blocked = on_blocked
        self._open_partition = open_partition
        self._wanted: Assign | None = None
        self._wake = asyncio.Event()

    def assign(self, assignment: Assign) -> None:
        """The ingester wants us to hold these partitions."""
        self._wanted = assignment
        self._wake.set()

    def let_go(self) -> bool:
        """Hold nothing until the next assignment; ``False`` if it is so already."""
        wanted = self._wanted
        if wanted is None or not (wanted.partitions or self._holdings.partitions):
            return False
        self.assign(msgspec.structs.replace(wanted, version=0, partitions=()))
        return True

    async def run(self) -> None:
        """Carry out assignments for ever."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            assignment = self._wanted
            assert assignment is not None
            holdings = self._holdings
            stale = holdings.generation not in (0, assignment.generation)
            holdings.total = assignment.total
            holdings.acknowledged = max(holdings.acknowledged, assignment.acknowledged)
            wanted = set(assignment.partitions)
            for number in sorted(holdings.partitions):
                if stale or number not in wanted:
                    await self.release(number)
            holdings.generation = assignment.generation
            if stale:
                holdings.acknowledged = assignment.acknowledged
                holdings.gaps.clear()  # positions of another generation may be those of another database
            if await self._take_all(sorted(wanted - holdings.partitions.keys()), assignment):
                self._on_held(assignment.version)

    async def release(self, number: int) -> None:
        """Give one partition back. Its shapes in creation end; the others wait on the disk for their next owner."""
        partition = self._holdings.partitions[number]
        self._holdings.leaving.add(number)
        self._on_release(number)
        shapes = self._holdings.of_partition(number)
        for shape in shapes:
            # In one step of the loop: whoever is not here any more cannot be ended while its log is being closed.
            if shape.life is Life.CREATING:
                self._endings.end(shape, "its worker gave the partition away before it was complete")
            else:
                self._applier.remove(shape)
                self._holdings.remove(shape)
        await self._endings.settled()
        for shape in shapes:
            if shape.log is not None:
                await self._syncer.quiet(shape.log)
                shape.log.close()
                shape.log = None
        del self._holdings.partitions[number]
        self._holdings.leaving.discard(number)
        await asyncio.get_running_loop().run_in_executor(self._disk, partition.close)

    async def release_all(self) -> None:
        """Give everything back: the worker is going."""
        for number in sorted(self._holdings.partitions):
            await self.release(number)

    async def _take_all(self, numbers: list[int], assignment: Assign) -> bool:
        """Take these partitions, each as soon as it is free; ``False`` if another assignment came before."""
        loop = asyncio.get_running_loop()
        started, warned = loop.time(), False
        while not self._wake.is_set():
            blocked: dict[int, str] = {}
            for number in numbers:
                if self._wake.is_set():
                    return False
                if obstacle := await self._take(number, assignment):
                    blocked[number] = obstacle
            if not blocked:
                return True
            numbers = list(blocked)
            if loop.time() - started < LOCK_WARNING:
                await asyncio.sleep(LOCK_RETRY[0])
                continue
            self._on_blocked(tuple(numbers), blocked[numbers[0]])
            if not warned:
                warned = True
                log.warning("waiting for partitions", partitions=numbers, reason=blocked[numbers[0]])
            await asyncio.sleep(LOCK_RETRY[1])
        return False

    async def _take(self, number: int, assignment: Assign) -> str:
        """Take one partition; returns what is in the way, nothing if it is ours now."""

        def take() -> tuple[Partition, list[tuple[ShapeRow, Filter | InvalidWhere | None]]]:
            partition, rows = self._open_partition(self._storage, number, assignment.generation)
            # Here, and not on the loop: there may be very many.
            return partition, [(row, _filter(row)) for row in rows]

        try:
            partition, rows = await asyncio.get_running_loop().run_in_executor(self._disk, take)
        except CatalogLocked as locked:
            return f"another process still holds them; fuser -v {locked} names it"
        except (OSError, sqlite3.OperationalError) as error:
            return f"partition {number} cannot be opened: {error}"
        self._adopt(partition, rows)
        return ""

    def _adopt(self, partition: Partition, rows: list[tuple[ShapeRow, Filter | InvalidWhere | None]]) -> None:
        self._holdings.partitions[partition.number] = partition
        for row, found in rows:
            shape = Shape(
                handle=row.handle,
                request=row.request,
                table=row.table,
                selected=row.selected,
                partition=partition.number,
                storage=self._storage,
                filter_=None if isinstance(found, InvalidWhere) else found,
            )
            assert row.snapshot is not None
            assert row.filter_until is not None
            shape.life = Life.ACTIVE
            shape.used = max(row.used, shape.used)
            shape.snapshot = row.snapshot
            shape.filter_until = row.filter_until
            # Not to the applier: the shape joins with the epoch that feeds its partition.
            self._holdings.add(shape)
            if isinstance(found, InvalidWhere):
                self._endings.end(shape, f"its where clause is not valid any more: {found.message}")


def _filter(row: ShapeRow) -> Filter | InvalidWhere | None:
    try:
        return make_filter(row.request, row.table)
    except InvalidWhere as error:
        return error
    except Exception as error:
        # Not the worker's end: its successor would meet it again.
        log.exception("a filter cannot be compiled", handle=row.handle)
        return InvalidWhere(f"internal error: {type(error).__name__}")

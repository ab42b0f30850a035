"""Taking partitions and giving them back, as the ingester assigns them (architecture.md 2.1)."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path
from typing import Final

import msgspec
import structlog

from common.messages import Assign
from shapeworker.apply import Applier
from shapeworker.catalog import CatalogLocked, ShapeRow
from shapeworker.endings import Endings
from shapeworker.filters import InvalidWhere, make_filter_aside
from shapeworker.holdings import Holdings
from shapeworker.partition import Partition, open_partition
from shapeworker.shape import Life, Shape
from shapeworker.sync import Syncer

log = structlog.get_logger()

LOCK_RETRY = (0.05, 0.25)
"""Seconds between two attempts to take what a former owner still holds: at first, and after LOCK_WARNING."""

LOCK_WARNING = 1.0
"""Seconds after which waiting for partitions is worth telling."""

AT_ONCE: Final = 16
"""Shapes of a partition that is being taken, before everything else gets its turn on the loop: about a millisecond."""


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
        on_blocked: Callable[[tuple[int, ...], str], None],
        open_partition: Callable[[Path, int, int], tuple[Partition, list[ShapeRow]]] = open_partition,
    ) -> None:
        """``on_held(version)``: the worker now holds exactly what this assignment says.
        ``on_blocked(partitions, reason)``: these cannot be taken yet."""
        self._storage = storage
        self._holdings = holdings
        self._applier = applier
        self._syncer = syncer
        self._endings = endings
        self._disk = disk
        self._on_held = on_held
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
        self._holdings.fed.discard(number)
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
        try:
            partition, rows = await asyncio.get_running_loop().run_in_executor(
                self._disk, self._open_partition, self._storage, number, assignment.generation
            )
        except CatalogLocked as locked:
            return f"another process still holds them; fuser -v {locked} names it"
        except (OSError, sqlite3.OperationalError) as error:
            return f"partition {number} cannot be opened: {error}"
        await self._adopt(partition, rows)
        return ""

    async def _adopt(self, partition: Partition, rows: list[ShapeRow]) -> None:
        """Make the rows shapes that can be found, all at the same moment: who asks before is told to ask again.

        There may be very many. The applier passes them by until an epoch begins that feeds their partition: what they
        may have missed comes again there, and applying the rest of the present one would leave a gap in their logs.
        """
        shapes, invalid = [], []
        for at, row in enumerate(rows, 1):
            shape, reason = await _shape(row, partition.number, self._storage)
            shapes.append(shape)
            if reason is None:
                self._applier.add(shape)
            else:
                invalid.append((shape, reason))
            if at % AT_ONCE == 0:
                await asyncio.sleep(0)
        self._holdings.partitions[partition.number] = partition
        for shape in shapes:
            self._holdings.add(shape)
        for shape, reason in invalid:
            self._endings.end(shape, f"its where clause is not valid any more: {reason}")


async def _shape(row: ShapeRow, partition: int, storage: Path) -> tuple[Shape, str | None]:
    """The shape of a row, and why its clause is not valid any more if that is so."""
    filter_ = reason = None
    try:
        filter_ = await make_filter_aside(row.request, row.table)
    except InvalidWhere as error:
        reason = error.message
    except Exception as error:
        # Not the worker's end: its successor would meet it again.
        log.exception("a filter cannot be compiled", handle=row.handle)
        reason = f"internal error: {type(error).__name__}"
    shape = Shape(
        handle=row.handle,
        request=row.request,
        table=row.table,
        selected=row.selected,
        partition=partition,
        storage=storage,
        filter_=filter_,
    )
    assert row.snapshot is not None
    assert row.filter_until is not None
    shape.life = Life.ACTIVE
    shape.used = max(row.used, shape.used)
    shape.snapshot = row.snapshot
    shape.filter_until = row.filter_until
    return shape, reason

"""How a shape ends: tombstone first, then the mark that readers check, then its files (architecture.md 4.7, INV-32)."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Executor
from functools import partial

import structlog

from shapeworker.apply import Applier
from shapeworker.holdings import Holdings
from shapeworker.partition import Partition
from shapeworker.shape import Life, Shape
from shapeworker.sync import Syncer

log = structlog.get_logger()

RETRY = 1.0
"""Seconds between two attempts to write a tombstone while the disk refuses."""


class ShapeEnded(Exception):
    """The shape ended while somebody waited for it."""


class Endings:
    """Ends shapes. Idempotent; every step is repeated until it succeeds, since half an ending would pin the slot."""

    def __init__(
        self,
        holdings: Holdings,
        applier: Applier,
        syncer: Syncer,
        disk: Executor,
        on_ended: Callable[[Shape, str], None],
    ) -> None:
        """``disk`` is the thread that owns the catalogs; ``on_ended`` is told once the tombstone is durable."""
        self._holdings = holdings
        self._applier = applier
        self._syncer = syncer
        self._disk = disk
        self._on_ended = on_ended
        self._tasks: set[asyncio.Task[None]] = set()
        self.unmarked: Counter[int] = Counter()
        """Per partition that has such, the shapes that have ended but whose readers cannot see it yet."""
        self.recording: dict[str, tuple[float, str]] = {}
        """Shapes whose end is being recorded: since when (monotonic time), and why it has failed so far."""
        self._marks: dict[str, asyncio.Future[None]] = {}
        self.ended = 0
        """How many have ended so far."""

    def end(self, shape: Shape, reason: str) -> None:
        """The shape is over, from now on and for this reason."""
        if shape.life is Life.ENDED:
            return
        shape.life = Life.ENDED
        shape.reason = reason
        self.ended += 1
        log.info("shape ended", handle=shape.handle, table=shape.table.name, reason=reason)
        self._applier.remove(shape)
        self._holdings.remove(shape)
        if shape.started is not None and not shape.started.done():
            shape.started.set_exception(ShapeEnded(reason))
        if shape.building is not None and shape.building is not asyncio.current_task():
            shape.building.cancel()
        self.unmarked[shape.partition] += 1
        loop = asyncio.get_running_loop()
        self._marks[shape.handle] = loop.create_future()
        tombstone: asyncio.Future[None] = loop.create_future()
        self._syncer.wait_for(tombstone)
        partition = self._holdings.partitions[shape.partition]
        task = loop.create_task(self._carry_out(shape, reason, partition, tombstone))
        self._tasks.add(task)
        task.add_done_callback(self._carried_out)

    def _carried_out(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            # A catalog that is damaged. What was not recorded would hold the slot for ever: the process ends, and its
            # successor puts the catalog aside.
            loop = asyncio.get_running_loop()
            loop.call_exception_handler({"message": "the end of a shape cannot be recorded", "exception": error})

    def is_unmarked(self, handle: str) -> bool:
        """Whether the shape has ended but its readers cannot see that yet: nobody may be told before all can see it,
        or another gateway would serve the handle again to who was just told that it is gone."""
        return handle in self._marks

    async def end_visibly(self, shape: Shape, reason: str) -> None:
        """As :meth:`end`; returns when every reader can see it."""
        self.end(shape, reason)
        mark = self._marks.get(shape.handle)
        if mark is not None:
            await asyncio.wait([mark])

    async def settled(self) -> None:
        """Wait until every ending so far is complete."""
        while self._tasks:
            await asyncio.wait(set(self._tasks))

    async def _carry_out(
        self, shape: Shape, reason: str, partition: Partition, tombstone: asyncio.Future[None]
    ) -> None:
        loop = asyncio.get_running_loop()
        # If this fails for good the process ends, and the durable position stays where it is.
        await self._insist(partial(partition.catalog.end, shape.handle, reason), shape)
        tombstone.set_result(None)
        # Through the open log if there is one: it keeps the header, and would write its own copy over the mark.
        marked = partial(partition.mark_ended, shape.handle) if shape.log is None else shape.log.mark_ended
        await self._insist(marked, shape)
        self.unmarked[shape.partition] -= 1
        if not self.unmarked[shape.partition]:
            del self.unmarked[shape.partition]
        self._marks.pop(shape.handle).set_result(None)
        self._on_ended(shape, reason)
        if shape.building is not None:
            # The snapshot's thread must have let go of the files.
            await asyncio.wait([shape.building])
        if shape.log is not None:
            await self._syncer.quiet(shape.log)
            shape.log.close()
            shape.log = None
        try:
            await loop.run_in_executor(self._disk, partition.bury, shape.handle)
        except (OSError, sqlite3.Error) as error:
            # Nobody can find it any more; the next opening of the partition buries it.
            log.warning("an ended shape's files could not be moved away", handle=shape.handle, error=str(error))

    async def _insist(self, step: Callable[[], None], shape: Shape) -> None:
        since = time.monotonic()
        self.recording[shape.handle] = since, ""
        while True:
            try:
                await asyncio.get_running_loop().run_in_executor(self._disk, step)
                self.recording.pop(shape.handle, None)
                return
            except (OSError, sqlite3.Error) as error:
                # Typically a full disk. Until this succeeds, nothing later is acknowledged.
                if not self.recording[shape.handle][1]:
                    log.warning("the end of a shape cannot be recorded yet", handle=shape.handle, error=str(error))
                self.recording[shape.handle] = since, str(error)
                await asyncio.sleep(RETRY)

"""Making a shape, step by step (architecture.md 4; engine.md 10).

The order is what makes it right: the shape is added to the applier *before* the table is asked for, and holds back
every change from the moment that the ingester enters it (or from the start of an epoch, whichever comes first); the
snapshot is taken *after* the answer, so that it shows every transaction dispatched before that moment; and the shape
counts for the durable position *before* what it has is synced and declared active.
"""

from __future__ import annotations

import asyncio
import resource
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import Executor
from functools import partial
from typing import Final

import structlog

from common.config import Settings
from common.frames import InFrame
from common.lsn import Offset
from common.messages import Subscribe
from common.metrics import Histogram, Sample, one
from common.obstacles import Obstacle
from common.postgres import DATABASE_ERRORS, Pool, is_unavailable
from common.remedies import Remedies
from common.shape import ShapeRequest, partition_of
from common.shapelog.files import REAL, Files
from common.shapelog.snapshot import SnapshotWriter
from common.shapelog.writer import LogWriter
from common.xid import Snapshot
from shapeworker.apply import Applier
from shapeworker.catalog import CatalogDamaged
from shapeworker.definitions import Definition, Definitions
from shapeworker.endings import Endings
from shapeworker.generated_columns import has_generated, unpublished
from shapeworker.holdings import Holdings
from shapeworker.joining import Joining
from shapeworker.obstacles import of_snapshots
from shapeworker.requests import CannotCreate, invalid
from shapeworker.settling import Settling
from shapeworker.shape import Life, Obstructed, Shape
from shapeworker.snapshot import Snapshots
from shapeworker.snapshot_connection import Stopped
from shapeworker.snapshot_failure import SnapshotFailed
from shapeworker.snapshot_member import SnapshotPlan
from shapeworker.sync import Syncer

log = structlog.get_logger()

UNFINISHED: Final = 1000
"""Shapes that may be in the making at a time; fewer where the system allows fewer descriptors."""

SHARE: Final = 16
"""One of them for so many descriptors that the process may have: each takes two or three (see logs.py for the rest)."""

DISTRUSTED: Final = 10_000
"""How many requests are remembered whose filter has failed."""


class Creator:
    """Creates shapes; concurrent requests for one shape share one creation (INV-15)."""

    def __init__(
        self,
        settings: Settings,
        holdings: Holdings,
        applier: Applier,
        syncer: Syncer,
        endings: Endings,
        disk: Executor,
        pool: Pool,
        definitions: Definitions,
        *,
        snapshots: int,
        subscribe: Callable[[Subscribe], None],
        on_written: Callable[[Shape, Offset], None],
        on_active: Callable[[Shape], None],
        files: Files = REAL,
    ) -> None:
        """``snapshots``: how many may be read at a time. ``subscribe`` sends the ingester a request for a table."""
        self._settings = settings
        self._holdings = holdings
        self._applier = applier
        self._syncer = syncer
        self._endings = endings
        self._disk = disk
        self._pool = pool
        self._definitions = definitions
        self._on_written = on_written
        self._on_active = on_active
        self._files = files
        self._snapshots = Snapshots(
            settings.pooled_database_url, threads=snapshots, prefer_ipv6=settings.database_use_ipv6
        )
        self._under_way: dict[ShapeRequest, asyncio.Task[Shape]] = {}
        self._building: set[asyncio.Task[None]] = set()
        self._remedies = Remedies()
        self._reading: dict[str, float] = {}
        self._distrusted: dict[ShapeRequest, None] = {}
        descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._slots = asyncio.Semaphore(max(1, min(UNFINISHED, descriptors // SHARE)))
        self._joining = Joining(subscribe)
        self._settling = Settling(settings.storage_dir, holdings, disk, files)
        self._taken = 0
        self._rows = 0
        self._durations = Histogram("electric_shape_snapshot_create_snapshot_task_stop_duration")

    async def create(self, request: ShapeRequest) -> Shape:
        """The shape for this request, made if need be, once its snapshot can be read.

        Raises :class:`CannotCreate`, or ``ShapeEnded`` if it ended on the way.
        """
        shape = self._holdings.by_request(request)
        if shape is not None:
            if shape.started is not None:  # there is nothing to wait for with one that is complete
                await asyncio.shield(shape.started)
            return shape
        task = self._under_way.get(request)
        if task is None:
            task = asyncio.get_running_loop().create_task(self._create(request))
            self._under_way[request] = task
            task.add_done_callback(lambda _: self._under_way.pop(request, None))
        return await asyncio.shield(task)

    def system(self, identifier: str) -> None:
        """The database cluster that snapshots must come from."""
        self._snapshots.system_identifier = int(identifier) if identifier else None

    def answer(self, answer: InFrame) -> None:
        """The ingester answered a subscription, or says that the answer comes and the table's changes begin."""
        self._joining.answer(answer)

    def subscribe_anew(self) -> None:
        """Another ingester or a new epoch: what was asked or answered before may be lost."""
        self._definitions.forget()
        self._joining.ask_anew()

    def open(self) -> None:
        """To be called before any shape is made. Blocks on the disk."""
        self._settling.open()

    def sweep(self) -> None:
        """Close connections that nobody needs any more. May be called in a thread."""
        self._snapshots.sweep()

    def obstacles(self, now: float) -> list[Obstacle]:
        """What new shapes wait for."""
        queued = [now - since for since in self._snapshots.queued.values()]
        running = {shape: now - since for shape, since in self._reading.items()}
        return of_snapshots(self._snapshots.turns, queued, running)

    def samples(self) -> list[Sample]:
        """What has been made."""
        return [
            one("electric_storage_snapshot_stored_count", self._taken),
            one("electric_storage_snapshot_stored_operations", self._rows),
            self._durations.sample(),
            one("galvanic_snapshots_running", len(self._reading)),
            one("galvanic_snapshots_waiting", len(self._snapshots.queued)),
        ]

    def distrust(self, request: ShapeRequest) -> None:
        """The filter has failed for a row. Who asks again gets no rows before all have passed it.

        Otherwise a row that comes late in the snapshot would have its clients start again and again (409), and none
        would ever be told why (400).
        """
        self._distrusted.pop(request, None)
        self._distrusted[request] = None
        if len(self._distrusted) > DISTRUSTED:
            del self._distrusted[next(iter(self._distrusted))]

    async def close(self) -> None:
        """Give up what is under way; the shapes are lost with the worker anyhow."""
        for task in (*self._under_way.values(), *self._building):
            task.cancel()
        if self._building:
            await asyncio.wait(set(self._building), timeout=5)
        self._settling.close()
        await self._snapshots.close()

    # ---- steps

    async def _create(self, request: ShapeRequest) -> Shape:
        definition = await self._definitions.of(request)
        await self._slots.acquire()
        try:
            shape = await self._made(request, definition)
        except BaseException:
            self._slots.release()
            raise
        assert shape.building is not None
        shape.building.add_done_callback(lambda _: self._slots.release())
        assert shape.started is not None
        await asyncio.shield(shape.started)
        return shape

    async def _made(self, request: ShapeRequest, definition: Definition) -> Shape:
        """A shape whose files are there, and that is being built."""
        loop = asyncio.get_running_loop()
        number = partition_of(request.hash(), self._holdings.total)
        if not self._holdings.may_create(number):
            raise _try_again()
        partition = self._holdings.partitions[number]
        try:
            if not partition.catalog.has_handles:
                await loop.run_in_executor(self._disk, partition.catalog.reserve)
        except CatalogDamaged as error:
            # Ends the process, whose successor opens the partition and deals with it.
            loop.call_exception_handler({"message": "a catalog is damaged", "exception": error})
            raise _try_again() from error
        except sqlite3.Error as error:
            log.warning("a shape cannot be entered into its catalog", partition=number, error=str(error))
            raise _try_again() from error
        if self._holdings.partitions.get(number) is not partition or not self._holdings.may_create(number):
            raise _try_again()
        shape = Shape(
            handle=partition.catalog.create(request, definition.table, definition.selected),
            request=request,
            table=definition.table,
            selected=definition.selected,
            partition=number,
            storage=self._settings.storage_dir,
            filter_=definition.filter,
        )
        shape.holds_back = False
        shape.started = loop.create_future()
        # Whoever waits looks at it; if nobody does, asyncio need not complain.
        shape.started.add_done_callback(lambda future: future.cancelled() or future.exception())
        self._holdings.add(shape)
        try:
            shape.log = LogWriter.create(shape.directory, self._settings.chunk_bytes, self._files)
        except OSError as error:
            self._endings.end(shape, f"its files cannot be made: {error.strerror}")
            raise _try_again() from error
        self._applier.add(shape)
        shape.building = loop.create_task(self._build(shape, definition.version))
        self._building.add(shape.building)
        shape.building.add_done_callback(partial(self._built, shape))
        return shape

    def _built(self, shape: Shape, building: asyncio.Task[None]) -> None:
        """Let go of what the shape was built with, if it has come to be: there may be very many."""
        self._building.discard(building)
        shape.building = None
        if shape.life is Life.ACTIVE:
            shape.started = None

    async def _build(self, shape: Shape, version: str) -> None:
        """From the subscription to the active shape. Whatever goes wrong ends the shape and tells who waits."""
        assert shape.started is not None
        started = time.monotonic()
        try:
            unseen = await self._joining.join(shape)
            await self._check_generated(shape)
            sink = await self._snapshot(shape, version, unseen)
            try:
                await self._activate(shape, sink)
            finally:
                sink.close()
            self._durations.add((time.monotonic() - started) * 1000)
        except (CannotCreate, SnapshotFailed, OSError, sqlite3.Error, Stopped) as error:
            refusal = error if isinstance(error, CannotCreate) else _refusal(error)
            if isinstance(error, SnapshotFailed) and error.remedy:
                self._remedies.offer(error.message, error.remedy)
            if isinstance(error, SnapshotFailed) and error.status == 400:
                shape.filter_failed = True
            if refusal.status != 400:
                refusal.shape = shape
            if not shape.started.done():
                shape.started.set_exception(refusal)
            reason = error.reason if isinstance(error, SnapshotFailed) else str(error)
            self._fail(shape, reason or "its snapshot was stopped")
        except asyncio.CancelledError:
            self._fail(shape, "its snapshot was stopped")
            raise
        except Exception as error:
            log.exception("a shape could not be created", handle=shape.handle)
            if not shape.started.done():
                shape.started.set_exception(CannotCreate(500, {"error": "Internal server error"}))
            self._fail(shape, f"internal error: {type(error).__name__}")

    def _fail(self, shape: Shape, reason: str) -> None:
        if shape.life is not Life.ENDED:
            self._endings.end(shape, reason)

    async def _check_generated(self, shape: Shape) -> None:
        """That the stream has the generated columns which the shape shows or its filter reads.

        Otherwise the first change would end the shape, and the next one. Where we may, the ingester has published them.
        """
        if not has_generated(shape.table, shape.required.union(shape.selected)):
            return
        try:
            async with self._pool.connection() as connection:
                missing = await unpublished(connection, self._settings.publication_name)
        except DATABASE_ERRORS as error:
            if not is_unavailable(error):
                raise
            raise CannotCreate(503, {"message": "Database connection not available"}, 10, known=True) from error
        if missing is not None:
            self._remedies.offer(missing.message, missing.remedy)
            raise CannotCreate(503, {"message": missing.message}, 10, known=True)

    async def _snapshot(self, shape: Shape, version: str, unseen: tuple[int, ...]) -> SnapshotWriter:
        """Take it; the writer has all of it, which is not on the disk yet."""
        assert shape.log is not None
        plan = SnapshotPlan(
            shape.table,
            shape.selected,
            shape.request.columns is not None,
            shape.request.log,
            unseen,
            None if shape.filter is None else shape.filter.sql,
            shape.required,
            version,
            alone=shape.request in self._distrusted,
        )
        sink = SnapshotWriter(shape.directory, self._settings.chunk_bytes, shape.log.header, self._files)

        def on_started(snapshot: Snapshot, filter_until: int) -> bool:
            if shape.life is Life.ENDED:
                return False
            try:
                end = shape.snapshot_taken(snapshot, filter_until)
            except Obstructed as obstructed:
                self._endings.end(shape, str(obstructed))
                return False
            if reason := self._holdings.missed(shape):
                self._endings.end(shape, reason)
                return False
            self._reading[f"{shape.handle} ({shape.table.name})"] = time.monotonic()
            if end is not None:
                self._on_written(shape, end)
            return True

        def on_readable() -> None:
            if shape.request not in self._distrusted:
                started()

        def started() -> None:
            assert shape.started is not None
            if not shape.started.done():
                shape.started.set_result(None)

        try:
            taken = await self._snapshots.take(plan, sink, on_started, on_readable)
        except BaseException:
            sink.fail()
            raise
        finally:
            self._reading.pop(f"{shape.handle} ({shape.table.name})", None)
        self._distrusted.pop(shape.request, None)
        started()
        self._taken += 1
        self._rows += taken.rows
        log.debug("snapshot taken", handle=shape.handle, table=shape.table.name, rows=taken.rows)
        return sink

    async def _activate(self, shape: Shape, sink: SnapshotWriter) -> None:
        active = await self._settling.settle(shape, sink)
        if shape.life is not Life.CREATING:
            return
        if active:
            shape.life = Life.ACTIVE
            self._on_active(shape)
        else:
            self._endings.end(shape, "it ended while it became active")


def _refusal(error: Exception) -> CannotCreate:
    if isinstance(error, SnapshotFailed):
        if error.status == 400:
            return invalid({"where": [error.message]})
        return CannotCreate(error.status, {"message": error.message}, error.retry_after, error.known)
    return _try_again()


def _try_again() -> CannotCreate:
    return CannotCreate(503, {"message": "Failed to create shape, please retry"}, 1)

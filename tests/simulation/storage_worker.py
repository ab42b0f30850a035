"""A shapeworker without sockets: all its parts as they are, on a simulated disk and a loop turned by hand."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from functools import partial
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any, NamedTuple, Protocol, cast

from common.frames import Entered, Subscribed
from common.lsn import Offset
from common.messages import Assign, Subscribe
from common.shape import ShapeRequest
from common.table import Table
from common.xid import Snapshot
from shapeworker.apply import Applier, StorageFull
from shapeworker.catalog import Catalog, Complete, ShapeRow
from shapeworker.creation import Creator
from shapeworker.definitions import Definition, Definitions
from shapeworker.endings import Endings
from shapeworker.filters import make_filter
from shapeworker.holdings import Holdings
from shapeworker.logs import OpenLogs
from shapeworker.ownership import Ownership
from shapeworker.partition import Partition, open_partition
from shapeworker.shape import Shape
from shapeworker.snapshot import Snapshots
from shapeworker.snapshot_connection import Stopped
from shapeworker.snapshot_failure import SnapshotFailed
from shapeworker.snapshot_member import SnapshotPlan, SnapshotSink, SnapshotTaken
from shapeworker.sync import Log, Syncer
from tests.simulation.storage_disk import Process
from tests.simulation.storage_loop import Loop
from tests.simulation.storage_model import RELATION_RECORDS, SNAPSHOT_END_LINE, TABLES, Transaction, records
from tests.simulation.storage_oracle import STORAGE, Oracle
from tests.simulation.storage_sqlite import connector


class Facts(NamedTuple):
    """What a snapshot finds in the database."""

    snapshot: Snapshot
    filter_until: int
    rows: list[bytes]


class World(Protocol):
    """What a worker meets: a database, an ingester, a clock."""

    history: list[Transaction]
    acknowledged: int
    chunk_bytes: int
    random: Random
    together: int

    def clock(self) -> int: ...
    def dispatched(self, place: int) -> None: ...
    def take(self, handle: str, oid: int) -> Facts: ...
    def fails(self) -> bool: ...


class _WatchedCatalog(Catalog):
    """Tells the oracle what is about to be durable, and what is."""

    def __init__(self, world: World, oracle: Oracle, process: Process, path: Path) -> None:
        self._oracle = oracle
        self._number = int(path.parent.name)
        super().__init__(path, connector(process), world.clock)
        oracle.catalog_opened(self._number, self.rows())

    def start_generation(self, generation: int, reason: str) -> None:
        self._oracle.starting_generation(self._number)
        super().start_generation(generation, reason)
        self._oracle.generation_started(self._number)

    def create(self, request: ShapeRequest, table: Table, selected: tuple[str, ...]) -> str:
        handle = super().create(request, table, selected)
        self._oracle.created(handle)
        return handle

    def activate(self, shapes: Iterable[Complete]) -> set[str]:
        shapes = tuple(shapes)
        for shape in shapes:
            self._oracle.activating(shape.handle)
        return super().activate(shapes)

    def end(self, handle: str, reason: str) -> None:
        self._oracle.ending(handle, reason)
        super().end(handle, reason)
        self._oracle.tombstoned(handle)


class _Snapshots:
    """Takes snapshots of the world's database as ``Snapshots`` does: in another thread, some rows at a time."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.system_identifier: int | None = None

    async def take(
        self,
        plan: SnapshotPlan,
        sink: SnapshotSink,
        on_started: Callable[[Snapshot, int], bool],
        on_readable: Callable[[], None],
    ) -> SnapshotTaken:
        handle = cast(Any, sink)._directory.name
        facts = self._world.take(handle, plan.table.oid)
        await asyncio.sleep(0)
        if not on_started(facts.snapshot, facts.filter_until):
            raise Stopped
        for row in facts.rows:
            await _in_thread(partial(self._add, sink, row))
            on_readable()
        if self._world.fails():
            raise SnapshotFailed(503, "the simulation says no")
        await _in_thread(partial(sink.finish, SNAPSHOT_END_LINE))
        on_readable()
        return SnapshotTaken(facts.snapshot, facts.filter_until, len(facts.rows))

    @staticmethod
    def _add(sink: SnapshotSink, row: bytes) -> None:
        sink.add(row + b",\n", 1)
        sink.flush()

    async def close(self) -> None:
        pass


async def _in_thread(call: Callable[[], None]) -> None:
    """Also when cancelled, not before the thread has let go of the files."""
    running = asyncio.get_running_loop().run_in_executor(None, call)
    try:
        await asyncio.shield(running)
    finally:
        await asyncio.wait([running])


class _Definitions(Definitions):
    """Looks tables up in the model."""

    async def of(self, request: ShapeRequest, accept: object = None) -> Definition:
        table = next(table for table in TABLES if table.name == request.table)
        return Definition(table, ("id", "v"), make_filter(request, table), "")


class Worker:
    """The parts of ``shapeworker.main.Worker`` and the calls between them, as there."""

    def __init__(self, world: World, oracle: Oracle, process: Process, open_logs: int, partitions: int) -> None:
        self.process = process
        self.loop = Loop(self._on_error)
        self.held_version = 0
        self.full = False
        self.subscriptions: list[Subscribe] = []
        self._world = world
        self._oracle = oracle
        self._partitions = partitions
        self._next = 0
        self._record = 0
        self._streaming = False
        disk = cast(Executor, object())
        self.holdings = Holdings()
        self.syncer = Syncer(STORAGE, self._on_durable, self._on_sync_failure, files=process)
        self.syncer.whole.many = world.together
        self.logs = OpenLogs(self.holdings, world.chunk_bytes, self.syncer.dirty, open_logs, process)
        self.applier = Applier(self, self.open_log, self.holdings.fed)
        self.endings = Endings(self.holdings, self.applier, self.syncer, disk, self._on_ended)
        self.ownership = Ownership(
            STORAGE,
            self.holdings,
            self.applier,
            self.syncer,
            self.endings,
            disk,
            self._on_held,
            lambda partitions, reason: None,
            self._open_partition,
        )
        settings = SimpleNamespace(
            storage_dir=STORAGE,
            chunk_bytes=world.chunk_bytes,
            pooled_database_url="postgresql://nowhere/nothing",
            database_use_ipv6=False,
        )
        self.creator = Creator(
            cast(Any, settings),
            self.holdings,
            self.applier,
            self.syncer,
            self.endings,
            disk,
            cast(Any, None),
            _Definitions(cast(Any, None)),
            snapshots=1,
            subscribe=self.subscriptions.append,
            on_written=self.written,
            on_active=self._activated,
            files=process,
        )
        self.creator._snapshots = cast(Snapshots, _Snapshots(world))
        self.creator._settling.whole.many = world.together
        self._running = [self.spawn(self.ownership.run()), self.spawn(self.syncer.run())]

    def spawn(self, work: Any) -> asyncio.Task[Any]:
        """A task on the worker's loop."""
        return self.loop.create_task(work)

    async def stop(self) -> None:
        """What SIGTERM leads to."""
        self._streaming = False
        self.applier.restart()
        for task in self._running:
            task.cancel()
        await self.syncer.flush()
        await self.ownership.release_all()
        await self.creator.close()

    def failure(self) -> BaseException | None:
        """What would have ended the process: a task that failed."""
        return next((task.exception() for task in self._running if task.done() and not task.cancelled()), None)

    def assign(self, version: int, partitions: tuple[int, ...], total: int, generation: int) -> None:
        """The ingester says what to hold."""
        self.ownership.assign(
            Assign(
                version=version,
                partitions=partitions,
                total=total,
                acknowledged=self._world.acknowledged,
                generation=generation,
                system="1",
                boot="b",
            )
        )

    # ---- the stream

    def start_epoch(self) -> None:
        """The stream begins again at the acknowledged position and feeds what is held."""
        self.applier.restart()
        self.full = False
        self.creator.subscribe_anew()
        position = self._world.acknowledged
        self.syncer.restart(position)
        self.holdings.fed.clear()
        self.holdings.fed.update(self.holdings.partitions)
        for record in records(*RELATION_RECORDS):
            self.applier.record(*record)
        history = self._world.history
        self._next = next((at for at, (lsn, *_) in enumerate(history) if lsn >= position), len(history))
        self._record = 0
        self._streaming = True

    @property
    def streams(self) -> bool:
        """Whether there is something to feed."""
        return self._streaming and (self._next < len(self._world.history) or bool(self.subscriptions))

    def feed(self) -> None:
        """A turn of the stream: some more records."""
        try:
            for _ in range(self._world.random.choice((1, 1, 2, 5, 20))):
                if not self.streams:
                    break
                self._feed_one()
            self.applier.deliver()
        except StorageFull:
            self.full = True
            self._streaming = False
            self.applier.restart()

    def _feed_one(self) -> None:
        if not self._record and self.subscriptions:
            self.applier.deliver()
            subscribe = self.subscriptions.pop(0)
            self.creator.answer(Entered(subscribe.id))
            self.creator.answer(Subscribed(subscribe.id, 0, ()))
            return
        if self._next == len(self._world.history):
            return
        transaction = self._world.history[self._next]
        self.applier.record(*transaction.records[self._record])
        self._world.dispatched(self._next)
        self._record += 1
        if self._record == len(transaction.records):
            self._next, self._record = self._next + 1, 0

    # ---- calls between the parts

    def open_log(self, shape: Shape) -> None:
        """Opens and recovers a log; the world looks at what recovery left."""
        new = shape.log is None
        self.logs.open(shape)
        if new:
            self._oracle.log_opened(shape)

    def _activated(self, shape: Shape) -> None:
        self._oracle.activated(shape.handle)
        self.open_log(shape)

    def written(self, shape: Shape, end: Offset, transactions: int = 1) -> None:
        if shape.durable and shape.log is not None:
            self.syncer.dirty(shape.log)

    def ended(self, shape: Shape, reason: str) -> None:
        self.endings.end(shape, reason)

    def committed(self, lsn: int) -> None:
        self.syncer.commit(lsn)
        self._oracle.applied(lsn, [shape for shape in self.holdings if shape.partition in self.holdings.fed])

    def _on_durable(self, lsn: int) -> None:
        # The ingester takes the minimum over all partitions.
        if len(self.holdings.fed) == self._partitions:
            self._oracle.durable(lsn)

    def _on_sync_failure(self, failed: Log, error: OSError) -> None:
        for shape in self.holdings:
            if shape.log is failed:
                self.endings.end(shape, f"its log cannot be synced: {error.strerror}")

    def _on_ended(self, shape: Shape, reason: str) -> None:
        self._oracle.ended(shape.handle)

    def _on_held(self, version: int) -> None:
        self.held_version = version
        self.start_epoch()

    def _open_partition(self, storage: Path, number: int, generation: int) -> tuple[Partition, list[ShapeRow]]:
        partition, rows = open_partition(
            storage, number, generation, self.process, partial(_WatchedCatalog, self._world, self._oracle, self.process)
        )
        self._oracle.opened(number, rows)
        return partition, rows

    def _on_error(self, context: dict[str, Any]) -> None:
        if not self.process.dead:
            error = context.get("exception")
            self._oracle.problem(f"{context.get('message')}: {type(error).__name__}: {error}")

"""A shapeworker process: sockets and tasks around the parts that decide (architecture.md 1, 5)."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import structlog
import uvloop
import zmq

from common.config import Settings
from common.crash import CrashOnly
from common.frames import (
    ANSWER,
    FRAME_BYTES,
    GAP,
    POSITION,
    Answer,
    Gap,
    Subscribed,
    decode_answer,
    decode_gap,
    parse_position,
    records,
)
from common.instruments import Instruments
from common.lsn import Offset
from common.messages import (
    FRAME,
    MESSAGE,
    STATUS_TOPIC,
    Assign,
    Blocked,
    Durable,
    Evict,
    FromWorker,
    Hello,
    Leave,
    Subscribe,
    Survey,
    Unsubscribe,
    decode_status,
    decode_to_worker,
    encode,
)
from common.obstacles import TOLD, Obstacle
from common.postgres import Pool
from common.process import collect_rarely
from common.shape import ShapeRequest, partition_of_handle
from common.shortage import describe
from common.sockets import Channel, bound, connected
from common.subset import SubsetRequest
from shapeworker.announcer import Announcer
from shapeworker.apply import RECORDS, Applier, StorageFull
from shapeworker.catalog import CatalogDamaged
from shapeworker.creation import Creator
from shapeworker.credits import Credits
from shapeworker.definitions import Definitions
from shapeworker.endings import Endings
from shapeworker.eviction import Eviction
from shapeworker.explanation import explanation
from shapeworker.holdings import Holdings
from shapeworker.lease import Lease
from shapeworker.logs import OpenLogs
from shapeworker.measures import Measures
from shapeworker.obstacles import of_disk, of_loop
from shapeworker.ownership import Ownership
from shapeworker.reconciler import Reconciler
from shapeworker.requests import Requests
from shapeworker.shape import Shape
from shapeworker.stream import Intake, Verdict
from shapeworker.subsets import Subsets
from shapeworker.sync import Log, Syncer

log = structlog.get_logger()

HEARTBEAT = 1.0
"""Seconds between two signs of life to the ingester, and between two repetitions of what is applied to gateways."""

SWEEP = 10.0
"""Seconds between two emptyings of the trash."""

REMEMBER = 60.0
"""Seconds between two writings down of when shapes were last used: what a worker that dies may forget."""

FULL_DISK_PAUSE = 2.0
"""Seconds before a full disk is tried again, by a rewind."""

HINTS = 100_000
"""Messages that may wait for a gateway that does not read; beyond them hints are dropped."""

STREAM_TURN = 16
"""Small frames handled before requests and snapshots get their turn; what they bring is written together."""

STREAM_TURN_BYTES = 4 * FRAME_BYTES
"""The same for large ones; a full frame takes some milliseconds."""


class Worker:
    """One worker's sockets, and the calls between its parts."""

    def __init__(self, settings: Settings, worker_id: str, obstacles: Callable[[], list[Obstacle]] = list) -> None:
        """``obstacles``: what the process around it sees in its way."""
        self._obstacles_around = obstacles
        self._settings = settings
        self._worker = worker_id
        self._boot = secrets.token_hex(8)
        self._ingester = ""
        self._version = 0
        self._fed: set[int] = set()
        self._generation = 0
        # The epoch whose start has been processed. Reports are about that one, not about frames that only announce one.
        self._reporting = 0
        self._retry: asyncio.TimerHandle | None = None
        self._crash = CrashOnly()
        self._full = False
        self._shortage = ("", -FULL_DISK_PAUSE)
        # Frames are missing, and no new epoch has come yet. A full disk is another matter, with a patience of its own.
        self._lost = False
        self._credits = Credits()
        # The position that gateways were told last.
        self._published = 0
        self._tables: set[int] = set()
        # One thread, because a catalog is not for two; blocking calls on partitions all go through it, in order.
        self._disk = ThreadPoolExecutor(1, thread_name_prefix="disk")

        self._holdings = Holdings()
        self._syncer = Syncer(settings.storage_dir, self._on_durable, self._on_sync_failure)
        self._logs = OpenLogs(self._holdings, settings.chunk_bytes, self._syncer.dirty)
        self._applier = Applier(self, self._logs.open)
        self._endings = Endings(self._holdings, self._applier, self._syncer, self._disk, self._on_ended)
        self._ownership = Ownership(
            settings.storage_dir,
            self._holdings,
            self._applier,
            self._syncer,
            self._endings,
            self._disk,
            self._on_held,
            self._fed.discard,
            lambda partitions, reason: self._send(Blocked(partitions, reason)),
        )
        connections = max(1, settings.db_pool_size // max(1, settings.workers))
        lookups = max(1, connections // 4)
        subsets = max(1, (connections - lookups) // 2)
        self._pool = Pool(
            settings.pooled_database_url,
            f"galvanic {worker_id}",
            lookups,
            pooled=True,
            prepares=not settings.has_pooler,
            prefer_ipv6=settings.database_use_ipv6,
            setting=settings.pooled_setting,
        )
        self._definitions = Definitions(self._pool)
        self._creator = Creator(
            settings,
            self._holdings,
            self._applier,
            self._syncer,
            self._endings,
            self._disk,
            self._pool,
            self._definitions,
            snapshots=max(1, connections - lookups - subsets),
            subscribe=self._subscribe,
            on_written=self._on_held_back_written,
            on_active=self._logs.open,
        )
        self._subsets = Subsets(
            settings.pooled_database_url,
            settings.storage_dir,
            self._applier.delivered,
            turns=subsets,
            prefer_ipv6=settings.database_use_ipv6,
        )
        self._reconciler = Reconciler(
            self._pool, self._holdings, self._endings.end, settings.publication_refresh_period
        )
        self.measures = Measures(self._holdings, self._logs, self._syncer, self._endings, self._creator, self._subsets)
        self._intake = Intake()
        self._lease = Lease(time.monotonic())

        self._context: zmq.Context[Any] = zmq.Context()
        self._stream = Channel(
            connected(
                self._context,
                zmq.DEALER,
                settings.stream_endpoint,
                {zmq.ROUTING_ID: f"{worker_id}:{self._boot}".encode()},
            ),
            self._on_stream,
            STREAM_TURN,
            limit_bytes=STREAM_TURN_BYTES,
            on_turn=self._after_stream,
        )
        self._status = Channel(
            connected(self._context, zmq.SUB, settings.status_endpoint, {zmq.SUBSCRIBE: STATUS_TOPIC}),
            self._on_status,
        )
        requests = bound(self._context, zmq.ROUTER, settings.worker_requests_endpoint(worker_id))
        events = bound(
            self._context,
            zmq.XPUB,
            settings.worker_events_endpoint(worker_id),
            {zmq.XPUB_VERBOSE: 1, zmq.SNDHWM: HINTS},
        )
        self._requests_endpoint = requests.getsockopt_string(zmq.LAST_ENDPOINT)
        self._events_endpoint = events.getsockopt_string(zmq.LAST_ENDPOINT)
        self._announcer = Announcer(events, self._holdings.by_handle, self._holds)
        self._eviction = Eviction(self._holdings, self._announcer.is_watched)
        self._replies = Channel(requests, self._on_request)
        self._requests = Requests(
            self._holdings,
            self._fed_here,
            self._creator.create,
            self._logs.readable,
            self._endings.end_visibly,
            self._explain,
            self._replies.send,
            self._check,
            self._subsets,
            self._eviction.touch if settings.max_shapes else lambda _: None,
        )

    # ---- life

    async def run(self) -> int:
        """Work until told to stop. Returns the exit code."""
        await asyncio.to_thread(self._syncer.open)
        await asyncio.to_thread(self._creator.open)
        for work in (self._ownership.run(), self._syncer.run(), self._reconciler.run(), self._beat(), self._sweep()):
            self._crash.spawn(work)
        if self._settings.max_shapes is not None:
            self._crash.spawn(self._remember_uses())
        self._hello(0)
        log.info("shapeworker started", worker=self._worker)
        crashed = await self._crash.end()
        if crashed is not None:
            return crashed
        await self._stop()
        return 0

    async def _stop(self) -> None:
        log.info("shapeworker stops")
        self._intake.forget()
        self._applier.restart()
        self._crash.cancel()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(20):
                await self._syncer.flush()
                await self._ownership.release_all()
        self._send(Leave())
        self._requests.close()
        await asyncio.sleep(0.05)
        await self._creator.close()
        self._subsets.close()
        await self._pool.close()
        self._syncer.close()
        self._disk.shutdown(wait=True)
        for channel in (self._stream, self._status, self._replies):
            channel.close()
        self._announcer.close()
        self._context.term()

    async def _beat(self) -> None:
        late = 0.0
        while True:
            if reason := self._lease.lost(time.monotonic()):
                self._let_go(reason)
            if not self._ingester:
                self._hello(0)
            elif self._lost:
                self._hello(self._version)
            now = time.monotonic()
            self._send(Durable(self._reporting, self._syncer.durable, tuple(self._obstacles(now, late))))
            if credit := self._credits.rest():
                self._send(credit)
            self._publish_applied()
            self._announcer.tell()
            await asyncio.sleep(HEARTBEAT)
            late = time.monotonic() - now - HEARTBEAT

    def _obstacles(self, now: float, late: float) -> list[Obstacle]:
        syncing = self._syncer.syncing(now)
        at = None
        if syncing is not None:
            directories = (shape.relative for shape in self._holdings if shape.log is syncing[0])
            at = next(directories, str(self._settings.storage_dir)), syncing[1]
        # Between two attempts it is not known whether there is room again.
        reason, tried = self._shortage
        full = reason if now - tried < 3 * FULL_DISK_PAUSE else ""
        ends = {handle: (now - since, why) for handle, (since, why) in self._endings.recording.items()}
        disk = of_disk(full, at, ends)
        return [*disk, *self._creator.obstacles(now), *of_loop(late), *self._obstacles_around()][:TOLD]

    async def _explain(self, request: ShapeRequest) -> bytes:
        definition = await self._definitions.of(request)
        return await asyncio.to_thread(explanation, definition.table, definition.filter)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP)
            await asyncio.to_thread(self._subsets.sweep)
            await asyncio.to_thread(self._creator.sweep)
            for partition in list(self._holdings.partitions.values()):
                with contextlib.suppress(OSError):
                    await asyncio.to_thread(partition.sweep)

    async def _remember_uses(self) -> None:
        while True:
            await asyncio.sleep(REMEMBER)
            for partition in list(self._holdings.partitions.values()):
                used, partition.used = partition.used, {}
                if used:
                    # A full disk, or a partition that has just gone: then they are forgotten.
                    with contextlib.suppress(sqlite3.Error, CatalogDamaged):
                        await asyncio.get_running_loop().run_in_executor(self._disk, partition.catalog.remember, used)

    # ---- from the ingester

    def _on_status(self, parts: list[bytes]) -> None:
        status = decode_status(parts[1])
        self._lease.status(time.monotonic(), status.superseded)
        if status.boot != self._ingester and self._ingester:
            # Another ingester: it knows nothing of us, and what the former one had not sent is lost.
            self._ingester = ""
            self._version = 0
            self._intake.forget()
            self._hello(0)

    def _let_go(self, reason: str) -> None:
        """Another stack may need the partitions; until an ingester assigns some, this worker has none."""
        if not self._ownership.let_go():
            return
        log.warning("giving all partitions back", reason=reason)
        self._ingester = ""
        self._version = 0
        # What is not synced yet will not be: nothing more is reported durable in the epoch that fed it.
        self._reporting = 0
        self._intake.forget()
        self._applier.restart()

    def _on_stream(self, parts: list[bytes]) -> None:
        if self._crash.stopping:
            return
        kind, body = parts
        if kind == FRAME:
            self._on_frame(body)
        elif kind == MESSAGE:
            message = decode_to_worker(body)
            if not isinstance(message, Assign):
                self._on_eviction(message)
                return
            if message.boot != self._ingester:
                self._ingester = message.boot
                self._creator.subscribe_anew()
            self._creator.system(message.system)
            self._subsets.system(message.system)
            self._ownership.assign(message)

    def _on_eviction(self, message: Survey | Evict) -> None:
        if isinstance(message, Survey):
            self._send(self._eviction.answer(message, self._version))
            return
        for shape, reason in self._eviction.chosen(message):
            self._endings.end(shape, reason)

    def _on_frame(self, frame: bytes) -> None:
        verdict = self._intake.frame(frame)
        if verdict is Verdict.PROCESS or verdict is Verdict.START:
            if verdict is Verdict.START:
                self._applier.restart()
                self._full = self._lost = False
                # Answers in frames that were given up are not repeated by themselves.
                self._creator.subscribe_anew()
            try:
                for kind, index, payload in records(frame):
                    if kind in RECORDS:
                        self._applier.record(kind, index, payload)
                        continue
                    # What follows must find the logs as they are at this place of the stream.
                    self._applier.deliver()
                    if kind == ANSWER:
                        self._on_answer(decode_answer(payload))
                    elif kind == POSITION:
                        self._on_position(*parse_position(payload))
                    elif kind == GAP:
                        self._on_gap(decode_gap(payload))
            except StorageFull as error:
                self._on_full(error)
        elif verdict is Verdict.LOST:
            log.warning("frames were lost; asking for them again", epoch=self._intake.epoch)
            self._lost = True
            self._hello(self._version)
        self._credits.dealt(frame)

    def _after_stream(self) -> None:
        """Nothing else happens on the loop before what the frames of this turn have brought is written and told."""
        try:
            self._applier.deliver()
        except StorageFull as error:
            self._on_full(error)
        if self._syncer.applied != self._published:
            self._publish_applied()
        self._announcer.tell()
        if credit := self._credits.due():
            self._send(credit)

    def _on_position(self, position: int, fed: tuple[int, ...]) -> None:
        """A new epoch feeds these partitions: only their shapes get anything.

        A shape of a partition that was taken while the former epoch ran has missed part of it; applying the rest would
        leave a gap that its log cannot show. It joins here, where all that it may have missed comes again.
        """
        self._syncer.restart(position)
        self._reporting = self._intake.epoch
        self._generation = self._holdings.generation
        self._fed.clear()
        self._fed.update(fed)
        self._published = 0
        for shape in self._holdings:
            if shape.partition in fed:
                self._applier.add(shape)
            else:
                self._applier.remove(shape)

    def _on_answer(self, answer: Answer) -> None:
        self._creator.answer(answer)
        if isinstance(answer, Subscribed) and not self._holdings.needs(answer.table):
            # The shape ended while it was being subscribed: the ingester took us at our word.
            self._tables.discard(answer.table)
            self._send(Unsubscribe(answer.table))

    def _on_gap(self, gap: Gap) -> None:
        self._holdings.gaps[gap.table] = gap
        for shape in self._holdings.of_table(gap.table):
            if reason := self._holdings.missed(shape):
                self._endings.end(shape, reason)

    def _on_full(self, error: StorageFull) -> None:
        # Nothing more of this epoch counts, so nothing more of it is reported durable: the slot waits with us.
        shortage = describe(error.cause, self._settings.storage_dir)
        log.error("changes cannot be written; waiting", reason=shortage, error=str(error))
        self._full = True
        self._shortage = (shortage, time.monotonic())
        self._intake.forget()
        self._applier.restart()
        if self._retry is None:
            self._retry = asyncio.get_running_loop().call_later(FULL_DISK_PAUSE, self._retry_full)

    def _retry_full(self) -> None:
        self._retry = None
        if self._full and not self._crash.stopping:
            self._hello(self._version)
            self._retry = asyncio.get_running_loop().call_later(FULL_DISK_PAUSE, self._retry_full)

    # ---- to the ingester

    def _on_held(self, version: int) -> None:
        self._version = version
        self._tables = self._holdings.tables()
        self._hello(version)
        self._reconciler.hurry()

    def _hello(self, version: int) -> None:
        self._send(
            Hello(
                worker=self._worker,
                boot=self._boot,
                version=version,
                held=tuple(sorted(self._holdings.partitions)) if version else (),
                tables=tuple(self._holdings.tables()) if version else (),
                requests=self._requests_endpoint,
                events=self._events_endpoint,
                lost=self._intake.broken,
                epoch=self._intake.epoch,
            )
        )

    def _subscribe(self, subscribe: Subscribe) -> None:
        self._tables.add(subscribe.table)
        self._send(subscribe)

    def _send(self, message: FromWorker) -> None:
        self._stream.send([MESSAGE, encode(message)])

    def _on_durable(self, lsn: int) -> None:
        self._send(Durable(self._reporting, lsn))

    # ---- what applying leads to

    def written(self, shape: Shape, end: Offset, transactions: int = 1) -> None:
        """The shape's log has a new end."""
        if shape.durable and shape.log is not None:
            self._syncer.dirty(shape.log)
        self.measures.stored += transactions
        self._announcer.tail(shape, end)

    def _on_held_back_written(self, shape: Shape, end: Offset) -> None:
        # No turn of the stream that would tell it.
        self.written(shape, end)
        self._announcer.tell()

    def ended(self, shape: Shape, reason: str) -> None:
        """The shape cannot go on."""
        self._endings.end(shape, reason)

    def committed(self, lsn: int) -> None:
        """All shapes have what they need up to this commit."""
        self._syncer.commit(lsn)
        self.measures.committed(self._applier.committed_us)

    def _on_sync_failure(self, failed: Log, error: OSError) -> None:
        for shape in self._holdings:
            if shape.log is failed:
                self._endings.end(shape, f"its log cannot be synced: {error.strerror}")

    def _on_ended(self, shape: Shape, reason: str) -> None:
        if shape.filter_failed:
            self._creator.distrust(shape.request)
        self._announcer.ended(shape, reason)
        self._drop(shape.table.oid)

    def _drop(self, table: int) -> None:
        if table in self._tables and not self._holdings.needs(table):
            self._tables.discard(table)
            self._send(Unsubscribe(table))

    def _publish_applied(self) -> None:
        # A shape that has ended but cannot be told from a living one yet lacks what came after its end.
        partitions = self._holdings.open_among(self._fed) - self._endings.unmarked.keys()
        if partitions and not self._full:
            self._published = self._syncer.applied
            self._announcer.applied(self._generation, self._published, partitions)

    # ---- gateways

    def _on_request(self, parts: list[bytes]) -> None:
        self._requests.message(parts)

    async def _check(self, request: ShapeRequest, subset: SubsetRequest) -> None:
        await self._definitions.of(request, lambda table: self._subsets.check(table, subset))

    def _fed_here(self, partition: int) -> bool:
        return partition in self._fed and self._holdings.may_create(partition)

    def _holds(self, handle: str) -> bool:
        total = self._holdings.total
        number = partition_of_handle(handle, total) if total else None
        return number is not None and self._holdings.may_create(number) and not self._endings.is_unmarked(handle)


async def _run(settings: Settings, worker_id: str) -> int:
    settings.storage_dir.mkdir(parents=True, exist_ok=True)
    settings.run_dir.mkdir(parents=True, exist_ok=True)
    async with Instruments(settings, worker_id) as instruments:
        worker = Worker(settings, worker_id, instruments.obstacles)
        instruments.watch(worker.measures)
        return await worker.run()


def main(settings: Settings, worker_id: str) -> int:
    """Run a shapeworker until SIGTERM. Returns the exit code."""
    started = time.monotonic()
    collect_rarely()
    code = uvloop.run(_run(settings, worker_id))
    log.info("shapeworker stopped", seconds=round(time.monotonic() - started, 1), code=code)
    return code

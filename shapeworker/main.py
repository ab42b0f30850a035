"""A shapeworker process: sockets and tasks around the parts that decide (architecture.md 1, 5)."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import structlog
import uvloop
import zmq

from common.config import Settings
from common.crash import CrashOnly
from common.frames import FRAME_BYTES, Answer, Gap, Subscribed
from common.instruments import Instruments
from common.lsn import Offset
from common.messages import (
    FRAME,
    MESSAGE,
    STATUS_TOPIC,
    Assign,
    Blocked,
    Credit,
    Durable,
    Evict,
    FromWorker,
    Leave,
    Survey,
    WorkerPlace,
    decode_status,
    decode_to_worker,
    encode,
)
from common.obstacles import TOLD, Obstacle
from common.postgres import Pool
from common.process import collect_rarely
from common.shape import ShapeRequest, partition_of_handle
from common.sockets import Channel, bound, connected
from common.subset import SubsetRequest
from shapeworker.announcer import Announcer
from shapeworker.apply import Applier
from shapeworker.creation import Creator
from shapeworker.definitions import Definitions
from shapeworker.endings import Endings
from shapeworker.eviction import Eviction
from shapeworker.explanation import explanation
from shapeworker.feed import Feed
from shapeworker.holdings import Holdings
from shapeworker.logs import OpenLogs
from shapeworker.measures import Measures
from shapeworker.membership import Membership
from shapeworker.obstacles import of_disk, of_loop
from shapeworker.ownership import Ownership
from shapeworker.reconciler import Reconciler
from shapeworker.requests import Requests
from shapeworker.shape import Shape
from shapeworker.subsets import Subsets
from shapeworker.sync import Log, Syncer
from shapeworker.upkeep import remember_uses, sweep

log = structlog.get_logger()

HEARTBEAT = 1.0
"""Seconds between two signs of life to the ingester, and between two repetitions of what is applied to gateways."""

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
        self._crash = CrashOnly()
        # One thread, because a catalog is not for two; blocking calls on partitions all go through it, in order.
        self._disk = ThreadPoolExecutor(1, thread_name_prefix="disk")

        self._holdings = Holdings()
        self._syncer = Syncer(settings.storage_dir, self._on_durable, self._on_sync_failure)
        self._logs = OpenLogs(self._holdings, settings.chunk_bytes, self._syncer.dirty)
        self._applier = Applier(self, self._logs.open, self._holdings.fed)
        self._endings = Endings(self._holdings, self._applier, self._syncer, self._disk, self._on_ended)
        self._ownership = Ownership(
            settings.storage_dir,
            self._holdings,
            self._applier,
            self._syncer,
            self._endings,
            self._disk,
            self._on_held,
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
            subscribe=lambda subscribe: self._membership.subscribe(subscribe),
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
        self._feed = Feed(
            settings.storage_dir, self._holdings, self._applier, self._syncer, self._endings.unmarked, self
        )

        boot = secrets.token_hex(8)
        self._context: zmq.Context[Any] = zmq.Context()
        self._stream = Channel(
            connected(
                self._context,
                zmq.DEALER,
                settings.stream_endpoint,
                {zmq.ROUTING_ID: f"{worker_id}:{boot}".encode()},
            ),
            self._on_stream,
            STREAM_TURN,
            limit_bytes=STREAM_TURN_BYTES,
            on_turn=self._feed.turn,
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
        self._membership = Membership(
            worker_id,
            boot,
            WorkerPlace(requests.getsockopt_string(zmq.LAST_ENDPOINT), events.getsockopt_string(zmq.LAST_ENDPOINT)),
            self._holdings,
            self._ownership,
            self._feed,
            self._send,
        )
        self._announcer = Announcer(events, self._holdings.by_handle, self._holds)
        self._eviction = Eviction(self._holdings, self._announcer.is_watched)
        self._replies = Channel(requests, self._on_request)
        self._requests = Requests(
            self._holdings,
            self._holdings.is_fed,
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
        sweeping = sweep(self._holdings, self._subsets.sweep, self._creator.sweep)
        for work in (self._ownership.run(), self._syncer.run(), self._reconciler.run(), self._beat(), sweeping):
            self._crash.spawn(work)
        if self._settings.max_shapes is not None:
            self._crash.spawn(remember_uses(self._holdings, self._disk))
        self._membership.hello()
        log.info("shapeworker started", worker=self._worker)
        crashed = await self._crash.end()
        if crashed is not None:
            return crashed
        await self._stop()
        return 0

    async def _stop(self) -> None:
        log.info("shapeworker stops")
        self._feed.stop()
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
            self._membership.beat()
            now = time.monotonic()
            self._send(Durable(self._feed.reporting, self._syncer.durable, tuple(self._obstacles(now, late))))
            self._feed.beat()
            await asyncio.sleep(HEARTBEAT)
            late = time.monotonic() - now - HEARTBEAT

    def _obstacles(self, now: float, late: float) -> list[Obstacle]:
        syncing = self._syncer.syncing(now)
        at = None
        if syncing is not None:
            directories = (shape.relative for shape in self._holdings if shape.log is syncing[0])
            at = next(directories, str(self._settings.storage_dir)), syncing[1]
        ends = {handle: (now - since, why) for handle, (since, why) in self._endings.recording.items()}
        disk = of_disk(self._feed.shortage(now), at, ends)
        return [*disk, *self._creator.obstacles(now), *of_loop(late), *self._obstacles_around()][:TOLD]

    async def _explain(self, request: ShapeRequest) -> bytes:
        definition = await self._definitions.of(request)
        return await asyncio.to_thread(explanation, definition.table, definition.filter)

    # ---- from the ingester

    def _on_status(self, parts: list[bytes]) -> None:
        self._membership.status(decode_status(parts[1]))

    def _on_stream(self, parts: list[bytes]) -> None:
        if self._crash.stopping:
            return
        kind, body = parts
        if kind == FRAME:
            self._feed.frame(body)
        elif kind == MESSAGE:
            message = decode_to_worker(body)
            if not isinstance(message, Assign):
                self._on_eviction(message)
                return
            if self._membership.assign(message):
                self._creator.subscribe_anew()
            self._creator.system(message.system)
            self._subsets.system(message.system)

    def _on_eviction(self, message: Survey | Evict) -> None:
        if isinstance(message, Survey):
            self._send(self._eviction.answer(message, self._membership.version))
            return
        for shape, reason in self._eviction.chosen(message):
            self._endings.end(shape, reason)

    # ---- what the stream leads to (feed.Events)

    def started(self) -> None:
        """An epoch begins: answers in frames that were given up are not repeated by themselves."""
        self._creator.subscribe_anew()

    def answered(self, answer: Answer) -> None:
        """The ingester's answer, at its place in the stream."""
        self._creator.answer(answer)
        if isinstance(answer, Subscribed):
            self._membership.subscribed(answer.table)

    def missed(self, gap: Gap) -> None:
        """Shapes of a table may have missed changes."""
        self._holdings.gaps[gap.table] = gap
        for shape in self._holdings.of_table(gap.table):
            if reason := self._holdings.missed(shape):
                self._endings.end(shape, reason)

    def rewind(self) -> None:
        """Nothing more of the present epoch can be used."""
        self._membership.hello()

    def credit(self, credit: Credit) -> None:
        """So many bytes of an epoch's frames are dealt with."""
        self._send(credit)

    def applied(self, generation: int, lsn: int, partitions: Iterable[int]) -> None:
        """All commits up to ``lsn`` are readable in the shapes of these partitions."""
        self._announcer.applied(generation, lsn, partitions)

    def turned(self) -> None:
        """What gateways should know goes out."""
        self._announcer.tell()

    # ---- to the ingester

    def _on_held(self, version: int) -> None:
        self._membership.held(version)
        self._reconciler.hurry()

    def _send(self, message: FromWorker) -> None:
        self._stream.send([MESSAGE, encode(message)])

    def _on_durable(self, lsn: int) -> None:
        self._send(Durable(self._feed.reporting, lsn))

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
        self._membership.drop(shape.table.oid)

    # ---- gateways

    def _on_request(self, parts: list[bytes]) -> None:
        self._requests.message(parts)

    async def _check(self, request: ShapeRequest, subset: SubsetRequest) -> None:
        await self._definitions.of(request, lambda table: self._subsets.check(table, subset))

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

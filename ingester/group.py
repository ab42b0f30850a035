"""The workers' side of the ingester: who is there, what each is told and fed, what each has made durable.

Around the coordinator, the fan-out and the watermark, which decide, this moves the messages (architecture.md 2.1, 3).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import Any, Final

import msgspec
import structlog
import zmq

from common.config import Settings
from common.frames import Gap
from common.messages import (
    FRAME,
    MESSAGE,
    STATUS_TOPIC,
    Assign,
    Blocked,
    Credit,
    Durable,
    Hello,
    Leave,
    Status,
    Subscribe,
    Unsubscribe,
    Usage,
    WorkerPlace,
    decode_from_worker,
    encode,
)
from common.obstacles import TOLD, Obstacle
from common.sockets import Channel, bound
from ingester.coordinator import Coordinator
from ingester.eviction import Eviction
from ingester.fanout import Fanout
from ingester.watermark import Watermark

log = structlog.get_logger()

TICK: Final = 0.1
"""Seconds between two looks at who has fallen silent."""

PAUSED: Final = 1.0
"""A tick that is so late (s) says more about this process than about the workers."""

STATUS_BACKLOG: Final = 1000
"""Status messages that may wait for a process that does not read; beyond them they are dropped."""


class Group:
    """All workers. ``coordinator`` and ``watermark`` are there once the number of partitions is known."""

    def __init__(
        self,
        settings: Settings,
        boot: str,
        *,
        on_subscribe: Callable[[str, bytes, Subscribe], None],
        on_credit: Callable[[], None],
        on_change: Callable[[], None],
    ) -> None:
        """``on_credit``: workers may be sent more again. ``on_change``: perhaps a new epoch is needed."""
        self._boot = boot
        self._on_subscribe = on_subscribe
        self._on_credit = on_credit
        self._on_change = on_change
        self._context: zmq.Context[Any] = zmq.Context()
        self._workers = Channel(
            bound(
                self._context,
                zmq.ROUTER,
                settings.stream_endpoint,
                # HANDOVER: a worker whose connection is half dead must get through on its next one.
                {zmq.ROUTER_MANDATORY: 1, zmq.ROUTER_HANDOVER: 1},
            ),
            self._on_message,
        )
        self._events = Channel(
            bound(self._context, zmq.PUB, settings.status_endpoint, {zmq.SNDHWM: STATUS_BACKLOG}), None
        )
        self.coordinator: Coordinator | None = None
        self.watermark: Watermark | None = None
        self.fanout = Fanout(self._send_frame, 0)
        self.generation = 0
        self.system = ""
        self.state = "starting"
        self.reason = "connecting to the database"
        self.superseded = False
        self._leads = False
        self._eviction = None if settings.max_shapes is None else Eviction(settings.max_shapes)
        self._early: dict[bytes, list[bytes]] = {}
        self._blocked: dict[str, Blocked] = {}
        self.told: dict[str, tuple[Obstacle, ...]] = {}
        """What workers say is in their way."""
        self.obstacles: list[Obstacle] = []
        """What is in the way of anything, to be published."""
        self.flushed = 0
        """The position that Postgres may be told: durable in the shapes, and recorded as acknowledged."""

    def adopt(self, partitions: int, generation: int, position: int, system: str = "") -> None:
        """The storage has so many partitions; its shapes belong to ``generation`` and are durable to ``position``."""
        if self.watermark is None or generation != self.generation:
            self.watermark = Watermark(partitions, position)
            self.flushed = position
        self.system = system or self.system
        changed = generation != self.generation
        if changed:
            self.fanout.ring.clear()
        self.generation = generation
        if self.coordinator is None:
            self.coordinator = Coordinator(partitions, version=time.time_ns() // 1_000_000)
            early, self._early = self._early, {}
            for parts in early.values():
                self._on_message(parts)
        elif changed:
            self.coordinator.assign_anew()
        self.flushed = max(self.flushed, position)

    def lead(self) -> None:
        """The lock is ours: from now on workers are told what to hold."""
        self._leads = True
        self._coordinate()

    def follow(self) -> None:
        """The lock is not ours, or not surely: another instance's workers may need the partitions (INV-39)."""
        self._leads = False

    def start_epoch(self, epoch: int, gaps: Iterable[Gap] = ()) -> dict[str, int]:
        """Feed every ready worker what it holds, from the acknowledged position on. Returns how much each is fed."""
        assert self.coordinator is not None
        assert self.watermark is not None
        members = self.coordinator.members
        feeds = self.coordinator.start_epoch()
        self.watermark.rewound(self.flushed)
        self.fanout.start_epoch(
            epoch, self.flushed, {name: (partitions, members[name].tables) for name, partitions in feeds.items()}, gaps
        )
        return {name: len(partitions) for name, partitions in feeds.items()}

    @property
    def has_workers(self) -> bool:
        """Whether any worker is there."""
        return self.coordinator is not None and bool(self.coordinator.members)

    @property
    def obstructed(self) -> dict[str, Obstacle]:
        """Workers that cannot take partitions, and why."""
        return {
            worker: Obstacle(
                "partitions", f"waits for {', '.join(map(str, blocked.partitions))}: {blocked.reason}", delays=True
            )
            for worker, blocked in sorted(self._blocked.items())
        }

    @property
    def surplus(self) -> list[Obstacle]:
        """That there are more shapes than there may be, and none can be dropped."""
        return [] if self._eviction is None else self._eviction.obstacles

    @property
    def missing(self) -> str:
        """Which partitions nobody is fed and why, for people; empty when there are none."""
        unowned = [] if self.coordinator is None else self.coordinator.unowned()
        if not unowned:
            return ""
        obstacles = [f"{worker} {obstacle.text}" for worker, obstacle in self.obstructed.items()]
        return "; ".join([f"{len(unowned)} partitions have no worker yet", *obstacles])

    @property
    def tables(self) -> set[int] | None:
        """The tables that shapes need; ``None`` while some partition is on its way, and so are its needs."""
        coordinator = self.coordinator
        if coordinator is None or coordinator.needs_epoch or coordinator.unowned():
            return None
        if not all(member.ready for member in coordinator.members.values()):
            return None
        return {table for member in coordinator.members.values() for table in member.tables}

    async def run(self) -> None:
        """Give up workers that fall silent, for ever."""
        last = time.monotonic()
        while True:
            await asyncio.sleep(TICK)
            now = time.monotonic()
            if now - last > PAUSED and self.coordinator is not None:
                # It was this process that stood still: what workers said meanwhile is still to be read.
                self.coordinator.excuse(now - last)
                log.warning(
                    "this process stood still: stopped, swapped out, or short of CPU", seconds=round(now - last)
                )
            last = now
            if self.coordinator is not None:
                for worker in self.coordinator.tick(time.monotonic()):
                    log.warning("a worker is silent; its partitions move", worker=worker)
                    self._forget(worker)
                self._coordinate()
                self._survey()

    def say(self, state: str, reason: str, *, superseded: bool = False) -> None:
        """Publish a new state, with its reason, and whether another instance has the lock."""
        self.state, self.reason, self.superseded = state, reason, superseded
        self.publish()

    def publish(self) -> None:
        """Publish the present status."""
        coordinator = self.coordinator
        members = {} if coordinator is None else coordinator.members
        status = Status(
            boot=self._boot,
            state=self.state,
            reason=self.reason,
            epoch=self.fanout.epoch,
            generation=self.generation,
            partitions=0 if coordinator is None else coordinator.partitions,
            lsn=self.fanout.dispatched,
            owners={} if coordinator is None else coordinator.owners(),
            workers={name: WorkerPlace(member.requests, member.events) for name, member in members.items()},
            superseded=self.superseded,
            delayed=any(obstacle.delays for obstacle in self.obstacles),
            details=tuple(obstacle.text for obstacle in self.obstacles[:TOLD]),
        )
        self._events.send([STATUS_TOPIC, encode(status)])

    # ---- messages

    def _on_message(self, parts: list[bytes]) -> None:
        peer, _, body = parts
        coordinator = self.coordinator
        message = decode_from_worker(body)
        if coordinator is None:
            if isinstance(message, Hello):
                self._early[peer] = parts
            return
        now = time.monotonic()
        if isinstance(message, Hello):
            former = coordinator.members.get(message.worker)
            if former is not None and former.boot != message.boot:
                self._forget(message.worker)
            self._blocked.pop(message.worker, None)
            if message.lost and message.epoch != self.fanout.epoch:
                # Of an epoch that is over: what was lost in it comes again anyhow.
                message = msgspec.structs.replace(message, lost=False)
            coordinator.hello(now, peer, message)
            self._coordinate()
            return
        member = coordinator.heard(now, peer)
        if member is None:
            return
        if isinstance(message, Credit):
            self.fanout.credit(member.worker, message.epoch, message.total)
            if not self.fanout.blocked:
                self._on_credit()
        elif isinstance(message, Durable):
            if message.told is not None:
                self.told[member.worker] = message.told
            if message.epoch == self.fanout.epoch and self.watermark is not None:
                self.watermark.durable(member.fed, message.lsn)
        elif isinstance(message, Subscribe):
            self._on_subscribe(member.worker, peer, message)
        elif isinstance(message, Unsubscribe):
            member.tables.discard(message.table)
            self.fanout.unsubscribe(member.worker, message.table)
        elif isinstance(message, Blocked):
            self._blocked[member.worker] = message
        elif isinstance(message, Usage):
            self._evict(member.worker, message)
        elif isinstance(message, Leave):
            log.info("a worker left", worker=member.worker)
            coordinator.leave(now, member.worker)
            self._forget(member.worker)
            self._coordinate()

    def _coordinate(self) -> None:
        coordinator = self.coordinator
        if coordinator is None or not self._leads:
            return
        for assignment in coordinator.assignments():
            message = Assign(
                version=assignment.version,
                partitions=assignment.partitions,
                total=coordinator.partitions,
                acknowledged=self.flushed,
                generation=self.generation,
                system=self.system,
                boot=self._boot,
            )
            self._workers.send([coordinator.members[assignment.worker].peer, MESSAGE, encode(message)])
        if coordinator.needs_epoch:
            self._on_change()

    def _survey(self) -> None:
        coordinator, eviction = self.coordinator, self._eviction
        if coordinator is None or eviction is None or not self._leads:
            return
        if survey := eviction.survey(time.monotonic()):
            for member in coordinator.members.values():
                self._workers.send([member.peer, MESSAGE, encode(survey)])

    def _evict(self, worker: str, usage: Usage) -> None:
        coordinator, eviction = self.coordinator, self._eviction
        if coordinator is None or eviction is None or not self._leads:
            return
        versions = {name: member.version if member.ready else 0 for name, member in coordinator.members.items()}
        for name, evict in eviction.answered(time.monotonic(), worker, usage, versions).items():
            log.info("too many shapes; those unused for longest end", worker=name, ends=evict.count, shapes=evict.total)
            self._workers.send([coordinator.members[name].peer, MESSAGE, encode(evict)])

    def _forget(self, worker: str) -> None:
        self._blocked.pop(worker, None)
        self.told.pop(worker, None)
        self.fanout.forget(worker)
        if not self.fanout.blocked:
            self._on_credit()

    def _send_frame(self, worker: str, frame: bytes) -> None:
        assert self.coordinator is not None
        member = self.coordinator.members.get(worker)
        if member is not None:
            self._workers.send([member.peer, FRAME, frame])

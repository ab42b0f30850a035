"""The parts of a gateway put together: status and events in, HTTP out."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Callable
from typing import Any, Final

import msgspec
import structlog
import zmq

from common.config import Settings
from common.messages import STATUS_TOPIC, decode_status
from common.obstacles import Obstacle, ObstacleLog
from common.sockets import Channel, connected
from gateway.admission import Admission, short_of_files
from gateway.answers import LiveAnswers, Policy
from gateway.app import App
from gateway.checks import Checks
from gateway.compression import Compression
from gateway.connection import Server
from gateway.deletion import Deletion
from gateway.delivery import Delivery
from gateway.exchange import Exchange
from gateway.hints import Hints
from gateway.live import Live
from gateway.measures import Measures, Traffic
from gateway.progress import Progress
from gateway.reception import Reception
from gateway.response import CachePolicy
from gateway.service import Service
from gateway.shape import Shape
from gateway.shapes import Shapes
from gateway.shortcut import Shortcut
from gateway.subset_delivery import SubsetDelivery
from gateway.touches import Touches
from gateway.wheel import TICK
from gateway.workers import Workers

log = structlog.get_logger(__name__)

SHUTDOWN_TIMEOUT: Final = 3.0
"""Seconds that answers under way get to reach their clients when the process ends."""


class Gateway:
    """One HTTP process. Make it, :meth:`start` and :meth:`stop` it on one running loop."""

    def __init__(
        self, settings: Settings, context: zmq.Context[Any], obstacles: Callable[[], list[Obstacle]] = list
    ) -> None:
        """``obstacles``: what the process around it sees in its way."""
        loop = asyncio.get_running_loop()
        self._settings = settings
        self._context = context
        self._service = Service()
        self._progress = Progress()
        self._workers = Workers(context, self)
        self._hints = Hints(self._service, self._workers)
        policy = Policy(CachePolicy(settings.cache_max_age, settings.cache_stale_age), settings.long_poll_timeout_ms)
        answers = LiveAnswers(self._progress, policy)
        self._live: Live[Shape] = Live(self._hints, loop.time)
        self._touches = None if settings.max_shapes is None else Touches(self._service, self._workers.tell, loop.time)
        used = None if self._touches is None else self._touches.add
        self._shapes = Shapes(settings.storage_dir, self._service, self._workers, used)
        self._admission = Admission(settings.max_concurrent_requests, loop.time)
        self._obstacles_around = obstacles
        self._told = ObstacleLog()
        traffic = Traffic()
        self._compression = Compression() if settings.compression else None
        reception = Reception(self._shapes, self._live.ended, answers.begun)
        delivery = Delivery(reception, self._live, answers, policy, self._compression)
        app = App(
            service=self._service,
            shapes=self._shapes,
            admission=self._admission,
            traffic=traffic,
            obstacles=self._obstacles,
            reception=reception,
            delivery=delivery,
            checks=Checks(self._shapes),
            subsets=SubsetDelivery(reception, self._service, self._workers, settings.storage_dir),
            deletion=Deletion(self._shapes, self._live.ended),
            shortcut=Shortcut(
                self._shapes, self._admission, self._live, delivery, reception.gone, reception.unreadable
            ),
            secret=settings.secret,
            allow_delete=settings.integration_testing,
        )
        self._app = app
        self._server = Server(
            lambda connection, request: app.begin(Exchange(connection, request)),
            idle_timeout=settings.tcp_read_timeout,
            send_timeout=settings.tcp_send_timeout,
            requests_per_connection=settings.conn_max_requests,
        )
        self._status: Channel | None = None
        self._ticker: asyncio.TimerHandle | None = None
        self.measures = Measures(traffic, self._admission, self._live, lambda: len(self._server.connections))

    async def start(self) -> None:
        """Listen to the ingester and to clients. Raises ``OSError`` when the port is taken."""
        self._status = Channel(
            connected(self._context, zmq.SUB, self._settings.status_endpoint, {zmq.SUBSCRIBE: STATUS_TOPIC}),
            self._on_status,
        )
        self._tick()
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        if reason := short_of_files(self._settings.max_concurrent_requests, files):
            log.warning("fewer clients can connect than may", reason=reason)
        host = "::" if self._settings.listen_on_ipv6 else "0.0.0.0"
        await self._server.listen(host, self._settings.port)

    async def stop(self) -> None:
        """Accept no more, answer those who wait as at their deadline, give slow clients a moment, close everything."""
        self._server.close_listener()
        self._server.drain()
        self._live.close()
        await self._server.stop(SHUTDOWN_TIMEOUT)
        if self._ticker is not None:
            self._ticker.cancel()
        if self._compression is not None:
            self._compression.close()
        self._shapes.close()
        self._workers.close()
        if self._status is not None:
            self._status.close()

    def on_tail(self, handle: str) -> None:
        """A worker says that the log of this handle has grown."""
        self._live.tail(handle)

    def on_ended(self, handle: str) -> None:
        """A worker says that the shape with this handle is gone."""
        self._live.ended(handle)

    def on_applied(self, generation: int, lsn: int, partitions: tuple[int, ...]) -> None:
        """A worker says that all commits up to here are readable."""
        self._progress.applied(generation, lsn, partitions)

    def _on_status(self, parts: list[bytes]) -> None:
        try:
            status = decode_status(parts[-1])
        except msgspec.DecodeError as error:
            log.error("unreadable status from the ingester", error=str(error))
            return
        before = self._service.status
        self._service.update(status, asyncio.get_running_loop().time())
        self._progress.begin(status.generation)
        if before is None or before.workers != status.workers or before.owners != status.owners:
            self._workers.update(status.workers)
            self._hints.reassign()
        self._shapes.service_changed()

    def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        self._ticker = loop.call_later(TICK, self._tick)
        self._live.advance(loop.time())
        self._server.advance(loop.time())
        if self._touches is not None:
            self._touches.advance(self._shapes.in_use())
        self._told.tell(loop.time(), self._obstacles())

    def _obstacles(self) -> list[Obstacle]:
        return [*self._admission.obstacles(), *self._obstacles_around()]

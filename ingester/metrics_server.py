"""``GET /metrics`` on ELECTRIC_PROMETHEUS_PORT (http-api.md 27.3), and where the other processes report."""

from __future__ import annotations

import asyncio
import time
from types import TracebackType
from typing import Any, Final, Self

import msgspec
import structlog
import zmq
from aiohttp import web

from common.config import Settings
from common.metrics import Report, decode_report
from common.obstacles import Obstacle
from common.sockets import Channel, bound
from ingester.exposition import Exposition

log = structlog.get_logger()

RETRY: Final = 5.0
"""Seconds between two attempts to listen."""

_FIELDS: Final = {"content-type": "text/plain; charset=utf-8"}


class MetricsServer:
    """Collects and serves while the ``async with`` block runs. What keeps it from serving keeps nothing else."""

    def __init__(self, settings: Settings, port: int) -> None:
        self._settings = settings
        self._port = port
        self._exposition = Exposition()
        self._refused = ""
        self._runner = web.ServerRunner(web.Server(self._handle, access_log=None))
        self._listening: asyncio.Task[None] | None = None
        self._context: zmq.Context[Any] = zmq.Context()
        self._reports: Channel | None = None

    def take(self, report: Report) -> bool:
        """The ingester's own report."""
        self._exposition.take(time.monotonic(), report)
        return True

    def obstacles(self) -> list[Obstacle]:
        """Why nothing is served."""
        return [Obstacle("ELECTRIC_PROMETHEUS_PORT", self._refused)] if self._refused else []

    async def __aenter__(self) -> Self:
        self._reports = Channel(bound(self._context, zmq.PULL, self._settings.metrics_endpoint), self._on_report)
        await self._runner.setup()
        self._listening = asyncio.get_running_loop().create_task(self._listen())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._listening is not None
        assert self._reports is not None
        self._listening.cancel()
        await self._runner.cleanup()
        self._reports.close()
        self._context.term()

    async def _listen(self) -> None:
        host = "::" if self._settings.listen_on_ipv6 else "0.0.0.0"
        while True:
            try:
                await web.TCPSite(self._runner, host, self._port).start()
            except OSError as error:
                if not self._refused:
                    log.error("metrics are not served", variable="ELECTRIC_PROMETHEUS_PORT", reason=str(error))
                self._refused = (
                    f"metrics are not served: ELECTRIC_PROMETHEUS_PORT: port {self._port} cannot be used "
                    f"({error.strerror or error}); ss -ltnp 'sport = :{self._port}' names who has it"
                )
                await asyncio.sleep(RETRY)
            else:
                self._refused = ""
                log.info("metrics are served", port=self._port)
                return

    def _on_report(self, parts: list[bytes]) -> None:
        try:
            report = decode_report(parts[-1])
        except msgspec.DecodeError as error:
            # Of another version, while it is being replaced.
            log.warning("unreadable report", error=str(error))
            return
        self._exposition.take(time.monotonic(), report)

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        path, _, _ = request.raw_path.partition("?")
        if path != "/metrics" or request.method not in ("GET", "HEAD"):
            return web.Response(status=404, body=b"Not found", headers=_FIELDS)
        return web.Response(body=self._exposition.text(time.monotonic()).encode(), headers=_FIELDS)

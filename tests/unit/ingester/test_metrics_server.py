"""The metrics port: what it answers, whose reports it takes, and that it never keeps the ingester from working."""

from __future__ import annotations

import asyncio
import socket
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
import zmq

from common.config import Settings
from common.metrics import Report, encode_report, one
from common.sockets import Channel, connected
from ingester import metrics_server
from ingester.metrics_server import MetricsServer
from tests.ports import free_port

SHAPES = "electric_shapes_total_shapes_count"


@asynccontextmanager
async def server(port: int) -> AsyncIterator[tuple[MetricsServer, Settings]]:
    with tempfile.TemporaryDirectory(prefix="gv-", dir="/tmp") as directory:
        settings = Settings(
            database_url="postgresql://u@localhost/d", insecure=True, run_dir=Path(directory), prometheus_port=port
        )
        async with MetricsServer(settings, port) as metrics:
            yield metrics, settings


async def ask(port: int, path: str = "/metrics", method: str = "GET") -> tuple[int, str, str]:
    """Status, content type and body, once somebody listens."""
    async with aiohttp.ClientSession() as session, asyncio.timeout(60):
        while True:
            try:
                async with session.request(method, f"http://127.0.0.1:{port}{path}") as answer:
                    return answer.status, answer.headers["content-type"], await answer.text()
            except aiohttp.ClientConnectionError:
                await asyncio.sleep(0.02)


async def test_reports_are_taken_from_the_socket_and_served() -> None:
    port = free_port()
    failures: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))
    async with server(port) as (metrics, settings):
        metrics.take(Report("ingester", (), (one(SHAPES, 1),)))
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        channel = Channel(connected(context, zmq.PUSH, settings.metrics_endpoint), None)
        channel.send([b"nonsense"])
        channel.send([encode_report(Report("w00", (one("galvanic_shapes_ended_total", 2),), (one(SHAPES, 4),)))])
        async with asyncio.timeout(60):
            while f"{SHAPES} 5\n" not in (await ask(port))[2]:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        status, kind, text = await ask(port)
        assert (status, kind) == (200, "text/plain; charset=utf-8")
        assert "galvanic_shapes_ended_total 2\n" in text
        # In the ingester it would end the process.
        assert failures == []
        channel.close()
        context.term()


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/"), ("GET", "/v1/health"), ("GET", "/metrics/"), ("POST", "/metrics")]
)
async def test_anything_else_is_not_found(method: str, path: str) -> None:
    port = free_port()
    async with server(port):
        assert await ask(port, path, method) == (404, "text/plain; charset=utf-8", "Not found")
        assert (await ask(port, "/metrics?x=1"))[0] == 200
        assert (await ask(port, "/metrics", "HEAD"))[0] == 200


async def test_a_port_that_is_taken_is_told_and_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_server, "RETRY", 0.05)
    port = free_port()
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("0.0.0.0", port))
        other.listen()
        async with server(port) as (metrics, _):
            async with asyncio.timeout(60):
                while not metrics.obstacles():  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
            (obstacle,) = metrics.obstacles()
            assert f"ELECTRIC_PROMETHEUS_PORT: port {port} cannot be used" in obstacle.text
            assert "ss -ltnp" in obstacle.text
            assert not obstacle.delays
            other.close()
            assert (await ask(port))[0] == 200
            assert metrics.obstacles() == []

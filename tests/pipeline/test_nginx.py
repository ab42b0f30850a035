"""Behind the nginx configuration of deploy/nginx/: what collapses, what is kept and for whom, and what goes through."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import aiohttp
import pytest
from aiohttp import web
from yarl import URL

from gateway.connection import Connection
from gateway.request_head import Request
from tests.pipeline.nginx import Nginx, find_nginx
from tests.pipeline.reader import HANG_SECONDS
from tests.ports import free_port
from tests.unit.gateway.cluster import Cluster, cluster, entry, row, until

pytestmark = pytest.mark.skipif(find_nginx() is None, reason="nginx is not installed (Debian package nginx)")

CLIENTS = 100


class Front(NamedTuple):
    """A gateway behind nginx, what reached the gateway, and a client."""

    world: Cluster
    nginx: Nginx
    seen: Counter[str]
    validators: list[str]
    session: aiohttp.ClientSession

    async def get(self, query: str, **headers: str) -> tuple[int, Any, bytes]:
        """GET the table ``items`` through nginx."""
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        async with self.session.get(f"/v1/shape?table=items&{query}", headers=names) as response:
            return response.status, response.headers, await response.read()


@contextlib.asynccontextmanager
async def front(**settings: Any) -> AsyncIterator[Front]:
    """A gateway that counts the requests it gets, and nginx before it."""
    async with cluster(conn_max_requests=1000, **settings) as world:
        seen: Counter[str] = Counter()
        validators: list[str] = []
        server = world.gateway._server
        begin = server.begin

        def counted(connection: Connection, request: Request) -> None:
            seen[f"{request.method} {request.target}"] += 1
            if tag := request.headers.get("if-none-match"):
                validators.append(tag)
            begin(connection, request)

        server.begin = counted
        with Nginx(world.settings.port) as nginx:
            connector = aiohttp.TCPConnector(limit=0)
            timeout = aiohttp.ClientTimeout(total=HANG_SECONDS)
            async with aiohttp.ClientSession(
                nginx.url, connector=connector, timeout=timeout, auto_decompress=False
            ) as session:
                yield Front(world, nginx, seen, validators, session)
            assert "[alert]" not in nginx.errors
            assert "[crit]" not in nginx.errors


async def test_a_hundred_clients_are_one_to_the_gateway() -> None:
    async with front(long_poll_timeout_ms=15_000) as it:
        shape = it.world.worker.shape()
        rounds = 3

        async def follow() -> list[tuple[str, str]]:
            steps: list[tuple[str, str]] = []
            _, headers, _ = await it.get("offset=-1")
            offset, cursor = "0_inf", ""
            handle = headers["electric-handle"]
            while len(steps) < rounds:
                status, headers, body = await it.get(f"handle={handle}&offset={offset}&live=true&cursor={cursor}")
                assert status == 200
                offset, cursor = headers["electric-offset"], headers["electric-cursor"]
                steps.append((offset, body.decode()))
            return steps

        def live() -> Counter[str]:
            return Counter({path: count for path, count in it.seen.items() if "live=true" in path})

        clients = [asyncio.create_task(follow()) for _ in range(CLIENTS)]
        for number in range(rounds):
            await until(lambda: len(live()) > number and it.world.gateway._live.waiting > 0)  # noqa: B023
            # Nearly all of them ask by now; who comes later gets the same from the cache.
            await asyncio.sleep(0.7)
            it.world.worker.commit(shape, 100 + number, entry(number))
        steps = await asyncio.gather(*clients)
        assert all(each == steps[0] for each in steps)
        assert [offset for offset, _ in steps[0]] == ["100_0", "101_0", "102_0"]
        # One for each cursor; clients that this machine kept for more than 5 s may have caused others.
        assert len(live()) == rounds
        assert live().total() <= CLIENTS // 10
        assert it.seen.total() - live().total() <= 2


async def test_an_initial_chunk_is_kept_once_per_coding() -> None:
    async with front() as it:
        it.world.worker.rows = [row(number, pad=100) for number in range(500)]
        bodies = {}
        for spelling in ("identity", "br", "gzip", "gzip, deflate", "gzip, deflate, br, zstd", "ZSTD"):
            for _ in range(2):
                _, headers, body = await it.get("offset=-1", accept_encoding=spelling)
                bodies[headers.get("content-encoding"), headers["etag"]] = body
        assert {coding for coding, _ in bodies} == {None, "gzip", "zstd"}
        assert len(bodies) == 3
        assert sum(it.seen.values()) - it.seen["GET /v1/health"] == 3


async def test_what_is_out_of_date_is_asked_for_by_its_tag() -> None:
    async with front(cache_max_age=1, cache_stale_age=0) as it:
        _, headers, first = await it.get("offset=-1")
        query = f"offset=0_0&handle={headers['electric-handle']}"
        _, headers, first = await it.get(query)
        assert headers["x-cache"] == "MISS"
        await asyncio.sleep(2.1)
        status, headers, second = await it.get(query)
        assert (status, headers["x-cache"], second) == (200, "REVALIDATED", first)
        assert it.validators == [headers["etag"]]


async def test_a_conflict_is_kept_and_errors_are_not() -> None:
    async with front(max_concurrent_requests={"initial": 1, "existing": 9}) as it:
        for _ in range(3):
            status, headers, _ = await it.get("offset=0_0&handle=7-7")
            assert (status, headers["cache-control"]) == (409, "public, max-age=60, must-revalidate")
        for _ in range(3):
            status, headers, _ = await it.get("offset=x")
            assert (status, headers["x-cache"]) == (400, "MISS")
        it.world.worker.silent = True
        first = asyncio.create_task(it.get("offset=-1&where=true"))
        await until(lambda: it.world.gateway._admission.in_flight("initial") == 1)
        for _ in range(3):
            status, headers, _ = await it.get("offset=-1&where=false")
            assert (status, headers["cache-control"]) == (503, "no-store")
        first.cancel()
        counts = sorted(count for path, count in it.seen.items() if "shape" in path)
        assert counts == [1, 1, 3, 3]


async def test_a_kept_answer_is_for_every_site_but_not_without_the_secret() -> None:
    async with front(secret="hush-hush", insecure=False) as it:
        for origin in ("https://a.example", "https://b.example"):
            status, headers, _ = await it.get("offset=-1&secret=hush-hush", origin=origin)
            assert (status, headers["access-control-allow-origin"]) == (200, "*")
        assert headers["x-cache"] == "HIT"
        assert (await it.get("offset=-1"))[0] == 401
        assert (await it.get("offset=-1&secret=hush"))[0] == 401
        async with it.session.post("/v1/shape?table=items&offset=-1&secret=hush-hush", data=b"{}") as posted:
            assert "x-cache" not in posted.headers or posted.headers["x-cache"] != "HIT"
        async with it.session.get("/v1/health") as health:
            assert health.status == 200
        async with it.session.get("/nowhere") as missing:
            assert missing.status == 404
        await until(lambda: "/nowhere" in it.nginx.accesses)
        assert "hush" not in it.nginx.accesses


async def test_events_arrive_as_they_are_sent_and_to_each_client_on_its_own() -> None:
    opened: list[asyncio.Event] = []

    async def stream(request: web.BaseRequest) -> web.StreamResponse:
        answer = web.StreamResponse(
            headers={"content-type": "text/event-stream", "cache-control": "public, max-age=59"}
        )
        await answer.prepare(request)
        go_on = asyncio.Event()
        opened.append(go_on)
        await answer.write(b"data: 1\n\n")
        await go_on.wait()
        await answer.write(b"data: 2\n\n")
        return answer

    runner = web.ServerRunner(web.Server(stream))
    await runner.setup()
    port = free_port()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        with Nginx(port) as nginx:
            async with aiohttp.ClientSession(nginx.url, timeout=aiohttp.ClientTimeout(total=HANG_SECONDS)) as session:
                for name in ("live_sse=true", "experimental_live_sse=true", "live_sse", "live%5Fsse=true"):
                    count = len(opened)
                    target = f"{nginx.url}/v1/shape?table=items&offset=0_0&handle=7-7&live=true&{name}"
                    clients = [await session.get(URL(target, encoded=True)) for _ in range(2)]
                    for client in clients:
                        assert await client.content.readexactly(9) == b"data: 1\n\n"
                        # Nothing of it is kept, so nobody waits for somebody else's stream.
                        assert "x-cache" not in client.headers
                    assert len(opened) == count + 2
                    for go_on in opened[count:]:
                        go_on.set()
                    for client in clients:
                        assert await client.content.read() == b"data: 2\n\n"
    finally:
        await runner.cleanup()

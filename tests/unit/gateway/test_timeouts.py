"""Clients that are slow to ask, or hold a connection for nothing (http-api.md 1.1, ELECTRIC_TCP_READ_TIMEOUT)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from tests.unit.gateway.cluster import EVENTUALLY, Cluster, Stream, cluster

SHORT = 0.4


@pytest.fixture
async def world() -> AsyncIterator[Cluster]:
    async with cluster(tcp_read_timeout=SHORT, long_poll_timeout_ms=1200) as world:
        yield world


async def connect(world: Cluster) -> Stream:
    return Stream(*await asyncio.open_connection("127.0.0.1", world.settings.port), "GET")


async def all_read(stream: Stream) -> bytes:
    """What comes until the gateway hangs up."""
    async with asyncio.timeout(EVENTUALLY):
        try:
            return await stream.reader.read()
        except ConnectionError:
            return b""


async def test_a_client_that_says_nothing_is_cut_off(world: Cluster) -> None:
    assert await all_read(await connect(world)) == b""


@pytest.mark.parametrize("first", [b"", b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"])
async def test_a_request_that_comes_by_the_byte_is_cut_off(world: Cluster, first: bytes) -> None:
    """However alive the client keeps the connection: the whole head has the time of an idle connection."""
    stream = await connect(world)
    stream.writer.write(first)
    if first:
        assert (await stream.response()).status == 200

    async def trickle() -> None:
        with contextlib.suppress(ConnectionError):
            for byte in b"GET / HTTP/1.1\r\nHost: h\r\nx-slow: " + b"x" * 10_000:
                stream.writer.write(bytes([byte]))
                await stream.writer.drain()
                await asyncio.sleep(SHORT / 20)

    writing = asyncio.create_task(trickle())
    assert await all_read(stream) == b""
    writing.cancel()


async def test_an_idle_connection_is_closed_and_one_in_use_is_not(world: Cluster) -> None:
    stream = await connect(world)
    shape = world.worker.shape()
    target = f"/v1/shape?table=items&offset=0_inf&handle={shape.handle}&live=true"
    for path in ("/", target, "/v1/health"):
        stream.writer.write(f"GET {path} HTTP/1.1\r\nHost: h\r\n\r\n".encode())
        assert (await stream.response()).status == 200
    assert await all_read(stream) == b""


async def test_a_body_that_does_not_come_is_not_waited_for_long(world: Cluster) -> None:
    stream = await connect(world)
    stream.writer.write(b"GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\nx")
    assert (await stream.response()).status == 200
    assert await all_read(stream) == b""

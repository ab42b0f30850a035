"""Bytes in, requests one after another, whatever the packets look like (http-api.md 1)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from gateway.connection import Connection
from gateway.request_head import PACKET, QUEUE
from tests.unit.gateway.cluster import EVENTUALLY, Cluster, Stream, cluster, entry, until

HOST = "HTTP/1.1\r\nHost: h\r\n\r\n"


@pytest_asyncio.fixture
async def world() -> AsyncIterator[Cluster]:
    async with cluster(long_poll_timeout_ms=60_000, conn_max_requests=100_000) as running:
        yield running


async def connect(world: Cluster) -> Stream:
    return Stream(*await asyncio.open_connection("127.0.0.1", world.settings.port, limit=1 << 24), "GET")


def get(path: str, headers: str = "") -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: h\r\n{headers}\r\n".encode()


async def test_a_request_is_the_same_in_whatever_pieces_it_comes(world: Cluster) -> None:
    shape = world.worker.shape()
    shape.commit(5, entry(0))
    request = get(f"/v1/shape?table=items&offset=0_inf&handle={shape.handle}", "Origin: http://o\r\n")
    whole = await connect(world)
    whole.writer.write(request)
    expected = await whole.response()
    whole.close()
    assert expected.headers["access-control-allow-origin"] == "http://o"
    for cut in (1, 3, 4, 20, request.index(b"\r\n") + 1, len(request) - 3, len(request) - 1):
        stream = await connect(world)
        stream.writer.write(request[:cut])
        await asyncio.sleep(0.01)
        stream.writer.write(request[cut:] + request)
        for _ in range(2):
            answer = await stream.response()
            assert (answer.status, answer.raw) == (200, expected.raw)
            assert {name for name, value in answer.headers.items() if value != expected.headers[name]} <= {
                "date",
                "x-request-id",
            }
        stream.close()


async def test_what_differs_between_clients_is_not_shared(world: Cluster) -> None:
    """Requests that differ in a header alone, and equal ones on several connections."""
    shape = world.worker.shape()
    shape.commit(5, entry(0))
    target = f"/v1/shape?table=items&offset=0_inf&handle={shape.handle}"
    tag = (await world.ask(target)).headers["etag"]
    for _ in range(2):
        assert (await world.ask(target, headers=f"If-None-Match: {tag}\r\n")).status == 304
        answers = [await world.ask(target, headers=f"Origin: http://{name}\r\n") for name in "abab"]
        assert [answer.headers["access-control-allow-origin"][-1] for answer in answers] == list("abab")
        assert len({answer.headers["x-request-id"] for answer in answers}) == 4


async def test_many_requests_in_one_packet_are_answered_in_their_order(world: Cluster) -> None:
    shape = world.worker.shape()
    paths = [f"/v1/shape?table=items&offset=0_inf&handle={shape.handle}", "/nope", "/v1/health"] * 2 * QUEUE
    stream = await connect(world)
    stream.writer.write(b"".join(map(get, paths)))
    statuses = [(await stream.response()).status for _ in paths]
    assert statuses == [200, 404, 200] * 2 * QUEUE
    # Now each of them is answered before the next one is looked at.
    stream.writer.write(get(paths[0]) * 3 * QUEUE)
    assert [(await stream.response()).status for _ in range(3 * QUEUE)] == [200] * 3 * QUEUE
    stream.close()


@pytest.mark.parametrize("pause", [0, 0.002])
async def test_requests_behind_one_that_waits_wait_too(world: Cluster, pause: float) -> None:
    """In few packets, and as a packet each: more of them than are read ahead."""
    shape = world.worker.shape()
    stream = await connect(world)
    stream.writer.write(get(f"/v1/shape?table=items&offset=0_inf&handle={shape.handle}&live=true"))
    await until(lambda: world.gateway._live.waiting == 1)
    connection = (await _connections(world))[-1]
    for _ in range(3 * QUEUE):
        stream.writer.write(get("/nope"))
        await asyncio.sleep(pause)
    await until(lambda: connection._buffer_paused)
    assert len(connection._queue or ()) <= 2 * QUEUE
    world.worker.commit(shape, 50, entry(0))
    assert (await stream.response()).status == 200
    assert [(await stream.response()).status for _ in range(3 * QUEUE)] == [404] * 3 * QUEUE
    stream.close()


async def test_a_request_too_large_to_be_remembered_is_taken(world: Cluster) -> None:
    stream = await connect(world)
    for size in (PACKET - 100, PACKET, 3 * PACKET):
        stream.writer.write(get("/nope", f"x-large: {'x' * size}\r\n"))
        assert (await stream.response()).status == 404
    stream.close()


async def test_a_client_that_sends_and_never_reads_is_read_no_further(world: Cluster) -> None:
    """Answers that nobody takes are not made."""
    shape = world.worker.shape()
    shape.commit(5, entry(0, pad=60_000))
    stream = await connect(world)
    stream.reader._transport.pause_reading()  # type: ignore[attr-defined]
    request = get(f"/v1/shape?table=items&offset=0_inf&handle={shape.handle}")
    stream.writer.write(request * 5_000)
    connection = (await _connections(world))[-1]
    await until(lambda: connection._paused)
    await asyncio.sleep(0.1)
    assert connection.transport is not None
    assert connection.transport.get_write_buffer_size() < 300_000
    assert len(connection._queue or ()) <= QUEUE
    served = connection.served
    stream.reader._transport.resume_reading()  # type: ignore[attr-defined]
    for _ in range(served + 50):
        assert (await stream.response()).status == 200
    stream.close()


async def test_a_stop_answers_who_waits_and_closes_who_does_not() -> None:
    async with cluster(long_poll_timeout_ms=60_000) as world:
        shape = world.worker.shape()
        idle, waiting = await connect(world), await connect(world)
        waiting.writer.write(get(f"/v1/shape?table=items&offset=0_inf&handle={shape.handle}&live=true"))
        await until(lambda: world.gateway._live.waiting == 1)
        await _connections(world, 2)
        async with asyncio.timeout(EVENTUALLY):
            await world.gateway.stop()
        answer = await waiting.response()
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert await idle.reader.read() == b""


async def _connections(world: Cluster, count: int = 1) -> list[Connection]:
    await until(lambda: len(world.gateway._server.connections) >= count)
    return list(world.gateway._server.connections)

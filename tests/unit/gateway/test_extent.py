"""Files on their way to clients, who may be slow, or go away, while the files may be cut."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import Mock

import pytest
import pytest_asyncio
from aiohttp import HttpVersion10, HttpVersion11
from multidict import CIMultiDict, CIMultiDictProxy

from gateway import extent
from gateway.connection import Connection, Server
from gateway.exchange import Exchange
from gateway.extent import Extent, FileBody
from gateway.request_head import Request
from gateway.response import Answer
from tests.unit.gateway.cluster import EVENTUALLY, until

CONTENT = b"".join(b"%09d\n" % number for number in range(700_000))
HEADERS = CIMultiDictProxy(CIMultiDict[str]())


class Shortened(Exception):
    """The file has not what the extent says."""


@pytest.fixture
def file(tmp_path: Path) -> Iterator[int]:
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    fd = os.open(path, os.O_RDWR)
    yield fd
    os.close(fd)


def part(fd: int, start: int = 0, end: int = len(CONTENT)) -> Extent:
    def read(at: int, size: int) -> bytes:
        data = os.pread(fd, size, at)
        if not data:
            raise Shortened
        return data

    return Extent(lambda: fd, read, start, end)


def whole(fd: int, start: int = 0, end: int = len(CONTENT)) -> FileBody:
    """A body that is nothing but this part."""
    return FileBody(b"", part(fd, start, end), b"")


class Site(NamedTuple):
    """A server whose next requests are answered by what is put into ``answers``; the server's side of a connection."""

    port: int
    connections: list[Connection]
    answering: list[Callable[[Connection], Any]]
    outcomes: asyncio.Queue[BaseException | None]

    async def ask(self, answering: Callable[[Connection], Any]) -> socket.socket:
        """A client that reads as its test does, and has little room."""
        self.answering.append(answering)
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        client.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(client, ("127.0.0.1", self.port))
        await loop.sock_sendall(client, b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        return client

    async def outcome(self) -> BaseException | None:
        """How the answer ended, on the server's side."""
        async with asyncio.timeout(EVENTUALLY):
            return await self.outcomes.get()


@pytest_asyncio.fixture
async def site(request: pytest.FixtureRequest) -> AsyncIterator[Site]:
    site = Site(0, [], [], asyncio.Queue())

    def begin(connection: Connection, _: Request) -> None:
        async def answer() -> None:
            try:
                await site.answering.pop(0)(connection)
            except (ConnectionError, Shortened, asyncio.CancelledError) as error:
                connection.abort()
                site.outcomes.put_nowait(error)
            else:
                connection.done(False)
                site.outcomes.put_nowait(None)

        site.connections.append(connection)
        connection.run(answer())

    send_timeout = getattr(request, "param", 60.0)
    server = Server(begin, idle_timeout=60.0, send_timeout=send_timeout, requests_per_connection=100)
    await server.listen("127.0.0.1", 0)
    assert server._listener is not None
    site = site._replace(port=server._listener.sockets[0].getsockname()[1])
    yield site
    server.close_listener()
    server.drain()
    await server.stop(0.0)


async def everything(client: socket.socket, size: int = 65_536) -> bytes:
    """All that comes until the server hangs up."""
    loop = asyncio.get_running_loop()
    pieces = []
    async with asyncio.timeout(EVENTUALLY):
        with contextlib.suppress(ConnectionError):
            while piece := await loop.sock_recv(client, size):
                pieces.append(piece)
    client.close()
    return b"".join(pieces)


@pytest.mark.parametrize("bounds", [(0, len(CONTENT)), (10, 11), (12_345, 3_456_789), (5, 5)])
async def test_all_of_it_arrives_behind_what_was_written(site: Site, file: int, bounds: tuple[int, int]) -> None:
    """Also when the socket was full before, and whatever comes behind it."""
    before = b"b" * 3_000_000

    async def answer(connection: Connection) -> None:
        assert connection.transport is not None
        connection.transport.write(before)
        limits = connection.transport.get_write_buffer_limits()
        await extent.send(whole(file, *bounds), connection)
        assert connection.transport.get_write_buffer_limits() == limits
        connection.transport.write(b"after")

    client = await site.ask(answer)
    assert await everything(client) == before + CONTENT[slice(*bounds)] + b"after"
    assert await site.outcome() is None


@pytest.mark.parametrize("failing", ["always", "sometimes", "little"])
async def test_it_arrives_where_the_kernel_does_not_send_files(
    site: Site, file: int, failing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    def sendfile(out: int, fd: int, at: int, size: int) -> int:
        nonlocal calls
        calls += 1
        if failing == "little":
            return real(out, fd, at, min(size, 70_000))
        if failing == "always" or calls % 2:
            raise OSError(errno.EINVAL, "no")
        return real(out, fd, at, size)

    real = os.sendfile
    monkeypatch.setattr(os, "sendfile", sendfile)
    client = await site.ask(lambda connection: extent.send(whole(file), connection))
    assert await everything(client) == CONTENT
    assert calls


async def test_who_does_not_read_holds_a_piece_and_keeps_nobody(site: Site, file: int) -> None:
    client = await site.ask(lambda connection: extent.send(whole(file), connection))
    await until(lambda: bool(site.connections) and site.connections[0].writing_paused)
    transport = site.connections[0].transport
    assert transport is not None
    assert 0 < transport.get_write_buffer_size() <= 16_384
    other = await site.ask(lambda connection: extent.send(whole(file), connection))
    assert await everything(other) == CONTENT
    assert await site.outcome() is None
    assert await everything(client, 1_000) == CONTENT, "it may take its time"


@pytest.mark.parametrize("site", [0.3], indirect=True)
async def test_who_takes_nothing_is_cut_off(site: Site, file: int) -> None:
    client = await site.ask(lambda connection: extent.send(whole(file), connection))
    assert isinstance(await site.outcome(), (ConnectionError, asyncio.CancelledError))
    assert len(await everything(client)) < len(CONTENT)


@pytest.mark.parametrize("reset", [True, False])
async def test_who_goes_away_ends_it(site: Site, file: int, reset: bool) -> None:
    client = await site.ask(lambda connection: extent.send(whole(file), connection))
    await until(lambda: bool(site.connections) and site.connections[0].writing_paused)
    if reset:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    client.close()
    assert isinstance(await site.outcome(), (ConnectionError, asyncio.CancelledError))


async def test_a_file_that_is_cut_meanwhile_is_no_whole(site: Site, file: int) -> None:
    client = await site.ask(lambda connection: extent.send(whole(file), connection))
    await until(lambda: bool(site.connections) and site.connections[0].writing_paused)
    os.ftruncate(file, len(CONTENT) - 1)
    received = await everything(client)
    assert isinstance(await site.outcome(), Shortened)
    assert len(received) < len(CONTENT)


@pytest.mark.parametrize("held", [0, 1])
def test_nothing_overtakes_what_the_transport_holds(file: int, held: int) -> None:
    here, there = socket.socketpair()
    transport = Mock(asyncio.Transport)
    transport.get_write_buffer_size.return_value = held
    transport.get_extra_info.return_value = here
    assert extent._hand_over(transport, part(file), 20, 10) == (0 if held else 10)
    here.close()
    assert there.recv(100) == (b"" if held else CONTENT[20:30])
    there.close()


async def test_a_large_file_leaves_others_their_turn(site: Site, file: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However fast a client takes it."""
    monkeypatch.setattr(extent, "TURN", 10_000)
    monkeypatch.setattr(os, "sendfile", lambda out, fd, at, size: size)
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    task = asyncio.create_task(others())
    client = await site.ask(lambda connection: extent.send(whole(file, 0, 1_000_000), connection))
    assert await site.outcome() is None
    task.cancel()
    client.close()
    assert turns >= 99


async def test_nothing_of_what_was_stopped_follows(site: Site, file: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if its next turn was due."""
    monkeypatch.setattr(extent, "TURN", 10)
    ends: list[Exception | None] = []

    async def answer(connection: Connection) -> None:
        assert connection.transport is not None
        limits = connection.transport.get_write_buffer_limits()
        transfer = extent.Transfer(whole(file), connection, ends.append)
        transfer.stop()
        assert connection.transport.get_write_buffer_limits() == limits
        connection.transport.write(b"after")
        for _ in range(3):
            await asyncio.sleep(0)
        transfer.stop()

    assert await everything(await site.ask(answer)) == CONTENT[:10] + b"after"
    assert ends == []


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("version", [HttpVersion10, HttpVersion11])
async def test_an_answer_from_a_file_is_framed_as_any_other(site: Site, file: int, method: str, version: Any) -> None:
    body = FileBody(b"[", part(file, 3, 200_003), b"]")

    async def answer(connection: Connection) -> None:
        exchange = Exchange(connection, Request(method, "/", HEADERS, version, True, None))
        await exchange.send_file(Answer(200, {}), body)
        assert exchange.started

    head, _, received = (await everything(await site.ask(answer))).partition(b"\r\n\r\n")
    assert await site.outcome() is None
    whole = b"[" + CONTENT[3:200_003] + b"]"
    assert len(whole) == body.length
    if method == "HEAD":
        assert received == b""
        assert b"content-length" not in head
        assert b"transfer-encoding" not in head
    elif version == HttpVersion10:
        assert received == whole
        assert b"content-length: 200002" in head
    else:
        assert received == b"%x\r\n%b\r\n0\r\n\r\n" % (len(whole), whole)
        assert b"transfer-encoding: chunked" in head


@pytest.mark.parametrize("version", [HttpVersion10, HttpVersion11])
async def test_parts_of_a_file_are_pieces_of_a_body(site: Site, file: int, version: Any) -> None:
    async def answer(connection: Connection) -> None:
        exchange = Exchange(connection, Request("GET", "/", HEADERS, version, True, None))
        await exchange.start(Answer(200, {}), 200_000)
        await exchange.write_extent(part(file, 7, 7))
        await exchange.write_extent(part(file, 0, 150_000))
        await exchange.write_extent(part(file, 150_000, 200_000))
        await exchange.finish()

    _, _, received = (await everything(await site.ask(answer))).partition(b"\r\n\r\n")
    if version == HttpVersion10:
        assert received == CONTENT[:200_000]
    else:
        first, second = CONTENT[:150_000], CONTENT[150_000:200_000]
        assert received == b"%x\r\n%b\r\n%x\r\n%b\r\n0\r\n\r\n" % (150_000, first, 50_000, second)

"""The tools of the fault tests do what they say: a fault that is not produced proves nothing."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from collections.abc import AsyncIterator

import pytest

from tests.faults.proxy import Proxy
from tests.faults.tmpfs import MEGABYTES, SmallDisk

_SOON = 120.0
_SHORT = 0.2


@pytest.fixture
async def proxy() -> AsyncIterator[Proxy]:
    """In front of a server that sends back what it gets, with an exclamation mark when nothing more comes."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
            writer.write(b"!")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with Proxy(server.sockets[0].getsockname()[1]) as proxy:
        yield proxy
    server.close()


async def _connect(proxy: Proxy, hello: bytes = b"hello") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    writer.write(hello)
    assert await reader.readexactly(len(hello)) == hello
    return reader, writer


async def test_cut_resets_the_connections_that_are_meant(proxy: Proxy) -> None:
    ours, _ = await _connect(proxy, b"name: ours")
    other, writer = await _connect(proxy, b"name: other")
    assert proxy.cut(b"ours") == 1
    with pytest.raises(ConnectionResetError):
        await ours.read()
    writer.write(b"on")
    assert await other.readexactly(2) == b"on"


async def test_cut_after_counts_from_now_on_and_stops_in_the_middle(proxy: Proxy) -> None:
    reader, writer = await _connect(proxy, b"longer than the limit")
    proxy.cut_after(7)
    writer.write(b"0123456789")
    assert await reader.readexactly(7) == b"0123456"
    with pytest.raises(ConnectionResetError):
        await reader.read()
    assert proxy.was_cut.is_set()
    await _connect(proxy, b"longer than the limit was")


async def test_hold_after_stops_in_the_middle_and_loses_nothing(proxy: Proxy) -> None:
    reader, writer = await _connect(proxy)
    proxy.hold_after(2)
    writer.write(b"0123456789")
    assert await reader.readexactly(2) == b"01"
    assert proxy.was_cut.is_set()
    writer.write(b"abc")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(reader.readexactly(1), _SHORT)
    proxy.flow()
    assert await asyncio.wait_for(reader.readexactly(11), _SOON) == b"23456789abc"


async def test_refuse_and_admit(proxy: Proxy) -> None:
    reader, writer = await _connect(proxy)
    await proxy.refuse()
    with pytest.raises(ConnectionRefusedError):
        await _connect(proxy)
    writer.write(b"on")
    assert await reader.readexactly(2) == b"on"
    await proxy.admit()
    await _connect(proxy)


@pytest.mark.parametrize("direction", ["to server", "to client"])
async def test_blackhole_holds_and_loses_nothing(proxy: Proxy, direction: str) -> None:
    reader, writer = await _connect(proxy)
    proxy.blackhole("to server" if direction == "to server" else "to client")
    writer.write(b"held")
    (link,) = proxy.links()
    async with asyncio.timeout(_SOON):
        while direction == "to client" and link.passed["to server"] < 9:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(reader.readexactly(4), _SHORT)
    assert link.passed["to server"] == (5 if direction == "to server" else 9)
    proxy.flow()
    assert await asyncio.wait_for(reader.readexactly(4), _SOON) == b"held"


async def test_half_close_ends_one_direction(proxy: Proxy) -> None:
    reader, _ = await _connect(proxy)
    proxy.half_close("to server")
    assert await asyncio.wait_for(reader.read(), _SOON) == b"!"


async def test_delay(proxy: Proxy) -> None:
    reader, writer = await _connect(proxy)
    proxy.delay = _SHORT
    started = asyncio.get_running_loop().time()
    writer.write(b"late")
    await reader.readexactly(4)
    assert asyncio.get_running_loop().time() - started >= 2 * _SHORT


def test_a_small_disk_fills_and_empties(small_disk: SmallDisk) -> None:
    assert small_disk.free <= MEGABYTES << 20
    small_disk.fill(spare=65536)
    assert small_disk.free <= 65536
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        (small_disk.path / "file").write_bytes(b"x" * 200_000)
    small_disk.empty()
    (small_disk.path / "file").write_bytes(b"x" * 200_000)
    small_disk.remount("ro")
    with pytest.raises(OSError, match=os.strerror(errno.EROFS)):
        (small_disk.path / "other").write_bytes(b"x")
    small_disk.remount("rw")

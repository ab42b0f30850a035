"""Clients that ask and then read nothing, thousands of them: plain sockets with hardly any room for an answer."""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
from pathlib import Path
from types import TracebackType
from typing import Final, Self

_HANG_SECONDS: Final = 120.0


class StalledClients:
    """So many connections, each of which asks once and reads nothing."""

    def __init__(self, port: int, count: int) -> None:
        self._port = port
        self._sockets = [socket.socket() for _ in range(count)]

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        for client in self._sockets:
            # Before connecting: that is what the window is made from.
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.setblocking(False)
            await loop.sock_connect(client, ("127.0.0.1", self._port))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for client in self._sockets:
            client.close()

    async def ask(self, target: str) -> None:
        """Send the request on each connection."""
        loop = asyncio.get_running_loop()
        for client in self._sockets:
            await loop.sock_sendall(client, f"GET {target} HTTP/1.1\r\nHost: h\r\n\r\n".encode())

    async def answered(self) -> None:
        """Wait until each has the beginning of its answer, and leave it where it is."""
        async with asyncio.timeout(_HANG_SECONDS):
            waiting = {client.fileno() for client in self._sockets}
            while waiting:
                poll = select.poll()
                for descriptor in waiting:
                    poll.register(descriptor, select.POLLIN)
                waiting -= {descriptor for descriptor, _ in poll.poll(0)}
                await asyncio.sleep(0.1)

    async def cut(self, gateway: int) -> None:
        """Wait until the process has closed all of them. (They themselves would learn it only by reading.)"""
        async with asyncio.timeout(_HANG_SECONDS):
            ports = {client.getsockname()[1] for client in self._sockets}
            while ports & _peers(gateway):  # noqa: ASYNC110 - it changes in another process
                await asyncio.sleep(0.1)


def _peers(pid: int) -> set[int]:
    """The ports that the IPv4 connections of this process lead to."""
    inodes = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            inodes.add(str(link.readlink()).removeprefix("socket:[").removesuffix("]"))
    lines = [line.split() for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]]
    return {int(fields[2].rpartition(":")[2], 16) for fields in lines if fields[9] in inodes}

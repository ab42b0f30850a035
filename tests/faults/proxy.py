"""A TCP proxy that fails on command: what a network between two processes can do to a connection."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from types import TracebackType
from typing import Final, Literal, Self

Direction = Literal["to server", "to client"]

BOTH: Final[tuple[Direction, Direction]] = ("to server", "to client")

_PIECE = 256 * 1024
_OPENING = 1024
_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER with no time: closing sends RST, and what was on its way is lost."""


class Link:
    """One proxied connection. ``opening`` is the first kilobyte the client sent: libpq names its application there."""

    def __init__(self, client: asyncio.StreamWriter) -> None:
        self.opening = b""
        self.writers = [client]
        self.passed: dict[Direction, int] = dict.fromkeys(BOTH, 0)
        self.passed_before: dict[Direction, int] = dict.fromkeys(BOTH, 0)
        """When :meth:`Proxy.cut_after` was called last."""

    def reset(self) -> None:
        """Break both sides with RST; bytes under way are lost."""
        for writer in self.writers:
            with contextlib.suppress(OSError):
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            writer.transport.abort()

    def half_close(self, direction: Direction) -> None:
        """Tell the receiver of this direction that nothing more comes, as a proxy does whose other side has gone."""
        number = 1 if direction == "to server" else 0
        if number < len(self.writers):
            with contextlib.suppress(OSError, RuntimeError):
                self.writers[number].write_eof()


class Proxy:
    """Listens on a free port of 127.0.0.1 and forwards to ``host:port``, unless told to misbehave.

    Methods that take ``opening`` concern the connections whose first bytes contain it (``b"galvanic ingester"``), all
    when it is empty. Links that a fault hit stay broken; a new connection is a new chance.
    """

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        """``host`` and ``port``: where the server listens."""
        self.host, self.server_port = host, port
        self.port = 0
        self.accepted = 0
        self.delay = 0.0
        """Seconds that each piece waits."""
        self.was_cut = asyncio.Event()
        """Set when a limit of :meth:`cut_after` or :meth:`hold_after` was reached."""
        self._listener: asyncio.Server | None = None
        self._links: dict[Link, None] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._flows: dict[Direction, asyncio.Event] = {}
        self._limit: tuple[Direction, int, bytes] | None = None
        self._holding = False

    async def __aenter__(self) -> Self:
        self._flows = {direction: asyncio.Event() for direction in BOTH}
        for flow in self._flows.values():
            flow.set()
        await self.admit()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.refuse()
        self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def through(self, url: str) -> str:
        """The database URL with this proxy's address instead of the server's."""
        return url.replace(f"{self.host}:{self.server_port}", f"127.0.0.1:{self.port}")

    def links(self, opening: bytes = b"") -> list[Link]:
        """The living connections."""
        return [link for link in self._links if opening in link.opening]

    # ---- faults

    def cut(self, opening: bytes = b"") -> int:
        """Break connections with RST; how many."""
        found = self.links(opening)
        for link in found:
            link.reset()
        return len(found)

    def cut_after(self, count: int, direction: Direction = "to client", opening: bytes = b"") -> None:
        """Break the first connection that passes ``count`` bytes from now on, in the middle of a piece."""
        for link in self._links:
            link.passed_before.update(link.passed)
        self._limit = (direction, count, opening)
        self._holding = False
        self.was_cut.clear()

    def hold_after(self, count: int, direction: Direction = "to client", opening: bytes = b"") -> None:
        """Let ``count`` bytes of the next such connection pass, and then nothing of any until :meth:`flow`."""
        self.cut_after(count, direction, opening)
        self._holding = True

    def half_close(self, direction: Direction, opening: bytes = b"") -> None:
        """End one direction of connections; the other one stays."""
        for link in self.links(opening):
            link.half_close(direction)

    async def refuse(self) -> None:
        """Accept no new connection, as when nobody listens; those that are there stay."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    async def admit(self) -> None:
        """Accept new connections again, on the same port."""
        if self._listener is None:
            self._listener = await asyncio.start_server(self._serve, "127.0.0.1", self.port, limit=_PIECE)
            self.port = self._listener.sockets[0].getsockname()[1]

    def blackhole(self, *directions: Direction) -> None:
        """Accept and forward nothing more in these directions (both by default). Nothing is lost: TCP would resend."""
        for direction in directions or BOTH:
            self._flows[direction].clear()

    def flow(self) -> None:
        """Forward again what was held and all that follows, also where a limit has not been reached."""
        self._limit = None
        for flow in self._flows.values():
            flow.set()

    # ---- forwarding

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self.accepted += 1
        link = Link(writer)
        self._links[link] = None
        try:
            server_reader, server_writer = await asyncio.open_connection(self.host, self.server_port, limit=_PIECE)
            link.writers.append(server_writer)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(link, reader, server_writer, "to server"))
                group.create_task(self._pump(link, server_reader, writer, "to client"))
        except* (OSError, RuntimeError, asyncio.IncompleteReadError):
            pass
        finally:
            del self._links[link]
            link.reset()

    async def _pump(
        self, link: Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, direction: Direction
    ) -> None:
        while data := await reader.read(_PIECE):
            if direction == "to server" and len(link.opening) < _OPENING:
                link.opening += data[:_OPENING]
            await self._flows[direction].wait()
            if self.delay:
                await asyncio.sleep(self.delay)
            room = self._room(link, direction)
            link.passed[direction] += len(data)
            if room is not None and len(data) >= room:
                writer.write(data[:room])
                await writer.drain()
                self._limit = None
                self.was_cut.set()
                if not self._holding:
                    link.reset()
                    return
                self.blackhole(direction)
                await self._flows[direction].wait()
                data = data[room:]
            writer.write(data)
            await writer.drain()
        await self._flows[direction].wait()
        writer.write_eof()

    def _room(self, link: Link, direction: Direction) -> int | None:
        """How many bytes may still pass before the limit, if there is one for this connection."""
        if self._limit is None:
            return None
        limited, count, opening = self._limit
        if limited != direction or opening not in link.opening:
            return None
        return max(0, count - link.passed[direction] + link.passed_before[direction])

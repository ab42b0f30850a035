"""Parts of files on their way to clients: from the page cache to the socket, without passing through this process.

The socket is its transport's, whose own bytes come first, so it is used only while the transport holds none. What the
socket has no room for goes on by way of the transport, a piece of the file at a time, which tells when there is room
again. So whoever reads slowly, or not at all, costs one piece, and all that a connection does about its client (it
waits, it cuts off, it notices the end) is done by the connection. No task is needed for it.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from functools import partial
from typing import Final, NamedTuple

from gateway.connection import Connection

PIECE: Final = 16 * 1024
"""Bytes of a file that a client pins in memory, at most, while it takes nothing."""

TURN: Final = 1024 * 1024
"""Bytes that a client is sent, at most, before others get their turn: a third of a millisecond of the kernel's work."""


class Extent(NamedTuple):
    """Bytes ``start`` to ``end`` of a file. They are there, and do not change as long as the file is not damaged."""

    descriptor: Callable[[], int]
    """Gives the file's descriptor, for use at once: readers open and close their files as needed."""
    read: Callable[[int, int], bytes]
    """``read(start, size)`` gives bytes of the file, one at least; it raises if they are not there."""
    start: int
    end: int

    @property
    def size(self) -> int:
        """How many bytes."""
        return self.end - self.start


class FileBody(NamedTuple):
    """A body whose length is known, most of which is in a file. It is never empty."""

    before: bytes
    extent: Extent
    after: bytes

    @property
    def length(self) -> int:
        """Bytes in all."""
        return len(self.before) + self.extent.size + len(self.after)


class Transfer:
    """A body on its way over a connection that sends nothing else meanwhile.

    It begins at once, goes on when the connection tells of room, and calls ``done`` once, which may be before this
    returns: with ``None`` when all of it is in the socket but for a piece that the transport holds, else with what went
    wrong, which is what the body's extent raised, or ``ConnectionError`` if the client is gone. When the connection
    ends, be it that it cut off a client that takes nothing, whoever works for it is told by it and stops this.
    """

    __slots__ = ("_at", "_body", "_connection", "_done", "_limits")

    def __init__(self, body: FileBody, connection: Connection, done: Callable[[Exception | None], None]) -> None:
        self._body = body
        self._connection = connection
        self._done: Callable[[Exception | None], None] | None = done
        self._at = body.extent.start
        transport = _transport(connection)
        self._limits = transport.get_write_buffer_limits()
        # So «paused» means that the transport holds anything at all, and what it is given goes out at once.
        transport.set_write_buffer_limits(high=0)
        connection.tell_of_room(self._go_on)
        if body.before:
            transport.write(body.before)
        self._go_on()

    def stop(self) -> None:
        """Send no more of it. ``done`` is not called any more; all the same if it was."""
        if self._done is None:
            return
        self._done = None
        self._connection.tell_of_room(None)
        if self._connection.transport is not None:
            low, high = self._limits
            self._connection.transport.set_write_buffer_limits(high=high, low=low)

    def _go_on(self) -> None:
        if self._done is None:
            return
        try:
            ended = self._send_turn(_transport(self._connection))
        except Exception as error:  # noqa: BLE001 - handed to who waits for the end
            self._end(error)
            return
        if ended:
            self._end(None)
        elif not self._connection.writing_paused:
            asyncio.get_running_loop().call_soon(self._go_on)

    def _send_turn(self, transport: asyncio.Transport) -> bool:
        """Whether that was all. If the transport holds anything after it, the socket has no room for that."""
        extent = self._body.extent
        turn_ends = min(self._at + TURN, extent.end)
        if self._at < turn_ends:
            self._at += _hand_over(transport, extent, self._at, turn_ends - self._at)
        if self._at < turn_ends:
            piece = extent.read(self._at, min(PIECE, extent.end - self._at))
            transport.write(piece)
            self._at += len(piece)
        if self._at < extent.end:
            return False
        if self._body.after:
            transport.write(self._body.after)
        return True

    def _end(self, error: Exception | None) -> None:
        done = self._done
        assert done is not None
        self.stop()
        done(error)


async def send(body: FileBody, connection: Connection) -> None:
    """Send it, and return when all of it is handed over. A client that takes nothing for too long is cut off.

    Raises ``ConnectionError`` if the client is gone, what the body's extent raises if the file is not what it was.
    """
    ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    transfer = Transfer(body, connection, partial(_settle, ended))
    try:
        await ended
    finally:
        transfer.stop()


def _settle(ended: asyncio.Future[None], error: Exception | None) -> None:
    if ended.done():
        return
    if error is None:
        ended.set_result(None)
    else:
        ended.set_exception(error)


def _transport(connection: Connection) -> asyncio.Transport:
    transport = connection.transport
    if transport is None or transport.is_closing():
        raise ConnectionResetError("the client is gone")
    return transport


def _hand_over(transport: asyncio.Transport, extent: Extent, at: int, size: int) -> int:
    """Have the kernel send part of the file; how many bytes the socket had room for."""
    if transport.get_write_buffer_size():
        return 0
    try:
        return os.sendfile(transport.get_extra_info("socket").fileno(), extent.descriptor(), at, size)
    except OSError:
        # No room, most often. Anything else is met by whoever reads the file, or by the transport.
        return 0

"""Parts of files on their way to clients: from the page cache to the socket, without passing through this process.

The socket is its transport's, whose own bytes come first, so it is used only while the transport holds none. What the
socket has no room for goes on by way of the transport, a piece of the file at a time, which tells when there is room
again. So whoever reads slowly, or not at all, costs one piece, and all that a connection does about its client (it
waits, it cuts off, it notices the end) is done by the connection.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Final, NamedTuple

from gateway.connection import Connection

PIECE: Final = 16 * 1024
"""Bytes of a file that a client pins in memory, at most, while it takes nothing."""

TURN: Final = 1024 * 1024
"""Bytes that a client is sent, at most, before others get their turn."""


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


async def send(extent: Extent, connection: Connection) -> None:
    """Send it, and return when all of it is in the socket. A client that takes nothing for too long is cut off.

    Raises ``ConnectionError`` if the client is gone, what ``extent`` raises if the file is not what it was.
    """
    at = extent.start
    limits = _transport(connection).get_write_buffer_limits()
    # So «paused» means that the transport holds anything at all.
    _transport(connection).set_write_buffer_limits(high=0)
    try:
        while at < extent.end:
            await connection.drain()
            transport = _transport(connection)
            turn_ends = min(at + TURN, extent.end)
            at += _hand_over(transport, extent, at, turn_ends - at)
            if at < turn_ends:
                piece = extent.read(at, min(PIECE, extent.end - at))
                transport.write(piece)
                at += len(piece)
            elif at < extent.end:
                await asyncio.sleep(0)
        await connection.drain()
    finally:
        if connection.transport is not None:
            low, high = limits
            connection.transport.set_write_buffer_limits(high=high, low=low)


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

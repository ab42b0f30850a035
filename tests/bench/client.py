"""An HTTP/1.1 client that costs as little as can be, so that what is measured is the server.

One request at a time on each connection, GET only, no redirects. It understands bodies with a length and chunked ones,
and reports them by calls instead of futures.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from typing import Final, cast

_LENGTH: Final = b"\r\ncontent-length:"
_CHUNKED: Final = b"\r\ntransfer-encoding: chunked"
_CLOSING: Final = b"\r\nconnection: close"


class Connection(asyncio.Protocol):
    """A connection and the response that is under way on it.

    ``done`` is called when a response is complete, or with ``status`` 0 when the server hangs up instead; ``piece``
    with each part of a body. Both may ask for the next thing at once.
    """

    def __init__(
        self, done: Callable[[Connection], None], piece: Callable[[Connection, bytes], None] | None = None
    ) -> None:
        self._done = done
        self._piece = piece
        self._transport: asyncio.Transport | None = None
        self._asked = False
        self._buffer = b""
        self._in_body = False
        self._chunked = False
        self._closing = False
        self._left = 0
        """Bytes that still belong to the body or, if it is chunked, to the chunk and the line end behind it."""
        self.status = 0
        self.head = b""
        self.size = 0
        self.begun_at = 0.0
        """When the head of the response came, on the clock of ``time.monotonic``, which all processes share."""
        self.done_at = 0.0

    @property
    def usable(self) -> bool:
        """Whether it can be asked; otherwise it must be opened anew."""
        return self._transport is not None and not self._transport.is_closing()

    async def open(self, host: str, port: int) -> None:
        """Connects, if it is not connected."""
        if not self.usable:
            self._asked = False
            await asyncio.get_running_loop().create_connection(lambda: self, host, port)

    def ask(self, target: bytes) -> None:
        """Sends a request; the one before must be over."""
        assert self._transport is not None
        self._asked, self._in_body, self._buffer, self.size = True, False, b"", 0
        self._transport.write(b"GET %b HTTP/1.1\r\nHost: bench\r\n\r\n" % target)

    def header(self, name: str) -> str | None:
        """Of the response that came last."""
        found = re.search(rb"\r\n" + name.encode() + rb": *([^\r]*)", self.head, re.IGNORECASE)
        return found[1].decode() if found else None

    def close(self) -> None:
        """Hangs up."""
        self._asked = False
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's are not derived from it.
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._asked:
            self.status, self.head, self._closing = 0, b"", False
            self._complete()

    def data_received(self, data: bytes) -> None:
        if self._buffer:
            data, self._buffer = self._buffer + data, b""
        if not self._in_body:
            end = data.find(b"\r\n\r\n")
            if end < 0:
                self._buffer = data
                return
            self.begun_at = time.monotonic()
            self.head, data = data[: end + 2], data[end + 4 :]
            self.status = int(self.head[9:12])
            self._in_body = True
            names = self.head.lower()
            self._closing = _CLOSING in names
            at = names.find(_LENGTH)
            self._chunked = at < 0 and _CHUNKED in names
            at += len(_LENGTH)
            self._left = 0 if at < len(_LENGTH) else int(names[at : names.index(b"\r", at)])
        if self._chunked:
            self._chunks(data)
            return
        self._left -= len(data)
        if data:
            self._body(data)
        if self._left <= 0:
            self._complete()

    def _chunks(self, data: bytes) -> None:
        at = 0
        while at < len(data):
            if self._left:
                # The last two bytes of what is left are the line end, which is no part of the body.
                piece = data[at : at + max(0, self._left - 2)]
                step = min(self._left, len(data) - at)
                self._left -= step
                at += step
                if piece:
                    self._body(piece)
                continue
            end = data.find(b"\r\n", at)
            if end < 0 or (data[at] == 0x30 and len(data) < end + 4):
                self._buffer = data[at:]
                return
            size = int(data[at:end].split(b";")[0], 16)
            if size == 0:
                self._complete()
                return
            self._left = size + 2
            at = end + 2

    def _body(self, piece: bytes) -> None:
        self.size += len(piece)
        if self._piece is not None:
            self._piece(self, piece)

    def _complete(self) -> None:
        self._asked = False
        self.done_at = time.monotonic()
        if self._closing:
            self.close()
        self._done(self)


class Client:
    """The same with ``await``: one connection that is opened when it is needed, and whole bodies."""

    def __init__(self, host: str, port: int, keep: bool = True) -> None:
        """``keep``: bodies are wanted, not only their size."""
        self._host = host
        self._port = port
        self._pieces: list[bytes] = []
        self._answer: asyncio.Future[None] | None = None
        self.connection = Connection(self._done, self._kept if keep else None)

    async def get(self, target: str) -> bytes:
        """The body; the rest is in ``connection``. A server that hangs up is asked again, one that is busy, too."""
        while True:
            await self.connection.open(self._host, self._port)
            self._pieces = []
            self._answer = asyncio.get_running_loop().create_future()
            self.connection.ask(target.encode())
            await self._answer
            if self.connection.status in (429, 503):
                await asyncio.sleep(0.1)
            elif self.connection.status:
                return b"".join(self._pieces)

    def _kept(self, _: Connection, piece: bytes) -> None:
        self._pieces.append(piece)

    def _done(self, _: Connection) -> None:
        assert self._answer is not None
        if not self._answer.done():
            self._answer.set_result(None)

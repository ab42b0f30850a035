"""One HTTP exchange: puts answers on the wire, whole or in slices, and ends it cleanly or not at all.

The bytes of head and body are made here and written through aiohttp's connection, so that an answer shared by many
clients is serialised once (performance.md 6). A streamed body waits for the client before the next slice is read.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import secrets
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from email.utils import formatdate
from http import HTTPStatus
from typing import Final

import structlog
from aiohttp import HttpVersion11, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http import StreamWriter
from aiohttp.http_exceptions import BadHttpMessage, LineTooLong

from gateway.response import Answer, uncached

log = structlog.get_logger(__name__)

SERVER: Final = "ElectricSQL/1.7.12"
"""What clients are told they talk to: the version whose protocol this is."""

EXPOSED: Final = (
    "electric-cursor,electric-handle,electric-has-data,electric-offset,electric-schema,electric-up-to-date,"
    "electric-internal-known-error,retry-after"
)
SHAPE_METHODS: Final = "GET, POST, HEAD, DELETE, OPTIONS"
OTHER_METHODS: Final = "GET, HEAD"

_NEVER_WAITS: Final = 32 * 1024
"""Bytes of a first write that aiohttp takes without waiting for the client, so that it needs no timer."""

_COPIED: Final = 16 * 1024
"""Bodies up to so many bytes are joined with their head. Larger ones go to the connection as they are: a client that
does not read then pins no copy of what it shares with others."""

_REASONS = {status.value: status.phrase for status in HTTPStatus}
_SAFE = re.compile(r"[\x20-\x7e]+")
"""What may be echoed in a header."""


_UPGRADE = re.compile(rb"\r\nu(?=pgrade:)", re.IGNORECASE)
"""A header that asks for another protocol. Nobody is given one, but aiohttp would take what follows such a request, its
body first, for that protocol."""

_BEGUN = re.compile(rb"\r\n(u(?:p(?:g(?:r(?:a(?:de?)?)?)?)?)?)\Z", re.IGNORECASE)
"""The beginning of such a header at the end of a packet."""

_LONGEST_BEGINNING: Final = len(b"\r\nupgrade")

HOLD: Final = 0.5
"""Seconds for which that beginning waits for the next packet. It may be the end of a body instead."""

LINGER: Final = 2.0
"""Seconds for which what a refused client still sends is taken and dropped. The kernel answers data that nobody reads
with a reset, which can overtake the answer and even take it away again."""


class Connection(web.RequestHandler):
    """A client's connection, which is closed after so many requests (http-api.md 1.1)."""

    __slots__ = ("_ended", "_held", "_last", "_release", "send_timeout_ms", "served")

    def __init__(self, *args: object, send_timeout_ms: int = 0, **kwargs: object) -> None:
        """``send_timeout_ms``: after so long without taking anything that waits for it, a client is cut off."""
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self.send_timeout_ms = send_timeout_ms
        self.served = 0
        self._ended: asyncio.Event | None = None
        self._last = self._held = b""
        self._release: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Have the kernel cut off a client that takes nothing: also one whose answer was handed over whole."""
        super().connection_made(transport)
        connection = transport.get_extra_info("socket")
        if self.send_timeout_ms and connection is not None and hasattr(socket, "TCP_USER_TIMEOUT"):
            # Meant for peers that are gone, it counts for windows that stay closed as well.
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, self.send_timeout_ms)

    async def linger(self) -> None:
        """Send no more, and read until the client has ended or some time has passed."""
        transport = self.transport
        if transport is None or transport.is_closing():
            return
        self._ended = asyncio.Event()
        transport.write_eof()
        transport.resume_reading()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINGER):
                await self._ended.wait()

    def data_received(self, data: bytes) -> None:
        """Hand it to the parser, unless the client was refused."""
        if self._ended is None:
            known = len(self._last)
            # Of the same length, since a body may look like it.
            text = _UPGRADE.sub(b"\r\nx", self._last + self._held + data)
            begun = _BEGUN.search(text, max(0, len(text) - _LONGEST_BEGINNING))
            end = len(text) if begun is None else begun.start(1)
            self._last = text[max(0, end - 2) : end]
            self._hold(text[end:])
            if end > known:
                super().data_received(text[known:end])

    def _hold(self, data: bytes) -> None:
        if self._release is not None:
            self._release.cancel()
        self._held = data
        self._release = asyncio.get_running_loop().call_later(HOLD, self._let_go) if data else None

    def _let_go(self) -> None:
        held, self._last = self._held, b""
        self._hold(b"")
        super().data_received(held)

    def connection_lost(self, exc: BaseException | None) -> None:
        """The connection is closed."""
        self._hold(b"")
        super().connection_lost(exc)

    def eof_received(self) -> None:
        """The client sends no more."""
        if self._held:
            self._let_go()
        super().eof_received()
        if self._ended is not None:
            self._ended.set()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """What is not HTTP gets a bare status: the texts of aiohttp would repeat parts of the request."""
        if isinstance(exc, LineTooLong):
            line = bytes(exc.args[0])
            status = 414 if line.startswith((b"/", b"http:", b"https:")) else 431
        elif isinstance(exc, BadHttpMessage) and "headers" in str(exc):
            status = 431
        elif status >= 500:
            log.error("request failed", exc_info=exc)
        if request.writer.output_size > 0:
            raise ConnectionError("the answer has begun already")
        return Bare(status)


class Sent(web.StreamResponse):
    """Tells aiohttp that the answer has been written, and whether the connection stays open."""

    def __init__(self, keep_alive: bool) -> None:
        super().__init__()
        self._keep_alive = keep_alive

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        """Nothing is left to write."""
        return None

    async def write_eof(self, data: bytes = b"") -> None:
        """Nothing is left to write."""


class Bare(Sent):
    """A status and ``connection: close``, no other header, no body (http-api.md 1.2, 1.6)."""

    def __init__(self, status: int) -> None:
        super().__init__(keep_alive=False)
        self._code = status

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        """Write it."""
        await request.writer.write(_status_line(self._code) + b"connection: close\r\n\r\n")
        connection = request.protocol
        assert isinstance(connection, Connection)
        await connection.linger()
        return None


class Exchange:
    """A request that waits for its answer. Send one answer, or start, write slices and finish, or abort."""

    __slots__ = (
        "_chunked",
        "_keep_alive",
        "_request",
        "_send_timeout",
        "_slices",
        "_stays_open",
        "cors_methods",
        "head_only",
        "id",
        "is_post",
        "live",
        "started",
        "status",
    )

    def __init__(self, request: web.BaseRequest, *, stays_open: Callable[[], bool], send_timeout: float) -> None:
        """``stays_open`` is asked when the answer is sent: may the connection take another request? ``send_timeout`` is
        the longest a client may take for a slice, in seconds."""
        self._request = request
        self._stays_open = stays_open
        self._keep_alive = request.keep_alive and "upgrade" not in request.headers
        self._send_timeout = send_timeout
        self._chunked = False
        self._slices = False
        self.cors_methods: str | None = OTHER_METHODS
        self.head_only = request.method == "HEAD"
        self.is_post = request.method == "POST"
        self.id = self._given_id() or secrets.token_urlsafe(15)
        """Tells this request from others, in its answer and in our log."""
        self.started = False
        self.status = 0
        """Of the answer, once it was started."""
        self.live: bool | None = None
        """Whether it is a live request, for one about a shape."""

    @property
    def measured(self) -> bool:
        """Whether the length must be known before the body starts: HTTP/1.0 has no chunks to tell an end from a cut."""
        return self._request.version < HttpVersion11

    def header(self, name: str) -> str | None:
        """A request header; several lines of it as one list."""
        values = self._request.headers.getall(name, None)
        return None if values is None else ", ".join(values)

    async def answer(self, answer: Answer, extra: str = "") -> None:
        """Send it; ``extra`` are header lines of this exchange alone.

        Raises ``ConnectionError`` if the client is gone, ``TimeoutError`` as :meth:`write`.
        """
        if self.is_post:
            answer = uncached(answer)
        body = b"" if self.head_only else answer.body
        before = after = b""
        if answer.status in (204, 304) or (self.head_only and answer.streamed):
            framing = ""
        elif answer.streamed and not self.measured:
            framing = "transfer-encoding: chunked\r\n"
            before, after = (b"%x\r\n" % len(body), b"\r\n0\r\n\r\n") if body else (b"", b"0\r\n\r\n")
        else:
            framing = f"content-length: {len(answer.body)}\r\n"
        self.started = True
        head = self._head(answer, framing + extra) + before
        if len(body) <= _COPIED:
            await self._write(head + body + after)
        else:
            await self._write(head, body, after)

    async def start(self, answer: Answer, length: int | None, extra: str = "") -> None:
        """Send the head of a streamed answer whose body follows in slices; ``length`` in bytes where it is known."""
        if self.is_post:
            answer = uncached(answer)
        self._slices = True
        self._chunked = not self.measured and not self.head_only
        framing = "transfer-encoding: chunked\r\n" if self._chunked else ""
        if self.measured and not self.head_only:
            if length is None:
                raise ValueError("an HTTP/1.0 client needs the length of the body first")
            framing = f"content-length: {length}\r\n"
        self.started = True
        await self._write(self._head(answer, framing + extra))

    async def write(self, data: bytes) -> None:
        """Send a slice and wait until the client has taken most of it; the caller holds no more than one slice.

        Raises ``ConnectionError`` if the client is gone, ``TimeoutError`` if it takes nothing for too long.
        """
        if not data or self.head_only:
            return
        if self._chunked:
            await self._write(b"%x\r\n" % len(data), data, b"\r\n")
        else:
            await self._write(data)

    async def start_events(self, answer: Answer, extra: str = "") -> None:
        """Send the head of an answer without end; :meth:`write_framed` sends its body.

        An HTTP/1.0 connection ends with it: an event that was cut off is none, so nothing can be taken for the whole.
        """
        self._slices = True
        self._chunked = not self.measured and not self.head_only
        if self.measured:
            self._keep_alive = False
        framing = "transfer-encoding: chunked\r\n" if self._chunked else ""
        self.started = True
        await self._write(self._head(answer, framing + extra, lasting=True))

    @property
    def chunked(self) -> bool:
        """Whether the body that was started goes out in chunks."""
        return self._chunked

    def framed(self, pieces: Sequence[bytes]) -> bytes:
        """Pieces as they go over this connection."""
        return frame(pieces) if self._chunked else b"".join(pieces)

    async def write_framed(self, data: bytes) -> None:
        """Send what :meth:`framed` made, or :func:`frame` for a chunked body, and wait until most of it is taken.

        So no more than this waits for the client, and what the connection holds anyway. Raises as :meth:`write`.
        """
        writer = self._request.writer
        assert isinstance(writer, StreamWriter)
        async with asyncio.timeout(self._send_timeout):
            await writer.write(data, drain=False)
            await writer.drain()

    async def finish(self) -> None:
        """Tell the client that the body is whole."""
        if self._chunked:
            await self._write(b"0\r\n\r\n")

    async def refuse(self, answer: Answer) -> None:
        """Answer a request of which more may come, and let that be the last answer of its connection."""
        self._keep_alive = False
        await self.answer(answer)
        connection = self._request.protocol
        assert isinstance(connection, Connection)
        await connection.linger()

    def abort(self) -> None:
        """Cut the connection so that the client cannot take what it has for the whole (engine.md INV-22)."""
        self._keep_alive = False
        if self._request.transport is not None:
            self._request.transport.abort()

    def sent(self) -> Sent:
        """The response object that aiohttp wants back."""
        return Sent(self._keep_alive)

    async def _write(self, *pieces: bytes) -> None:
        writer = self._request.writer
        assert isinstance(writer, StreamWriter)
        write = writer.write
        if len(pieces) == 1 and len(pieces[0]) < _NEVER_WAITS and not self._slices:
            await write(pieces[0])
            return
        async with asyncio.timeout(self._send_timeout):
            for piece in pieces[:-1]:
                await write(piece, drain=False)
            await write(pieces[-1])

    def _head(self, answer: Answer, lines: str, *, lasting: bool = False) -> bytes:
        self.status = answer.status
        fields = answer.fields
        common = f"date: {_date(int(time.time()))}\r\nx-request-id: {self.id}\r\nelectric-server: {SERVER}\r\n"
        if answer.status != 204:
            common += "vary: accept-encoding\r\n"
            if "cache-control" not in fields:
                common += "cache-control: max-age=0, private, must-revalidate\r\n"
        if self.cors_methods is not None:
            common += (
                f"access-control-allow-origin: {self._origin()}\r\naccess-control-expose-headers: {EXPOSED}\r\n"
                f"access-control-allow-methods: {self.cors_methods}\r\n"
            )
        self._keep_alive = self._keep_alive and self._stays_open()
        if not self._keep_alive:
            common += "connection: close\r\n"
        elif self.measured or lasting or answer.status == 204:
            common += "connection: keep-alive\r\n"
        head = f"{common}{answer.block}{lines}\r\n"
        return _status_line(answer.status) + head.encode("utf-8", "surrogateescape")

    def _given_id(self) -> str | None:
        given = self._request.headers.get("x-request-id", "")
        usable = 20 <= len(given.encode("utf-8", "surrogateescape")) <= 200 and _SAFE.fullmatch(given)
        return given if usable else None

    def _origin(self) -> str:
        origins = self._request.headers.getall("origin", [])
        return origins[0] if len(origins) == 1 and _SAFE.fullmatch(origins[0]) else "*"


def frame(pieces: Iterable[bytes]) -> bytes:
    """Each piece as a chunk of its own, so that clients are handed them one by one."""
    return b"".join([b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces])


def _status_line(status: int) -> bytes:
    return f"HTTP/1.1 {status} {_REASONS.get(status, '')}\r\n".encode()


_last_date = (0, "")


def _date(second: int) -> str:
    """The ``date`` header, made once a second."""
    global _last_date
    if _last_date[0] != second:
        _last_date = (second, formatdate(second, usegmt=True))
    return _last_date[1]

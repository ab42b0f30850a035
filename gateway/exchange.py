"""A request and its answer on a connection (http-api.md 1 to 4).

Answers are written as bytes at once: the framework's response objects cost more than all the rest (performance.md 6).
What is the same for all who get an answer is made once. A streamed body waits for the client before the next slice is
read.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from email.utils import formatdate
from functools import lru_cache
from typing import Any, Final

from gateway.connection import Connection, Waiting
from gateway.extent import Extent, FileBody, Transfer, send
from gateway.measures import Traffic
from gateway.request_head import Request
from gateway.response import Answer, uncached

EXPOSED: Final = (
    "electric-cursor,electric-handle,electric-has-data,electric-offset,electric-schema,electric-up-to-date,"
    "electric-internal-known-error,retry-after"
)
SHAPE_METHODS: Final = "GET, POST, HEAD, DELETE, OPTIONS"
OTHER_METHODS: Final = "GET, HEAD"

_COPIED: Final = 16 * 1024
"""Bodies up to so many bytes are joined with their head. Larger ones go to the connection as they are: a client that
does not read then pins no copy of what it shares with others."""

_random = random.Random()


class Exchange:
    """A request that waits for its answer. Send one answer, or start, write slices and finish, or abort; then end."""

    __slots__ = (
        "_began",
        "_chunked",
        "_connection",
        "_id",
        "_keep_alive",
        "_live",
        "_request",
        "_traffic",
        "cors_methods",
        "head_only",
        "started",
        "status",
    )

    def __init__(self, connection: Connection, request: Request) -> None:
        self._connection = connection
        self._request = request
        self._keep_alive = request.keep_alive
        self._chunked = False
        self._id: str | None = None
        self.cors_methods: str | None = OTHER_METHODS
        self.head_only = request.method == "HEAD"
        self.started = False
        self.status = 0
        """Of the answer, once it was started."""
        self._traffic: Traffic | None = None
        self._live = False
        self._began = 0.0

    @property
    def method(self) -> str:
        """The request's method."""
        return self._request.method

    @property
    def target(self) -> str:
        """The request's target, as sent."""
        return self._request.target

    @property
    def request(self) -> Request:
        """The request."""
        return self._request

    @property
    def id(self) -> str:
        """Tells this request from others, in its answer and in our log."""
        if self._id is None:
            self._id = self._request.given_id or next_id()
        return self._id

    @property
    def measured(self) -> bool:
        """Whether the length must be known before the body starts: HTTP/1.0 has no chunks to tell an end from a cut."""
        return not self._request.http11

    def header(self, name: str) -> str | None:
        """A request header; several lines of it as one list."""
        return self._request.header(name)

    def ask_for_body(self) -> None:
        """Tell a client to go on that waits for that before it sends the body."""
        self._write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def put(self, answer: Answer, extra: str = "") -> None:
        """Send it, whether the client takes it or not; ``extra`` are header lines of this exchange alone.

        Raises ``ConnectionError`` if the client is gone.
        """
        if self._request.method == "POST":
            answer = uncached(answer)
        body = b"" if self.head_only else answer.body
        before = after = b""
        if answer.status in (204, 304) or (self.head_only and answer.streamed):
            framing = b""
        elif answer.streamed and self._request.http11:
            framing = b"transfer-encoding: chunked\r\n"
            before, after = (b"%x\r\n" % len(body), b"\r\n0\r\n\r\n") if body else (b"", b"0\r\n\r\n")
        else:
            framing = b"content-length: %d\r\n" % len(answer.body)
        self.started = True
        head = self._head(answer, framing, extra)
        if len(body) <= _COPIED:
            self._write(b"".join((*head, before, body, after)))
        else:
            self._write(b"".join((*head, before)), body, after)

    async def answer(self, answer: Answer, extra: str = "") -> None:
        """Send it, and wait until the client has taken most of it. Raises ``ConnectionError`` if it is gone."""
        self.put(answer, extra)
        await self._connection.drain()

    async def send_file(self, answer: Answer, body: FileBody, extra: str = "") -> None:
        """Send it with a body from a file, from its head to its end.

        Raises ``ConnectionError`` if the client is gone, what the body's extent raises if the file is not what it was:
        then abort.
        """
        if self.head_only:
            self._write(self._open(answer, body.length, extra))
        else:
            await send(self._framed_file(answer, body, extra), self._connection)

    def put_file(
        self, answer: Answer, body: FileBody, extra: str, done: Callable[[Exception | None], None]
    ) -> Transfer:
        """The same for a GET, without a task; ``done`` as of :class:`~gateway.extent.Transfer`."""
        return Transfer(self._framed_file(answer, body, extra), self._connection, done)

    def _framed_file(self, answer: Answer, body: FileBody, extra: str) -> FileBody:
        before, extent, after = body
        head = self._open(answer, body.length, extra)
        if self._chunked:
            before, after = b"%x\r\n%b" % (body.length, before), after + b"\r\n0\r\n\r\n"
        return FileBody(head + before, extent, after)

    async def start(self, answer: Answer, length: int | None, extra: str = "") -> None:
        """Send the head of a streamed answer whose body follows piece by piece; ``length`` in bytes where it is
        known."""
        self._write(self._open(answer, length, extra))

    def _open(self, answer: Answer, length: int | None, extra: str) -> bytes:
        """The head of a streamed answer."""
        if self._request.method == "POST":
            answer = uncached(answer)
        self._chunked = not self.measured and not self.head_only
        framing = b"transfer-encoding: chunked\r\n" if self._chunked else b""
        if self.measured and not self.head_only:
            if length is None:
                raise ValueError("an HTTP/1.0 client needs the length of the body first")
            framing = b"content-length: %d\r\n" % length
        self.started = True
        return b"".join(self._head(answer, framing, extra))

    async def write(self, data: bytes) -> None:
        """Send a slice and wait until the client has taken most of it; the caller holds no more than one slice.

        Raises ``ConnectionError`` if the client is gone, also because it took nothing for too long.
        """
        if not data or self.head_only:
            return
        if self._chunked:
            self._write(b"%x\r\n" % len(data), data, b"\r\n")
        else:
            self._write(data)
        await self._connection.drain()

    async def write_extent(self, extent: Extent) -> None:
        """Send a part of a file as :meth:`write` does. Raises also what ``extent`` raises."""
        if not extent.size or self.head_only:
            return
        before, after = (b"%x\r\n" % extent.size, b"\r\n") if self._chunked else (b"", b"")
        await send(FileBody(before, extent, after), self._connection)

    async def start_events(self, answer: Answer, extra: str = "") -> None:
        """Send the head of an answer without end; :meth:`write_framed` sends its body.

        An HTTP/1.0 connection ends with it: an event that was cut off is none, so nothing can be taken for the whole.
        """
        self._chunked = not self.measured and not self.head_only
        if self.measured:
            self._keep_alive = False
        framing = b"transfer-encoding: chunked\r\n" if self._chunked else b""
        self.started = True
        self._write(b"".join(self._head(answer, framing, extra, lasting=True)))

    @property
    def chunked(self) -> bool:
        """Whether the body that was started goes out in chunks."""
        return self._chunked

    @property
    def takes_chunks(self) -> bool:
        """Whether the body goes out in chunks to a client that has taken most of what it was sent."""
        return self._chunked and self._connection.is_open and not self._connection.writing_paused

    async def drain(self) -> None:
        """Wait until the client has taken most of what it was sent. Raises as :meth:`write`."""
        await self._connection.drain()

    def put_framed(self, data: bytes) -> None:
        """As :meth:`write_framed`, for a client that :attr:`takes_chunks`."""
        self._write(data)

    def framed(self, pieces: Sequence[bytes]) -> bytes:
        """Pieces as they go over this connection."""
        return frame(pieces) if self._chunked else b"".join(pieces)

    async def write_framed(self, data: bytes) -> None:
        """Send what :meth:`framed` made, or :func:`frame` for a chunked body, and wait until most of it is taken.

        So no more than this waits for the client, and what the connection holds anyway. Raises as :meth:`write`.
        """
        self._write(data)
        await self._connection.drain()

    async def finish(self) -> None:
        """Tell the client that the body is whole."""
        if self._chunked:
            self._write(b"0\r\n\r\n")

    async def refuse(self, answer: Answer) -> None:
        """Answer a request of which more may come, and let that be the last answer of its connection."""
        self._keep_alive = False
        await self.answer(answer)
        self._connection.linger()

    def fail(self, status: int) -> None:
        """Send a bare status as the last answer of the connection."""
        self._keep_alive = False
        self._connection.refuse(status)

    def abort(self) -> None:
        """Cut the connection so that the client cannot take what it has for the whole (engine.md INV-22)."""
        self._keep_alive = False
        self._connection.abort()

    def wait(self, waiting: Waiting) -> None:
        """Nothing is sent for now; ``waiting`` is told if the client goes away before :meth:`proceed`."""
        self._connection.wait(waiting)

    def proceed(self) -> None:
        """Something is sent now."""
        self._connection.proceed()

    def run(self, answering: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Answer in a task, which ends the exchange. The task may be cancelled before it has begun."""
        self._connection.run(self._see_through(answering))

    def count(self, traffic: Traffic, *, live: bool) -> None:
        """Count its answer, and how long that takes, among those to ``/v1/shape``."""
        self._traffic, self._live, self._began = traffic, live, time.monotonic()

    def end(self) -> None:
        """The answer has been sent, or the client has gone: the next request may come."""
        if self._traffic is not None and self.status:
            self._traffic.add(self.status, self._live, time.monotonic() - self._began)
        self._connection.done(self._keep_alive)

    async def _see_through(self, answering: Callable[[], Coroutine[Any, Any, None]]) -> None:
        try:
            await answering()
            payload = self._request.payload
            if payload is not None and self._connection.is_open and not await self._connection.discard(payload):
                self._keep_alive = False
        except BaseException:
            self.abort()
            raise
        finally:
            self.end()

    def _write(self, *pieces: bytes) -> None:
        connection = self._connection
        transport = connection.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("the client is gone")
        if len(pieces) == 1:
            transport.write(pieces[0])
        else:
            transport.writelines(pieces)

    def _head(self, answer: Answer, framing: bytes, extra: str, *, lasting: bool = False) -> tuple[bytes, ...]:
        """The pieces of the head: what this exchange alone has between what all have who get this answer."""
        self.status = answer.status
        self._keep_alive = self._keep_alive and self._connection.stays_open
        if not self._keep_alive:
            connection = b"connection: close\r\n"
        elif self.measured or lasting or answer.status == 204:
            connection = b"connection: keep-alive\r\n"
        else:
            connection = b""
        return (
            answer.head,
            _date(int(time.time())),
            b"x-request-id: %b\r\n" % self.id.encode(),
            b"" if self.cors_methods is None else _cors(self._request.origin, self.cors_methods),
            connection,
            framing,
            extra.encode(),
            b"\r\n",
        )


def frame(pieces: Iterable[bytes]) -> bytes:
    """Each piece as a chunk of its own, so that clients are handed them one by one."""
    return b"".join([b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces])


@lru_cache(maxsize=256)
def _cors(origin: str, methods: str) -> bytes:
    lines = (
        f"access-control-allow-origin: {origin}\r\naccess-control-expose-headers: {EXPOSED}\r\n"
        f"access-control-allow-methods: {methods}\r\n"
    )
    return lines.encode()


def next_id() -> str:
    """A text of 20 letters that no other request has; it is no secret."""
    return f"{_random.getrandbits(80):020x}"


_last_date = (0, b"")


def _date(second: int) -> bytes:
    """The ``date`` header, made once a second."""
    global _last_date
    if _last_date[0] != second:
        _last_date = (second, f"date: {formatdate(second, usegmt=True)}\r\n".encode())
    return _last_date[1]

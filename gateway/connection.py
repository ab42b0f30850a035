"""A client's connection: bytes in, requests one after another, bytes out (http-api.md 1).

Packets that many clients send alike are parsed once for all of them (:mod:`gateway.request_head`); a connection gets a
parser of its own when anything else comes. No connection has a task or a timer while its client waits or is idle: idle
ones are on one wheel.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Final, Protocol, cast

import structlog
from aiohttp import StreamReader
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http_exceptions import BadHttpMessage, HttpProcessingError
from aiohttp.web import RequestPayloadError

from gateway.request_head import PACKET, QUEUE, Request, make_parser, remembered, request_of, status_of
from gateway.response import status_line
from gateway.upgrade import HOLD, Disguise
from gateway.wheel import Wheel

log = structlog.get_logger(__name__)

BACKLOG: Final = 4_096
"""Connections that may wait to be accepted: all live clients come back at once after a change."""

LINGER: Final = 2.0
"""Seconds for which what a refused client still sends is taken and dropped. The kernel answers data that nobody reads
with a reset, which can overtake the answer and even take it away again."""

ENDING: Final = 30.0
"""Seconds that cut connections may take to end, which is a few turns of the loop."""

BODY_LINGER: Final = 10.0
"""Seconds that the rest of a body may take that nobody needs any more."""


class Waiting(Protocol):
    """A request whose answer comes later, without a task."""

    def leave(self) -> None:
        """The client has gone."""


class Connection(BaseProtocol):
    """Hands one request at a time to the server's handler, which calls :meth:`done` when it is answered."""

    __slots__ = (
        "_busy",
        "_cut",
        "_deaf",
        "_disguise",
        "_queue",
        "_release",
        "_room",
        "_server",
        "_stalled",
        "_task",
        "_waiting",
        "idle_since",
        "served",
        "slot",
    )

    def __init__(self, server: Server, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._server = server
        self._busy = False
        self._deaf = False
        """Whether nothing that still comes is looked at."""
        self._stalled = False
        """Whether the parser holds back requests that it was given."""
        self._queue: deque[Request | int] | None = None
        self._task: asyncio.Task[None] | None = None
        self._waiting: Waiting | None = None
        self._cut: asyncio.TimerHandle | None = None
        self._disguise: Disguise | None = None
        self._release: asyncio.TimerHandle | None = None
        self._room: Callable[[], None] | None = None
        self.idle_since = 0.0
        self.served = 0
        self.slot = 0

    # ---- what the loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has come."""
        self.transport = cast(asyncio.Transport, transport)
        self.idle_since = self._loop.time()
        self._server.opened(self)

    def connection_lost(self, exc: BaseException | None) -> None:
        """The client has gone, or was cut off: nobody works for it any more."""
        self._server.closed(self)
        self._deaf = True
        self._queue = None
        self._forget_cut()
        super().connection_lost(exc)
        self._parser = self._disguise = None
        self._hold()
        if self._task is not None:
            self._task.cancel()
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.leave()

    def data_received(self, data: bytes) -> None:
        """Requests, or parts of them."""
        if self._deaf:
            return
        if self._parser is None:
            request = remembered(data) if len(data) <= PACKET else None
            if request is not None:
                self._take(request)
                return
            self._parser = make_parser(self)
            self._disguise = Disguise()
        assert self._disguise is not None
        text = self._disguise.hide(data)
        self._hold()
        if text or not data:
            self._parse(text)

    def _hold(self) -> None:
        if self._release is not None:
            self._release.cancel()
            self._release = None
        if self._disguise is not None and self._disguise.held:
            self._release = self._loop.call_later(HOLD, self._let_go)

    def _let_go(self) -> None:
        if self._disguise is not None and self._disguise.held and not self._deaf:
            self._parse(self._disguise.let_go())

    def eof_received(self) -> None:
        """The client sends no more."""
        self._let_go()

    def _parse(self, text: bytes) -> None:
        assert self._parser is not None
        try:
            messages, _, _ = self._parser.feed_data(text)
        except HttpProcessingError as error:
            self._take(status_of(error))
            return
        self._stalled = len(messages) + len(self._queue or ()) >= QUEUE
        for message, payload in messages:
            self._take(request_of(message, payload))
        if self._stalled:
            if not self._buffer_paused:
                self._pause_reading_for_buffer()
            # Else nobody would go on if all of them have been answered already.
            self._loop.call_soon(self._next)

    def pause_writing(self) -> None:
        """The client does not take what it is sent as fast as it comes."""
        super().pause_writing()
        self._cut = self._loop.call_later(self._server.send_timeout, self.abort)

    def resume_writing(self) -> None:
        """It has taken most of it."""
        self._forget_cut()
        super().resume_writing()
        if self._room is not None:
            self._room()
        self._next()

    # ---- what handlers of requests call

    @property
    def stays_open(self) -> bool:
        """Whether another request may follow the present one."""
        return self.served < self._server.requests_per_connection and not self._server.draining

    @property
    def is_open(self) -> bool:
        """Whether the client is there, and is heard."""
        return not self._deaf and self.transport is not None and not self.transport.is_closing()

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        """Answer the present request in a task, which is cancelled when the client goes away."""
        self._task = self._loop.create_task(work)
        self._server.working(self._task)

    def wait(self, waiting: Waiting) -> None:
        """The present request waits; ``waiting`` is told if its client goes away before :meth:`proceed`."""
        self._waiting = waiting

    def proceed(self) -> None:
        """The present request waits no more."""
        self._waiting = None

    def tell_of_room(self, call: Callable[[], None] | None) -> None:
        """``call`` this each time the client, for whom writing was paused, has taken most of what it was sent."""
        self._room = call

    async def drain(self) -> None:
        """Wait until the client has taken most of what it was sent. Raises ``ConnectionError`` if it is gone.

        One that takes too long is cut off.
        """
        if self._paused:
            await self._drain_helper()

    def done(self, stay: bool) -> None:
        """The present request is answered; the connection closes behind it or may ``stay``."""
        self._busy = False
        self._task = None
        if self.transport is None:
            return
        if not stay or self._server.draining:
            # The head of a stream was sent long before: it could not say so.
            # Who is deaf already lingers, and closes after that.
            if not self._deaf:
                self._deaf = True
                self.transport.close()
            return
        self.idle_since = self._loop.time()
        if self._queue or self._buffer_paused:
            self._loop.call_soon(self._next)

    async def discard(self, payload: StreamReader) -> bool:
        """Read the rest of a body that nobody needs, for a while; whether it has ended."""
        try:
            async with asyncio.timeout(min(BODY_LINGER, self._server.idle_timeout)):
                while not payload.is_eof():
                    await payload.readany()
        except (TimeoutError, RequestPayloadError, BadHttpMessage, ValueError):
            return False
        return True

    def abort(self) -> None:
        """Cut the connection at once."""
        if self.transport is not None:
            self.transport.abort()

    def refuse(self, status: int) -> None:
        """The last answer is a status and ``connection: close``, no other header, no body (http-api.md 1.2, 1.6)."""
        if self.is_open and self.transport is not None:
            self.transport.write(status_line(status) + b"connection: close\r\n\r\n")
        self.linger()

    def linger(self) -> None:
        """Send no more, and read until the client has ended or some time has passed."""
        self._deaf = True
        transport = self.transport
        if transport is None or transport.is_closing():
            return
        transport.write_eof()
        transport.resume_reading()
        self._loop.call_later(LINGER, transport.close)

    @property
    def is_idle(self) -> bool:
        """Whether no request is being answered."""
        return not self._busy

    def _take(self, request: Request | int) -> None:
        if not (self._busy or self._queue or self._paused):
            self._begin(request)
            return
        if self._queue is None:
            self._queue = deque()
        self._queue.append(request)
        if len(self._queue) >= QUEUE and not self._buffer_paused:
            self._pause_reading_for_buffer()

    def _next(self) -> None:
        """Begin the next request, if its turn has come, and read on if few are left."""
        if self._deaf or self._paused:
            return
        if self._queue and not self._busy:
            self._begin(self._queue.popleft())
        if self._buffer_paused and len(self._queue or ()) <= QUEUE // 2:
            if self._parser is not None:
                # What it held back comes first; it may be too much by itself.
                self.data_received(b"")
            if not self._stalled:
                self._resume_reading_for_buffer()

    def _begin(self, request: Request | int) -> None:
        if isinstance(request, int):
            self.refuse(request)
            return
        if self._parser is not None:
            self._parser.message_consumed()
        self._busy = True
        self.served += 1
        self._server.begin(self, request)

    def _forget_cut(self) -> None:
        if self._cut is not None:
            self._cut.cancel()
            self._cut = None


class Server:
    """The connections of a gateway: who may come, how long they may be idle, and their end."""

    def __init__(
        self,
        begin: Callable[[Connection, Request], None],
        *,
        idle_timeout: float,
        send_timeout: float,
        requests_per_connection: int,
    ) -> None:
        """``begin`` is called with each request and must see to its answer; it never raises. Times in seconds: how long
        a connection may wait for a whole request, and a client for taking what it is sent."""
        self._loop = asyncio.get_running_loop()
        self._wheel: Wheel[Connection] = Wheel(self._loop.time())
        self._connections: set[Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._listener: asyncio.Server | None = None
        self._emptied: asyncio.Event = asyncio.Event()
        self.begin = begin
        self.idle_timeout = idle_timeout
        self.send_timeout = send_timeout
        self.requests_per_connection = requests_per_connection
        self.draining = False
        """Whether each answer closes its connection."""

    async def listen(self, host: str, port: int) -> None:
        """Let clients come. Raises ``OSError`` when the port is taken."""
        listener = await self._loop.create_server(
            lambda: Connection(self, self._loop), host, port, reuse_port=True, backlog=BACKLOG, start_serving=False
        )
        self._listener = listener
        for each in listener.sockets:
            # Connections inherit both.
            each.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            if self.send_timeout and hasattr(socket, "TCP_USER_TIMEOUT"):
                # The kernel cuts off who takes nothing, also when an answer was handed over whole. Meant for peers that
                # are gone, it counts for windows that stay closed as well.
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(self.send_timeout * 1000))
        await listener.start_serving()

    def close_listener(self) -> None:
        """Let nobody come any more."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    def drain(self) -> None:
        """Close each connection with the answer it waits for, and those that wait for none."""
        self.draining = True
        for connection in list(self._connections):
            if connection.is_idle:
                connection.done(False)

    async def stop(self, patience: float) -> None:
        """Wait for the answers under way, at most so many seconds, and cut what is left."""
        await self._until_empty(patience)
        for connection in list(self._connections):
            connection.abort()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        # Whoever works for one without a task hears of its end, and gives back what it holds.
        await self._until_empty(ENDING)

    async def _until_empty(self, patience: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience):
                while self._connections:
                    self._emptied.clear()
                    await self._emptied.wait()

    def advance(self, now: float) -> None:
        """Cut off those that were idle for too long."""
        for connection in self._wheel.advance(now):
            since = connection.idle_since if connection.is_idle else now
            if since + self.idle_timeout <= now:
                connection.abort()
            else:
                connection.slot = self._wheel.add(since + self.idle_timeout, connection)

    @property
    def connections(self) -> list[Connection]:
        """Those that are open, in no order."""
        return list(self._connections)

    # ---- what connections call

    def opened(self, connection: Connection) -> None:
        """A client has come."""
        self._connections.add(connection)
        connection.slot = self._wheel.add(connection.idle_since + self.idle_timeout, connection)

    def closed(self, connection: Connection) -> None:
        """It has gone."""
        self._connections.discard(connection)
        self._wheel.discard(connection.slot, connection)
        if not self._connections:
            self._emptied.set()

    def working(self, task: asyncio.Task[None]) -> None:
        """A request is answered in this task."""
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

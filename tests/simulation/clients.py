"""Clients: requests to a gateway's application without HTTP around it, and a strict follower of one shape."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Sequence
from types import SimpleNamespace
from typing import Any, Final, NamedTuple
from urllib.parse import urlencode

from gateway.events import KEEP_ALIVE
from gateway.exchange import frame
from gateway.extent import Extent, FileBody
from gateway.gateway import Gateway
from gateway.log import SLICE
from gateway.response import Answer
from tests.pipeline.client_view import ClientView
from tests.simulation.oracle import View
from tests.simulation.process import Process
from tests.simulation.scheduler import Scheduler


class Response(NamedTuple):
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes


Piece = Response | bytes | None
"""What comes of a stream: its head or another answer, chunks of events, the end."""


class SimTransfer(NamedTuple):
    """``gateway.extent.Transfer``."""

    task: asyncio.Task[None]

    def stop(self) -> None:
        """Send no more of it."""
        self.task.cancel()


class SimExchange:
    """``gateway.exchange.Exchange``: collects the answer; a slow client makes each slice take its time."""

    def __init__(
        self,
        method: str,
        target: str,
        seconds: Callable[[], float],
        deliver: Callable[[Piece], None],
        settle: Callable[[Response | None], None],
    ) -> None:
        """``deliver`` is given the head and the bytes of a stream of events as they come; ``settle`` is told the end,
        ``None`` if the connection was cut."""
        self.id = "simulated"
        self.method = method
        self.target = target
        self.request = SimpleNamespace(payload=None)
        self.started = False
        self.chunked = True
        self.head_only = False
        self.measured = False
        self.cors_methods: str | None = None
        self.response: Response | None = None
        self.aborted = False
        self._seconds = seconds
        self._deliver = deliver
        self._settle = settle
        self._tasks: set[asyncio.Task[None]] = set()
        self._status = 0
        self._headers: dict[str, str] = {}
        self._body = b""

    def header(self, _: str) -> str | None:
        """None of them."""
        return None

    def put(self, answer: Answer, extra: str = "") -> None:
        """All at once."""
        self.started = True
        self._note(answer, extra)
        self.response = Response(answer.status, self._headers, answer.body)

    async def answer(self, answer: Answer, extra: str = "") -> None:
        """The same."""
        self.put(answer, extra)

    async def start(self, answer: Answer, length: int | None, extra: str = "") -> None:
        """Slices follow."""
        self.started = True
        self._note(answer, extra)
        self._status = answer.status

    async def write(self, data: bytes) -> None:
        """A slice."""
        self._body += data
        await asyncio.sleep(self._seconds())

    async def write_extent(self, extent: Extent) -> None:
        """A part of a file, a little at a time."""
        at = extent.start
        while at < extent.end:
            data = extent.read(at, min(SLICE, extent.end - at))
            at += len(data)
            await self.write(data)

    async def send_file(self, answer: Answer, body: FileBody, extra: str = "") -> None:
        """All of it."""
        await self.start(answer, body.length, extra)
        await self.write(body.before)
        await self.write_extent(body.extent)
        await self.write(body.after)
        await self.finish()

    def put_file(
        self, answer: Answer, body: FileBody, extra: str, done: Callable[[Exception | None], None]
    ) -> SimTransfer:
        """The same, ``done`` at the end."""

        async def see_through() -> None:
            try:
                await self.send_file(answer, body, extra)
            except asyncio.CancelledError:
                self._settle(None)
                raise
            except Exception as error:  # noqa: BLE001 - handed to who waits for the end
                done(error)
            else:
                done(None)

        return SimTransfer(self._keep(asyncio.get_running_loop().create_task(see_through())))

    async def start_events(self, answer: Answer, extra: str = "") -> None:
        """Events follow."""
        await self.start(answer, None, extra)
        self._deliver(Response(answer.status, self._headers, b""))

    def framed(self, pieces: Sequence[bytes]) -> bytes:
        """As chunks."""
        return frame(pieces)

    @property
    def takes_chunks(self) -> bool:
        """Half of the time."""
        return self._seconds() < 0.01

    async def drain(self) -> None:
        """It takes its time."""
        await asyncio.sleep(self._seconds())

    def put_framed(self, data: bytes) -> None:
        """Events."""
        self._deliver(data)

    async def write_framed(self, data: bytes) -> None:
        """Events."""
        self._deliver(data)
        await asyncio.sleep(self._seconds())

    async def finish(self) -> None:
        """The end."""
        self.response = Response(self._status, self._headers, self._body)

    def abort(self) -> None:
        """The connection is cut."""
        self.aborted = True
        self.response = None

    def wait(self, waiting: object) -> None:
        """Clients here never give up."""

    def proceed(self) -> None:
        """Nothing."""

    def count(self, traffic: object, *, live: bool) -> None:
        """Nobody reads the metrics."""

    def end(self) -> None:
        """The client gets what there is."""
        self._settle(self.response)

    def run(self, answering: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """In a task."""

        async def see_through() -> None:
            try:
                await answering()
            except asyncio.CancelledError:
                self._settle(None)
                raise
            self.end()

        self._keep(asyncio.get_running_loop().create_task(see_through()))

    def _keep(self, task: asyncio.Task[None]) -> asyncio.Task[None]:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _note(self, answer: Answer, extra: str) -> None:
        self._headers = dict(answer.fields)
        for line in extra.split("\r\n"):
            name, colon, value = line.partition(": ")
            if colon:
                self._headers[name] = value


class Door:
    """A gateway that takes requests."""

    def __init__(self, process: Process, gateway: Gateway) -> None:
        self.process = process
        self.gateway = gateway

    async def ask(
        self, client: SimLoopOwner, method: str, target: str, on_piece: Callable[[Piece], None] = lambda _: None
    ) -> Response | None:
        """The answer, ``None`` if the connection is lost. Called on the client's loop, as is ``on_piece``."""
        scheduler = self.process.scheduler
        future: asyncio.Future[Response | None] = asyncio.get_running_loop().create_future()

        def settle(response: Response | None) -> None:
            def arrive() -> None:
                if not future.done():
                    future.set_result(response)

            scheduler.after(scheduler.rng.random() * 0.003, lambda: client.process.soon(arrive))

        exchange = SimExchange(
            method,
            target,
            lambda: scheduler.rng.random() * 0.02,
            lambda piece: client.process.soon(lambda: on_piece(piece)),
            settle,
        )

        def begin() -> None:
            self.gateway._app.begin(exchange)  # type: ignore[arg-type]

        if not self.process.alive:
            await asyncio.sleep(0.01)
            return None
        self.process.on_kill.append(lambda: settle(None))
        await asyncio.sleep(scheduler.rng.random() * 0.003)
        self.process.loop.call_soon(begin)
        return await future


class SimLoopOwner:
    """Whoever asks."""

    def __init__(self, process: Process) -> None:
        self.process = process


class Client(SimLoopOwner):
    """Follows one shape for ever and complains about everything that cannot be."""

    def __init__(
        self,
        process: Process,
        name: str,
        view: View,
        columns: tuple[str, ...] | None,
        replica: Any,
        doors: Callable[[], list[Door]],
        on_claim: Callable[[Client], None],
        rest: Callable[[], float] = lambda: 0.0,
    ) -> None:
        """``on_claim`` is told when an answer said that the client is up to date. ``rest`` is asked before each request
        for how many seconds the client goes away."""
        super().__init__(process)
        self.name = name
        self.shape = view
        self.view = ClientView(f"t{view.table}", columns=columns, replica=replica, monotone_lsn=False)
        self.by_events = process.scheduler.rng.random() < 0.5
        self.answers: dict[int, int] = {}
        self.last_status = 0
        self._doors = doors
        self._on_claim = on_claim
        self._rest = rest
        self.waits_since: float | None = None
        """Since when its live request has been under way."""

    @property
    def scheduler(self) -> Scheduler:
        """The world's."""
        return self.process.scheduler

    async def pass_by(self) -> int:
        """Ask once, and never again."""
        await asyncio.sleep(self.scheduler.rng.random() * 6)
        doors = self._doors()
        if doors:
            await self.scheduler.rng.choice(doors).ask(
                self, "GET", "/v1/shape?" + urlencode(self.view.query(live=False))
            )
        return 0

    async def run(self) -> int:
        """For ever."""
        rng = self.scheduler.rng
        await asyncio.sleep(rng.random() * (3 if rng.random() < 0.7 else 10))
        while True:
            doors = self._doors()
            if not doors:
                await asyncio.sleep(0.2)
                continue
            if seconds := self._rest():
                await asyncio.sleep(seconds)
            door = rng.choice(doors)
            query = self.view.query(live=rng.random() < 0.9, events=self.by_events)
            self.waits_since = self.scheduler.now if "live" in query else None
            if "live_sse" in query:
                response = await self._stream(door, query)
            else:
                response = await door.ask(self, "GET", "/v1/shape?" + urlencode(query))
            self.waits_since = None
            if response is STREAMED:
                continue
            status = 0 if response is None else response.status
            self.last_status = status
            self.answers[status] = self.answers.get(status, 0) + 1
            if response is None or status == 503 or (status == 400 and b"out of bounds" in response.body):
                await asyncio.sleep(rng.random())
            elif status == 200:
                self.view.accept(query, response.headers, response.body)
                self.scheduler.trace(self.name, "at", self.view.offset, self.view.up_to_date)
                if self.view.up_to_date:
                    self._on_claim(self)
                    if query.get("live") != "true":
                        await asyncio.sleep(rng.random() * 0.3)
            elif status == 409:
                self.scheduler.trace(self.name, "refetches", self.view.handle)
                self.view.conflict(response.headers, response.body)
                await asyncio.sleep(rng.random() * 0.1)
            else:
                raise AssertionError(f"{self.name}: {status} {response.body[:300]!r}")

    async def _stream(self, door: Door, query: dict[str, str]) -> Response | None:
        """Follow a stream of events to its end, or return the other answer."""
        pieces: asyncio.Queue[Piece] = asyncio.Queue()

        async def ask() -> Response | None:
            response = await door.ask(self, "GET", "/v1/shape?" + urlencode(query), pieces.put_nowait)
            # Whatever the stream was, it has been told piece by piece.
            pieces.put_nowait(None if response is None or "electric-cursor" in response.headers else response)
            return response

        asking = asyncio.get_running_loop().create_task(ask())
        head = await pieces.get()
        if not isinstance(head, Response) or head.status != 200:
            await asking
            return head if isinstance(head, Response) else None
        self.view.open_events(query, head.headers)
        self.answers[200] = self.answers.get(200, 0) + 1
        items: list[bytes] = []
        text = b""
        while (chunks := await pieces.get()) is not None:
            assert isinstance(chunks, bytes)
            *events, text = (text + b"".join(unframed(chunks))).split(b"\n\n")
            for event in events:
                if event == KEEP_ALIVE.rstrip():
                    continue
                assert event.startswith(b"data: "), event
                items.append(event[6:])
                if b'"control":"up-to-date"' in event:
                    self.view.accept_events(items)
                    items = []
                    self.scheduler.trace(self.name, "streams to", self.view.offset)
                    self._on_claim(self)
        # Only a connection that is lost may end within an event.
        assert await asking is None or not text, text
        return STREAMED

    async def delete(self) -> int:
        """Have the present shape deleted."""
        doors = self._doors()
        if doors and self.view.handle:
            await doors[0].ask(self, "DELETE", "/v1/shape?" + urlencode({"handle": self.view.handle}))
        return 0


STREAMED: Final = Response(200, {}, b"")
"""A stream of events that was followed to its end."""


def unframed(chunks: bytes) -> Iterator[bytes]:
    """The contents of HTTP chunks."""
    at = 0
    while at < len(chunks):
        line = chunks.index(b"\r\n", at)
        start, size = line + 2, int(chunks[at:line], 16)
        yield chunks[start : start + size]
        at = start + size + 2

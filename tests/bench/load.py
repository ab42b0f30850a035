"""The load generator, a program of its own (:mod:`tests.bench.program`): many clients in one loop, without a framework.

The first line it gets names a scenario, a function of this module, and its arguments.
"""

from __future__ import annotations

import asyncio
import itertools
import resource
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec
import uvloop

from common.process import allow_open_files
from tests.bench.client import Client, Connection
from tests.bench.program import Control

_AT_ONCE: Final = 200
"""Connections that are opened at a time: more would overrun the server's backlog."""

_RESERVED_FILES: Final = 50
_BUSY: Final = (429, 503)
_BUSY_SECONDS: Final = 0.1
_INSERT: Final = b'"insert"'
_items = msgspec.json.Decoder(list[msgspec.Raw])


async def sync(control: Control, url: str, queries: Sequence[str], clients: int, parse: bool) -> None:
    """Each client reads a shape from its beginning until it is up to date; all at once, when told to go.

    ``queries``: the shapes, taken in turns. ``parse``: bodies are taken apart into their items, and these counted.
    """
    host, port = _address(url)
    fleet = [Client(host, port, keep=parse) for _ in range(clients)]
    await _opened([client.connection for client in fleet], host, port)

    async def read(client: Client, query: str) -> tuple[float, int, int]:
        rows = size = 0
        place = "offset=-1"
        while True:
            body = await client.get(f"/v1/shape?{query}&{place}")
            answer = client.connection
            _check(answer)
            size += answer.size
            if parse:
                rows += _rows(body)
            if answer.header("electric-up-to-date") is not None:
                return time.monotonic(), rows, size
            place = f"handle={answer.header('electric-handle')}&offset={answer.header('electric-offset')}"

    control.say(ready=True)
    await control.hear()
    begun = time.monotonic()
    shapes = itertools.cycle(queries)
    done = await asyncio.gather(*(read(client, next(shapes)) for client in fleet))
    control.say(
        seconds=max(at for at, _, _ in done) - begun,
        latencies=[at - begun for at, _, _ in done],
        rows=sum(rows for _, rows, _ in done),
        bytes=sum(size for _, _, size in done),
    )


async def fetch(control: Control, url: str, targets: Sequence[str], parse: bool) -> None:
    """One client gets bodies of items, one after the other, when told to go; of any server, so that this is a limit."""
    host, port = _address(url)
    client = Client(host, port, keep=parse)
    await client.connection.open(host, port)
    control.say(ready=True)
    await control.hear()
    begun, rows, size = time.monotonic(), 0, 0
    for target in targets:
        body = await client.get(target)
        _check(client.connection)
        size += client.connection.size
        rows += _rows(body) if parse else 0
    control.say(seconds=time.monotonic() - begun, rows=rows, bytes=size)


def _rows(body: bytes) -> int:
    """Takes a body apart into its items; how many of them are rows."""
    items = _items.decode(body)
    # The last one may be the control message.
    return len(items) - (b'"control"' in bytes(items[-1]) if items else 0)


class _Tally:
    """What came of requests: seconds until the head of each response and until its end, and bytes of bodies."""

    def __init__(self) -> None:
        self.firsts: list[float] = []
        self.latencies: list[float] = []
        self.size = 0


class _Requester:
    """A connection that asks for one thing after the other, without a pause and without a task in between."""

    def __init__(self, tally: _Tally) -> None:
        self.connection = Connection(self._done)
        self._tally = tally
        self._targets: Iterator[bytes] = iter(())
        self._target: bytes | None = None
        self._begun = 0.0
        self._stopped = asyncio.Event()

    async def run(self, host: str, port: int, targets: Iterator[bytes]) -> None:
        """Until there are no more ``targets``. One that is told to come back, or hung up on, asks again."""
        self._targets = targets
        self._go_on()
        while True:
            await self._stopped.wait()
            if self._target is None:
                return
            self._stopped.clear()
            if self.connection.status in _BUSY:
                await asyncio.sleep(_BUSY_SECONDS)
            await self.connection.open(host, port)
            self.connection.ask(self._target)

    def _go_on(self) -> None:
        self._target = next(self._targets, None)
        self._begun = time.monotonic()
        if self._target is not None and self.connection.usable:
            self.connection.ask(self._target)
        else:
            self._stopped.set()

    def _done(self, answer: Connection) -> None:
        if answer.status == 0 or answer.status in _BUSY:
            self._stopped.set()
            return
        _check(answer)
        self._tally.firsts.append(answer.begun_at - self._begun)
        self._tally.latencies.append(answer.done_at - self._begun)
        self._tally.size += answer.size
        self._go_on()


async def requests(control: Control, url: str, targets: Sequence[str], connections: int, seconds: float = 0) -> None:
    """Requests without pause on so many connections, when told to go.

    For ``seconds``, each connection beginning at another of the ``targets``; or, without, each of them once.
    """
    host, port = _address(url)
    tally = _Tally()
    fleet = [_Requester(tally) for _ in range(connections)]
    await _opened([requester.connection for requester in fleet], host, port)
    control.say(ready=True)
    await control.hear()
    start = time.monotonic()
    asked = [target.encode() for target in targets]
    once = iter(asked)

    def mine(at: int) -> Iterator[bytes]:
        if not seconds:
            return once
        begin = at % len(asked)
        around = itertools.cycle(asked[begin:] + asked[:begin])
        return itertools.takewhile(lambda _: time.monotonic() < start + seconds, around)

    await asyncio.gather(*(requester.run(host, port, mine(at)) for at, requester in enumerate(fleet)))
    control.say(
        requests=len(tally.latencies),
        seconds=time.monotonic() - start,
        bytes=tally.size,
        firsts=_thinned(tally.firsts),
        latencies=_thinned(tally.latencies),
    )


async def wait(control: Control, url: str, targets: Sequence[str], places: Sequence[str], clients: int) -> None:
    """Long-polls, round by round: each client asks; told when each has what the round brings.

    ``targets``: live requests without offset and cursor, shared out to the clients; ``places``: these, to begin with;
    then they follow the answers. An order has the ``mark`` that the awaited answer contains; a client that gets another
    one asks again.
    """
    host, port = _address(url)
    clients = _possible(clients, control)
    now_at = list(places)
    arrived: list[float] = []
    mark = b""
    complete = asyncio.Event()
    found: set[Connection] = set()
    again: set[Connection] = set()
    more = asyncio.Event()

    def piece(connection: Connection, data: bytes) -> None:
        if mark in data:
            found.add(connection)

    def done(connection: Connection) -> None:
        at = numbers[connection] % len(targets)
        if connection in found:
            arrived.append(connection.done_at)
            if len(arrived) == clients:
                complete.set()
        else:
            again.add(connection)
            more.set()
        if connection.status == 200 and (offset := connection.header("electric-offset")):
            now_at[at] = f"&offset={offset}&cursor={connection.header('electric-cursor') or ''}"

    async def ask_again() -> None:
        while True:
            await more.wait()
            more.clear()
            connections = list(again)
            again.clear()
            if any(connection.status not in (0, 200, *_BUSY) for connection in connections):
                control.say(error=f"a live request was answered with {[c.status for c in connections][:9]}")
            if any(connection.status != 200 for connection in connections):
                await asyncio.sleep(_BUSY_SECONDS)
            await _opened(connections, host, port)
            for connection in connections:
                ask(connection)

    def ask(connection: Connection) -> None:
        at = numbers[connection] % len(targets)
        connection.ask(f"{targets[at]}{now_at[at]}".encode())

    fleet = [Connection(done, piece) for _ in range(clients)]
    numbers = {connection: number for number, connection in enumerate(fleet)}
    task = asyncio.create_task(ask_again())
    await _opened(fleet, host, port)
    control.say(ready=True)
    while order := await control.hear():
        mark = order["mark"].encode()
        arrived.clear()
        found.clear()
        complete.clear()
        await _opened(fleet, host, port)
        for connection in fleet:
            ask(connection)
        control.say(waiting=clients)
        await complete.wait()
        control.say(arrived=sorted(arrived))
    task.cancel()


async def stream(control: Control, url: str, target: str, clients: int) -> None:
    """Server-sent events: each client opens the stream once; round by round, told when each has seen the ``mark``."""
    host, port = _address(url)
    clients = _possible(clients, control)
    arrived: dict[Connection, float] = {}
    tails: dict[Connection, bytes] = {}
    mark = b""
    complete = asyncio.Event()

    def piece(connection: Connection, data: bytes) -> None:
        seen = tails.get(connection, b"") + data
        if mark and mark in seen and connection not in arrived:
            arrived[connection] = time.monotonic()
            if len(arrived) == clients:
                complete.set()
        tails[connection] = seen[1 - len(mark) :] if mark else b""

    def done(connection: Connection) -> None:
        # Streams last a minute; the next one begins where the shape did, and has all that came since.
        if connection.status not in (0, 200):
            control.say(error=f"a stream was answered with {connection.status}")
        reopened.append(asyncio.create_task(reopen(connection)))

    async def reopen(connection: Connection) -> None:
        await connection.open(host, port)
        connection.ask(target.encode())

    reopened: list[asyncio.Task[None]] = []
    fleet = [Connection(done, piece) for _ in range(clients)]
    await _opened(fleet, host, port)
    for connection in fleet:
        connection.ask(target.encode())
    control.say(ready=True)
    while order := await control.hear():
        mark = order["mark"].encode()
        arrived.clear()
        tails.clear()
        complete.clear()
        control.say(waiting=clients)
        await complete.wait()
        control.say(arrived=sorted(arrived.values()))


async def follow(control: Control, url: str, queries: Sequence[str], rows: Sequence[int]) -> None:
    """Follows shapes to their ends, live. An order says how many ``rows`` of each are to come before the answer."""
    host, port = _address(url)
    tasks = [asyncio.create_task(_follower(host, port, query)) for query in queries]
    followers = await asyncio.gather(*tasks)
    control.say(ready=True)
    while await control.hear():
        control.say(following=True)
        done = await asyncio.gather(*(follower(count) for follower, count in zip(followers, rows, strict=True)))
        control.say(done=max(at for at, _ in done), bytes=sum(size for _, size in done))


async def _follower(host: str, port: int, query: str) -> Callable[[int], Awaitable[tuple[float, int]]]:
    client = Client(host, port)
    place = "offset=-1"

    async def step() -> tuple[bytes, bool]:
        nonlocal place
        body = await client.get(f"/v1/shape?{query}&{place}")
        answer = client.connection
        _check(answer)
        current = answer.header("electric-up-to-date") is not None
        place = f"handle={answer.header('electric-handle')}&offset={answer.header('electric-offset')}"
        if current:
            place += f"&live=true&cursor={answer.header('electric-cursor') or ''}"
        return body, current

    while not (await step())[1]:
        pass

    async def until(count: int) -> tuple[float, int]:
        seen = size = 0
        while seen < count:
            body, _ = await step()
            seen += body.count(_INSERT)
            size += len(body)
        if seen != count:
            raise RuntimeError(f"{seen} rows instead of {count} for {query}")
        return client.connection.done_at, size

    return until


async def _opened(connections: Sequence[Connection], host: str, port: int) -> None:
    closed = [connection for connection in connections if not connection.usable]
    for begin in range(0, len(closed), _AT_ONCE):
        await asyncio.gather(*(connection.open(host, port) for connection in closed[begin : begin + _AT_ONCE]))


def _check(answer: Connection) -> None:
    if answer.status != 200:
        raise RuntimeError(f"status {answer.status}: {answer.head.decode(errors='replace')}")


def _possible(clients: int, control: Control) -> int:
    """So many clients as this process may have connections; says so if that is less."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0] - _RESERVED_FILES
    if clients > files:
        control.say(error=f"{clients} clients need more open files than RLIMIT_NOFILE allows ({files}): raise it")
    return clients


def _thinned(values: Sequence[float], most: int = 20_000) -> list[float]:
    step = len(values) // most + 1
    return [round(value, 7) for value in values[::step]]


def _address(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    assert parts.hostname is not None
    return parts.hostname, parts.port or 80


_SCENARIOS: Final[dict[str, Callable[..., Awaitable[None]]]] = {
    scenario.__name__: scenario for scenario in (sync, fetch, requests, wait, stream, follow)
}


async def _main() -> None:
    control = await Control.open()
    order: dict[str, Any] = await control.hear()
    scenario = order.pop("scenario")
    # Whoever waits for an answer is to hear of it, wherever it happens.
    asyncio.get_running_loop().set_exception_handler(
        lambda _, context: control.say(error=f"{scenario}: {context['message']}: {context.get('exception')!r}")
    )
    try:
        await _SCENARIOS[scenario](control, **order)
    except (OSError, RuntimeError) as error:
        control.say(error=f"{scenario}: {error!r}")
    # Not before somebody has seen what it has cost.
    await control.hear()


def main() -> None:
    """Reads the order, carries it out, and ends."""
    allow_open_files()
    uvloop.run(_main())


if __name__ == "__main__":
    main()

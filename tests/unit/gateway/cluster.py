"""A cluster without Postgres: a gateway in this process, and an ingester and workers that say what the test wants.

Sockets, HTTP and shape files are real.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, NamedTuple

import zmq

from common.config import Settings
from common.lsn import Offset
from common.messages import (
    APPLIED_TOPIC,
    STATUS_TOPIC,
    Applied,
    Check,
    Delete,
    Done,
    Drop,
    Ended,
    Ensure,
    Examine,
    Explain,
    Explanation,
    Find,
    Missing,
    NotOwner,
    Place,
    Question,
    Refusal,
    Reply,
    Request,
    Resolve,
    Rows,
    Status,
    Subset,
    Tail,
    Touched,
    WorkerPlace,
    decode_request,
    encode,
    handle_topic,
)
from common.shape import ShapeRequest, make_handle, partition_of
from common.shapelog.snapshot import SnapshotWriter
from common.shapelog.writer import LogWriter
from common.sockets import Channel, bound, is_listened_on
from gateway.gateway import Gateway
from tests.ports import free_port

PARTITIONS = 4
GENERATION = 1
SCHEMA = '{"id":{"type":"int4","not_null":true,"pk_index":0},"prénom":{"type":"text"}}'
SNAPSHOT_END_ITEM = b'{"headers":{"control":"snapshot-end","xmin":"9","xmax":"9","xip_list":[]}}'
EVENTUALLY = 90.0
"""Seconds after which the test fails because what it waits for never came."""

_times = itertools.count(1_763_818_243_512_345)


def row(number: int, pad: int = 0) -> bytes:
    """A snapshot row."""
    return b'{"key":"k/%d","value":{"pad":"%s"},"headers":{"operation":"insert"}}' % (number, b"x" * pad)


def entry(number: int, pad: int = 0) -> bytes:
    """A log entry as workers append it."""
    return b'{"value":{"n":"%d","pad":"%s"},"headers":{"op_position":%d}}' % (number, b"x" * pad, number)


class StoredShape:
    """A shape as its worker holds it: the files, and what clients know of it."""

    def __init__(self, request: ShapeRequest, storage: Path, chunk_bytes: int) -> None:
        self.request = request
        self.partition = partition_of(request.hash(), PARTITIONS)
        self.handle = make_handle(request.hash(), next(_times))
        self.directory = f"partitions/{self.partition:02d}/shapes/{self.handle}"
        path = storage / self.directory
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.log = LogWriter.create(path, chunk_bytes)
        self.snapshot = SnapshotWriter(path, chunk_bytes, self.log.header)

    def add(self, *rows: bytes) -> None:
        """Add items to the snapshot."""
        self.snapshot.add(b"".join(row + b",\n" for row in rows), len(rows))

    def commit(self, lsn: int, *lines: bytes) -> Offset:
        """Write a transaction."""
        self.log.append(lsn, [2 * index for index in range(len(lines))], list(lines))
        offset = self.log.commit()
        assert offset is not None
        return offset

    def place(self, id: int) -> Place:
        """What a gateway is told."""
        return Place(
            id=id,
            handle=self.handle,
            directory=self.directory,
            schema=SCHEMA,
            request=self.request,
            generation=GENERATION,
        )


class Worker:
    """A worker that finds, creates and deletes shapes at once; knobs make it slow, silent or unwilling."""

    def __init__(self, context: zmq.Context[Any], run_dir: Path, storage: Path, name: str) -> None:
        self.name = name
        self.shapes: dict[ShapeRequest, StoredShape] = {}
        self.rows = [row(1), row(2)]
        self.complete = True
        self.chunk_bytes = 10_000_000
        self.silent = False
        self.mute = False
        self.refusal: Callable[[int], Reply] | None = None
        self.explain: Callable[[Explain], Reply] | None = None
        self.asked: list[Request | Touched] = []
        self.subset: Callable[[int], Reply] = lambda id: Rows(id=id, size=2, body=b"{}")
        self.subscribed: set[bytes] = set()
        self._storage = storage
        self.where = WorkerPlace(
            requests=f"ipc://{run_dir}/{name}-requests.sock", events=f"ipc://{run_dir}/{name}-events.sock"
        )
        self._requests = Channel(bound(context, zmq.ROUTER, self.where.requests), self._on_request)
        self._events = Channel(
            bound(context, zmq.XPUB, self.where.events, {zmq.XPUB_VERBOSE: 1}), self._on_subscription
        )

    def shape(self, **fields: Any) -> StoredShape:
        """The shape for these request fields, created like by a client."""
        request = ShapeRequest(**{"schema": "public", "table": "items", **fields})
        if request not in self.shapes:
            self.shapes[request] = self._create(request)
        return self.shapes[request]

    def commit(self, shape: StoredShape, lsn: int, *lines: bytes) -> Offset:
        """Write a transaction and tell, unless mute."""
        offset = shape.commit(lsn, *lines)
        if not self.mute:
            self._events.send([handle_topic(shape.handle), encode(Tail(offset))])
        self.apply(lsn, shape.partition)
        return offset

    def apply(self, lsn: int, *partitions: int) -> None:
        """Tell that these partitions are applied up to here."""
        if not self.mute:
            self._events.send([APPLIED_TOPIC, encode(Applied(GENERATION, lsn, partitions))])

    def end(self, shape: StoredShape) -> None:
        """End a shape as a worker does: the mark, the move to the trash, the news."""
        del self.shapes[shape.request]
        shape.log.mark_ended()
        trash = self._storage / "trash" / shape.handle
        trash.parent.mkdir(exist_ok=True)
        shape.path.rename(trash)
        if not self.mute:
            self._events.send([handle_topic(shape.handle), encode(Ended("deleted"))])

    def close(self) -> None:
        """Go away without a word."""
        self._requests.close()
        self._events.close()

    async def gone(self) -> None:
        """Wait until another one can listen in its place: ZeroMQ closes in a thread of its own."""
        endpoints = [Path(endpoint.removeprefix("ipc://")) for endpoint in (self.where.requests, self.where.events)]
        await until(lambda: not any(map(is_listened_on, endpoints)))

    def _create(self, request: ShapeRequest) -> StoredShape:
        shape = StoredShape(request, self._storage, self.chunk_bytes)
        shape.add(*self.rows)
        shape.snapshot.flush()
        if self.complete:
            shape.snapshot.finish(SNAPSHOT_END_ITEM)
        return shape

    def _on_request(self, parts: list[bytes]) -> None:
        request = decode_request(parts[1])
        self.asked.append(request)
        if not self.silent and not isinstance(request, Touched | Drop):
            self._requests.send([parts[0], encode(self._reply(request))])

    def _reply(self, request: Question) -> Reply:
        if isinstance(request, Explain) and self.explain is not None:
            return self.explain(request)
        if self.refusal is not None:
            return self.refusal(request.id)
        if isinstance(request, Explain):
            return Explanation(request.id, b'{"cost":"constant"}')
        if isinstance(request, Ensure):
            if request.request not in self.shapes:
                self.shapes[request.request] = self._create(request.request)
            return self.shapes[request.request].place(request.id)
        if isinstance(request, Find):
            found = self.shapes.get(request.request)
            return found.place(request.id) if found else Missing(request.id)
        if isinstance(request, Check):
            return Done(request.id)
        shape = next((each for each in self.shapes.values() if each.handle == request.handle), None)
        if shape is None:
            return Missing(request.id)
        if isinstance(request, Resolve):
            return shape.place(request.id)
        if isinstance(request, Subset):
            return self.subset(request.id)
        assert isinstance(request, (Delete, Examine))
        self.end(shape)
        return Done(request.id)

    def _on_subscription(self, parts: list[bytes]) -> None:
        topic = parts[0][1:]
        if not parts[0][0]:
            self.subscribed.discard(topic)
            return
        self.subscribed.add(topic)
        for shape in self.shapes.values():
            if handle_topic(shape.handle) == topic and not self.mute:
                self._events.send([topic, encode(Tail(shape.log.last))])


class Response(NamedTuple):
    """A response as it came over the wire. ``clean`` tells whether the body ended as HTTP says it must."""

    status: int
    headers: dict[str, str]
    raw: bytes
    clean: bool

    @property
    def items(self) -> Any:
        """The body as JSON."""
        return json.loads(self.raw)


class Stream:
    """A connection that was asked something, to be read bit by bit."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, method: str) -> None:
        self.reader = reader
        self.writer = writer
        self._method = method

    async def head(self) -> tuple[int, dict[str, str]]:
        """Status and headers; names in lower case."""
        async with asyncio.timeout(EVENTUALLY):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
        first, *lines = head.strip().split("\r\n")
        pairs = [line.partition(":") for line in lines]
        names = [name.lower() for name, _, _ in pairs]
        assert len(set(names)) == len(names), head
        return int(first.split(" ")[1]), {name.lower(): value.strip() for name, _, value in pairs}

    async def chunk(self) -> bytes:
        """The next chunk of a chunked body, ``b""`` at its end. Raises ``EOFError`` when the connection was cut."""
        async with asyncio.timeout(EVENTUALLY):
            size = int((await self.reader.readuntil(b"\r\n")).strip(), 16)
            return (await self.reader.readexactly(size + 2))[:-2]

    async def ends_cleanly(self) -> bool:
        """Read a chunked body to its end; whether there is one."""
        try:
            while await self.chunk():
                pass
        except (EOFError, ConnectionError):
            return False
        return True

    async def response(self) -> Response:
        """The whole response."""
        status, headers = await self.head()
        if self._method == "HEAD" or status in (204, 304):
            return Response(status, headers, b"", True)
        body = b""
        if headers.get("transfer-encoding") != "chunked":
            async with asyncio.timeout(EVENTUALLY):
                if "content-length" not in headers:
                    return Response(status, headers, await self.reader.read(), True)
                try:
                    return Response(
                        status, headers, await self.reader.readexactly(int(headers["content-length"])), True
                    )
                except (EOFError, ConnectionError):
                    return Response(status, headers, b"", False)
        try:
            while part := await self.chunk():
                body += part
        except (EOFError, ConnectionError):
            return Response(status, headers, body, False)
        return Response(status, headers, body, True)

    def close(self) -> None:
        """Hang up."""
        self.writer.transport.abort()


class Cluster:
    """The ingester's voice, the workers and the gateway."""

    def __init__(self, context: zmq.Context[Any], directory: Path, **settings: Any) -> None:
        self.context = context
        self.storage = directory / "storage"
        self.run_dir = directory / "run"
        self.run_dir.mkdir(exist_ok=True)
        self.storage.mkdir(exist_ok=True)
        self.settings = Settings(
            **{
                "database_url": "postgresql://u@localhost/db",
                "insecure": True,
                "storage_dir": self.storage,
                "run_dir": self.run_dir,
                "port": free_port(),
                "long_poll_timeout_ms": 600,
                "integration_testing": True,
                **settings,
            }
        )
        self.worker = Worker(context, self.run_dir, self.storage, "w0")
        self.workers = [self.worker]
        self.state = "active"
        self.reason = ""
        self.owners = dict.fromkeys(range(PARTITIONS), "w0")
        self.generation = GENERATION
        self.silent = False
        self._status = bound(context, zmq.PUB, self.settings.status_endpoint)
        self.gateway = Gateway(self.settings, context)
        self._heart: asyncio.Task[None] | None = None

    async def start(self, ready: bool = True) -> None:
        """Start the gateway and wait until it knows the service."""
        await self.gateway.start()
        self._heart = asyncio.create_task(self._beat())
        if ready:
            await self.until_health(200)

    async def stop(self) -> None:
        """Stop everything."""
        await self.gateway.stop()
        if self._heart is not None:
            self._heart.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._heart
        self._status.close()
        for worker in self.workers:
            worker.close()

    def add_worker(self, name: str) -> Worker:
        """One more worker, without partitions."""
        worker = Worker(self.context, self.run_dir, self.storage, name)
        self.workers.append(worker)
        return worker

    def tell(self) -> None:
        """Send the status now."""
        status = Status(
            boot="b",
            state=self.state,
            reason=self.reason,
            epoch=1,
            generation=self.generation,
            partitions=PARTITIONS,
            lsn=0,
            owners=self.owners,
            workers={worker.name: worker.where for worker in self.workers},
        )
        self._status.send_multipart([STATUS_TOPIC, encode(status)])

    async def open(self, target: str, method: str = "GET", headers: str = "", version: str = "1.1") -> Stream:
        """Send a request."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.settings.port, limit=1 << 24)
        writer.write(f"{method} {target} HTTP/{version}\r\nHost: h\r\n{headers}\r\n".encode("utf-8", "surrogateescape"))
        return Stream(reader, writer, method)

    async def ask(self, target: str, method: str = "GET", headers: str = "", version: str = "1.1") -> Response:
        """Send a request and wait for the response."""
        stream = await self.open(target, method, headers, version)
        try:
            return await stream.response()
        finally:
            stream.close()

    async def get(self, query: str, **more: str) -> Response:
        """GET the shape endpoint for the table ``items``."""
        return await self.ask(f"/v1/shape?table=items&{query}", **more)

    async def until_health(self, status: int) -> Response:
        """Wait until the health endpoint says so."""
        async with asyncio.timeout(EVENTUALLY):
            while True:
                response = await self.ask("/v1/health")
                if response.status == status:
                    return response
                await asyncio.sleep(0.02)

    async def _beat(self) -> None:
        while True:
            if not self.silent:
                self.tell()
            await asyncio.sleep(0.05)


@contextlib.asynccontextmanager
async def cluster(**settings: Any) -> AsyncIterator[Cluster]:
    """A running cluster in a directory of its own."""
    # Not pytest's directory: the paths of Unix sockets must be short.
    directory = Path(tempfile.mkdtemp(prefix="gw-"))
    context: zmq.Context[Any] = zmq.Context()
    world = Cluster(context, directory, **settings)
    try:
        await world.start()
        yield world
    finally:
        await world.stop()
        context.destroy(linger=0)
        shutil.rmtree(directory)


async def until(condition: Callable[[], bool]) -> None:
    """Wait until the condition holds."""
    async with asyncio.timeout(EVENTUALLY):
        while True:
            if condition():
                return
            await asyncio.sleep(0.01)


def not_owner(id: int) -> Reply:
    """A worker's reply while a partition is on its way."""
    return NotOwner(id)


def refuse(status: int, body: bytes, retry_after: int | None = None, known: bool = False) -> Callable[[int], Reply]:
    """A worker's refusal of every request."""
    return lambda id: Refusal(id=id, status=status, body=body, retry_after=retry_after, known=known)

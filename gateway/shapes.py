"""The shapes this gateway knows: where their files are, and how to find or create those it does not know.

A place is kept for as long as the shape's header says that it lives; that is checked on every use. So known shapes are
served while the ingester or a worker is away, and nobody need be asked about them. Others that exist are then found on
the disk: what is there is served, whoever is away.
"""

from __future__ import annotations

import asyncio
import os
import random
import resource
from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Final, Protocol

import msgspec
import structlog

from common.messages import (
    Ensure,
    Examine,
    Explain,
    Explanation,
    Find,
    Missing,
    NotOwner,
    Place,
    Refusal,
    Reply,
    Request,
)
from common.shape import ShapeRequest, partition_of, partition_of_handle, shape_directory
from gateway.finder import Finder
from gateway.service import Service
from gateway.shape import Shape
from gateway.workers import WorkerLost

log = structlog.get_logger(__name__)

READY_TIMEOUT: Final = 5.0
"""Seconds to wait for an active service that has an owner for the partition (http-api.md 5, step 6)."""

EXPLAIN_TIMEOUT: Final = 20.0
"""Seconds a worker may take to look at a table and a clause; the longest clause takes one, a busy database more."""

CREATE_TIMEOUT: Final = 45.0
"""Seconds a shape may take until its snapshot has started."""

RETRY_DELAY: Final = 0.1
"""Seconds between questions while a partition is on its way to another worker."""

SILENCE: Final = 1.0
"""Seconds without an answer, or without anybody to ask, between two looks at the disk. A worker that makes a shape is
silent for longer, but then the disk holds nothing that could be found."""

MAX_KNOWN: Final = 50_000
"""Places kept; each takes about a kilobyte."""

MAX_OPEN: Final = 1_000
"""Readers kept open without use, of up to three file descriptors each; fewer where the system allows fewer of them."""

SHARE: Final = 8
"""One reader for so many descriptors that the process may have: most of them are for clients."""


class Unavailable(msgspec.Struct, frozen=True):
    """No answer from the service in time: status 503 with this message, after so many seconds again."""

    message: str
    retry_after: int


class Asks(Protocol):
    """Who carries requests to workers (:class:`gateway.workers.Workers`)."""

    async def ask(self, worker: str, make: Callable[[int], Request]) -> Reply:
        """The worker's reply. Raises ``WorkerLost``."""


Found = Shape | Refusal | Unavailable
"""A living shape, what a worker said against it, or that nobody could say."""


class Shapes:
    """Finds shapes by what they are asked as; the workers find or create what is not known here."""

    def __init__(
        self,
        storage: Path,
        service: Service,
        workers: Asks,
        used: Callable[[str, int], None] | None = None,
    ) -> None:
        """``used`` is told the handle and the partition of each shape that a client asks for."""
        self._used = used
        self._storage = storage
        self._service = service
        self._workers = workers
        self._finder = Finder(storage)
        self._max_open = min(MAX_OPEN, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // SHARE)
        self._known: OrderedDict[ShapeRequest, Shape] = OrderedDict()
        self._open: OrderedDict[str, Shape] = OrderedDict()
        self._pending: dict[ShapeRequest, asyncio.Task[Found | Missing]] = {}
        self._doubts: dict[str, asyncio.Task[Refusal | Unavailable | None]] = {}
        self._changed: dict[asyncio.Future[None], None] = {}

    def service_changed(self) -> None:
        """Tell those who wait that a new status has come."""
        waiting, self._changed = self._changed, {}
        for future in waiting:
            if not future.done():
                future.set_result(None)

    def in_use(self) -> Iterator[tuple[str, int]]:
        """The shapes that requests read or wait on at present: their handles, each with its partition."""
        return ((shape.handle, shape.partition) for shape in self._open.values() if shape.users)

    def exists(self, handle: str) -> bool:
        """Whether there is a shape with this handle, as far as this process can see at once."""
        if handle in self._open:
            return True
        total = self._service.partitions
        partition = None if total is None else partition_of_handle(handle, total)
        return partition is not None and os.path.exists(self._storage / shape_directory(partition, handle))

    async def obtain(self, request: ShapeRequest, sent: ShapeRequest) -> Found:
        """The living shape for a request, found or created. Requests at the same time share one question.

        ``sent`` is the request with its clause as the client wrote it. Errors name places in that text, so it is that
        which has to be refused.
        """
        found = self.known(request) or await self._find_or_create(request)
        if self._used is not None and isinstance(found, Shape):
            self._used(found.handle, found.partition)
        if isinstance(found, Refusal) and found.status == 400 and sent != request:
            explained = await self.explain(sent)
            if isinstance(explained, Refusal) and explained.status == 400:
                return explained
        return found

    def at_hand(self, request: ShapeRequest) -> Shape | None:
        """The living shape that a client asks for, if this gateway has it; nobody is asked."""
        shape = self.known(request)
        if shape is not None and self._used is not None:
            self._used(shape.handle, shape.partition)
        return shape

    async def explain(self, request: ShapeRequest) -> Explanation | Refusal | Unavailable:
        """What any worker says about a request, without making its shape."""
        loop = asyncio.get_running_loop()
        ready_by = loop.time() + READY_TIMEOUT
        while True:
            workers = self._service.workers()
            for worker in random.sample(workers, len(workers)):
                try:
                    async with asyncio.timeout(EXPLAIN_TIMEOUT):
                        reply = await self._workers.ask(worker, lambda id: Explain(id, request))
                except WorkerLost:
                    continue
                except TimeoutError:
                    return Unavailable(f"Worker {worker} did not explain the clause within {EXPLAIN_TIMEOUT:.0f} s", 5)
                assert isinstance(reply, Explanation | Refusal)
                return reply
            if loop.time() >= ready_by:
                return Unavailable(self._service.unready(loop.time()), 5)
            await self._wait(RETRY_DELAY)

    async def _find_or_create(self, request: ShapeRequest) -> Found:
        task = self._pending.get(request)
        if task is None:
            task = asyncio.create_task(self._locate(request, create=True))
            self._pending[request] = task
            task.add_done_callback(lambda _: self._pending.pop(request, None))
        # One client that goes away must not end the question of the others.
        found = await asyncio.shield(task)
        assert not isinstance(found, Missing)
        return found

    async def find(self, request: ShapeRequest) -> Found | None:
        """The living shape for a request if there is one; needs an active service (http-api.md 26)."""
        found = await self._locate(request, create=False)
        return None if isinstance(found, Missing) else found

    async def ask_partition(
        self, partition_in: Callable[[int], int], make: Callable[[int], Request]
    ) -> Reply | Unavailable:
        """The reply of the active owner of partition ``partition_in(number of partitions)``, waited for a while."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + READY_TIMEOUT
        while True:
            total = self._service.partitions
            partition = 0 if total is None else partition_in(total)
            owner = None if total is None else self._service.owner(partition)
            if owner is not None and self._service.can_create(partition, loop.time()):
                try:
                    async with asyncio.timeout_at(deadline):
                        reply = await self._workers.ask(owner, make)
                    if not isinstance(reply, NotOwner):
                        return reply
                except (WorkerLost, TimeoutError):
                    pass
            if loop.time() >= deadline:
                return Unavailable(self._service.unready(loop.time()), 5)
            await self._wait(RETRY_DELAY)

    async def await_active(self) -> Unavailable | None:
        """Wait for an active service, as long as a client may be kept waiting for it."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + READY_TIMEOUT
        while not self._service.is_active(loop.time()):
            if loop.time() >= deadline:
                return Unavailable(self._service.unready(loop.time()), 5)
            await self._wait(RETRY_DELAY)
        return None

    async def doubt(self, shape: Shape, reason: str) -> Refusal | Unavailable | None:
        """Have the worker look at a shape that cannot be read here; ``None`` once it has ended.

        Requests at the same time share one question.
        """
        task = self._doubts.get(shape.handle)
        if task is None:
            log.error("a shape cannot be read", handle=shape.handle, reason=reason)
            task = asyncio.create_task(self._doubt(shape, reason))
            self._doubts[shape.handle] = task
            task.add_done_callback(lambda _: self._doubts.pop(shape.handle, None))
        return await asyncio.shield(task)

    async def _doubt(self, shape: Shape, reason: str) -> Refusal | Unavailable | None:
        self.forget(shape)
        reply = await self.ask_partition(lambda _: shape.partition, lambda id: Examine(id, shape.handle, reason))
        return reply if isinstance(reply, (Refusal, Unavailable)) else None

    def forget(self, shape: Shape) -> None:
        """Drop a shape that has ended; its files are closed when the last user is done."""
        if self._known.get(shape.request) is shape:
            del self._known[shape.request]
        if self._open.get(shape.handle) is shape:
            del self._open[shape.handle]
        shape.retired = True
        shape.close()

    def close(self) -> None:
        """Stop all questions and close all files."""
        for task in (*self._pending.values(), *self._doubts.values()):
            task.cancel()
        for shape in self._open.values():
            shape.close()
        self._open.clear()
        self._known.clear()

    def known(self, request: ShapeRequest) -> Shape | None:
        """The living shape for a request if this gateway has one in hand; nobody is asked."""
        shape = self._known.get(request)
        if shape is None:
            return None
        if not shape.lives():
            self.forget(shape)
            return None
        self._known.move_to_end(request)
        self._keep_open(shape)
        return shape

    def _keep(self, place: Place, partition: int, request: ShapeRequest) -> Shape | None:
        shape = Shape(place, partition, self._storage)
        # The key is what this gateway was asked, whatever the worker normalised it to.
        shape.request = request
        if not shape.lives():
            return None
        self._known[request] = shape
        if len(self._known) > MAX_KNOWN:
            self._known.popitem(last=False)
        self._keep_open(shape)
        return shape

    def _keep_open(self, shape: Shape) -> None:
        before = self._open.get(shape.handle)
        if before is not None and before is not shape:
            before.retired = True
            before.close()
        self._open[shape.handle] = shape
        self._open.move_to_end(shape.handle)
        if len(self._open) > self._max_open:
            # Those in use keep their files; they come to the end of the queue and are looked at again later.
            handle, oldest = self._open.popitem(last=False)
            oldest.close()
            if oldest.is_open:
                self._open[handle] = oldest

    async def _locate(self, request: ShapeRequest, *, create: bool) -> Found | Missing:
        """Ask the owner until it has an answer. Without an active service nothing is created, only found."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + CREATE_TIMEOUT
        ready_by = loop.time() + READY_TIMEOUT
        look_at = loop.time()
        hash_ = request.hash()
        reply: Reply | Shape | None = None
        while loop.time() < deadline:
            total = self._service.partitions
            partition = 0 if total is None else partition_of(hash_, total)
            owner = None if total is None else self._service.owner(partition)
            active = self._service.can_create(partition, loop.time())
            if owner is not None and (active or create):
                question = partial(Ensure if active and create else Find, request=request)
                try:
                    reply = await self._ask(owner, question, request, deadline if active else ready_by)
                    if isinstance(reply, (Refusal, Shape)):
                        return reply
                    if isinstance(reply, Missing) and not create:
                        return reply
                    if isinstance(reply, Place) and (shape := self._keep(reply, partition, request)):
                        return shape
                except WorkerLost:
                    # The worker may have been at it for long: what comes next is a new question.
                    reply = None
                    ready_by = loop.time() + READY_TIMEOUT
                except TimeoutError:
                    if active:
                        break
            # Who holds the partition knows better than the disk, where a shape that has just ended may look alive.
            if create and not active and not isinstance(reply, Missing) and loop.time() >= look_at:
                look_at = loop.time() + SILENCE
                if stored := await self._stored(request):
                    return stored
            if loop.time() >= ready_by:
                return Unavailable(self._service.unready(loop.time()), 5)
            await self._wait(RETRY_DELAY)
        return Unavailable("Failed to create shape, please retry", 1)

    async def _ask(
        self, owner: str, question: Callable[[int], Request], request: ShapeRequest, deadline: float
    ) -> Reply | Shape:
        """The owner's reply; a shape that is on the disk if the owner keeps silent.

        Raises ``WorkerLost``, ``TimeoutError`` after ``deadline``.
        """
        asking = asyncio.create_task(self._workers.ask(owner, question))
        try:
            async with asyncio.timeout_at(deadline):
                while not (await asyncio.wait([asking], timeout=SILENCE))[0]:
                    if stored := await self._stored(request):
                        return stored
                return asking.result()
        finally:
            asking.cancel()

    async def _stored(self, request: ShapeRequest) -> Shape | None:
        """The living shape for a request, if its files can be found and served without its worker."""
        found = await asyncio.to_thread(self._finder.find, request)
        return None if found is None else self._keep(*found, request)

    async def _wait(self, delay: float) -> None:
        """Until the next status, at most ``delay`` seconds."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._changed[future] = None
        try:
            await asyncio.wait([future], timeout=delay)
        finally:
            self._changed.pop(future, None)

"""Answers to gateways: find, create, delete, explain shapes (architecture.md 4.1, 4.2)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Final, Protocol

import orjson
import structlog

from common.messages import (
    Check,
    Delete,
    Done,
    Drop,
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
    Resolve,
    Rows,
    Subset,
    Touched,
    decode_request,
    encode,
)
from common.shape import ShapeRequest, partition_of, partition_of_handle
from common.shapelog.examination import examine
from common.shapelog.layout import DamagedLog
from common.shortage import is_shortage
from common.subset import SubsetRequest
from shapeworker.endings import ShapeEnded
from shapeworker.holdings import Holdings
from shapeworker.shape import Life, Shape

log = structlog.get_logger()

FETCH_SECONDS: Final = 30.0
"""How long a large subset waits for its gateway to open it; one that lives takes no time at all."""


class CannotCreate(Exception):
    """A shape cannot be had: what to tell the client (http-api.md 8, 25). Status 409: fetch anew, no handle yet.

    ``shape`` is one that was made, but has ended since its snapshot could not be taken.
    """

    def __init__(
        self, status: int, body: dict[str, object], retry_after: int | None = None, known: bool = False
    ) -> None:
        super().__init__(orjson.dumps(body).decode())
        self.status = status
        self.body = orjson.dumps(body)
        self.retry_after = retry_after
        self.known = known
        self.shape: Shape | None = None


def invalid(errors: Mapping[str, object]) -> CannotCreate:
    """Status 400 with the errors by field (http-api.md 8)."""
    return CannotCreate(400, {"message": "Invalid request", "errors": errors})


class Result(Protocol):
    """A subset that was read: in memory, or in a file below the storage directory."""

    @property
    def size(self) -> int:
        """Bytes."""

    @property
    def body(self) -> bytes:
        """All of it, if there is no file."""

    @property
    def file(self) -> str:
        """The path, or nothing."""


class Reads(Protocol):
    """Who reads subsets (:class:`shapeworker.subsets.Subsets`)."""

    def read(self, shape: Shape, subset: SubsetRequest) -> AbstractAsyncContextManager[Result]:
        """The rows, there as long as the block runs. Raises :class:`CannotCreate`, ``ShapeEnded``."""


class Requests:
    """One answer to each request, in whatever order they are ready."""

    def __init__(
        self,
        holdings: Holdings,
        fed: Callable[[int], bool],
        create: Callable[[ShapeRequest], Awaitable[Shape]],
        readable: Callable[[Shape], None],
        end: Callable[[Shape, str], Awaitable[None]],
        explain: Callable[[ShapeRequest], Awaitable[bytes]],
        reply: Callable[[list[bytes]], object],
        check: Callable[[ShapeRequest, SubsetRequest], Awaitable[None]],
        subsets: Reads,
        touched: Callable[[Mapping[str, float]], None] = lambda _: None,
    ) -> None:
        """``fed`` tells whether the stream feeds a partition, without which no shape can be made; ``create`` returns a
        shape whose snapshot has started, or raises :class:`CannotCreate`; ``readable`` makes sure that gateways may
        read the shape's files; ``end`` returns when all readers can see that the shape has ended; ``explain`` gives the
        explanation of a clause, or raises as ``create``; ``reply`` sends ``[peer, body]``; ``check`` raises
        :class:`CannotCreate` for a subset that no such shape can have; ``touched`` is told the handles that clients
        use, and how many seconds ago."""
        self._holdings = holdings
        self._fed = fed
        self._create = create
        self._readable = readable
        self._end = end
        self._explain = explain
        self._reply = reply
        self._touched = touched
        self._check = check
        self._subsets = subsets
        self._tasks: dict[asyncio.Task[None], tuple[bytes, int]] = {}
        self._droppable: dict[tuple[bytes, int], asyncio.Task[None]] = {}

    def message(self, parts: list[bytes]) -> None:
        """A request came in: parts ``[peer, body]``."""
        peer, body = parts
        request = decode_request(body)
        if isinstance(request, Touched):
            self._touched(request.ages)
            return
        key = peer, request.id
        if isinstance(request, Drop):
            if dropped := self._droppable.get(key):
                dropped.cancel()
            return
        task = asyncio.get_running_loop().create_task(self._handle(peer, request))
        self._tasks[task] = key
        if isinstance(request, Subset):
            self._droppable[key] = task
        task.add_done_callback(self._ended)

    def close(self) -> None:
        """Answer no more."""
        for task in self._tasks:
            task.cancel()

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._droppable.pop(self._tasks.pop(task), None)

    async def _handle(self, peer: bytes, request: Question) -> None:
        answer: Reply | None
        try:
            answer = await self._answer(peer, request)
        except CannotCreate as refusal:
            answer = Refusal(
                id=request.id,
                status=refusal.status,
                body=refusal.body,
                retry_after=refusal.retry_after,
                known=refusal.known,
                place=None if refusal.shape is None else self._place(request.id, refusal.shape),
            )
        except ShapeEnded as ended:
            if self._moved(request):
                # Nobody has seen anything of it: the next owner of the partition can make it just as well.
                answer = NotOwner(request.id)
            else:
                log.info("a shape ended while somebody waited for it", reason=str(ended))
                answer = Refusal(id=request.id, status=409, body=b"")
        except Exception:
            log.exception("a request failed")
            answer = Refusal(id=request.id, status=500, body=orjson.dumps({"error": "Internal server error"}))
        if answer is not None:
            self._reply([peer, encode(answer)])

    async def _answer(self, peer: bytes, request: Question) -> Reply | None:
        """What to reply, unless that was done already."""
        holdings = self._holdings
        if isinstance(request, Explain):
            return Explanation(request.id, await self._explain(request.request))
        if isinstance(request, Check):
            await self._check(request.request, request.subset)
            return Done(request.id)
        if isinstance(request, (Ensure, Find)):
            if not holdings.total or not holdings.may_create(partition_of(request.request.hash(), holdings.total)):
                return NotOwner(request.id)
            shape = holdings.by_request(request.request)
            if shape is None and isinstance(request, Find):
                return Missing(request.id)
            if shape is None and not self._fed(partition_of(request.request.hash(), holdings.total)):
                return NotOwner(request.id)
            if shape is None or shape.snapshot is None:
                shape = await self._create(request.request)
            return await self._living(request.id, shape)
        number = partition_of_handle(request.handle, holdings.total) if holdings.total else None
        if holdings.total and number is None:
            return Missing(request.id)
        if number is None or not holdings.may_create(number):
            return NotOwner(request.id)
        shape = holdings.by_handle(request.handle)
        if shape is None:
            return Missing(request.id)
        if isinstance(request, Examine):
            return await self._examine(request, shape)
        if isinstance(request, Subset):
            await self._read(peer, request, shape)
            return None
        if isinstance(request, Resolve):
            return await self._living(request.id, shape)
        assert isinstance(request, Delete)
        await self._end(shape, "it was deleted by request")
        return Done(request.id)

    async def _read(self, peer: bytes, request: Subset, shape: Shape) -> None:
        async with self._subsets.read(shape, request.subset) as result:
            if not result.file:
                self._reply([peer, encode(Rows(id=request.id, size=result.size, body=result.body))])
                return
            self._reply([peer, encode(Rows(id=request.id, size=result.size, file=result.file))])
            # Until the gateway drops it, which ends this task.
            await asyncio.sleep(FETCH_SECONDS)

    async def _examine(self, request: Examine, shape: Shape) -> Reply:
        log.warning("a shape cannot be read; looking at it", handle=shape.handle, reason=request.reason)
        try:
            await asyncio.get_running_loop().run_in_executor(None, examine, shape.directory, shape.last)
        except DamagedLog as error:
            await self._end(shape, f"its files are damaged: {error}")
        except OSError as error:
            if is_shortage(error):
                return _sound(request.id)
            await self._end(shape, f"its files cannot be read: {error.strerror}")
        else:
            log.warning("nothing is wrong with the shape", handle=shape.handle)
            return _sound(request.id)
        return Done(request.id)

    def _moved(self, request: Question) -> bool:
        holdings = self._holdings
        return isinstance(request, Ensure) and not holdings.may_create(
            partition_of(request.request.hash(), holdings.total)
        )

    async def _living(self, number: int, shape: Shape) -> Place:
        try:
            if shape.life is not Life.CREATING:  # then it has just been made, here
                self._readable(shape)
        except (DamagedLog, FileNotFoundError, NotADirectoryError) as error:
            await self._end(shape, f"its log cannot be opened: {error}")
            raise ShapeEnded(str(error)) from error
        self._touched({shape.handle: 0.0})
        return self._place(number, shape)

    def _place(self, number: int, shape: Shape) -> Place:
        return Place(
            id=number,
            handle=shape.handle,
            directory=shape.relative,
            schema=shape.schema,
            request=shape.request,
            generation=self._holdings.generation,
        )


def _sound(number: int) -> Refusal:
    body = orjson.dumps({"message": "The shape cannot be read at present. Please try again."})
    return Refusal(id=number, status=503, body=body, retry_after=1)

"""Subset snapshots: from a valid request to the bytes on the wire (http-api.md 18).

The worker reads all of a subset before the first byte goes out, so a worker that dies in between is asked again, or its
successor; what is in a file is sent from there.
"""

from __future__ import annotations

import asyncio
import os
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from common.lsn import BEFORE_ALL, Offset
from common.messages import Missing, NotOwner, Refusal, Reply, Rows, Subset
from common.shapelog.layout import DamagedLog
from common.subset import SubsetRequest
from gateway import response
from gateway.exchange import Exchange
from gateway.extent import Extent, FileBody
from gateway.reception import Reception, declined
from gateway.request import LogQuery
from gateway.response import Answer
from gateway.service import Service
from gateway.shape import Shape, ShapeGone
from gateway.shapes import READY_TIMEOUT, RETRY_DELAY, Unavailable
from gateway.workers import WorkerLost, Workers

ANSWER_TIMEOUT: Final = 75.0
"""Seconds for the rows, with all repetitions; a worker gives up sooner."""

FIRST_CHUNK: Final = Offset(0, 0)


class Fetched(NamedTuple):
    """The worker's reply, and the open file of one that has a file."""

    reply: Reply | Unavailable
    descriptor: int | None = None


class SubsetDelivery:
    """Answers requests for subsets."""

    def __init__(self, reception: Reception, service: Service, workers: Workers, storage: Path) -> None:
        self._reception = reception
        self._service = service
        self._workers = workers
        self._storage = storage

    async def run(self, exchange: Exchange, query: LogQuery, subset: SubsetRequest, shape: Shape) -> None:
        """Answer one request for rows of this shape. Raises ``ConnectionError`` when the client is gone."""
        try:
            # Before the rows are read, so that they show all that a client will not be sent again.
            offset = reached(query.offset, shape.last())
        except (ShapeGone, DamagedLog, FileNotFoundError) as error:
            return await self._reception.unreadable(exchange, shape, error)
        fetched = await self._fetch(shape, subset)
        try:
            await self._send(exchange, query, shape, offset, fetched)
        finally:
            if fetched.descriptor is not None:
                os.close(fetched.descriptor)

    async def _send(self, exchange: Exchange, query: LogQuery, shape: Shape, offset: Offset, fetched: Fetched) -> None:
        reply = fetched.reply
        if isinstance(reply, Unavailable):
            return await exchange.answer(declined(reply))
        if isinstance(reply, Missing) or (isinstance(reply, Refusal) and reply.status == 409) or not shape.lives():
            return await self._reception.gone(exchange, shape)
        if isinstance(reply, Refusal):
            return await exchange.answer(declined(reply))
        assert isinstance(reply, Rows)
        fields = response.subset_fields(shape.handle, offset, None if query.live else shape.schema)
        if not reply.file:
            return await exchange.answer(Answer(200, fields, reply.body, streamed=True))
        if fetched.descriptor is None:
            return await exchange.answer(response.failure(503, "The result was lost, please retry", retry_after=1))
        body = FileBody(b"", _whole(fetched.descriptor, reply.size), b"")
        try:
            await exchange.send_file(Answer(200, fields), body)
        except BaseException:
            # A client never takes a part for the whole (INV-22).
            exchange.abort()
            raise
        return None

    async def _fetch(self, shape: Shape, subset: SubsetRequest) -> Fetched:
        """Ask the shape's owner until it has an answer; it is told when the client goes away."""
        loop = asyncio.get_running_loop()
        ready_by = loop.time() + READY_TIMEOUT
        give_up = loop.time() + ANSWER_TIMEOUT
        question = partial(Subset, handle=shape.handle, subset=subset)
        while True:
            owner = self._service.owner(shape.partition)
            if owner is not None:
                try:
                    async with (
                        asyncio.timeout_at(give_up),
                        self._workers.hold(owner, question) as reply,
                    ):
                        if not isinstance(reply, NotOwner):
                            return Fetched(reply, self._open(reply))
                except WorkerLost:
                    # It may have been at it for long: what comes next is a new question.
                    ready_by = loop.time() + READY_TIMEOUT
                except TimeoutError:
                    return Fetched(Unavailable("The worker takes too long to answer, please retry", 10))
            if loop.time() >= min(ready_by, give_up):
                return Fetched(Unavailable(self._service.unready(loop.time()), 5))
            await asyncio.sleep(RETRY_DELAY)

    def _open(self, reply: Reply) -> int | None:
        if not isinstance(reply, Rows) or not reply.file:
            return None
        try:
            return os.open(self._storage / reply.file, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None


def _whole(descriptor: int, size: int) -> Extent:
    def read(start: int, length: int) -> bytes:
        if data := os.pread(descriptor, length, start):
            return data
        raise ConnectionError("the file of a subset is too short")

    return Extent(lambda: descriptor, read, 0, size)


def reached(requested: Offset | None, last: Offset) -> Offset:
    """The offset that a client goes on from after a subset: it moves there (client-expectations.md 6).

    So it is never one beyond changes that the client has not seen: where it is already, however much the log has grown
    (the reference answers with the end of the log, and loses what lies between for all rows outside the subset). Only
    who asked for ``now`` is told where that is.
    """
    if requested is None:
        return last
    return FIRST_CHUNK if requested == BEFORE_ALL else requested

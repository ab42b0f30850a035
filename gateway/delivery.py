"""GET and HEAD ``/v1/shape``: from a valid request to the bytes on the wire (http-api.md 5, 11 to 17, 35)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, closing

import msgspec

from common.lsn import SNAPSHOT_END, Offset
from common.messages import Place
from common.shapelog.layout import DamagedLog
from common.shapelog.reader import ShapeReader
from gateway import log, response
from gateway.compression import LEAST, Coding, Compression, coded_tag, negotiate
from gateway.exchange import Exchange
from gateway.live import Expired, Gone, Live
from gateway.log import Position, SnapshotStalled
from gateway.progress import Progress
from gateway.reception import Reception
from gateway.request import LogQuery
from gateway.response import Answer, CachePolicy
from gateway.shapes import Shape, ShapeGone
from gateway.sse import EventStreams


class Policy(msgspec.Struct, frozen=True):
    """The settings that answers depend on: how long caches keep them and how long a long-poll waits (ms)."""

    cache: CachePolicy
    long_poll_ms: int


class LiveAnswers:
    """The answers that all waiters at one offset of a shape share (:class:`gateway.live.Answers`)."""

    def __init__(self, progress: Progress, policy: Policy, unique: Callable[[], int] = time.monotonic_ns) -> None:
        self._progress = progress
        self._policy = policy
        self._unique = unique

    def seen(self, shape: Shape) -> int:
        """The LSN that an answer may claim when the log is looked at after this.

        It holds for a shape whose snapshot still runs, too: what was held back is in the log before its place is told.
        """
        return self._progress.seen(shape.partition, shape.generation)

    def changed(self, shape: Shape, offset: Offset) -> Answer | None:
        """The live answer with data, if it is small enough to be held by all at once."""
        try:
            with shape as reader:
                position = log.locate(reader, offset)
                if position.is_empty or position.range.end - position.range.start > log.SHARED:
                    return None
                complete, tail = self.tail(offset, position, live=True, seen=0)
                fields = self.fields(shape, offset, position.range.end_offset, live=True, complete=complete)
                return Answer(200, fields, log.body(reader, position.range, tail), streamed=True)
        except (ShapeGone, DamagedLog, OSError):
            return None

    def unchanged(self, shape: Shape, offset: Offset, last: Offset, seen: int) -> Answer:
        """The live answer without data (http-api.md 15.3)."""
        return self.empty(shape, offset, max(last, offset), live=True, seen=seen)

    def empty(self, shape: Shape, offset: Offset | None, end: Offset, *, live: bool, seen: int) -> Answer:
        """An answer with nothing but the up-to-date item, and a tag that never matches again."""
        fields = self.fields(shape, offset, end, live=live, complete=True, unique=self._unique())
        return Answer(200, fields, b"[" + response.up_to_date(max(seen, end.tx)) + b"]")

    def begun(self, place: Place) -> Answer:
        """The answer to ``now`` for a shape whose snapshot failed, which a client goes on from as from any other."""
        fields = response.log_fields(
            handle=place.handle,
            requested=None,
            end=SNAPSHOT_END,
            live=False,
            complete=True,
            policy=self._policy.cache,
            schema=response.schema_header(place.schema),
            unique=self._unique(),
        )
        return Answer(200, fields, b"[" + response.up_to_date(0) + b"]")

    def fields(
        self,
        shape: Shape,
        offset: Offset | None,
        end: Offset,
        *,
        live: bool,
        complete: bool,
        unique: int | None = None,
    ) -> dict[str, str]:
        """The headers of a log answer."""
        return response.log_fields(
            handle=shape.handle,
            requested=offset,
            end=end,
            live=live,
            complete=complete,
            policy=self._policy.cache,
            schema=shape.schema,
            unique=unique,
        )

    def tail(self, offset: Offset, position: Position, *, live: bool, seen: int) -> tuple[bool, bytes]:
        """Whether the answer is up to date, and the item that says so (http-api.md 13.1, 13.3)."""
        end = position.range.end_offset
        if end < max(position.last, offset):
            return False, b""
        return True, response.up_to_date(end.tx if live else max(seen, end.tx))


class Delivery:
    """Answers log requests."""

    def __init__(
        self,
        reception: Reception,
        live: Live[Shape],
        answers: LiveAnswers,
        policy: Policy,
        compression: Compression | None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """``clock`` tells Unix time, for cursors. Without ``compression`` all bodies go as they are."""
        self._reception = reception
        self._live = live
        self._answers = answers
        self._policy = policy
        self._compression = compression
        self._clock = clock
        self._events = EventStreams(live, policy.long_poll_ms / 1000)

    async def run(self, exchange: Exchange, query: LogQuery, shape: Shape) -> None:
        """Answer one request for this shape. Raises ``ConnectionError`` when the client is gone."""
        try:
            with shape as reader:
                await self._serve(exchange, query, shape, reader)
        except (ShapeGone, DamagedLog, FileNotFoundError) as error:
            await self._reception.unreadable(exchange, shape, error)
        except SnapshotStalled:
            if exchange.started:
                return exchange.abort()
            message = "Snapshot query took too long to return data"
            await exchange.answer(response.failure(503, message, retry_after=10))

    async def _serve(self, exchange: Exchange, query: LogQuery, shape: Shape, reader: ShapeReader) -> None:
        if query.offset is None:
            seen = self._answers.seen(shape)
            return await exchange.answer(self._answers.empty(shape, None, reader.last(), live=False, seen=seen))
        if query.sse:
            return await self._events.run(exchange, shape, reader, query.offset, self._cursor(query))
        chunk = log.snapshot_chunk(query.offset, shape.seen)
        if chunk is not None:
            return await self._send_chunk(exchange, query, shape, reader, chunk)
        return await self._send_log(exchange, query, query.offset, shape, reader)

    async def _send_chunk(
        self, exchange: Exchange, query: LogQuery, shape: Shape, reader: ShapeReader, chunk: int
    ) -> None:
        fields = self._answers.fields(shape, query.offset, Offset(0, chunk), live=query.live, complete=False)
        if await self._matches(exchange, query, fields):
            return
        if not await log.await_chunk(shape.header, reader, chunk):
            await exchange.answer(Answer(200, fields, b"[]", streamed=True), self._cursor(query))
            return
        length = log.closed_length(shape.seen, reader, chunk)
        if length is not None:

            def pieces(length: int = length) -> Iterator[bytes]:
                with closing(shape.reader_of_its_own()) as own:
                    yield from log.closed_pieces(own, chunk, length)

            if await self._send_coded(exchange, query, fields, (shape.handle, "snapshot", chunk), length, pieces):
                return
        if length is not None and length <= log.SLICE and not exchange.head_only:
            body = log.closed_body(reader, chunk)
            await exchange.answer(Answer(200, fields, body, streamed=True), self._cursor(query))
            return
        if length is None and exchange.measured:
            length = await log.await_closed(shape.header, reader, chunk)
        await exchange.start(Answer(200, fields), length, self._cursor(query))
        if not exchange.head_only:
            await self._send(exchange, log.chunk_slices(shape.header, reader, chunk))

    async def _send_log(
        self, exchange: Exchange, query: LogQuery, offset: Offset, shape: Shape, reader: ShapeReader
    ) -> None:
        loop = asyncio.get_running_loop()
        is_fresh = True
        # A log that is replayed after a crash grows towards the client: growth buys time, but not without end.
        give_up = loop.time() + 2 * self._policy.long_poll_ms / 1000
        while True:
            seen = self._answers.seen(shape)
            position = log.locate(reader, offset)
            complete, tail = self._answers.tail(offset, position, live=query.live, seen=seen)
            end = position.range.end_offset
            fields = self._answers.fields(shape, offset, end, live=query.live, complete=complete)
            if is_fresh and await self._matches(exchange, query, fields):
                return None
            is_fresh = False
            is_ahead = offset > max(position.last, SNAPSHOT_END)
            if not is_ahead and (not query.live or not position.is_empty):
                return await self._send_range(exchange, query, fields, shape, reader, position, tail)
            if self._live.enter(shape):
                continue
            limit = self._policy.long_poll_ms / 1000
            if is_ahead:
                limit = min(limit / 2, give_up - loop.time())
            waiter = self._live.wait(shape, offset, position.last, limit, self._answers, ahead=is_ahead)
            try:
                outcome = await waiter.future
            finally:
                self._live.leave(waiter)
            if isinstance(outcome, Gone):
                return await self._reception.gone(exchange, shape)
            if is_ahead and isinstance(outcome, Expired):
                return await exchange.answer(response.out_of_bounds())
            if outcome.answer is not None:
                return await exchange.answer(outcome.answer, self._cursor(query))

    async def _send_range(
        self,
        exchange: Exchange,
        query: LogQuery,
        fields: dict[str, str],
        shape: Shape,
        reader: ShapeReader,
        position: Position,
        tail: bytes,
    ) -> None:
        part = position.range
        # What ends before the log does ends where its chunk does (or did when the log grew just now): it has no
        # up-to-date item, and committed bytes never change.
        if part.end_offset < position.last:

            def pieces() -> Iterator[bytes]:
                with closing(shape.reader_of_its_own()) as own:
                    yield from log.range_pieces(own, part)

            key = (shape.handle, part.start, part.end)
            if await self._send_coded(exchange, query, fields, key, log.range_length(part), pieces):
                return
        size = part.end - part.start
        if size <= log.SLICE:
            body = b"" if exchange.head_only else log.body(reader, part, tail)
            await exchange.answer(Answer(200, fields, body, streamed=True), self._cursor(query))
            return
        length = size + len(tail) + len(b"[]") - (0 if tail else len(b",\n"))
        await exchange.start(Answer(200, fields), length, self._cursor(query))
        if not exchange.head_only:
            await self._send(exchange, log.slices(reader, part, tail))

    async def _send_coded(
        self,
        exchange: Exchange,
        query: LogQuery,
        fields: dict[str, str],
        key: tuple[object, ...],
        length: int,
        pieces: Callable[[], Iterator[bytes]],
    ) -> bool:
        """Send a body that never changes in a coding that the client knows; ``False`` if it should go as it is."""
        coding = self._coding(exchange, query)
        if self._compression is None or coding is None or length < LEAST:
            return False
        encoded = await self._compression.encoded(key, coding, length, pieces)
        if encoded is None:
            return False
        fields = {**fields, "etag": coded_tag(fields["etag"], coding), "content-encoding": coding}
        with encoded as data:
            if len(data) <= log.SLICE or exchange.head_only:
                await exchange.answer(Answer(200, fields, data, streamed=True), self._cursor(query))
            else:
                await exchange.start(Answer(200, fields), len(data), self._cursor(query))
                await self._send(exchange, _slices(data))
        return True

    def _coding(self, exchange: Exchange, query: LogQuery) -> Coding | None:
        """The coding of large bodies for this client. Live answers go as they are: small, and awaited."""
        if self._compression is None or query.live:
            return None
        return negotiate(exchange.header("accept-encoding"))

    async def _send(self, exchange: Exchange, pieces: AsyncGenerator[bytes, None]) -> None:
        """Send all pieces and the end, or cut the connection: a client never takes a part for the whole (INV-22)."""
        try:
            async with aclosing(pieces):
                async for piece in pieces:
                    await exchange.write(piece)
            await exchange.finish()
        except BaseException:
            exchange.abort()
            raise

    async def _matches(self, exchange: Exchange, query: LogQuery, fields: dict[str, str]) -> bool:
        """Answer 304 if the client has this answer already (http-api.md 22.2)."""
        known = exchange.header("if-none-match")
        if known is None:
            return False
        for coding in {None, self._coding(exchange, query)}:
            tag = coded_tag(fields["etag"], coding)
            if response.is_match(known, tag):
                await exchange.answer(response.not_modified({**fields, "etag": tag}), self._cursor(query))
                return True
        return False

    def _cursor(self, query: LogQuery) -> str:
        if not query.live:
            return ""
        cursor = response.next_cursor(self._clock(), self._policy.long_poll_ms, query.cursor)
        return f"electric-cursor: {cursor}\r\n"


async def _slices(data: bytes) -> AsyncGenerator[bytes, None]:
    for start in range(0, len(data), log.SLICE):
        yield data[start : start + log.SLICE]

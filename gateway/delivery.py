"""GET and HEAD ``/v1/shape``: from a valid request to the bytes on the wire (http-api.md 5, 11 to 17, 35)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import aclosing, closing
from typing import NamedTuple

from common.lsn import SNAPSHOT_END, Offset
from common.shapelog.layout import DamagedLog
from common.shapelog.reader import ShapeReader
from gateway import log, response
from gateway.answers import LiveAnswers, Policy
from gateway.compression import LEAST, Coding, Compression, coded_tag, negotiate
from gateway.exchange import Exchange
from gateway.extent import Extent, FileBody
from gateway.live import Expired, Gone, Live
from gateway.log import Position, SnapshotStalled
from gateway.recent import Recent
from gateway.reception import Reception
from gateway.request import LogQuery
from gateway.response import COMPLETE, Answer
from gateway.shape import Shape, ShapeGone
from gateway.sse import EventStreams


class Part(NamedTuple):
    """A part of the log that is sent slice by slice, or compressed."""

    fields: Mapping[str, str]
    position: Position
    tail: bytes

    @property
    def length(self) -> int:
        """Bytes of the log."""
        return self.position.range.end - self.position.range.start


class FileAnswer(NamedTuple):
    """An answer that is sent from a file as it is."""

    head: Answer
    body: FileBody


class End(NamedTuple):
    """Nothing is to be sent: the client is at ``last``, the end of the log, or ``ahead`` of it."""

    offset: Offset
    last: Offset
    ahead: bool


Found = Answer | Part | End


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
        self.answers = answers
        self.patience = policy.long_poll_ms / 1000
        """Seconds that a long-poll waits."""
        self._policy = policy
        self._compression = compression
        self._clock = clock
        self._recent = Recent()
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

    def look(
        self, exchange: Exchange, query: LogQuery, shape: Shape, reader: ShapeReader
    ) -> Answer | FileAnswer | Part | End | None:
        """What there is for a request, at the first look: an answer, from a file if it is large; ``None`` or a part is
        for events, what still grows, and what may be compressed. The shape's header has just been read.

        Raises ``DamagedLog``, ``FileNotFoundError``, ``OSError``.
        """
        if query.offset is None:
            seen = self.answers.seen(shape)
            return self.answers.empty(shape, None, reader.last(), live=False, seen=seen)
        if query.sse:
            return None
        chunk = log.snapshot_chunk(query.offset, shape.seen)
        if chunk is not None:
            return self._look_at_chunk(exchange, query, shape, reader, chunk)
        found = self._look_at_log(exchange, query, query.offset, shape, reader)
        if not isinstance(found, Part) or found.length <= log.SLICE or self._coding(exchange, query) is not None:
            return found
        return FileAnswer(Answer(200, found.fields), log.file_body(reader, found.position.range, found.tail))

    def _look_at_chunk(
        self, exchange: Exchange, query: LogQuery, shape: Shape, reader: ShapeReader, chunk: int
    ) -> Answer | FileAnswer | None:
        length = log.closed_length(shape.seen, reader, chunk)
        if length is None or self._is_compressed(exchange, query, length):
            return None
        asked = shape.handle, query.offset, query.live
        answer = self._recent.get(asked, chunk)
        if answer is None:
            fields = self.answers.fields(shape, query.offset, Offset(0, chunk), live=query.live, complete=False)
            body = log.closed_body(reader, chunk) if length <= log.SLICE else b""
            answer = Answer(200, fields, body, streamed=True)
            self._recent.keep(asked, chunk, answer)
        unchanged = self._not_modified(exchange, query, answer.fields)
        if unchanged is not None or length <= log.SLICE:
            return unchanged or answer
        return FileAnswer(answer, log.closed_file_body(reader, chunk, length))

    def _look_at_log(
        self, exchange: Exchange, query: LogQuery, offset: Offset, shape: Shape, reader: ShapeReader, known: bool = True
    ) -> Found:
        """``known``: whether ``If-None-Match`` counts, which is for the first look only."""
        # In this order: the log has at least what is claimed.
        seen = self.answers.seen(shape)
        end = reader.end()
        last = log.last_offset(end, offset)
        ahead = offset > max(last, SNAPSHOT_END)
        at_end = ahead or (query.live and (end is None or last <= offset))
        known = known and exchange.header("if-none-match") is not None
        if at_end and not known:
            return End(offset, last, ahead)
        asked = shape.handle, offset, query.live
        found: Answer | Part | None = self._recent.get(asked, (end, 0 if query.live else seen))
        if found is None:
            found = self._read(query, offset, shape, reader, seen)
        unchanged = self._not_modified(exchange, query, found.fields) if known else None
        if unchanged is not None:
            return unchanged
        if at_end:
            return End(offset, last, ahead)
        if isinstance(found, Part) or COMPLETE in found.fields:
            return found
        # It ends with its chunk, before the log does, and never changes.
        if self._is_compressed(exchange, query, len(found.body)):
            return self._read(query, offset, shape, reader, seen, whole=False)
        return found

    def _read(
        self, query: LogQuery, offset: Offset, shape: Shape, reader: ShapeReader, seen: int, *, whole: bool = True
    ) -> Answer | Part:
        """The answer, if it is small and wanted as a ``whole``: it is kept for others."""
        position, end = log.locate(reader, offset)
        part = position.range
        complete, tail = self.answers.tail(offset, position, live=query.live, seen=seen)
        fields = self.answers.fields(shape, offset, part.end_offset, live=query.live, complete=complete)
        if not whole or part.end - part.start > log.SLICE:
            return Part(fields, position, tail)
        answer = Answer(200, fields, log.body(reader, part, tail), streamed=True)
        self._recent.keep((shape.handle, offset, query.live), (end, 0 if query.live else seen), answer)
        return answer

    async def _serve(self, exchange: Exchange, query: LogQuery, shape: Shape, reader: ShapeReader) -> None:
        if query.sse and query.offset is not None:
            return await self._events.run(exchange, shape, reader, query.offset, self.cursor(query))
        found = self.look(exchange, query, shape, reader)
        if isinstance(found, Answer):
            return await exchange.answer(found, self.cursor(query))
        if isinstance(found, FileAnswer):
            return await self._send_file(exchange, query, found.head, found.body)
        assert query.offset is not None
        chunk = log.snapshot_chunk(query.offset, shape.seen)
        if chunk is not None:
            return await self._send_chunk(exchange, query, shape, reader, chunk)
        assert found is not None
        return await self._send_log(exchange, query, query.offset, shape, reader, found)

    async def _send_chunk(
        self, exchange: Exchange, query: LogQuery, shape: Shape, reader: ShapeReader, chunk: int
    ) -> None:
        fields = self.answers.fields(shape, query.offset, Offset(0, chunk), live=query.live, complete=False)
        unchanged = self._not_modified(exchange, query, fields)
        if unchanged is not None:
            await exchange.answer(unchanged, self.cursor(query))
            return
        if not await log.await_chunk(shape.header, reader, chunk):
            await exchange.answer(Answer(200, fields, b"[]", streamed=True), self.cursor(query))
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
            await exchange.answer(Answer(200, fields, body, streamed=True), self.cursor(query))
            return
        if length is None and exchange.measured:
            length = await log.await_closed(shape.header, reader, chunk)
        if length is not None:
            await self._send_file(exchange, query, Answer(200, fields), log.closed_file_body(reader, chunk, length))
            return
        await exchange.start(Answer(200, fields), None, self.cursor(query))
        if not exchange.head_only:
            await self._send(exchange, log.growing(shape.header, reader, chunk))

    async def _send_log(
        self,
        exchange: Exchange,
        query: LogQuery,
        offset: Offset,
        shape: Shape,
        reader: ShapeReader,
        found: Found,
    ) -> None:
        """Send what was found, or wait until something is."""
        loop = asyncio.get_running_loop()
        # A log that is replayed after a crash grows towards the client: growth buys time, but not without end.
        give_up = loop.time() + 2 * self.patience
        while isinstance(found, End):
            if not self._live.enter(shape):
                limit = min(self.patience / 2, give_up - loop.time()) if found.ahead else self.patience
                outcome = await self._live.outcome(shape, offset, found.last, limit, self.answers, ahead=found.ahead)
                if isinstance(outcome, Gone):
                    return await self._reception.gone(exchange, shape)
                if found.ahead and isinstance(outcome, Expired):
                    return await exchange.answer(response.out_of_bounds())
                if outcome.answer is not None:
                    return await exchange.answer(outcome.answer, self.cursor(query))
            found = self._look_at_log(exchange, query, offset, shape, reader, known=False)
        if isinstance(found, Answer):
            return await exchange.answer(found, self.cursor(query))
        return await self._send_part(exchange, query, shape, reader, found)

    async def _send_part(
        self, exchange: Exchange, query: LogQuery, shape: Shape, reader: ShapeReader, found: Part
    ) -> None:
        fields, position, tail = found
        part = position.range
        if part.end_offset < position.last:

            def pieces() -> Iterator[bytes]:
                with closing(shape.reader_of_its_own()) as own:
                    yield from log.range_pieces(own, part)

            key = (shape.handle, part.start, part.end)
            if await self._send_coded(exchange, query, fields, key, log.range_length(part), pieces):
                return
        if found.length <= log.SLICE:
            body = b"" if exchange.head_only else log.body(reader, part, tail)
            await exchange.answer(Answer(200, fields, body, streamed=True), self.cursor(query))
            return
        await self._send_file(exchange, query, Answer(200, fields), log.file_body(reader, part, tail))

    async def _send_coded(
        self,
        exchange: Exchange,
        query: LogQuery,
        fields: Mapping[str, str],
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
                await exchange.answer(Answer(200, fields, data, streamed=True), self.cursor(query))
            else:
                await exchange.start(Answer(200, fields), len(data), self.cursor(query))
                await self._send(exchange, _slices(data))
        return True

    def _coding(self, exchange: Exchange, query: LogQuery) -> Coding | None:
        """The coding of large bodies for this client. Live answers go as they are: small, and awaited."""
        if self._compression is None or query.live:
            return None
        return negotiate(exchange.header("accept-encoding"))

    async def _send_file(self, exchange: Exchange, query: LogQuery, head: Answer, body: FileBody) -> None:
        """Send it whole, or cut the connection: a client never takes a part for the whole (INV-22)."""
        try:
            await exchange.send_file(head, body, self.cursor(query))
        except BaseException:
            exchange.abort()
            raise

    async def _send(self, exchange: Exchange, pieces: AsyncGenerator[bytes | Extent, None]) -> None:
        """The same for a body in pieces, and its end."""
        try:
            async with aclosing(pieces):
                async for piece in pieces:
                    await (exchange.write(piece) if isinstance(piece, bytes) else exchange.write_extent(piece))
            await exchange.finish()
        except BaseException:
            exchange.abort()
            raise

    def _is_compressed(self, exchange: Exchange, query: LogQuery, length: int) -> bool:
        """Whether a body that never changes goes out in a coding, if there is room for that."""
        return length >= LEAST and self._coding(exchange, query) is not None

    def _not_modified(self, exchange: Exchange, query: LogQuery, fields: Mapping[str, str]) -> Answer | None:
        """304 if the client has this answer already (http-api.md 22.2)."""
        known = exchange.header("if-none-match")
        if known is None:
            return None
        for coding in {None, self._coding(exchange, query)}:
            tag = coded_tag(fields["etag"], coding)
            if response.is_match(known, tag):
                return response.not_modified({**fields, "etag": tag})
        return None

    def cursor(self, query: LogQuery) -> str:
        """The header line that only live answers have."""
        if not query.live:
            return ""
        cursor = response.next_cursor(self._clock(), self._policy.long_poll_ms, query.cursor)
        return f"electric-cursor: {cursor}\r\n"


async def _slices(data: bytes) -> AsyncGenerator[bytes | Extent, None]:
    for start in range(0, len(data), log.SLICE):
        yield data[start : start + log.SLICE]

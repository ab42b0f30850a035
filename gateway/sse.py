"""Server-sent events: the live mode whose response stays open (http-api.md 16; client-expectations.md 5).

A stream sends all that the log has after the offset it was asked for, over the ends of chunks, and an up-to-date event
behind; then it waits for more, and so on. Its ``electric-offset`` is the offset it was asked for: a client adopts it
before any event, and goes on from there if the connection breaks before the first up-to-date.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Final, NamedTuple

from common.lsn import SNAPSHOT_END, Offset
from common.shapelog.layout import DamagedLog
from common.shapelog.reader import LogRange, ShapeReader
from gateway import events, log, response
from gateway.exchange import Exchange, frame
from gateway.live import Changed, Gone, Live, Outcome, Waiter
from gateway.response import Answer
from gateway.shape import Shape, ShapeGone

STREAM_SECONDS: Final = 60.0
"""How long a stream lasts. Caches may keep it for a second less (:data:`gateway.response.EVENTS_MAX_AGE`)."""

BACKLOG_SECONDS: Final = 1.1
"""How long a stream lasts at least that had a backlog to send. It is to end, so that caches can hold it; but clients
take one of less than a second for the work of a proxy that cannot stream, and after three of them give up on events.
They read a wall clock, in whole milliseconds, which may be set right meanwhile: hence the tenth."""

KEEP_ALIVE_SECONDS: Final = 21.0
"""Silence after which a comment is sent."""


class Batch(NamedTuple):
    """The events after an offset up to ``end``, as HTTP chunks: one object for all streams that send them."""

    end: Offset
    chunks: bytes


class Batches:
    """Makes the batches that streams at one offset of a shape share (:class:`gateway.live.Answers`)."""

    def seen(self, shape: Shape) -> int:
        """Nothing: live events speak of the shape alone."""
        return 0

    def changed(self, shape: Shape, offset: Offset) -> Batch | None:
        """What came after ``offset``, if it is small enough to be held by all at once."""
        try:
            with shape as reader:
                part = log.rest(reader, offset)
                size = part.end - part.start
                if not 0 < size <= log.SHARED:
                    return None
                pieces = events.events(reader.read_log(part.start, size))
        except (ShapeGone, DamagedLog, OSError):
            return None
        pieces.append(events.batch_end(part.end_offset))
        return Batch(part.end_offset, frame(pieces))

    def unchanged(self, shape: Shape, offset: Offset, last: Offset, seen: int) -> None:
        """Nothing: each stream has its own time for a comment, and for its end."""


class Timetable:
    """When an open stream ends and when it says that it lives, in seconds of one monotonic clock."""

    def __init__(self, now: float, seconds: float) -> None:
        """The stream ends ``seconds`` after ``now``."""
        self._end = now + seconds
        self._heard = now

    def wrote(self, now: float) -> None:
        """Something was sent."""
        self._heard = now

    def is_over(self, now: float) -> bool:
        """Whether the stream ends."""
        return now >= self._end

    def is_silent(self, now: float) -> bool:
        """Whether a comment is due."""
        return now >= self._heard + KEEP_ALIVE_SECONDS

    def patience(self, now: float) -> float:
        """How long to wait for news."""
        return min(self._end, self._heard + KEEP_ALIVE_SECONDS) - now


def lifetime(offset: Offset, backlog: LogRange, long_poll_seconds: float) -> float:
    """How long a stream may last that begins at ``offset``, with this backlog (http-api.md 16.3, 16.4, 16.6)."""
    if offset > backlog.end_offset:
        return long_poll_seconds / 2
    return BACKLOG_SECONDS if backlog.start < backlog.end else STREAM_SECONDS


class Following:
    """A stream at the end of its log. While its client keeps up, it is sent what all share without waking its task."""

    __slots__ = ("_answers", "_clock", "_exchange", "_live", "_shape", "_timetable", "_waiter", "at", "outcome")

    def __init__(
        self, exchange: Exchange, live: Live[Shape], shape: Shape, answers: Batches, timetable: Timetable
    ) -> None:
        loop = asyncio.get_running_loop()
        self._exchange = exchange
        self._live = live
        self._shape = shape
        self._answers = answers
        self._timetable = timetable
        self._clock = loop.time
        self._waiter: Waiter[Shape, Batch] | None = None
        self.at = SNAPSHOT_END
        """How far the client is."""
        self.outcome: asyncio.Future[Outcome[Batch]] = loop.create_future()
        """What is for the task to see to."""

    def wait(self, at: Offset, last: Offset) -> None:
        """Wait behind ``at`` for more than ``last``, as :meth:`gateway.live.Live.wait`. Pair with :meth:`leave`."""
        self.at = at
        limit = self._timetable.patience(self._clock())
        self._waiter = self._live.wait(self._shape, at, last, limit, self._answers, self)

    def leave(self) -> None:
        """Wait no more."""
        waiter, self._waiter = self._waiter, None
        if waiter is not None:
            self._live.leave(waiter)

    def __call__(self, outcome: Outcome[Batch]) -> None:
        """News for all streams, or what ends the wait."""
        self.leave()
        batch = outcome.answer if isinstance(outcome, Changed) else None
        if batch is not None and self._exchange.takes_chunks:
            self._exchange.put_framed(batch.chunks)
            self._timetable.wrote(self._clock())
            self.wait(batch.end, batch.end)
        elif not self.outcome.done():
            # Else each slow client would hold on to another batch.
            self.outcome.set_result(Changed(None) if isinstance(outcome, Changed) else outcome)


class EventStreams:
    """Answers live requests for events."""

    def __init__(self, live: Live[Shape], long_poll_seconds: float) -> None:
        """``long_poll_seconds``: twice what a stream waits that is ahead of the log."""
        self._live = live
        self._long_poll_seconds = long_poll_seconds
        self._batches = Batches()

    async def run(self, exchange: Exchange, shape: Shape, reader: ShapeReader, offset: Offset, cursor: str) -> None:
        """Answer a request at ``offset``; ``cursor`` is its header line. The stream ends with the shape.

        Raises ``ShapeGone``, ``SnapshotStalled``, ``DamagedLog``, ``OSError``, ``ConnectionError``, ``TimeoutError``;
        if the answer has begun, its connection is cut by then.
        """
        chunk = log.snapshot_chunk(offset, shape.seen)
        if chunk is not None and await log.await_chunk(shape.header, reader, chunk):
            # Not for clients that follow the rules, which ask for events only behind the snapshot.
            await self._snapshot(exchange, shape, reader, offset, chunk, cursor)
            return
        backlog = log.rest(reader, offset)
        start = max(offset, SNAPSHOT_END)
        fields = response.event_fields(
            handle=shape.handle,
            requested=offset,
            offset=start,
            end=backlog.end_offset,
            complete=start <= backlog.end_offset,
        )
        if not await self._open(exchange, fields, cursor):
            return
        now = asyncio.get_running_loop().time()
        timetable = Timetable(now, lifetime(start, backlog, self._long_poll_seconds))
        try:
            await self._stream(exchange, shape, reader, start, timetable)
            await exchange.finish()
        except BaseException:
            exchange.abort()
            raise

    async def _open(self, exchange: Exchange, fields: dict[str, str], cursor: str) -> bool:
        """Send the head; ``False`` if that is all there is to send."""
        if response.is_match(exchange.header("if-none-match"), fields["etag"]):
            await exchange.answer(response.not_modified(fields), cursor)
            return False
        await exchange.start_events(Answer(200, fields), cursor)
        return not exchange.head_only

    async def _stream(
        self, exchange: Exchange, shape: Shape, reader: ShapeReader, at: Offset, timetable: Timetable
    ) -> None:
        """Send batches until the time is over or the shape is gone, and end only between two batches."""
        clock = asyncio.get_running_loop().time
        while True:
            # Before the log is looked at, so that no hint of what comes then is lost. A client that was slow to take
            # a batch may have outlived the subscription.
            self._live.enter(shape)
            rest = log.rest(reader, at)
            if rest.start < rest.end:
                await self._send(exchange, reader.read_log, rest.start, rest.end, events.batch_end(rest.end_offset))
                at = rest.end_offset
                timetable.wrote(clock())
            if self._live.closing or timetable.is_over(clock()):
                return
            news = await self._wait(exchange, shape, at, rest.end_offset, timetable)
            if news is None:
                return
            at = news

    async def _wait(
        self, exchange: Exchange, shape: Shape, at: Offset, last: Offset, timetable: Timetable
    ) -> Offset | None:
        """Wait once and send what all streams share, or a comment: how far the client is then, ``None`` at the end.

        On its own, so that no idle stream holds on to the batch it sent last.
        """
        clock = asyncio.get_running_loop().time
        following = Following(exchange, self._live, shape, self._batches, timetable)
        following.wait(at, last)
        try:
            outcome = await following.outcome
        finally:
            following.leave()
        if isinstance(outcome, Gone):
            return None
        if isinstance(outcome, Changed):
            # What all share is not for this client: it is behind, or the news are large.
            await exchange.drain()
            return following.at
        if timetable.is_silent(clock()) and not timetable.is_over(clock()):
            await exchange.write_framed(exchange.framed([events.KEEP_ALIVE]))
            timetable.wrote(clock())
        return following.at

    async def _snapshot(
        self, exchange: Exchange, shape: Shape, reader: ShapeReader, offset: Offset, chunk: int, cursor: str
    ) -> None:
        """A further chunk of the snapshot as events; nothing behind it says up-to-date, and the header is past it."""
        end = Offset(0, chunk)
        fields = response.event_fields(handle=shape.handle, requested=offset, offset=end, end=end, complete=False)
        if not await self._open(exchange, fields, cursor):
            return
        try:
            await log.await_closed(shape.header, reader, chunk)
            size = log.final_size(reader, chunk)
            await self._send(exchange, partial(log.read_chunk, reader, chunk), 0, size, b"")
            await exchange.finish()
        except BaseException:
            exchange.abort()
            raise

    async def _send(self, exchange: Exchange, read: events.Read, start: int, end: int, last: bytes) -> None:
        """Send a range of a file as events, slice by slice, and ``last`` behind them."""
        at, begun = start, False
        while at < end:
            # Nothing but the bytes being sent is held while the client takes its time.
            data, at, begun = _next_bytes(exchange, read, at, end, begun, last)
            await exchange.write_framed(data)


def _next_bytes(
    exchange: Exchange, read: events.Read, at: int, end: int, begun: bool, last: bytes
) -> tuple[bytes, int, bool]:
    pieces, at, begun = events.next_slice(read, at, end, begun, log.SLICE)
    if at == end and last:
        pieces.append(last)
    return exchange.framed(pieces), at, begun

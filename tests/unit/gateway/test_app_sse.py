"""Server-sent events over HTTP: framing, headers, backlog, chunk boundaries, ends (http-api.md 16)."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from common.lsn import Offset
from gateway import events as wire
from gateway import log, sse
from gateway.sse import Batch, Batches
from tests.unit.gateway.cluster import EVENTUALLY, Cluster, StoredShape, Stream, cluster, entry, row, until


@pytest_asyncio.fixture
async def world() -> AsyncIterator[Cluster]:
    """Long-polls of a minute, so that nothing but events and their timetable ends a stream."""
    async with cluster(long_poll_timeout_ms=60_000) as running:
        yield running


class Events:
    """A stream of events that was opened."""

    def __init__(self, stream: Stream, status: int, headers: dict[str, str]) -> None:
        self.stream = stream
        self.status = status
        self.headers = headers

    async def next(self) -> Any:
        """The next event, which must have come in a chunk of its own; ``None`` at the clean end of the stream."""
        chunk = await self.stream.chunk()
        if not chunk:
            return None
        assert chunk.startswith(b"data: ")
        assert chunk.endswith(b"\n\n")
        assert chunk.count(b"\n") == 2
        return json.loads(chunk.removeprefix(b"data: "))

    async def batch(self) -> list[Any]:
        """The next events, up to the first that says up-to-date: op positions, and then its LSN as text."""
        found: list[Any] = []
        while True:
            event = await self.next()
            assert event is not None, f"ended after {found}"
            if event["headers"].get("control") == "up-to-date":
                return [*found, event["headers"]["global_last_seen_lsn"]]
            found.append(event["headers"]["op_position"])


async def opened(world: Cluster, shape: StoredShape, offset: str, more: str = "", **options: str) -> Events:
    """A stream whose head has come."""
    target = f"/v1/shape?table=items&handle={shape.handle}&offset={offset}&live=true&live_sse=true{more}"
    stream = await world.open(target, **options)
    return Events(stream, *await stream.head())


async def waiting(world: Cluster, count: int = 1) -> None:
    """Return once so many wait for news."""
    await until(lambda: world.gateway._live.waiting == count)


async def test_an_idle_stream_has_its_head_at_once_and_then_each_change(world: Cluster) -> None:
    shape = world.worker.shape()
    world.worker.commit(shape, 500, entry(0))
    events = await opened(world, shape, "500_0", "&cursor=9999999999")
    assert events.status == 200
    own = {"date", "x-request-id", "electric-server", "vary", "electric-cursor"}
    assert {n: v for n, v in events.headers.items() if n not in own and not n.startswith("access-control-")} == {
        "transfer-encoding": "chunked",
        "cache-control": "public, max-age=59",
        "content-type": "text/event-stream",
        "etag": f'"{shape.handle}:500_0:500_0"',
        "electric-handle": shape.handle,
        "electric-up-to-date": "",
        "electric-has-data": "true",
        "electric-offset": "500_0",
        "connection": "keep-alive",
    }
    assert int(events.headers["electric-cursor"]) > 9_999_999_999
    await waiting(world)
    # Ahead of the shape: live events speak of the shape alone, since clients resume from what the last one says.
    world.worker.apply(9_000, shape.partition)
    world.worker.commit(shape, 5_000, entry(0), entry(2))
    assert await events.batch() == [0, 2, "5001"]
    world.worker.commit(shape, 9_500, entry(4))
    assert await events.batch() == [4, "9500"]


async def test_experimental_live_sse_is_the_same(world: Cluster) -> None:
    shape = world.worker.shape()
    target = f"/v1/shape?table=items&handle={shape.handle}&offset=0_inf&live=true&experimental_live_sse=true"
    stream = await world.open(target)
    assert (await stream.head())[1]["content-type"] == "text/event-stream"


async def test_a_backlog_is_sent_whole_and_the_stream_ends(world: Cluster) -> None:
    world.worker.chunk_bytes = 100
    shape = world.worker.shape()
    shape.commit(500, *[entry(2 * number) for number in range(5)])
    shape.commit(600, entry(0))
    assert (await world.get(f"offset=0_inf&handle={shape.handle}")).headers["electric-offset"] == "500_2"
    events = await opened(world, shape, "0_inf")
    # What a client goes on from if it sees no up-to-date; and what it cannot lose anything by.
    assert events.headers["electric-offset"] == "0_inf"
    assert events.headers["etag"] == f'"{shape.handle}:0_inf:600_0"'
    assert events.headers["electric-up-to-date"] == ""
    assert await events.batch() == [0, 2, 4, 6, 8, 0, "600"]
    assert await events.next() is None


async def test_what_comes_behind_a_backlog_is_not_lost(world: Cluster) -> None:
    shape = world.worker.shape()
    shape.commit(500, entry(0))
    events = await opened(world, shape, "0_inf")
    assert await events.batch() == [0, "500"]
    await waiting(world)
    world.worker.commit(shape, 600, entry(0))
    assert await events.batch() == [0, "600"]
    assert await events.next() is None


async def test_a_stream_goes_on_over_the_ends_of_chunks(world: Cluster) -> None:
    """The reference stops there, and its clients lose what follows (client-expectations.md 11)."""
    world.worker.chunk_bytes = 1_000
    shape = world.worker.shape()
    events = await opened(world, shape, "0_inf")
    await waiting(world)
    world.worker.commit(shape, 500, *[entry(2 * number, pad=100) for number in range(50)])
    assert await events.batch() == [*range(0, 100, 2), "501"]
    for lsn in range(600, 1_600, 10):
        world.worker.commit(shape, lsn, entry(0, pad=30), entry(2, pad=30))
    seen: list[Any] = []
    while seen[-1:] != ["1591"]:
        seen += await events.batch()
    assert [item for item in seen if not isinstance(item, str)] == [0, 2] * 100
    answer = await world.get(f"offset=0_inf&handle={shape.handle}")
    assert "electric-up-to-date" not in answer.headers, "the chunks were not small enough"


async def test_a_client_resumes_from_an_up_to_date_without_loss_or_repetition(world: Cluster) -> None:
    """It makes an offset of the LSN that it was told: of a transaction of several changes that would name the first."""
    shape = world.worker.shape()
    events = await opened(world, shape, "0_inf")
    await waiting(world)
    world.worker.commit(shape, 500, entry(0), entry(2), entry(4))
    assert await events.batch() == [0, 2, 4, "501"]
    events.stream.close()
    again = await opened(world, shape, "501_0")
    assert again.headers["electric-offset"] == "501_0"
    assert again.headers["electric-up-to-date"] == ""
    await waiting(world)
    # It has no backlog, so it stays open.
    await asyncio.sleep(sse.BACKLOG_SECONDS + 0.2)
    await waiting(world)
    world.worker.commit(shape, 600, entry(0), entry(2))
    assert await again.batch() == [0, 2, "601"]
    again.stream.close()
    world.worker.commit(shape, 700, entry(0))
    last = await opened(world, shape, "601_0")
    assert await last.batch() == [0, "700"]


async def test_behind_events_everything_else_goes_on_in_the_same_place() -> None:
    async with cluster() as world:
        shape = world.worker.shape()
        world.worker.commit(shape, 500, entry(0), entry(2))
        for more in ("", "&live=true"):
            answer = await world.get(f"offset=501_0&handle={shape.handle}{more}")
            assert answer.status == 200
            # Neither goes back: clients drop what is not above an LSN that they were told.
            assert answer.headers["electric-offset"] == "501_0"
            assert answer.headers["electric-up-to-date"] == ""
            assert answer.items == [{"headers": {"control": "up-to-date", "global_last_seen_lsn": "501"}}]
        poll = asyncio.create_task(world.get(f"offset=501_0&handle={shape.handle}&live=true"))
        await waiting(world)
        world.worker.commit(shape, 600, entry(0))
        answer = await poll
        assert answer.headers["electric-offset"] == "600_0"
        assert len(answer.items) == 2
        # Of a log without changes there is no such place.
        assert (
            await world.get(f"offset=1_0&handle={world.worker.shape(where='id > 1').handle}&where=id>1")
        ).status == 400
        assert (await world.get(f"offset=502_0&handle={shape.handle}")).status == 200
        assert (await world.get(f"offset=602_0&handle={shape.handle}")).status == 400


async def test_a_change_wakes_all_streams_with_the_same_bytes(world: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[str, Batch | None]] = []

    class Counted(Batches):
        def changed(self, shape: Any, offset: Offset) -> Batch | None:
            made.append((str(offset), super().changed(shape, offset)))
            return made[-1][1]

    monkeypatch.setattr(world.gateway._app._delivery._events, "_batches", Counted())
    shape = world.worker.shape()
    streams = [await opened(world, shape, "0_inf") for _ in range(10)]
    polls = [asyncio.create_task(world.get(f"offset=0_inf&handle={shape.handle}&live=true")) for _ in range(3)]
    await waiting(world, 13)
    world.worker.commit(shape, 500, entry(0), entry(2))
    for events in streams:
        assert await events.batch() == [0, 2, "501"]
    for poll in polls:
        assert len((await poll).items) == 3
    assert [offset for offset, _ in made] == ["0_inf"]


@pytest.mark.parametrize(("size", "shared"), [(log.SHARED - 2_000, True), (log.SHARED + 1, False)])
async def test_what_all_streams_hold_at_once_is_bounded(world: Cluster, size: int, shared: bool) -> None:
    shape = world.worker.shape()
    await world.get("offset=-1")
    shape.commit(500, entry(0, pad=size))
    known = world.gateway._shapes.known(shape.request)
    assert known is not None
    assert (Batches().changed(known, Offset(0, 3)) is not None) == shared
    assert Batches().changed(known, Offset(500, 0)) is None


async def test_a_change_is_found_although_every_hint_is_lost(world: Cluster) -> None:
    world.worker.mute = True
    shape = world.worker.shape()
    events = await opened(world, shape, "0_inf")
    await waiting(world)
    world.worker.commit(shape, 500, entry(0))
    assert await events.batch() == [0, "500"]


async def test_changes_without_pause_are_neither_lost_nor_repeated(world: Cluster) -> None:
    shape = world.worker.shape()
    events = await opened(world, shape, "0_inf")

    async def write() -> None:
        for lsn in range(100, 500):
            world.worker.commit(shape, lsn, entry(lsn))
            if lsn % 7 == 0:
                await asyncio.sleep(0)

    writing = asyncio.create_task(write())
    seen: list[Any] = []
    while seen[-1:] != ["499"]:
        seen += await events.batch()
    await writing
    assert [item for item in seen if not isinstance(item, str)] == list(range(100, 500))


@pytest.mark.parametrize("pad", [9_000, 300_000])
async def test_a_large_batch_is_streamed_to_each(world: Cluster, pad: int) -> None:
    """More than one answer for all may hold; and single items of more than a slice."""
    shape = world.worker.shape()
    streams = [(await opened(world, shape, "0_inf")).stream for _ in range(2)]
    await waiting(world, 2)
    lines = [entry(2 * number, pad=pad) for number in range(60 if pad < log.SLICE else 3)]
    world.worker.commit(shape, 7, *lines)
    stored = (shape.path / "log.json").read_bytes().removesuffix(b",\n").split(b",\n")
    assert len(stored) == len(lines)
    expected = b"".join(b"data: " + item + b"\n\n" for item in stored)
    for stream in streams:
        body, sizes = b"", []
        while len(body) < len(expected):
            chunk = await stream.chunk()
            sizes.append(len(chunk))
            body += chunk
        assert body == expected
        assert max(sizes) <= log.SLICE + len(wire.event(b""))
        assert b'"up-to-date"' in await stream.chunk()


async def test_idle_streams_hold_nothing_of_what_they_sent(world: Cluster) -> None:
    shape = world.worker.shape()
    streams = [await opened(world, shape, "0_inf") for _ in range(3)]
    await waiting(world, 3)
    world.worker.commit(shape, 500, entry(0))
    for events in streams:
        assert await events.batch() == [0, "500"]
    await waiting(world, 3)
    gc.collect()
    assert not [each for each in gc.get_objects() if isinstance(each, Batch)]


async def test_silence_is_broken_by_comments(world: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "KEEP_ALIVE_SECONDS", 0.2)
    monkeypatch.setattr(sse, "STREAM_SECONDS", 1.5)
    shape = world.worker.shape()
    events = await opened(world, shape, "0_inf")
    assert await events.stream.chunk() == b": keep-alive\n\n"
    assert await events.stream.chunk() == b": keep-alive\n\n"
    world.worker.commit(shape, 500, entry(0))
    data = []
    while chunk := await events.stream.chunk():
        if chunk != b": keep-alive\n\n":
            data.append(json.loads(chunk.removeprefix(b"data: "))["headers"])
    assert [headers.get("control") for headers in data] == [None, "up-to-date"]


async def test_a_stream_ends_after_its_time_and_leaves_the_connection_open(
    world: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sse, "STREAM_SECONDS", 0.3)
    shape = world.worker.shape()
    events = await opened(world, shape, "0_inf")
    assert await events.next() is None
    events.stream.writer.write(b"GET /v1/health HTTP/1.1\r\nhost: h\r\n\r\n")
    assert (await events.stream.response()).status == 200
    assert world.gateway._live.waiting == 0


async def test_a_stream_ends_with_its_shape_and_the_next_request_gets_the_conflict(world: Cluster) -> None:
    shape = world.worker.shape()
    streams = [await opened(world, shape, "0_inf") for _ in range(3)]
    await waiting(world, 3)
    world.worker.end(shape)
    for events in streams:
        assert await events.next() is None
    again = await opened(world, shape, "0_inf")
    assert again.status == 409
    assert again.headers["content-type"] == "application/json; charset=utf-8"
    assert again.headers["electric-handle"] != shape.handle


async def test_a_stream_ends_with_its_shape_although_every_hint_is_lost(world: Cluster) -> None:
    world.worker.mute = True
    shape = world.worker.shape()
    events = await opened(world, shape, "0_inf")
    await waiting(world)
    world.worker.end(shape)
    assert await events.next() is None


async def test_an_unknown_handle_is_a_plain_conflict(world: Cluster) -> None:
    shape = world.worker.shape()
    answer = await world.get("handle=1-1&offset=0_inf&live=true&live_sse=true")
    assert answer.status == 409
    assert answer.items == [{"headers": {"control": "must-refetch"}}]
    assert answer.headers["electric-handle"] == shape.handle


async def test_a_stream_that_the_client_has_is_not_sent_again(world: Cluster) -> None:
    shape = world.worker.shape()
    shape.commit(500, entry(0))
    events = await opened(world, shape, "0_inf", headers=f'if-none-match: "{shape.handle}:0_inf:500_0"\r\n')
    assert events.status == 304
    assert events.headers["cache-control"] == "public, max-age=59"
    assert events.headers["content-type"] == "text/event-stream"


async def test_an_offset_beyond_the_log_is_a_silent_stream() -> None:
    async with cluster(long_poll_timeout_ms=600) as world:
        shape = world.worker.shape()
        shape.commit(9, entry(0))
        events = await opened(world, shape, "9999999999_0")
        assert events.status == 200
        assert "electric-up-to-date" not in events.headers
        assert events.headers["electric-offset"] == "9999999999_0"
        assert await events.next() is None


async def test_a_client_ahead_of_a_log_that_is_replayed_gets_on(world: Cluster) -> None:
    shape = world.worker.shape()
    events = await opened(world, shape, "50_2")
    await waiting(world)
    world.worker.commit(shape, 40, entry(0))
    world.worker.commit(shape, 50, entry(0), entry(2))
    world.worker.commit(shape, 60, entry(4))
    assert await events.batch() == [4, "60"]


async def test_head_is_answered_at_once(world: Cluster) -> None:
    shape = world.worker.shape()
    events = await opened(world, shape, "0_inf", method="HEAD")
    assert events.status == 200
    assert events.headers["content-type"] == "text/event-stream"
    assert not {"content-length", "transfer-encoding"} & events.headers.keys()
    await until(lambda: world.gateway._live.waiting == 0)
    events.stream.writer.write(b"GET / HTTP/1.1\r\nhost: h\r\n\r\n")
    assert (await events.stream.head())[0] == 200


async def test_http_1_0_gets_events_until_the_connection_ends(world: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """nginx speaks it to its upstreams unless told otherwise."""
    monkeypatch.setattr(sse, "STREAM_SECONDS", 1.0)
    shape = world.worker.shape()
    events = await opened(world, shape, "0_inf", version="1.0", headers="connection: keep-alive\r\n")
    assert events.headers["connection"] == "close"
    assert not {"content-length", "transfer-encoding"} & events.headers.keys()
    await waiting(world)
    world.worker.commit(shape, 500, entry(0))
    async with asyncio.timeout(EVENTUALLY):
        body = await events.stream.reader.read()
    first, second, rest = body.split(b"\n\n")
    assert first.startswith(b'data: {"value"')
    assert second == b'data: {"headers":{"control":"up-to-date","global_last_seen_lsn":"500"}}'
    assert rest == b""


async def test_further_snapshot_chunks_come_one_by_one(world: Cluster) -> None:
    world.worker.chunk_bytes = 100
    world.worker.rows = [row(number, pad=50) for number in range(4)]
    shape = world.worker.shape()
    pages = [await world.get(f"offset={offset}&handle={shape.handle}") for offset in ("0_0", "0_1")]
    for number, page in enumerate(pages):
        events = await opened(world, shape, f"0_{number}")
        assert events.headers["electric-offset"] == page.headers["electric-offset"] == f"0_{number + 1}"
        assert "electric-up-to-date" not in events.headers
        for item in page.items:
            assert await events.next() == item
        assert await events.next() is None


async def test_a_client_that_does_not_read_is_cut_off() -> None:
    async with cluster(long_poll_timeout_ms=60_000, tcp_send_timeout=1.0) as world:
        shape = world.worker.shape()
        target = f"/v1/shape?table=items&handle={shape.handle}&offset=0_inf&live=true&live_sse=true"
        stalled, reading = await world.open(target), await opened(world, shape, "0_inf")
        stalled.reader._transport.pause_reading()  # type: ignore[attr-defined]
        await waiting(world, 2)
        most = 0
        connections = world.gateway._server.connections
        before = len(connections)
        for lsn in range(500, 2_500, 10):
            world.worker.commit(shape, lsn, *[entry(2 * number, pad=9_000) for number in range(10)])
            assert (await reading.batch())[-1] == str(lsn + 1)
            buffers = [c.transport.get_write_buffer_size() for c in connections if c.transport is not None]
            most = max(most, *buffers)
        # What the connection takes before it says stop, and one batch that all share.
        assert most <= 64 * 1024 + 100_000
        await until(lambda: len(world.gateway._server.connections) == before - 1)
        assert world.gateway._live.waiting == 1


async def test_a_client_that_hangs_up_is_forgotten(world: Cluster) -> None:
    shape = world.worker.shape()
    events = await opened(world, shape, "0_inf")
    await waiting(world)
    events.stream.close()
    await waiting(world, 0)


async def test_a_log_that_cannot_be_read_cuts_the_stream(world: Cluster) -> None:
    shape = world.worker.shape()
    shape.commit(500, entry(0))
    events = await opened(world, shape, "500_0")
    await waiting(world)
    world.worker.mute = True
    shape.commit(600, entry(0, pad=500))
    os.truncate(shape.path / "log.json", 100)
    assert not await events.stream.ends_cleanly()


async def test_a_gateway_that_stops_ends_streams_cleanly() -> None:
    async with cluster(long_poll_timeout_ms=60_000) as world:
        shape = world.worker.shape()
        streams = [await opened(world, shape, "0_inf") for _ in range(3)]
        await waiting(world, 3)
        stopping = asyncio.create_task(world.gateway.stop())
        for events in streams:
            assert await events.next() is None
            # Else a client would come back on the same connection, and again, to streams that end at once.
            events.stream.writer.write(b"GET /v1/health HTTP/1.1\r\nhost: galvanic\r\n\r\n")
            with contextlib.suppress(ConnectionError):
                assert await events.stream.reader.read() == b""
        await stopping

"""Requests that are answered without a task give back all they hold, however they end."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from common.messages import Examine
from common.shapelog.layout import snapshot_name
from common.shapelog.reader import ShapeReader
from gateway import gateway, log, shortcut
from gateway.admission import BUDGETS
from gateway.app import App
from gateway.recent import OVERHEAD, Recent
from gateway.response import Answer
from tests.unit.gateway.cluster import Cluster, Response, StoredShape, Stream, cluster, entry, row, until


@pytest_asyncio.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Cluster]:
    async with cluster(long_poll_timeout_ms=60_000) as running:
        yield running


def holds_nothing(world: Cluster) -> bool:
    users = [shape.users for shape in world.gateway._shapes._open.values()]
    in_flight = [world.gateway._admission.in_flight(budget) for budget in BUDGETS]
    return not (world.gateway._live.waiting or any(users) or any(in_flight))


async def poll(world: Cluster, shape: StoredShape) -> Stream:
    stream = await world.open(f"/v1/shape?table=items&offset={shape.log.last}&handle={shape.handle}&live=true")
    await until(lambda: world.gateway._live.waiting == 1)
    assert not holds_nothing(world)
    return stream


async def long_ways(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The requests that went the long way."""
    targets: list[str] = []
    handle = App.handle

    async def noted(self: App, exchange: object) -> None:
        targets.append(exchange.target)  # type: ignore[attr-defined]
        await handle(self, exchange)  # type: ignore[arg-type]

    monkeypatch.setattr(App, "handle", noted)
    return targets


@pytest.mark.parametrize("end", ["news", "large news", "the end of the shape", "no news", "a client that hangs up"])
async def test_a_long_poll_gives_back_what_it_holds(world: Cluster, end: str) -> None:
    shape = world.worker.shape()
    await world.get("offset=now")
    stream = await poll(world, shape)
    match end:
        case "news":
            world.worker.commit(shape, 10, entry(0))
        case "large news":
            world.worker.commit(shape, 10, entry(0, pad=log.SHARED))
        case "the end of the shape":
            world.worker.end(shape)
        case "no news":
            world.gateway._live.close()
    if end != "a client that hangs up":
        answer = await stream.response()
        assert answer.status == (409 if "shape" in end else 200)
        assert answer.clean
        if "news" in end and end != "no news":
            assert answer.items[0]["value"]["n"] == "0"
    stream.close()
    await until(lambda: holds_nothing(world))


async def test_what_is_at_hand_takes_no_task(world: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = world.worker.shape()
    shape.commit(10, entry(0))
    await world.get("offset=-1")
    targets = await long_ways(monkeypatch)
    for query in ("offset=-1", f"offset=0_inf&handle={shape.handle}", "offset=now", "offset=-1&offset=-1"):
        assert (await world.get(query)).status == 200
        assert (await world.get(query)).status == 200
    stream = await poll(world, shape)
    world.worker.commit(shape, 20, entry(1))
    assert (await stream.response()).status == 200
    stream.close()
    assert targets == []
    assert holds_nothing(world)


async def large(world: Cluster) -> tuple[StoredShape, Stream]:
    """A shape with a chunk larger than sockets hold, which is on its way to a client that does not read."""
    world.worker.chunk_bytes = 40_000_000
    world.worker.rows = [row(number, pad=100_000) for number in range(300)]
    shape = world.worker.shape()
    assert (await world.get("offset=now")).status == 200
    stream = await world.open("/v1/shape?table=items&offset=-1")
    stream.writer.transport.pause_reading()  # type: ignore[attr-defined]
    await until(lambda: any(connection.writing_paused for connection in world.gateway._server.connections))
    assert [shape.users for shape in world.gateway._shapes._open.values()] == [1]
    # Who reads slowly keeps no new client out.
    assert [world.gateway._admission.in_flight(budget) for budget in BUDGETS] == [0, 1]
    return shape, stream


@pytest.mark.parametrize("end", ["all of it", "a client that hangs up", "a file that is cut", "a disk that fails"])
async def test_a_large_answer_takes_no_task_and_gives_back_what_it_holds(
    world: Cluster, end: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    targets = await long_ways(monkeypatch)
    shape, stream = await large(world)
    snapshot = shape.path / snapshot_name(0)
    content = snapshot.read_bytes()
    match end:
        case "a client that hangs up":
            stream.close()
        case "a file that is cut":
            os.truncate(snapshot, 10)
        case "a disk that fails":

            def fail(*_: object) -> bytes:
                raise OSError(errno.EIO, "no such luck")

            monkeypatch.setattr(ShapeReader, "read_snapshot", fail)
            # The kernel does not get at it either.
            monkeypatch.setattr(os, "sendfile", fail)
    if end != "a client that hangs up":
        stream.writer.transport.resume_reading()  # type: ignore[attr-defined]
        answer = await stream.response()
        assert answer.clean == (end == "all of it")
        if answer.clean:
            assert answer.raw == b"[" + content[:-2] + b"]"
    await until(lambda: holds_nothing(world))
    reasons = ["a chunk of the snapshot is gone or shrank"] if end == "a file that is cut" else []
    # The worker is asked after the client was cut off.
    await until(lambda: [asked.reason for asked in world.worker.asked if isinstance(asked, Examine)] == reasons)
    assert ("no such luck" in capsys.readouterr().out) == (end == "a disk that fails")
    assert [target for target in targets if "offset=-1" in target] == []
    stream.close()


@pytest.mark.parametrize("end", ["a client that takes nothing", "a gateway that stops"])
async def test_a_large_answer_is_cut_off_in_the_end(world: Cluster, end: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _, stream = await large(world)
    if end == "a client that takes nothing":
        # As its timer does.
        for connection in world.gateway._server.connections:
            connection.abort()
    else:
        monkeypatch.setattr(gateway, "SHUTDOWN_TIMEOUT", 0.1)
        opened = list(world.gateway._shapes._open.values())
        await world.gateway.stop()
        assert not any(shape.is_open for shape in opened)
    await until(lambda: holds_nothing(world))
    stream.writer.transport.resume_reading()  # type: ignore[attr-defined]
    assert not (await stream.response()).clean
    stream.close()


@pytest.mark.parametrize("where", ["snapshot", "log"])
async def test_large_chunks_take_no_task_but_to_be_compressed(
    world: Cluster, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.worker.chunk_bytes = 2 * log.SLICE
    world.worker.rows = [row(number, pad=log.SLICE) for number in range(3)]
    shape = world.worker.shape()
    shape.commit(20, *(entry(number, pad=log.SLICE) for number in range(3)))
    await world.get("offset=now")
    targets = await long_ways(monkeypatch)
    query = "offset=-1" if where == "snapshot" else f"offset=0_inf&handle={shape.handle}"
    first, second = await world.get(query), await world.get(query)
    assert first.raw == second.raw
    assert len(first.items) == 2
    assert [len(item["value"]["pad"]) for item in first.items] == [log.SLICE] * 2
    known = await world.get(query, headers=f"If-None-Match: {first.headers['etag']}\r\n")
    assert known.status == 304
    assert targets == []
    coded = await world.get(query, headers="Accept-Encoding: zstd\r\n")
    assert "content-encoding" in coded.headers
    assert len(targets) == 1
    await until(lambda: holds_nothing(world))


async def test_an_answer_is_sent_again_only_while_nothing_changed(world: Cluster) -> None:
    shape = world.worker.shape()
    offset = shape.commit(10, entry(0))

    async def ask() -> Response:
        return await world.get(f"offset=0_inf&handle={shape.handle}")

    first = await ask()
    assert (await ask()).raw == first.raw
    # Only the LSN that the answer may claim is another.
    world.worker.apply(50, shape.partition)
    await until(lambda: world.gateway._progress.seen(shape.partition, 1) == 50)
    later = await ask()
    assert later.headers["etag"] == first.headers["etag"]
    assert later.items[-1]["headers"]["global_last_seen_lsn"] == "50"
    shape.commit(60, entry(1))
    last = await ask()
    assert len(last.items) == 3
    assert last.headers["electric-offset"] != first.headers["electric-offset"] == str(offset)
    world.worker.end(shape)
    assert (await ask()).status == 409


async def test_a_failure_on_the_short_way_is_told_and_logged(
    world: Cluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shape = world.worker.shape()
    await world.get("offset=-1")

    def fail(*_: object) -> None:
        raise RuntimeError("a mistake")

    monkeypatch.setattr(shortcut.Shortcut, "_look", fail)
    answer = await world.get(f"offset=0_inf&handle={shape.handle}")
    assert answer.status == 500
    assert "a mistake" in capsys.readouterr().out


async def test_a_refused_request_goes_the_long_way() -> None:
    async with cluster(max_concurrent_requests={"initial": 1, "existing": 1}, long_poll_timeout_ms=60_000) as world:
        shape = world.worker.shape()
        await world.get("offset=now")
        stream = await poll(world, shape)
        answer = await world.get(f"offset={shape.log.last}&handle={shape.handle}")
        assert (answer.status, answer.items["code"]) == (503, "concurrent_request_limit_exceeded")
        assert (await world.get("offset=-1")).status == 200
        stream.close()
        await until(lambda: holds_nothing(world))
        await asyncio.sleep(0)
        assert (await world.get(f"offset={shape.log.last}&handle={shape.handle}")).status == 200


def test_the_last_answers_are_kept_up_to_a_bound() -> None:
    body = b"x" * 1_000
    recent = Recent(3 * (OVERHEAD + len(body)))
    for number in range(4):
        recent.keep(number, "state", Answer(200, {}, body))
    assert [recent.get(number, "state") is None for number in range(4)] == [True, False, False, False]
    assert recent.get(1, "other") is None
    recent.keep(4, "state", Answer(200, {}, body))
    # What was asked for last stays longest.
    assert recent.get(2, "state") is None or recent.get(1, "state") is None
    recent.keep(4, "later", Answer(200, {}, b""))
    assert recent.get(4, "state") is None
    for number in range(100):
        recent.keep(number, "state", Answer(200, {}, b""))
    assert 0 < recent._held <= 3 * (OVERHEAD + len(body))

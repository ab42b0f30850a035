"""The log over HTTP: initial sync, paging, catch-up, conflicts, tags, growing snapshots (http-api.md 11 to 14, 20)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from common.messages import Examine, Refusal
from gateway import log
from tests.unit.gateway.cluster import (
    GENERATION,
    SNAPSHOT_END_ITEM,
    Cluster,
    cluster,
    entry,
    not_owner,
    refuse,
    row,
    until,
)

MUST_REFETCH = [{"headers": {"control": "must-refetch"}}]


def up_to_date(lsn: int) -> dict[str, dict[str, str]]:
    return {"headers": {"control": "up-to-date", "global_last_seen_lsn": str(lsn)}}


@pytest_asyncio.fixture
async def world() -> AsyncIterator[Cluster]:
    async with cluster() as running:
        yield running


async def test_an_initial_sync_goes_from_the_snapshot_to_up_to_date(world: Cluster) -> None:
    first = await world.get("offset=-1")
    shape = world.worker.shape()
    handle = shape.handle
    assert first.status == 200
    assert first.raw == b"[" + b",\n".join([row(1), row(2), SNAPSHOT_END_ITEM]) + b"]"
    assert first.clean
    assert {name: value for name, value in first.headers.items() if name not in ("date", "x-request-id")} == {
        "transfer-encoding": "chunked",
        "vary": "accept-encoding",
        "cache-control": "public, max-age=604800, s-maxage=3600, stale-while-revalidate=2629746",
        "electric-server": "ElectricSQL/1.7.12",
        "access-control-allow-origin": "*",
        "access-control-expose-headers": "electric-cursor,electric-handle,electric-has-data,electric-offset,"
        "electric-schema,electric-up-to-date,electric-internal-known-error,retry-after",
        "access-control-allow-methods": "GET, POST, HEAD, DELETE, OPTIONS",
        "content-type": "application/json; charset=utf-8",
        "etag": f'"{handle}:-1:0_0"',
        "electric-handle": handle,
        "electric-schema": '{"id":{"type":"int4","not_null":true,"pk_index":0},"pr\\u00e9nom":{"type":"text"}}',
        "electric-has-data": "true",
        "electric-offset": "0_0",
    }
    assert len(first.headers["x-request-id"]) == 20

    world.worker.apply(500, shape.partition)
    await until(lambda: world.gateway._progress.seen(shape.partition, GENERATION) == 500)
    second = await world.get(f"offset=0_0&handle={handle}")
    assert second.items == [up_to_date(500)]
    assert second.headers["electric-offset"] == "0_inf"
    assert second.headers["electric-up-to-date"] == ""
    assert second.headers["electric-has-data"] == "true"
    assert second.headers["etag"] == f'"{handle}:0_0:0_inf"'
    assert second.headers["cache-control"] == "public, max-age=60, stale-while-revalidate=300"
    assert "electric-cursor" not in second.headers
    assert len(world.worker.asked) == 1


async def test_a_catch_up_returns_what_comes_after_the_offset(world: Cluster) -> None:
    shape = world.worker.shape()
    shape.commit(700, entry(0), entry(2))
    shape.commit(800, entry(0))
    everything = await world.get(f"offset=0_inf&handle={shape.handle}")
    assert len(everything.items) == 4
    assert everything.items[-1] == up_to_date(800)
    assert everything.headers["electric-offset"] == "800_0"
    middle = await world.get(f"offset=700_0&handle={shape.handle}")
    assert [item["headers"].get("op_position") for item in middle.items] == [2, 0, None]
    # Never claims less than the answer contains, whatever the worker has told.
    world.worker.apply(750, shape.partition)
    await until(lambda: world.gateway._progress.seen(shape.partition, GENERATION) == 750)
    end = await world.get(f"offset=800_0&handle={shape.handle}")
    assert end.items == [up_to_date(800)]
    assert end.headers["electric-offset"] == "800_0"


async def test_snapshots_and_logs_come_in_chunks_that_never_change(world: Cluster) -> None:
    world.worker.chunk_bytes = 400
    world.worker.rows = [row(number, pad=80) for number in range(9)]
    shape = world.worker.shape()
    for lsn in range(1, 10):
        shape.commit(lsn, entry(0, pad=150))
    offset, items, offsets = "-1", [], []
    for _ in range(30):
        page = await world.get(f"offset={offset}&handle={shape.handle}")
        assert page.status == 200
        again = await world.get(f"offset={offset}&handle={shape.handle}")
        assert again.raw == page.raw
        offset = page.headers["electric-offset"]
        offsets.append(offset)
        items += page.items
        if "electric-up-to-date" in page.headers:
            break
        assert page.items
    keys = [item["key"] for item in items if "key" in item]
    assert keys == [f"k/{number}" for number in range(9)]
    assert [item["headers"].get("control") for item in items].count("snapshot-end") == 1
    assert len([item for item in items if "op_position" in item["headers"]]) == 9
    assert items[-1] == up_to_date(9)
    assert offsets[:3] == ["0_0", "0_1", "0_2"]
    assert len(offsets) > 6


@pytest.mark.parametrize("version", ["1.1", "1.0"])
async def test_a_chunk_larger_than_a_slice_arrives_whole(world: Cluster, version: str) -> None:
    world.worker.rows = [row(number, pad=9_000) for number in range(120)]
    shape = world.worker.shape()
    shape.commit(50, *[entry(2 * number, pad=9_000) for number in range(120)])
    snapshot = await world.get("offset=-1", version=version)
    assert snapshot.clean
    assert len(snapshot.raw) > 3 * log.SLICE
    assert len(snapshot.items) == 121
    changes = await world.get(f"offset=0_0&handle={shape.handle}", version=version)
    assert changes.clean
    assert len(changes.items) == 121
    assert changes.items[-1] == up_to_date(50)
    assert ("content-length" in changes.headers) == (version == "1.0")


async def test_a_chunk_of_a_large_log_has_no_up_to_date(world: Cluster) -> None:
    world.worker.chunk_bytes = 300_000
    shape = world.worker.shape()
    shape.commit(50, *[entry(2 * number, pad=9_000) for number in range(50)])
    page = await world.get(f"offset=0_0&handle={shape.handle}")
    assert page.clean
    assert "electric-up-to-date" not in page.headers
    assert page.headers["electric-offset"] == "50_66"
    assert len(page.items) == 34
    rest = await world.get(f"offset=50_66&handle={shape.handle}")
    assert len(rest.items) == 17
    assert rest.headers["electric-offset"] == "50_98"
    assert "electric-up-to-date" in rest.headers


async def test_a_virtual_offset_past_the_snapshot_is_its_end(world: Cluster) -> None:
    shape = world.worker.shape()
    answer = await world.get(f"offset=0_99&handle={shape.handle}")
    assert answer.headers["electric-offset"] == "0_inf"
    assert answer.headers["etag"] == f'"{shape.handle}:0_99:0_inf"'
    assert "electric-up-to-date" in answer.headers


async def test_now_returns_the_end_and_nothing_else(world: Cluster) -> None:
    shape = world.worker.shape()
    shape.commit(900, entry(0))
    first, second = await world.get("offset=now"), await world.get("offset=now&handle=1-1")
    assert first.items == [up_to_date(900)]
    assert first.headers["electric-offset"] == "900_0"
    assert first.headers["electric-has-data"] == "false"
    assert "electric-schema" in first.headers
    assert "content-length" in first.headers
    assert first.headers["etag"].startswith(f'"{shape.handle}:now:900_0:')
    assert first.headers["etag"] != second.headers["etag"]
    repeated = await world.get("offset=now", headers=f"If-None-Match: {first.headers['etag']}\r\n")
    assert repeated.status == 200


async def test_now_does_not_mind_a_snapshot_that_failed(world: Cluster) -> None:
    """The next request does: it says why, or has another shape by then."""
    shape = world.worker.shape()
    world.worker.end(shape)
    body = b'{"message":"Database connection not available"}'
    world.worker.refusal = lambda id: Refusal(id=id, status=503, body=body, retry_after=10, place=shape.place(id))
    begun = await world.get("offset=now")
    assert begun.status == 200
    assert [item["headers"]["control"] for item in begun.items] == ["up-to-date"]
    assert begun.headers["electric-handle"] == shape.handle
    assert begun.headers["electric-offset"] == "0_inf"
    assert begun.headers["electric-has-data"] == "false"
    assert begun.headers["etag"].startswith(f'"{shape.handle}:now:0_inf:')
    assert begun.headers["cache-control"] == "public, max-age=60, stale-while-revalidate=300"
    assert "pr\\u00e9nom" in begun.headers["electric-schema"]
    subset = "offset=now&subset__limit=1&subset__order_by=id"
    for query in ("offset=-1", f"offset=0_inf&live=true&handle={shape.handle}", subset):
        assert (await world.get(query)).raw == body
    world.worker.refusal = refuse(503, body)
    assert (await world.get("offset=now")).status == 503, "no shape was made"


async def test_another_handle_is_a_conflict_with_the_right_one(world: Cluster) -> None:
    for handle in ("12345678-1700000000000000", "garbage"):
        conflict = await world.get(f"offset=5_0&handle={handle}")
        current = world.worker.shape().handle
        assert conflict.status == 409
        assert conflict.items == MUST_REFETCH
        assert conflict.headers["electric-handle"] == current
        assert conflict.headers["etag"] == f'"{current}::"'
        assert conflict.headers["cache-control"] == "public, max-age=60, must-revalidate"
        assert not {"electric-offset", "electric-schema", "electric-has-data"} & conflict.headers.keys()
    assert (await world.get("offset=-1&handle=garbage")).status == 200
    other = world.worker.shape(replica="full")
    assert (await world.get(f"offset=0_0&handle={other.handle}")).status == 409
    assert (await world.get(f"replica=full&offset=0_0&handle={other.handle}")).status == 200


async def test_an_ended_shape_is_never_served_again(world: Cluster) -> None:
    world.worker.mute = True
    first = await world.get("offset=-1")
    old = first.headers["electric-handle"]
    world.worker.end(world.worker.shape())
    conflict = await world.get(f"offset=0_0&handle={old}")
    assert conflict.status == 409
    assert conflict.headers["electric-handle"] not in ("", old)
    again = await world.get(f"offset=-1&handle={old}")
    assert again.headers["electric-handle"] == conflict.headers["electric-handle"]


async def test_a_tag_that_matches_is_answered_304(world: Cluster) -> None:
    shape = world.worker.shape()
    for query in ("offset=-1", f"offset=0_0&handle={shape.handle}", f"offset=0_inf&handle={shape.handle}"):
        full = await world.get(query)
        for tag in (full.headers["etag"], f'"x", {full.headers["etag"]}', full.headers["etag"].strip('"')):
            same = await world.get(query, headers=f"If-None-Match: {tag}\r\n")
            assert same.status == 304
            assert "content-length" not in same.headers
            assert "electric-schema" not in same.headers
            for name in (
                "etag",
                "electric-handle",
                "electric-offset",
                "cache-control",
                "electric-has-data",
                "content-type",
            ):
                assert same.headers[name] == full.headers[name]
        weak = await world.get(query, headers=f"If-None-Match: W/{full.headers['etag']}\r\n")
        assert weak.status == 200
    etag = (await world.get(f"offset=0_inf&handle={shape.handle}")).headers["etag"]
    live = await world.get(f"offset=0_inf&handle={shape.handle}&live=true", headers=f"If-None-Match: {etag}\r\n")
    assert live.status == 304
    assert "electric-cursor" in live.headers
    shape.commit(5, entry(0))
    grown = await world.get(f"offset=0_inf&handle={shape.handle}", headers=f"If-None-Match: {etag}\r\n")
    assert grown.status == 200


async def test_head_runs_like_get_and_tells_no_length_of_what_is_streamed(world: Cluster) -> None:
    got = await world.get("offset=-1")
    head = await world.get("offset=-1", method="HEAD")
    assert head.status == 200
    assert not {"content-length", "transfer-encoding"} & head.headers.keys()
    assert head.headers["etag"] == got.headers["etag"]
    caught_up = await world.get(f"offset=0_0&handle={got.headers['electric-handle']}", method="HEAD")
    assert not {"content-length", "transfer-encoding"} & caught_up.headers.keys()
    conflict = await world.get("offset=0_0&handle=garbage", method="HEAD")
    assert conflict.headers["content-length"] == "40"


async def test_a_growing_snapshot_is_followed_to_its_clean_end(world: Cluster) -> None:
    world.worker.complete = False
    shape = world.worker.shape()
    stream = await world.open("/v1/shape?table=items&offset=-1")
    assert (await stream.head())[0] == 200
    body = b""
    while row(2) not in body:
        body += await stream.chunk()
    assert not body.endswith(b",\n")
    shape.add(row(3))
    shape.snapshot.flush()
    while row(3) not in body:
        body += await stream.chunk()
    shape.snapshot.finish(SNAPSHOT_END_ITEM)
    while part := await stream.chunk():
        body += part
    assert [item.get("key") for item in json.loads(body)] == ["k/1", "k/2", "k/3", None]
    stream.close()


async def test_a_client_that_cannot_tell_an_end_from_a_cut_gets_a_growing_chunk_when_it_is_whole(
    world: Cluster,
) -> None:
    world.worker.complete = False
    shape = world.worker.shape()
    asked = asyncio.create_task(world.get("offset=-1", version="1.0"))
    await asyncio.sleep(0.1)
    assert not asked.done()
    shape.snapshot.finish(SNAPSHOT_END_ITEM)
    answer = await asked
    assert answer.clean
    assert len(answer.items) == 3


async def test_the_next_chunk_of_a_growing_snapshot_is_waited_for(world: Cluster) -> None:
    world.worker.complete = False
    world.worker.chunk_bytes = 100
    world.worker.rows = [row(1, pad=100)]
    shape = world.worker.shape()
    assert (await world.get("offset=-1")).clean
    asked = asyncio.create_task(world.get(f"offset=0_0&handle={shape.handle}"))
    await asyncio.sleep(0.1)
    assert not asked.done()
    shape.snapshot.finish(SNAPSHOT_END_ITEM)
    answer = await asked
    assert answer.headers["electric-offset"] == "0_1"
    assert answer.items == [json.loads(SNAPSHOT_END_ITEM)]
    assert "electric-up-to-date" not in answer.headers


async def test_a_chunk_that_never_comes_is_empty(world: Cluster) -> None:
    world.worker.complete = False
    shape = world.worker.shape()
    asked = asyncio.create_task(world.get(f"offset=0_0&handle={shape.handle}"))
    await asyncio.sleep(0.1)
    shape.snapshot.finish(SNAPSHOT_END_ITEM)
    answer = await asked
    assert (answer.raw, answer.headers["electric-offset"]) == (b"[]", "0_1")
    assert "electric-up-to-date" not in answer.headers
    assert (await world.get(f"offset=0_1&handle={shape.handle}")).headers["electric-offset"] == "0_inf"


@pytest.mark.parametrize("how", ["fails", "ends", "vanishes"])
async def test_a_snapshot_that_breaks_off_is_never_ended_cleanly(world: Cluster, how: str) -> None:
    world.worker.complete = False
    world.worker.mute = True
    shape = world.worker.shape()
    stream = await world.open("/v1/shape?table=items&offset=-1")
    assert (await stream.head())[0] == 200
    await stream.chunk()
    if how == "fails":
        shape.snapshot.fail()
    elif how == "ends":
        world.worker.end(shape)
    else:
        for file in shape.path.iterdir():
            file.unlink()
        shape.path.rmdir()
    assert not await stream.ends_cleanly()
    stream.close()


async def test_a_snapshot_that_breaks_off_before_its_first_byte_is_refetched(world: Cluster) -> None:
    world.worker.complete = False
    world.worker.rows = []
    shape = world.worker.shape()
    asked = asyncio.create_task(world.get("offset=-1"))
    # A shape that has failed before the gateway is told of it is asked for again.
    await until(lambda: bool(world.gateway._shapes._known))
    shape.snapshot.fail()
    answer = await asked
    assert answer.status == 409
    assert answer.items == MUST_REFETCH
    assert "electric-handle" not in answer.headers


async def test_a_stalled_snapshot_gives_up(world: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FIRST_CHUNK_TIMEOUT", "NEXT_CHUNK_TIMEOUT", "GROWTH_TIMEOUT"):
        monkeypatch.setattr(log, name, 0.1)
    world.worker.complete = False
    shape = world.worker.shape()
    assert not (await world.get("offset=-1")).clean
    waited = await world.get(f"offset=0_0&handle={shape.handle}")
    assert waited.status == 503
    assert waited.headers["retry-after"] == "10"


async def test_a_stalled_client_pins_a_slice_and_is_cut_off_in_the_end() -> None:
    async with cluster(tcp_send_timeout=0.5) as world:
        world.worker.rows = [row(number, pad=100_000) for number in range(300)]
        world.worker.shape()
        stream = await world.open("/v1/shape?table=items&offset=-1")
        shape = next(iter(world.worker.shapes.values()))
        stream.reader._transport.pause_reading()  # type: ignore[attr-defined]
        await until(lambda: any(each.users for each in world.gateway._shapes._known.values()))
        await until(lambda: not any(each.users for each in world.gateway._shapes._known.values()))
        assert (await world.get(f"offset=0_0&handle={shape.handle}")).status == 200
        stream.close()


async def test_requests_at_the_same_time_share_one_question(world: Cluster) -> None:
    answers = await asyncio.gather(*[world.get("offset=-1") for _ in range(8)])
    assert {answer.headers["electric-handle"] for answer in answers} == {world.worker.shape().handle}
    assert len(world.worker.asked) == 1


async def test_a_refusal_of_the_worker_is_passed_on(world: Cluster) -> None:
    world.worker.refusal = refuse(503, b'{"message":"Snapshot timed out"}', retry_after=10, known=True)
    refused = await world.get("offset=-1")
    assert (refused.status, refused.raw) == (503, b'{"message":"Snapshot timed out"}')
    assert refused.headers["retry-after"] == "10"
    assert refused.headers["electric-internal-known-error"] == "true"
    assert refused.headers["cache-control"] == refused.headers["surrogate-control"] == "no-store"
    world.worker.refusal = refuse(409, b"")
    changed = await world.get("offset=-1")
    assert (changed.status, changed.items) == (409, MUST_REFETCH)
    world.worker.refusal = None
    assert (await world.get("offset=-1")).status == 200


async def test_a_partition_on_its_way_is_waited_for(world: Cluster) -> None:
    world.worker.refusal = not_owner
    asked = asyncio.create_task(world.get("offset=-1"))
    await until(lambda: len(world.worker.asked) > 1)
    other = world.add_worker("w1")
    world.owners = dict.fromkeys(world.owners, "w1")
    assert (await asked).status == 200
    assert other.asked


async def test_a_question_lost_with_its_worker_is_asked_again(world: Cluster) -> None:
    world.worker.silent = True
    asked = asyncio.create_task(world.get("offset=-1"))
    await until(lambda: bool(world.worker.asked))
    gone = world.worker
    gone.close()
    world.workers.clear()
    await gone.gone()
    world.worker = world.add_worker("w0")
    assert (await asked).status == 200
    assert len(world.worker.asked) == 1


async def test_a_shape_whose_files_are_damaged_is_shown_to_its_worker_and_refetched(world: Cluster) -> None:
    shape = world.worker.shape()
    shape.commit(5, entry(0))
    (shape.path / "log.json").write_bytes(b"")
    answer = await world.get(f"offset=0_inf&handle={shape.handle}")
    assert (answer.status, json.loads(answer.raw)) == (409, MUST_REFETCH)
    assert [request for request in world.worker.asked if isinstance(request, Examine)]


async def test_a_shape_in_which_its_worker_finds_nothing_wrong_is_asked_for_again(world: Cluster) -> None:
    shape = world.worker.shape()
    shape.commit(5, entry(0))
    await world.get("offset=now")
    world.worker.refusal = lambda id: Refusal(id=id, status=503, body=b"{}", retry_after=1)
    (shape.path / "log.json").write_bytes(b"")
    answer = await world.get(f"offset=0_inf&handle={shape.handle}")
    assert (answer.status, answer.headers["retry-after"]) == (503, "1")

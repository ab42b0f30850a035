"""Closed chunks as gzip and zstd: who gets them, what they hold, and that each is made once."""

from __future__ import annotations

import asyncio
import random
import sys
import zlib
from collections.abc import AsyncIterator, Iterator

import pytest

from gateway import compression, log
from gateway.compression import LEAST, QUEUE_BYTES, Compression, coded_tag, negotiate
from tests.unit.gateway.cluster import Cluster, Response, cluster, entry, row, until

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd


def decoded(data: bytes, coding: str) -> bytes:
    return zlib.decompress(data, 31) if coding == "gzip" else zstd.decompress(data)


@pytest.mark.parametrize(
    ("accepted", "coding"),
    [
        (None, None),
        ("", None),
        ("identity", None),
        ("br, deflate", None),
        ("*", None),
        ("gzip", "gzip"),
        ("GZIP;q=0.5", "gzip"),
        ("gzip, deflate, br, zstd", "zstd"),
        ("zstd;q=0.1, gzip;q=0.2", "gzip"),
        ("zstd;q=0, gzip ; q=1.0", "gzip"),
        ("gzip;q=0", None),
        ("gzip;q=x", None),
        ("gzip;level=3", None),
        ("x-gzip", None),
    ],
)
def test_the_coding_is_the_one_the_client_likes_best(accepted: str | None, coding: str | None) -> None:
    assert negotiate(accepted) == coding


def test_each_coding_has_its_tag() -> None:
    assert coded_tag('"1-2:-1:0_0"', None) == '"1-2:-1:0_0"'
    assert coded_tag('"1-2:-1:0_0"', "gzip") == '"1-2:-1:0_0-gzip"'


class Body:
    """A body of many pieces that counts how often it is read."""

    def __init__(self, size: int, *, plain: bool = True) -> None:
        self.data = b"x" * size if plain else random.Random(7).randbytes(size)
        self.reads = 0

    def pieces(self) -> Iterator[bytes]:
        self.reads += 1
        for start in range(0, len(self.data), 1000):
            yield self.data[start : start + 1000]


@pytest.fixture
async def cache() -> AsyncIterator[Compression]:
    made = Compression()
    yield made
    made.close()


@pytest.mark.parametrize("coding", ["gzip", "zstd"])
async def test_a_body_is_compressed_once(cache: Compression, coding: compression.Coding) -> None:
    body = Body(50_000)
    found = await asyncio.gather(*[cache.encoded("a", coding, 50_000, body.pieces) for _ in range(5)])
    assert len(set(map(id, found))) == 1
    assert await cache.encoded("a", coding, 50_000, body.pieces) is found[0]
    assert body.reads == 1
    assert found[0]
    assert decoded(found[0].data, coding) == body.data


async def test_a_client_that_goes_away_does_not_stop_the_work_for_others(cache: Compression) -> None:
    body = Body(50_000)
    first, second = (asyncio.create_task(cache.encoded("a", "zstd", 50_000, body.pieces)) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    assert await second
    assert body.reads == 1


async def test_what_does_not_shrink_goes_as_it_is_and_is_not_tried_again(cache: Compression) -> None:
    body = Body(50_000, plain=False)
    assert await cache.encoded("a", "gzip", 50_000, body.pieces) is None
    assert await cache.encoded("a", "gzip", 50_000, body.pieces) is None
    assert body.reads == 1


async def test_what_becomes_too_large_is_given_up_at_once(cache: Compression, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compression, "ENTRY_BYTES", 50_000)
    body, taken = Body(2_000_000, plain=False), 0

    def pieces() -> Iterator[bytes]:
        nonlocal taken
        for piece in body.pieces():
            taken += len(piece)
            yield piece

    assert await cache.encoded("a", "gzip", 2_000_000, pieces) is None
    assert taken < 500_000


async def test_a_body_that_cannot_be_read_goes_as_it_is_and_is_tried_again(cache: Compression) -> None:
    def gone() -> Iterator[bytes]:
        raise FileNotFoundError
        yield b""

    body = Body(50_000)
    assert await cache.encoded("a", "gzip", 50_000, gone) is None
    assert await cache.encoded("a", "gzip", 50_001, body.pieces) is None, "it is shorter than it must be"
    assert await cache.encoded("a", "gzip", 50_000, body.pieces)


async def test_a_long_queue_is_not_waited_for(cache: Compression) -> None:
    first = asyncio.create_task(cache.encoded("a", "gzip", 50_000, Body(50_000).pieces))
    await asyncio.sleep(0)
    late = Body(50_000)
    assert await cache.encoded("b", "gzip", QUEUE_BYTES, late.pieces) is None
    assert late.reads == 0
    assert await first
    assert await cache.encoded("b", "gzip", 50_000, late.pieces)


async def test_memory_has_a_bound_that_bodies_on_their_way_count_for() -> None:
    cache = Compression(cache_bytes=600)
    sizes = []
    for number in range(20):
        found = await cache.encoded(number, "gzip", 50_000, Body(50_000).pieces)
        assert found
        sizes.append(len(found.data))
        assert cache._held <= 600
    assert len(cache._known) == 600 // sizes[0]
    body = Body(50_000)
    held = [await cache.encoded(number, "gzip", 50_000, body.pieces) for number in range(20 - len(cache._known), 20)]
    assert body.reads == 0
    for each in held:
        assert each
        each.__enter__()
    assert await cache.encoded("new", "gzip", 50_000, Body(50_000).pieces) is None
    assert held[0]
    held[0].__exit__(None, None, None)
    assert await cache.encoded("new", "gzip", 50_000, Body(50_000).pieces)
    assert cache._held <= 600
    cache.close()


# --------------------------------------------------------------------------------------------------------------------


@pytest.fixture
async def world() -> AsyncIterator[Cluster]:
    async with cluster() as world:
        world.worker.rows = [row(number, pad=100) for number in range(1000)]
        yield world


async def get(world: Cluster, query: str, accepted: str, more: str = "", **how: str) -> Response:
    return await world.get(query, headers=f"Accept-Encoding: {accepted}\r\n{more}", **how)


@pytest.mark.parametrize("coding", ["gzip", "zstd"])
@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("pad", [10, 100, 1000])
async def test_a_closed_chunk_is_the_same_in_every_coding(
    world: Cluster, coding: str, version: str, pad: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "SLICE", 5000)
    world.worker.rows = [row(number * 7919 % 100_003, pad) for number in range(1000)]
    plain = await world.get("offset=-1", version=version)
    coded = await get(world, "offset=-1", coding, version=version)
    assert coded.clean
    assert decoded(coded.raw, coding) == plain.raw
    assert len(coded.raw) * 3 < len(plain.raw)
    changed = {"content-encoding", "etag", "date", "x-request-id", "content-length"}
    assert {name: value for name, value in coded.headers.items() if name not in changed} == {
        name: value for name, value in plain.headers.items() if name not in changed
    }
    assert coded.headers["content-encoding"] == coding
    assert coded.headers["vary"] == plain.headers["vary"] == "accept-encoding"
    assert coded.headers["etag"] == coded_tag(plain.headers["etag"], "gzip" if coding == "gzip" else "zstd")
    assert "content-encoding" not in plain.headers


async def test_a_tag_matches_the_coding_it_came_with(world: Cluster) -> None:
    plain = await world.get("offset=-1")
    coded = await get(world, "offset=-1", "gzip")
    for accepted, tag, status in [
        ("gzip", coded.headers["etag"], 304),
        ("gzip", plain.headers["etag"], 304),
        ("gzip, zstd", coded.headers["etag"], 200),
        ("identity", plain.headers["etag"], 304),
        ("identity", coded.headers["etag"], 200),
    ]:
        answer = await get(world, "offset=-1", accepted, f"If-None-Match: {tag}\r\n")
        assert answer.status == status, (accepted, tag)
        if status == 304:
            assert answer.headers["etag"] == tag
            assert "content-encoding" not in answer.headers


async def test_head_tells_what_get_would(world: Cluster) -> None:
    coded = await get(world, "offset=-1", "zstd")
    head = await get(world, "offset=-1", "zstd", method="HEAD")
    different = {"date", "x-request-id", "transfer-encoding"}
    assert {name: value for name, value in head.headers.items() if name not in different} == {
        name: value for name, value in coded.headers.items() if name not in different
    }


async def test_closed_chunks_of_the_log_are_coded_and_its_end_is_not(world: Cluster) -> None:
    world.worker.chunk_bytes = 20_000
    world.worker.rows = [row(1)]
    shape = world.worker.shape()
    for number in range(5):
        world.worker.commit(shape, 100 + number, *(entry(index, pad=200) for index in range(50)))
    offset, kinds, items = "0_0", [], []
    while True:
        plain = await world.get(f"offset={offset}&handle={shape.handle}")
        coded = await get(world, f"offset={offset}&handle={shape.handle}", "gzip")
        kinds.append(coded.headers.get("content-encoding"))
        assert (decoded(coded.raw, "gzip") if kinds[-1] else coded.raw) == plain.raw
        items += plain.items
        if "electric-up-to-date" in plain.headers:
            break
        offset = plain.headers["electric-offset"]
    assert len(items) == 251
    assert kinds == ["gzip", "gzip", "gzip", None]
    live = await get(world, f"offset=0_0&handle={shape.handle}&live=true", "gzip")
    assert live.items == items[: len(live.items)]


async def test_what_still_grows_is_small_or_not_wanted_goes_as_it_is(world: Cluster) -> None:
    world.worker.complete = False
    stream = await world.open("/v1/shape?table=items&offset=-1", headers="Accept-Encoding: gzip\r\n")
    _, headers = await stream.head()
    assert "content-encoding" not in headers
    assert (await stream.chunk()) == b"["
    stream.close()
    world.worker.complete = True
    world.worker.rows = [row(1, pad=LEAST // 2)]
    assert "content-encoding" not in (await get(world, "offset=-1&where=true", "gzip")).headers
    async with cluster(compression=False) as other:
        other.worker.rows = [row(number, pad=100) for number in range(1000)]
        assert "content-encoding" not in (await get(other, "offset=-1", "gzip")).headers


async def test_a_chunk_of_a_shape_that_ends_meanwhile_is_refetched(world: Cluster) -> None:
    shape = world.worker.shape()
    assert (await get(world, "offset=-1", "gzip")).status == 200
    world.worker.end(shape)
    again = await get(world, f"offset=-1&handle={shape.handle}", "gzip")
    assert again.status == 200
    assert again.headers["electric-handle"] != shape.handle


async def test_a_stalled_client_holds_its_body_no_longer_than_it_may() -> None:
    async with cluster(tcp_send_timeout=0.5) as world:
        noise = random.Random(7)
        world.worker.rows = [b'{"value":"%s"}' % noise.randbytes(50_000).hex().encode() for _ in range(100)]
        shape = world.worker.shape()
        assert shape.handle
        stream = await world.open("/v1/shape?table=items&offset=-1", headers="Accept-Encoding: zstd\r\n")
        stream.reader._transport.pause_reading()  # type: ignore[attr-defined]
        cache = world.gateway._compression
        assert cache

        def users() -> list[int]:
            return [each.users for each in cache._known.values() if each]

        await until(lambda: users() == [1])
        await until(lambda: users() == [0])
        stream.close()

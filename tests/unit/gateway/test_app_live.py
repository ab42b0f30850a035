"""Long-polls over HTTP: wake, timeout, lost hints, out of bounds, the end of a shape (http-api.md 12.6, 15)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from common.messages import handle_topic
from gateway import log
from tests.unit.gateway.cluster import Cluster, Response, StoredShape, cluster, entry, until

LONG = {"long_poll_timeout_ms": 60_000}
"""A long-poll that does not time out within a test."""


@pytest_asyncio.fixture
async def world() -> AsyncIterator[Cluster]:
    """Long-polls that time out soon."""
    async with cluster() as running:
        yield running


@pytest_asyncio.fixture
async def patient() -> AsyncIterator[Cluster]:
    """Long-polls that do not time out within a test."""
    async with cluster(**LONG) as running:
        yield running


async def waiting(
    world: Cluster, shape: StoredShape, offset: str, count: int = 1, live: str = "&live=true"
) -> asyncio.Future[list[Response]]:
    """Ask so many times and return once all wait."""
    before = world.gateway._live.waiting
    tasks = [world.get(f"offset={offset}&handle={shape.handle}{live}") for _ in range(count)]
    future = asyncio.gather(*tasks)
    await until(lambda: world.gateway._live.waiting == before + count or future.done())
    return future


def seen_lsn(response: Response) -> str:
    lsn: str = response.items[-1]["headers"]["global_last_seen_lsn"]
    return lsn


async def test_a_change_wakes_a_long_poll(patient: Cluster) -> None:
    shape = patient.worker.shape()
    polls = await waiting(patient, shape, "0_inf", count=3)
    patient.worker.apply(6_000, shape.partition)
    patient.worker.commit(shape, 5_000, entry(0), entry(2))
    for response in await polls:
        assert response.status == 200
        assert [item["headers"].get("op_position") for item in response.items] == [0, 2, None]
        # Live answers speak of the shape alone, or an SSE client could not resume from there.
        assert seen_lsn(response) == "5000"
        assert response.headers["electric-offset"] == "5000_2"
        assert response.headers["electric-up-to-date"] == ""
        assert response.headers["electric-has-data"] == "true"
        assert response.headers["etag"] == f'"{shape.handle}:0_inf:5000_2"'
        assert response.headers["cache-control"] == "public, max-age=5, stale-while-revalidate=5"
        assert int(response.headers["electric-cursor"]) > 0
        assert "electric-schema" not in response.headers
        assert response.headers["transfer-encoding"] == "chunked"


async def test_what_is_there_already_is_returned_at_once(patient: Cluster) -> None:
    shape = patient.worker.shape()
    shape.commit(5_000, entry(0))
    answer = await patient.get(f"offset=0_0&handle={shape.handle}&live=true&cursor=9999999999")
    assert answer.headers["electric-offset"] == "5000_0"
    assert int(answer.headers["electric-cursor"]) > 9_999_999_999
    assert seen_lsn(answer) == "5000"


async def test_a_large_change_is_streamed_to_each(patient: Cluster) -> None:
    shape = patient.worker.shape()
    polls = await waiting(patient, shape, "0_inf", count=2)
    patient.worker.commit(shape, 7, *[entry(2 * number, pad=9_000) for number in range(60)])
    for response in await polls:
        assert response.clean
        assert len(response.raw) > log.SLICE
        assert len(response.items) == 61


async def test_a_long_poll_times_out_without_news(world: Cluster) -> None:
    shape = world.worker.shape()
    first = await waiting(world, shape, "0_0")
    world.worker.apply(4_000, shape.partition)
    (response,) = await first
    assert response.status == 200
    assert len(response.items) == 1
    assert seen_lsn(response) == "4000"
    assert response.headers["electric-offset"] == "0_inf"
    assert response.headers["electric-up-to-date"] == ""
    assert response.headers["electric-has-data"] == "false"
    assert "content-length" in response.headers
    assert "electric-schema" not in response.headers
    assert response.headers["electric-cursor"] == "0"
    stem = f'"{shape.handle}:0_0:0_inf:'
    assert response.headers["etag"].startswith(stem)
    (again,) = await (await waiting(world, shape, "0_0"))
    assert again.headers["etag"].startswith(stem)
    assert again.headers["etag"] != response.headers["etag"]


async def test_a_live_head_waits_too(world: Cluster) -> None:
    shape = world.worker.shape()
    answer = await world.get(f"offset=0_inf&handle={shape.handle}&live=true", method="HEAD")
    assert answer.headers["electric-has-data"] == "false"
    assert int(answer.headers["content-length"]) > 0


async def test_a_change_is_found_although_every_hint_is_lost(world: Cluster) -> None:
    world.worker.mute = True
    shape = world.worker.shape()
    polls = await waiting(world, shape, "0_inf")
    shape.commit(9, entry(0))
    (response,) = await polls
    assert response.headers["electric-offset"] == "9_0"
    assert response.headers["electric-has-data"] == "true"


async def test_a_change_between_reading_and_subscribing_is_not_missed(patient: Cluster) -> None:
    shape = patient.worker.shape()
    polls = await waiting(patient, shape, "0_inf")
    patient.worker.commit(shape, 5, entry(0))
    await polls
    # The next round follows at once, as the client does, while commits go on.
    for lsn in range(6, 60):
        poll = asyncio.create_task(patient.get(f"offset={lsn - 1}_0&handle={shape.handle}&live=true"))
        await asyncio.sleep(0)
        patient.worker.commit(shape, lsn, entry(0))
        assert (await poll).headers["electric-offset"] == f"{lsn}_0"


async def test_the_end_of_a_shape_is_a_conflict_without_handle(patient: Cluster) -> None:
    shape = patient.worker.shape()
    polls = await waiting(patient, shape, "0_inf", count=2)
    patient.worker.end(shape)
    for response in await polls:
        assert response.status == 409
        assert response.items == [{"headers": {"control": "must-refetch"}}]
        assert "electric-handle" not in response.headers
        assert "etag" not in response.headers
        assert response.headers["cache-control"] == "public, max-age=1, must-revalidate"


async def test_the_end_of_a_shape_is_found_although_every_hint_is_lost(patient: Cluster) -> None:
    patient.worker.mute = True
    shape = patient.worker.shape()
    polls = await waiting(patient, shape, "0_inf")
    patient.worker.end(shape)
    assert (await polls)[0].status == 409


@pytest.mark.parametrize("live", ["", "&live=true"])
async def test_an_offset_beyond_the_log_is_refused_after_a_while(world: Cluster, live: str) -> None:
    shape = world.worker.shape()
    shape.commit(9, entry(0))
    loop = asyncio.get_running_loop()
    before = loop.time()
    answer = await world.get(f"offset=9999999999_0&handle={shape.handle}{live}")
    assert loop.time() - before >= world.settings.long_poll_timeout_ms / 2_000
    assert answer.status == 400
    assert answer.raw == b'{"message":"Invalid request","errors":{"offset":["out of bounds for this shape"]}}'
    assert answer.headers["cache-control"] == "no-store"
    assert "electric-handle" not in answer.headers


async def test_a_client_ahead_of_a_log_that_is_replayed_gets_on(patient: Cluster) -> None:
    shape = patient.worker.shape()
    catch_up = await waiting(patient, shape, "50_2", live="")
    live = await waiting(patient, shape, "50_2")
    patient.worker.commit(shape, 40, entry(0))
    patient.worker.commit(shape, 50, entry(0), entry(2))
    (response,) = await catch_up
    assert response.headers["electric-offset"] == "50_2"
    assert len(response.items) == 1
    await asyncio.sleep(0.1)
    assert not live.done()
    patient.worker.commit(shape, 60, entry(0))
    assert (await live)[0].headers["electric-offset"] == "60_0"


async def test_known_shapes_live_on_while_ingester_and_worker_are_away(patient: Cluster) -> None:
    shape = patient.worker.shape()
    assert (await patient.get("offset=-1")).status == 200
    patient.silent = True
    patient.worker.close()
    await patient.until_health(202)
    assert (await patient.get("offset=-1")).status == 200
    polls = await waiting(patient, shape, "0_inf")
    shape.commit(9, entry(0))
    assert (await polls)[0].headers["electric-offset"] == "9_0"


async def test_hints_follow_a_partition_to_its_new_worker(patient: Cluster) -> None:
    shape = patient.worker.shape()
    topic = handle_topic(shape.handle)
    polls = await waiting(patient, shape, "0_inf")
    await until(lambda: topic in patient.worker.subscribed)
    other = patient.add_worker("w1")
    patient.owners = dict.fromkeys(patient.owners, "w1")
    await until(lambda: topic in other.subscribed and topic not in patient.worker.subscribed)
    other.shapes[shape.request] = shape
    other.commit(shape, 9, entry(0))
    assert (await polls)[0].headers["electric-offset"] == "9_0"


async def test_a_worker_that_comes_back_elsewhere_is_subscribed_again(patient: Cluster) -> None:
    shape = patient.worker.shape()
    polls = await waiting(patient, shape, "0_inf")
    await until(lambda: handle_topic(shape.handle) in patient.worker.subscribed)
    patient.worker.close()
    patient.workers.clear()
    run_dir = patient.run_dir / "moved"
    run_dir.mkdir()
    patient.run_dir = run_dir
    await patient.worker.gone()
    reborn = patient.add_worker("w0")
    reborn.shapes[shape.request] = shape
    await until(lambda: handle_topic(shape.handle) in reborn.subscribed)
    reborn.commit(shape, 9, entry(0))
    assert (await polls)[0].headers["electric-offset"] == "9_0"


async def test_a_client_that_hangs_up_is_forgotten(patient: Cluster) -> None:
    shape = patient.worker.shape()
    stream = await patient.open(f"/v1/shape?table=items&offset=0_inf&handle={shape.handle}&live=true")
    await until(lambda: patient.gateway._live.waiting == 1)
    stream.close()
    await until(lambda: patient.gateway._live.waiting == 0)


async def test_a_gateway_that_stops_answers_those_who_wait() -> None:
    async with cluster(**LONG) as world:
        shape = world.worker.shape()
        polls = await waiting(world, shape, "0_inf", count=3)
        await world.gateway.stop()
        for response in await polls:
            assert response.status == 200
            assert response.headers["electric-has-data"] == "false"
            assert response.headers["connection"] == "close"
        with pytest.raises(OSError, match="Connect"):
            await world.open("/")

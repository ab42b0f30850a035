"""Budgets for requests in flight: the counters under a virtual clock, and what clients of a gateway see."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.shape import ShapeRequest
from gateway.admission import RECENT, Admission, Ticket, short_of_files
from tests.unit.gateway.cluster import Cluster, cluster, until


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def admission(initial: int, existing: int, clock: Clock | None = None) -> Admission:
    return Admission({"initial": initial, "existing": existing}, clock or Clock(), lambda low, high: high)


def test_each_budget_has_its_own_limit() -> None:
    counters = admission(1, 2)
    assert counters.admit("initial")
    assert counters.admit("initial") is None
    assert counters.admit("existing")
    assert counters.admit("existing")
    assert counters.admit("existing") is None


def test_a_request_gives_back_what_it_has_taken() -> None:
    counters = admission(1, 1)
    for _ in range(3):
        ticket = counters.admit("initial")
        assert ticket
        with pytest.raises(ConnectionError), ticket:
            raise ConnectionError
    assert counters.in_flight("initial") == 0


def test_once_its_shape_is_found_a_request_counts_as_existing() -> None:
    counters = admission(1, 1)
    ticket = counters.admit("initial")
    assert ticket
    with ticket:
        ticket.found()
        ticket.found()
        assert (counters.in_flight("initial"), counters.in_flight("existing")) == (0, 1)
        assert counters.admit("existing") is None
        second = counters.admit("initial")
        assert second
        with second:
            second.found()
            assert (counters.in_flight("initial"), counters.in_flight("existing")) == (1, 1)
    assert (counters.in_flight("initial"), counters.in_flight("existing")) == (0, 0)


@given(st.lists(st.tuples(st.sampled_from(["initial", "existing", "found", "end"]), st.integers(0, 20))))
def test_the_limits_hold_and_nothing_leaks(steps: list[tuple[str, int]]) -> None:
    counters = admission(2, 3)
    tickets: list[Ticket] = []
    for step, number in steps:
        if step in ("initial", "existing"):
            ticket = counters.admit("initial" if step == "initial" else "existing")
            if ticket is not None:
                tickets.append(ticket.__enter__())
        elif step == "found" and tickets:
            tickets[number % len(tickets)].found()
        elif step == "end" and tickets:
            tickets.pop(number % len(tickets)).__exit__(None, None, None)
        assert counters.in_flight("initial") <= 2
        assert counters.in_flight("existing") <= 3
        assert counters.in_flight("initial") + counters.in_flight("existing") == len(tickets)


def test_a_refusal_is_told_for_a_while_with_the_setting_and_the_counts() -> None:
    clock = Clock()
    counters = admission(1, 9, clock)
    assert counters.obstacles() == []
    ticket = counters.admit("initial")
    assert ticket
    with ticket:
        assert counters.admit("initial") is None
        [obstacle] = counters.obstacles()
        assert obstacle.text == (
            "ELECTRIC_MAX_CONCURRENT_REQUESTS refuses initial requests: 1 of 1 initial in flight, 1 refused so far; "
            "0 of 9 existing in flight, 0 refused so far"
        )
        assert not obstacle.delays
    clock.now += RECENT
    assert counters.obstacles() == []


def test_more_clients_than_files_are_told_with_the_command_that_helps() -> None:
    limits = {"initial": 300, "existing": 10_000}
    assert short_of_files(limits, 10_500) == ""
    assert short_of_files(limits, 1024) == (
        "ELECTRIC_MAX_CONCURRENT_REQUESTS allows 10300 requests, but the process may open 1024 files: ulimit -n 10500"
    )


def test_the_refusal_as_clients_get_it() -> None:
    answer = admission(1, 7).refusal("existing", "read")
    assert (answer.status, answer.fields) == (
        503,
        {
            "cache-control": "no-store",
            "surrogate-control": "no-store",
            "content-type": "application/json; charset=utf-8",
            "electric-internal-known-error": "true",
            "retry-after": "10",
        },
    )
    assert answer.body == (
        b'{"code":"concurrent_request_limit_exceeded",'
        b'"message":"Concurrent existing request limit exceeded (limit: 7), please retry"}'
    )
    posted = admission(1, 7).refusal("initial", "write")
    assert posted.fields["cache-control"] == "no-cache"
    assert posted.fields["surrogate-control"] == "no-store"


# --------------------------------------------------------------------------------------------------------------------


@pytest.fixture
async def crowded() -> AsyncIterator[Cluster]:
    limits = {"initial": 1, "existing": 1}
    async with cluster(max_concurrent_requests=limits, long_poll_timeout_ms=60_000, secret="s3", insecure=False) as it:
        yield it


async def test_waiting_clients_and_new_ones_do_not_keep_each_other_out(crowded: Cluster) -> None:
    shape = crowded.worker.shape()
    waiting = await crowded.open(f"/v1/shape?table=items&offset=0_inf&handle={shape.handle}&live=true&secret=s3")
    await until(lambda: crowded.gateway._live.waiting == 1)

    refused = await crowded.get(f"offset=0_inf&handle={shape.handle}&live=true&secret=s3")
    assert refused.status == 503
    assert refused.headers["retry-after"] in ("6", "7", "8", "9", "10")
    assert json.loads(refused.raw) == {
        "code": "concurrent_request_limit_exceeded",
        "message": "Concurrent existing request limit exceeded (limit: 1), please retry",
    }
    posted = await crowded.ask(f"/v1/shape?table=items&offset=0_inf&handle={shape.handle}&secret=s3", "POST")
    assert (posted.status, posted.items["code"]) == (503, "concurrent_request_limit_exceeded")
    assert (posted.headers["cache-control"], posted.headers["surrogate-control"]) == ("no-cache", "no-store")
    # The offset plays no part: whoever names a living handle follows a shape.
    assert (await crowded.get(f"offset=-1&handle={shape.handle}&secret=s3")).status == 503
    assert (await crowded.get("offset=-1&secret=s3")).status == 200
    # A dead or foreign handle is none; this one is answered, not refused.
    assert (await crowded.get("offset=0_0&handle=7-7&secret=s3")).status == 409
    assert (await crowded.get("offset=0_0&handle=../../../x&secret=s3")).status == 409

    health = await crowded.ask("/v1/health")
    assert health.status == 200
    assert "ELECTRIC_MAX_CONCURRENT_REQUESTS refuses existing requests" in health.items["reason"]
    # What comes before admission is not refused by it.
    assert (await crowded.get(f"offset=-1&handle={shape.handle}")).status == 401
    assert (await crowded.ask(f"/v1/shape?handle={shape.handle}&secret=s3", "OPTIONS")).status == 204
    assert (await crowded.ask("/")).status == 200

    waiting.close()
    await until(lambda: crowded.gateway._admission.in_flight("existing") == 0)
    assert (await crowded.get(f"offset=0_0&handle={shape.handle}&secret=s3")).status == 200


async def test_a_new_shape_takes_the_initial_budget_until_its_snapshot_has_started(crowded: Cluster) -> None:
    crowded.worker.silent = True
    first = asyncio.create_task(crowded.get("offset=-1&secret=s3"))
    await until(lambda: bool(crowded.worker.asked))
    other = await crowded.get("offset=-1&where=true&secret=s3")
    assert other.status == 503
    assert b"Concurrent initial request limit exceeded (limit: 1)" in other.raw
    posted = await crowded.ask("/v1/shape?table=items&offset=-1&secret=s3", "POST")
    assert (posted.status, posted.headers["cache-control"]) == (503, "no-cache")
    head = await crowded.ask("/v1/shape?table=items&offset=-1&secret=s3", "HEAD")
    assert head.status == 503
    # Nothing was made of what was refused.
    assert len(crowded.worker.asked) == 1
    first.cancel()
    await until(lambda: crowded.gateway._admission.in_flight("initial") == 0)


async def test_a_snapshot_that_is_being_sent_leaves_the_initial_budget_to_others(crowded: Cluster) -> None:
    crowded.worker.complete = False
    growing = await crowded.open("/v1/shape?table=items&offset=-1&secret=s3")
    await growing.head()
    assert crowded.gateway._admission.in_flight("existing") == 1
    second = await crowded.open("/v1/shape?table=items&offset=-1&secret=s3")
    # There is no room to move to, so it keeps its place, and the next one is refused.
    await second.head()
    assert crowded.gateway._admission.in_flight("initial") == 1
    assert (await crowded.get("offset=-1&secret=s3")).status == 503
    crowded.worker.shapes[ShapeRequest(schema="public", table="items")].snapshot.finish(b'{"headers":{}}')
    assert await growing.ends_cleanly()
    assert await second.ends_cleanly()
    await until(lambda: crowded.gateway._admission.in_flight("existing") == 0)
    assert crowded.gateway._admission.in_flight("initial") == 0
    growing.close()
    second.close()


async def test_a_gateway_that_has_just_started_knows_who_follows_a_shape() -> None:
    async with cluster(max_concurrent_requests={"initial": 1, "existing": 5}, long_poll_timeout_ms=60_000) as world:
        shape = world.worker.shape()
        target = f"/v1/shape?table=items&offset=0_inf&handle={shape.handle}&live=true"
        streams = [await world.open(target) for _ in range(5)]
        await until(lambda: world.gateway._live.waiting == 5)
        assert world.gateway._admission.in_flight("existing") == 5
        # Whatever has happened to the ingester since.
        world.gateway._service.status = None
        assert world.gateway._shapes.exists(shape.handle)
        for stream in streams:
            stream.close()

"""``/v1/explain``, and one shape for all spellings of a clause, whose errors still speak of the text that was sent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from common.messages import Ensure, Explain, Explanation, Refusal, Reply
from common.shape import ShapeRequest
from gateway import shapes
from tests.unit.gateway.cluster import Cluster, cluster, refuse, until


@pytest_asyncio.fixture
async def world() -> AsyncIterator[Cluster]:
    async with cluster() as running:
        yield running


async def test_a_worker_explains_the_clause_as_it_was_sent(world: Cluster) -> None:
    answer = await world.ask("/v1/explain?table=items&where=ID=$2&params[1]=x&params[2]=y&columns=id")
    assert (answer.status, answer.raw) == (200, b'{"cost":"constant"}')
    assert answer.headers["content-type"] == "application/json; charset=utf-8"
    assert answer.headers["cache-control"] == "no-store"
    (asked,) = world.worker.asked
    assert isinstance(asked, Explain)
    assert asked.request == ShapeRequest(
        schema="public", table="items", columns=("id",), where="ID=$2", params=("x", "y")
    )
    head = await world.ask("/v1/explain?table=items", "HEAD")
    assert (head.status, head.headers["content-length"]) == (200, "19")


async def test_what_cannot_be_explained_is_refused_as_for_a_shape(world: Cluster) -> None:
    for query in ("", "table=.x", "table=items&where=x&params[2]=1"):
        explained = await world.ask(f"/v1/explain?{query}")
        asked = await world.ask(f"/v1/shape?offset=-1&{query}")
        assert (explained.status, explained.raw) == (asked.status, asked.raw)
        assert explained.status == 400
    assert world.worker.asked == []
    world.worker.refusal = refuse(400, b'{"message":"Invalid request","errors":{"where":["no"]}}')
    assert (await world.ask("/v1/explain?table=items&where=x")).items["errors"] == {"where": ["no"]}
    assert (await world.ask("/v1/explain?table=items", "POST")).status == 404
    assert (await world.ask("/v1/explain?table=%ff")).status == 400


async def test_an_explanation_needs_the_secret() -> None:
    async with cluster(secret="s3cret", insecure=False) as world:
        for path in ("/v1/explain", "/v1//explain", "//v1/%65xplain"):
            denied = await world.ask(f"{path}?table=items")
            assert (denied.status, denied.items) == (401, {"message": "Unauthorized - Invalid API secret"})
            assert "access-control-allow-origin" not in denied.headers
            assert (await world.ask(f"{path}?table=items&secret=s3cret")).status == 200


async def test_explanations_take_turns_with_requests_for_new_shapes() -> None:
    async with cluster(max_concurrent_requests={"initial": 1, "existing": 1}) as world:
        shape = world.worker.shape()
        world.worker.silent = True
        waits = await world.open("/v1/explain?table=items")
        await until(lambda: bool(world.worker.asked))
        world.worker.silent = False
        for query in ("/v1/explain?table=items", "/v1/shape?table=items&offset=-1"):
            refused = await world.ask(query)
            assert refused.status == 503
            assert refused.items["message"] == "Concurrent initial request limit exceeded (limit: 1), please retry"
            assert 6 <= int(refused.headers["retry-after"]) <= 10
        assert (await world.get(f"offset=0_inf&handle={shape.handle}")).status == 200
        waits.close()
        await until(lambda: world.gateway._admission.in_flight("initial") == 0)
        assert (await world.ask("/v1/explain?table=items")).status == 200


async def test_any_worker_that_is_there_is_asked(world: Cluster) -> None:
    """Also one without partitions, and without an ingester."""
    world.add_worker("w1")
    world.state = "starting"
    world.owners = {}
    await world.until_health(202)
    for _ in range(40):
        assert (await world.ask("/v1/explain?table=items")).status == 200
    assert all(worker.asked for worker in world.workers), "no worker has all the work"


async def test_a_worker_that_goes_away_loses_no_question(world: Cluster) -> None:
    world.add_worker("w1")
    await world.until_health(200)
    world.worker.silent = True
    asked = [asyncio.create_task(world.ask("/v1/explain?table=items")) for _ in range(12)]
    await until(lambda: bool(world.worker.asked))
    world.worker.close()
    world.workers.remove(world.worker)
    assert {(await answer).status for answer in asked} == {200}


async def test_nobody_to_ask_is_told(world: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shapes, "READY_TIMEOUT", 0.2)
    monkeypatch.setattr(shapes, "EXPLAIN_TIMEOUT", 0.2)
    world.worker.silent = True
    silent = await world.ask("/v1/explain?table=items")
    assert (silent.status, silent.headers["retry-after"]) == (503, "5")
    assert silent.items == {"message": "Worker w0 did not explain the clause within 0 s"}
    world.workers, workers = [], world.workers
    world.state = "starting"
    world.reason = "no workers"
    await world.until_health(202)
    alone = await world.ask("/v1/explain?table=items")
    assert (alone.status, alone.headers["retry-after"]) == (503, "5")
    assert alone.items["message"].endswith(": no workers")
    world.workers = workers


async def test_spellings_of_a_clause_have_one_shape(world: Cluster) -> None:
    spellings = [
        "id%3C5",
        "id%20%20%3C%20%205",
        "ID/*five*/%3C5",
        "id%3C$1&params[1]=5",
        "ID%3C$2&params[1]=x&params[2]=5",
    ]
    first, *others = [await world.get(f"offset=-1&where={where}") for where in spellings]
    handles = [answer.headers["electric-handle"] for answer in (first, *others)]
    assert handles[0] == handles[1] == handles[2] != handles[3] == handles[4]
    assert len([request for request in world.worker.asked if isinstance(request, Ensure)]) == 2
    resumed = await world.get(f"offset=0_inf&where=id%09%3C5&handle={handles[0]}")
    assert resumed.status == 200
    assert (await world.ask("/v1/shape?table=items&where=ID%3C5", "DELETE")).status == 202
    assert (await world.get(f"offset=0_inf&where=id%3C5&handle={handles[0]}")).status == 409


async def test_errors_speak_of_the_text_that_was_sent(world: Cluster) -> None:
    def explain(asked: Explain) -> Reply:
        return Refusal(id=asked.id, status=400, body=f'{{"in":"{asked.request.where}"}}'.encode())

    world.worker.refusal = refuse(400, b'{"in":"the normal form"}')
    world.worker.explain = explain
    assert (await world.get("offset=-1&where=ID%3Cx")).items == {"in": "ID<x"}
    assert (await world.get("offset=-1&where=Id%20%3C%20x")).items == {"in": "Id < x"}
    before = len(world.worker.asked)
    assert (await world.get("offset=-1&where=id%20%3C%20x")).items == {"in": "the normal form"}
    assert len(world.worker.asked) == before + 1, "it was sent in the normal form: nothing else is to be asked"
    assert not world.worker.shapes


async def test_what_only_its_rows_refuse_is_told_although_the_clause_can_be_explained(world: Cluster) -> None:
    world.worker.refusal = refuse(400, b'{"errors":{"where":["The where clause fails for a row"]}}')
    world.worker.explain = lambda asked: Explanation(asked.id, b"{}")
    answer = await world.get("offset=-1&where=1/N%3E1")
    assert (answer.status, answer.items["errors"]["where"]) == (400, ["The where clause fails for a row"])
    world.worker.refusal = refuse(503, b'{"message":"later"}', 1)
    world.worker.asked.clear()
    assert (await world.get("offset=-1&where=1/N%3E1")).status == 503
    assert {type(request) for request in world.worker.asked} == {Ensure}

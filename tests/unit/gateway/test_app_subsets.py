"""Subsets over HTTP, with workers that say what the test wants: files, losses, clients that go away."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

from common.messages import Check, Drop, Ensure, Missing, Reply, Rows, Subset
from common.subset import SubsetRequest
from tests.unit.gateway.cluster import Cluster, cluster, entry, not_owner, refuse, until

QUERY = "offset=-1&subset__where=n%3D1"


@pytest_asyncio.fixture
async def world() -> AsyncIterator[Cluster]:
    async with cluster() as running:
        yield running


def asked(world: Cluster, kind: type) -> list[object]:
    return [request for request in world.worker.asked if isinstance(request, kind)]


class Spooled:
    """A worker's file with the answer, which it removes when it is told to."""

    def __init__(self, world: Cluster, body: bytes) -> None:
        self.path = Path(world.settings.storage_dir) / "subsets" / "w" / "x.json"
        self.path.parent.mkdir(parents=True)
        self.path.write_bytes(body)
        self._size = len(body)

    def reply(self, id: int) -> Reply:
        return Rows(id=id, size=self._size, file="subsets/w/x.json")


async def test_a_subset_of_a_new_shape_is_checked_before_the_shape_is_made(world: Cluster) -> None:
    answer = await world.get(QUERY)
    assert (answer.status, answer.raw, answer.clean) == (200, b"{}", True)
    await until(lambda: len(world.worker.asked) == 4)
    assert [type(request) for request in world.worker.asked] == [Check, Ensure, Subset, Drop]
    shape = world.worker.shape()
    assert {name: value for name, value in answer.headers.items() if name not in ("date", "x-request-id")} == {
        "transfer-encoding": "chunked",
        "vary": "accept-encoding",
        "cache-control": "no-cache",
        "electric-server": "ElectricSQL/1.7.12",
        "access-control-allow-origin": "*",
        "access-control-expose-headers": "electric-cursor,electric-handle,electric-has-data,electric-offset,"
        "electric-schema,electric-up-to-date,electric-internal-known-error,retry-after",
        "access-control-allow-methods": "GET, POST, HEAD, DELETE, OPTIONS",
        "content-type": "application/json; charset=utf-8",
        "electric-snapshot": "true",
        "electric-handle": shape.handle,
        "electric-schema": '{"id":{"type":"int4","not_null":true,"pk_index":0},"pr\\u00e9nom":{"type":"text"}}',
        "electric-offset": "0_0",
    }
    await world.get(QUERY)
    await until(lambda: len(world.worker.asked) == 6)
    assert [type(request) for request in world.worker.asked[4:]] == [Subset, Drop], "it is known now"


async def test_what_the_check_finds_is_told_and_nothing_is_made(world: Cluster) -> None:
    world.worker.refusal = refuse(400, b'{"message":"Invalid request"}')
    assert (await world.get(QUERY)).status == 400
    assert asked(world, Ensure) == []


async def test_queryable_columns_are_checked_once_for_a_shape(world: Cluster) -> None:
    query = "offset=-1&columns=id&queryable_columns=id,n"
    for _ in range(3):
        assert (await world.get(query)).status == 200
    assert [request.subset for request in asked(world, Check)] == [SubsetRequest(queryable=("id", "n"))]  # type: ignore[attr-defined]
    assert (await world.get(query + "&subset__order_by=n")).status == 200
    (subset,) = asked(world, Subset)
    assert subset.subset == SubsetRequest(order_by="n", queryable=("id", "n"))  # type: ignore[attr-defined]


async def test_the_offset_is_the_one_that_the_client_has(world: Cluster) -> None:
    await world.get("offset=-1")
    shape = world.worker.shape()
    world.worker.commit(shape, 700, entry(1))
    for offset in ("0_0", "0_inf", "650_0", "700_0", "900_4"):
        answer = await world.get(f"offset={offset}&handle={shape.handle}&subset__where=x")
        assert answer.headers["electric-offset"] == offset
    assert (await world.get("offset=now&subset__where=x")).headers["electric-offset"] == "700_0"
    conflict = await world.get("offset=650_0&handle=1-1&subset__where=x")
    assert conflict.status == 409
    assert conflict.headers["electric-handle"] == shape.handle


async def test_a_post_is_as_a_get_that_nobody_may_keep(world: Cluster) -> None:
    async def post(query: str, body: bytes, headers: str = "") -> tuple[int, dict[str, str], bytes]:
        stream = await world.open(f"/v1/shape?table=items&{query}", "POST", f"Content-Length: {len(body)}\r\n{headers}")
        stream.writer.write(body)
        answer = await stream.response()
        stream.close()
        return answer.status, answer.headers, answer.raw

    status, headers, raw = await post("offset=-1", b"")
    assert (status, headers["cache-control"]) == (200, "no-cache")
    assert headers["electric-offset"] == "0_0"
    status, headers, raw = await post("offset=-1", b'{"where":"n = 1","limit":1,"order_by":"n"}')
    assert (status, raw, headers["cache-control"]) == (200, b"{}", "no-cache")
    (subset,) = asked(world, Subset)
    assert subset.subset == SubsetRequest(where="n = 1", limit=1, order_by="n")  # type: ignore[attr-defined]
    status, headers, raw = await post("offset=0_0&handle=1-1", b"{}")
    assert (status, headers["cache-control"]) == (409, "no-cache")
    status, headers, raw = await post("", b"{}")
    assert (status, headers["cache-control"], "surrogate-control" in headers) == (400, "no-cache", False)
    status, headers, raw = await post("offset=-1", b"nope")
    assert (status, headers["cache-control"]) == (400, "max-age=0, private, must-revalidate")


async def test_a_body_that_is_too_large_or_never_ends_is_refused(world: Cluster) -> None:
    stream = await world.open("/v1/shape?table=items&offset=-1", "POST", "Content-Length: 8000001\r\n")
    answer = await stream.response()
    assert (answer.status, answer.raw) == (413, b'{"error":"Request body too large"}')
    assert answer.headers["connection"] == "close"
    stream.close()
    stream = await world.open("/v1/shape?table=items&offset=-1", "POST", "Transfer-Encoding: chunked\r\n")
    for _ in range(9):
        stream.writer.write(b"f4240\r\n" + b" " * 1_000_000 + b"\r\n")
    answer = await stream.response()
    assert answer.status == 413
    stream.close()


async def test_a_client_that_asks_first_is_told_to_go_on(world: Cluster) -> None:
    stream = await world.open(
        "/v1/shape?table=items&offset=-1", "POST", "Content-Length: 12\r\nExpect: 100-continue\r\n"
    )
    assert await stream.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    stream.writer.write(b'{"subset":{}}'[:12])
    stream.close()


async def test_a_large_subset_comes_from_its_file(world: Cluster) -> None:
    body = json.dumps({"data": list(range(60_000))}).encode()
    spooled = Spooled(world, body)
    world.worker.subset = spooled.reply
    answer = await world.get(QUERY)
    assert (answer.status, answer.clean) == (200, True)
    assert answer.raw == body
    await until(lambda: len(asked(world, Drop)) == 1)
    old = await world.get(QUERY, version="1.0")
    assert old.raw == body
    assert old.headers["content-length"] == str(len(body))
    head = await world.get(QUERY, method="HEAD")
    assert (head.status, head.headers["electric-snapshot"]) == (200, "true")
    spooled.path.unlink()
    assert (await world.get(QUERY)).status == 503
    spooled.path.write_bytes(body[:100_000])
    assert not (await world.get(QUERY)).clean, "a part was passed off as the whole"


async def test_a_client_that_goes_away_ends_the_query(world: Cluster) -> None:
    await world.get("offset=-1")
    world.worker.silent = True
    stream = await world.open(f"/v1/shape?table=items&{QUERY}")
    await until(lambda: len(asked(world, Subset)) == 1)
    stream.close()
    await until(lambda: len(asked(world, Drop)) == 1)
    (subset,), (drop,) = asked(world, Subset), asked(world, Drop)
    assert subset.id == drop.id  # type: ignore[attr-defined]


async def test_a_subset_is_asked_for_again_while_its_partition_moves(world: Cluster) -> None:
    await world.get("offset=-1")
    world.worker.subset = not_owner
    asking = asyncio.create_task(world.get(QUERY))
    await until(lambda: len(asked(world, Subset)) > 1)
    world.worker.subset = lambda id: Rows(id=id, size=2, body=b"[]")
    assert (await asking).raw == b"[]"


async def test_a_shape_that_is_gone_is_a_conflict(world: Cluster) -> None:
    await world.get("offset=-1")
    world.worker.subset = Missing
    answer = await world.get(QUERY)
    assert (answer.status, answer.items) == (409, [{"headers": {"control": "must-refetch"}}])
    world.worker.subset = refuse(409, b"")
    await world.get("offset=-1")
    assert (await world.get(QUERY)).status == 409
    world.worker.subset = refuse(503, b'{"message":"busy"}', 7, known=True)
    await world.get("offset=-1")
    busy = await world.get(QUERY)
    assert (busy.status, busy.headers["retry-after"]) == (503, "7")
    assert busy.headers["electric-internal-known-error"] == "true"


async def test_a_body_that_is_no_json_costs_its_sender_nothing_but_the_answer(world: Cluster) -> None:
    body = b"{bad"
    head = f"POST /v1/shape?table=items&offset=-1 HTTP/1.1\r\nHost: h\r\nContent-Length: {len(body)}\r\n\r\n"
    stream = await world.open("/v1/shape?table=items&offset=now")
    stream.writer.write(head.encode() + body + b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
    statuses = [(await stream.response()).status for _ in range(3)]
    stream.close()
    assert statuses == [200, 400, 200]

"""Answers to gateways while partitions come and go and shapes end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple, cast

import orjson
import pytest

from common.messages import (
    Check,
    Delete,
    Done,
    Drop,
    Ensure,
    Explain,
    Explanation,
    Find,
    Missing,
    NotOwner,
    Place,
    Refusal,
    Reply,
    Request,
    Resolve,
    Rows,
    Subset,
    decode_reply,
    encode,
)
from common.shape import ShapeRequest, make_handle, partition_of
from common.shapelog import DamagedLog
from common.subset import SubsetRequest
from common.xid import Snapshot
from shapeworker.endings import ShapeEnded
from shapeworker.holdings import Holdings
from shapeworker.partition import Partition
from shapeworker.requests import CannotCreate, Requests, invalid
from shapeworker.shape import Life, Shape
from tests.unit.shapeworker.test_apply import TABLE

TOTAL = 4
REQUEST = ShapeRequest(schema="public", table="t")
NUMBER = partition_of(REQUEST.hash(), TOTAL)
HANDLE = make_handle(REQUEST.hash(), 1)


class Read(NamedTuple):
    """A subset that was read."""

    size: int
    body: bytes
    file: str


class Desk:
    """Requests over holdings of one partition, with a creation that does as it is told."""

    def __init__(self, root: Path) -> None:
        self.holdings = Holdings()
        self.holdings.total = TOTAL
        self.holdings.partitions[NUMBER] = cast(Partition, None)
        self.fed = True
        self.outcome: Exception | None = None
        self.damage: Exception | None = None
        self.ended: list[str] = []
        self.visible = asyncio.Event()
        self.visible.set()
        self.replies: list[Reply] = []
        self.reading = 0
        self.shape = Shape(
            handle=HANDLE, request=REQUEST, table=TABLE, selected=("id", "v"), partition=NUMBER, storage=root
        )
        self.shape.snapshot = Snapshot(1, 1, frozenset())
        self.requests = Requests(
            self.holdings,
            lambda _: self.fed,
            self.create,
            self.readable,
            self.end,
            self.explain,
            lambda parts: self.replies.append(decode_reply(parts[1])),
            self.check,
            self,
        )

    async def end(self, _: Shape, reason: str) -> None:
        await self.visible.wait()
        self.ended.append(reason)

    async def check(self, _: ShapeRequest, subset: SubsetRequest) -> None:
        if subset.where == "bad":
            raise invalid({"subset": {"where": ["bad"]}})

    @asynccontextmanager
    async def read(self, shape: Shape, subset: SubsetRequest) -> AsyncIterator[Read]:
        """Subsets of two forms; ``slow`` ones never come."""
        assert shape is self.shape
        self.reading += 1
        try:
            if subset.where == "slow":
                await asyncio.Event().wait()
            yield Read(5, b"", "subsets/0/x.json") if subset.where == "large" else Read(2, b"{}", "")
        finally:
            self.reading -= 1

    async def create(self, request: ShapeRequest) -> Shape:
        if self.outcome is not None:
            raise self.outcome
        return self.shape

    async def explain(self, request: ShapeRequest) -> bytes:
        if self.outcome is not None:
            raise self.outcome
        return request.table.encode()

    def readable(self, shape: Shape) -> None:
        if self.damage is not None:
            raise self.damage

    async def ask(self, request: Request) -> Reply:
        self.replies.clear()
        self.requests.message([b"peer", encode(request)])
        async with asyncio.timeout(120):
            while not self.replies:  # noqa: ASYNC110 - the reply comes from a task of its own
                await asyncio.sleep(0)
        return self.replies[0]


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


async def test_a_shape_is_created_once_and_found_then(desk: Desk) -> None:
    assert await desk.ask(Find(1, REQUEST)) == Missing(1)
    created = await desk.ask(Ensure(2, REQUEST))
    assert isinstance(created, Place)
    assert created.handle == HANDLE
    desk.holdings.add(desk.shape)
    desk.outcome = AssertionError("it must not be created again")
    for request in (Ensure(3, REQUEST), Find(3, REQUEST), Resolve(3, HANDLE)):
        assert isinstance(await desk.ask(request), Place)


async def test_what_is_not_held_is_not_answered_for(desk: Desk) -> None:
    desk.holdings.add(desk.shape)
    desk.holdings.leaving.add(NUMBER)
    for request in (Ensure(1, REQUEST), Find(1, REQUEST), Resolve(1, HANDLE), Delete(1, HANDLE)):
        assert await desk.ask(request) == NotOwner(1), "a partition on its way out is not ours to speak of"
    assert desk.ended == []


async def test_nothing_is_created_in_a_partition_that_is_not_fed(desk: Desk) -> None:
    desk.fed = False
    assert await desk.ask(Ensure(1, REQUEST)) == NotOwner(1)
    desk.holdings.add(desk.shape)
    assert isinstance(await desk.ask(Ensure(1, REQUEST)), Place), "what is there is served all the same"


async def test_a_refusal_is_passed_on(desk: Desk) -> None:
    desk.outcome = CannotCreate(503, {"message": "later"}, 7, known=True)
    refusal = await desk.ask(Ensure(1, REQUEST))
    assert refusal == Refusal(id=1, status=503, body=orjson.dumps({"message": "later"}), retry_after=7, known=True)


async def test_with_the_failure_of_a_snapshot_comes_the_shape_that_was_made(desk: Desk) -> None:
    desk.outcome = CannotCreate(503, {"message": "later"})
    desk.outcome.shape = desk.shape
    refusal = await desk.ask(Ensure(1, REQUEST))
    assert isinstance(refusal, Refusal)
    assert refusal.place is not None
    assert (refusal.place.handle, refusal.place.schema) == (desk.shape.handle, desk.shape.schema)


async def test_a_shape_that_ends_on_the_way_is_made_by_the_next_owner_if_its_partition_moves(desk: Desk) -> None:
    desk.outcome = ShapeEnded("its table was truncated")
    refusal = await desk.ask(Ensure(1, REQUEST))
    assert isinstance(refusal, Refusal)
    assert refusal.status == 409

    async def give_away(request: ShapeRequest) -> Shape:
        desk.holdings.leaving.add(NUMBER)
        raise ShapeEnded("its worker gave the partition away before it was complete")

    desk.requests._create = give_away
    assert await desk.ask(Ensure(2, REQUEST)) == NotOwner(2)


async def test_a_log_that_cannot_be_opened_ends_its_shape(desk: Desk) -> None:
    desk.holdings.add(desk.shape)
    desk.shape.life = Life.ACTIVE
    desk.damage = DamagedLog("the header of log.index is torn")
    refusal = await desk.ask(Resolve(1, HANDLE))
    assert isinstance(refusal, Refusal)
    assert refusal.status == 409
    assert len(desk.ended) == 1
    assert "torn" in desk.ended[0]


async def test_a_fault_of_ours_tells_nothing(desk: Desk) -> None:
    desk.outcome = KeyError("a secret of the house")
    refusal = await desk.ask(Ensure(1, REQUEST))
    assert isinstance(refusal, Refusal)
    assert (refusal.status, refusal.body) == (500, b'{"error":"Internal server error"}')


async def test_deleting(desk: Desk) -> None:
    assert await desk.ask(Delete(1, HANDLE)) == Missing(1)
    assert await desk.ask(Delete(1, "bogus")) == Missing(1)
    desk.holdings.add(desk.shape)
    assert await desk.ask(Delete(1, HANDLE)) == Done(1)
    assert desk.ended == ["it was deleted by request"]


async def test_nobody_is_told_of_an_end_before_all_readers_can_see_it(desk: Desk) -> None:
    desk.holdings.add(desk.shape)
    desk.visible.clear()
    asking = asyncio.create_task(desk.ask(Delete(1, HANDLE)))
    await asyncio.sleep(0.01)
    assert not desk.replies
    desk.visible.set()
    assert await asking == Done(1)


async def test_any_worker_explains_whatever_it_owns(desk: Desk) -> None:
    desk.holdings.total = 0
    desk.holdings.partitions.clear()
    desk.fed = False
    assert await desk.ask(Explain(1, REQUEST)) == Explanation(1, b"t")
    desk.outcome = CannotCreate(400, {"message": "no"})
    refusal = await desk.ask(Explain(2, REQUEST))
    assert isinstance(refusal, Refusal)
    assert (refusal.id, refusal.status, refusal.body) == (2, 400, b'{"message":"no"}')


async def test_a_check_makes_nothing(desk: Desk) -> None:
    desk.outcome = AssertionError("it must not be created")
    assert await desk.ask(Check(1, REQUEST, SubsetRequest())) == Done(1)
    refusal = await desk.ask(Check(1, REQUEST, SubsetRequest(where="bad")))
    assert isinstance(refusal, Refusal)
    assert (refusal.status, orjson.loads(refusal.body)["errors"]) == (400, {"subset": {"where": ["bad"]}})


async def test_a_subset_is_read_for_a_shape_that_is_here(desk: Desk) -> None:
    assert await desk.ask(Subset(1, HANDLE, SubsetRequest())) == Missing(1)
    assert await desk.ask(Subset(1, "1-x", SubsetRequest())) == Missing(1)
    desk.holdings.add(desk.shape)
    assert await desk.ask(Subset(1, HANDLE, SubsetRequest())) == Rows(id=1, size=2, body=b"{}")
    desk.holdings.leaving.add(NUMBER)
    assert await desk.ask(Subset(1, HANDLE, SubsetRequest())) == NotOwner(1)


async def test_a_subset_is_kept_until_it_is_dropped(desk: Desk) -> None:
    desk.holdings.add(desk.shape)
    large = SubsetRequest(where="large")
    assert await desk.ask(Subset(1, HANDLE, large)) == Rows(id=1, size=5, file="subsets/0/x.json")
    desk.requests.message([b"another peer", encode(Drop(1))])
    desk.requests.message([b"peer", encode(Drop(2))])
    await asyncio.sleep(0)
    assert desk.reading == 1
    desk.requests.message([b"peer", encode(Drop(1))])
    await _until_none(desk)
    assert await desk.ask(Subset(1, HANDLE, large)) == Rows(id=1, size=5, file="subsets/0/x.json")
    desk.requests.close()
    await _until_none(desk)


async def test_a_subset_that_nobody_waits_for_is_given_up(desk: Desk) -> None:
    desk.holdings.add(desk.shape)
    desk.replies.clear()
    for number in (1, 2):
        desk.requests.message([b"peer", encode(Subset(number, HANDLE, SubsetRequest(where="slow")))])
        if number == 1:
            # The second one is dropped before it has begun.
            await asyncio.sleep(0.01)
            assert desk.reading == 1
        desk.requests.message([b"peer", encode(Drop(number))])
    await _until_none(desk)
    assert desk.replies == []


async def _until_none(desk: Desk) -> None:
    async with asyncio.timeout(120):
        while desk.reading:  # noqa: ASYNC110 - it ends in a task of its own
            await asyncio.sleep(0)

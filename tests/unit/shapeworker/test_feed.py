"""Epochs as a worker goes through them: what each feeds, what overtakes one, what is reported of it (INV-6, INV-38)."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import pytest

from common import frames as m
from common.frames import Answer, Gap
from common.lsn import Offset
from common.messages import Assign, Credit
from common.shape import ShapeRequest
from common.shapelog.writer import LogWriter
from common.table import Table
from shapeworker import feed, ownership
from shapeworker.apply import Applier
from shapeworker.catalog import Complete
from shapeworker.feed import Feed
from shapeworker.filters import Filter, make_filter_aside
from shapeworker.holdings import Holdings
from shapeworker.ownership import Ownership
from shapeworker.partition import open_partition
from shapeworker.shape import Shape
from tests.unit import pgoutput_messages as build
from tests.unit.shapeworker.test_apply import CHUNK, EMPTY, entries, reopen
from tests.unit.shapeworker.test_apply_filters import OID, RELATION, TABLE, TYPES, row

MANY = 20
"""Shapes of a partition: more than are joined at once."""


class Syncs:
    """Stands for the syncer: what is applied, from where on."""

    def __init__(self) -> None:
        self.applied = 0

    def restart(self, position: int) -> None:
        self.applied = position - 1

    def commit(self, lsn: int) -> None:
        self.applied = lsn


class Worker:
    """The parts around a feed, and what it says."""

    def __init__(self, storage: Path) -> None:
        self.storage = storage
        self.holdings = Holdings()
        self.unmarked: Counter[int] = Counter()
        self.syncs = Syncs()
        self.said: list[tuple[Any, ...]] = []
        self.held: list[int] = []
        self.failing = False
        self.applier = Applier(self, self.open_log, self.holdings.fed)
        self.feed = Feed(storage, self.holdings, self.applier, cast(Any, self.syncs), self.unmarked, self)
        self.disk = ThreadPoolExecutor(1)
        nothing = cast(Any, self)
        self.ownership = Ownership(
            storage, self.holdings, self.applier, nothing, nothing, self.disk, self.held.append, lambda *_: None
        )
        self.task = asyncio.create_task(self.ownership.run())
        self.seq = 0

    def assign(self, version: int, *partitions: int) -> None:
        self.ownership.assign(
            Assign(version=version, partitions=partitions, total=2, acknowledged=1, generation=1, system="", boot="b")
        )

    async def hold(self, version: int, *partitions: int) -> None:
        self.assign(version, *partitions)
        await until(lambda: version in self.held)

    def epoch(self, number: int, position: int, *fed: int) -> None:
        """The first frame of an epoch."""
        self.seq = 0
        self.frame(number, m.position_record(position, fed), m.relation_record((), build.relation(RELATION)))

    def frame(self, epoch: int, *parts: bytes) -> None:
        self.feed.frame(m.frame_head(epoch, self.seq) + b"".join(parts))
        self.seq += 1
        self.feed.turn()

    def lines(self, partition: int) -> set[tuple[str, ...]]:
        """The keys in the logs of a partition's shapes: one such list if all have the same."""
        return {tuple(e["value"]["id"] for e in entries(shape)) for shape in self.holdings.of_partition(partition)}

    def take_said(self) -> list[tuple[Any, ...]]:
        said, self.said = self.said, []
        return said

    async def stop(self) -> None:
        self.feed.stop()
        self.task.cancel()
        await asyncio.wait([self.task])
        for partition in self.holdings.partitions.values():
            partition.close()
        for shape in self.holdings:
            if shape.log is not None:
                shape.log.close()
        self.disk.shutdown()

    # ---- Events of the applier

    def open_log(self, shape: Shape) -> None:
        if self.failing:
            raise OSError(28, "No space left on device")
        reopen(shape)

    def written(self, shape: Shape, end: Offset, transactions: int) -> None:
        pass

    def ended(self, shape: Shape, reason: str) -> None:
        raise AssertionError(reason)

    def committed(self, lsn: int) -> None:
        self.syncs.commit(lsn)

    # ---- Endings and the syncer, as far as ownership asks

    async def settled(self) -> None:
        pass

    async def quiet(self, log: object) -> None:
        pass

    # ---- Events of the feed

    def started(self) -> None:
        self.said.append(("started",))

    def answered(self, answer: Answer) -> None:
        raise AssertionError(answer)

    def missed(self, gap: Gap) -> None:
        self.said.append(("missed", gap.table))

    def rewind(self) -> None:
        self.said.append(("rewind", self.feed.epoch, self.feed.broken))

    def credit(self, credit: Credit) -> None:
        self.said.append(("credit", credit.epoch))

    def applied(self, generation: int, lsn: int, partitions: Iterable[int]) -> None:
        self.said.append(("applied", lsn, tuple(sorted(partitions))))

    def turned(self) -> None:
        """What was said is looked at, not what goes out."""


async def until(condition: Any) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - it changes with what threads do
            await asyncio.sleep(0.01)


def begin(lsn: int) -> bytes:
    return m.begin_record(lsn, lsn, 0)


def insert(key: int, index: int = 0) -> bytes:
    return m.record(m.CHANGE, index, build.insert(OID, row(key, 1, "a", "b")))


def commit(lsn: int) -> bytes:
    return m.commit_record(lsn, lsn, 1)


def whole(lsn: int, key: int) -> tuple[bytes, ...]:
    return begin(lsn), insert(key), commit(lsn)


def fill(storage: Path, number: int) -> None:
    """Shapes that hold all rows of the table, each by a clause of its own."""
    partition, _ = open_partition(storage, number, 1)
    for at in range(MANY):
        request = ShapeRequest(schema="public", table="t", where="id > $1", params=(f"-{number * MANY + at}",))
        handle = partition.catalog.create(request, TABLE, tuple(sorted(TYPES)))
        LogWriter.create(partition.shape_directory(handle), CHUNK).close()
        partition.catalog.activate([Complete(handle, EMPTY, 0)])
    partition.close()


@pytest.fixture
async def worker(tmp_path: Path) -> AsyncIterator[Worker]:
    fill(tmp_path, 0)
    fill(tmp_path, 1)
    made = Worker(tmp_path)
    yield made
    await made.stop()


class Gate:
    """Stops the taking of a partition before one of its shapes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, before: int) -> None:
        self._left = before
        self.reached = asyncio.Event()
        self.opened = asyncio.Event()
        monkeypatch.setattr(ownership, "make_filter_aside", self._make)

    async def _make(self, request: ShapeRequest, table: Table) -> Filter | None:
        if not self._left:
            self.reached.set()
            await self.opened.wait()
        self._left -= 1
        return await make_filter_aside(request, table)


async def test_a_partition_that_is_taken_joins_with_the_next_epoch(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it is taken the stream goes on for the others, and none of its shapes can be found."""
    await worker.hold(1, 0)
    worker.epoch(1, 100, 0)
    gate = Gate(monkeypatch, MANY // 2)
    worker.assign(2, 0, 1)
    await gate.reached.wait()
    worker.frame(1, *whole(110, 1))
    assert worker.lines(0) == {("1",)}
    assert not worker.holdings.of_partition(1)
    assert not worker.holdings.may_create(1)
    assert worker.take_said()[-1:] == [("applied", 110, (0,))]
    gate.opened.set()
    await until(lambda: 2 in worker.held)
    worker.frame(1, *whole(120, 2))
    assert len(worker.holdings.of_partition(1)) == MANY
    assert worker.lines(0) == {("1", "2")}
    assert worker.lines(1) == {()}
    assert worker.take_said()[-1:] == [("applied", 120, (0,))]
    # All that its shapes have missed comes again; those of the other partition have it.
    worker.epoch(2, 100, 0, 1)
    for lsn, key in (110, 1), (120, 2), (130, 3):
        worker.frame(2, *whole(lsn, key))
    assert worker.lines(0) == worker.lines(1) == {("1", "2", "3")}
    assert worker.take_said()[-1:] == [("applied", 130, (0, 1))]


async def test_others_get_their_turn_while_a_partition_is_taken(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns: list[int] = []
    seen: list[int] = []

    async def make(request: ShapeRequest, table: Table) -> Filter | None:
        asyncio.get_running_loop().call_soon(turns.append, len(seen))
        seen.append(len(turns))
        return await make_filter_aside(request, table)

    monkeypatch.setattr(ownership, "make_filter_aside", make)
    await worker.hold(1, 0)
    first = ownership.AT_ONCE
    assert seen == [0] * first + [first] * (MANY - first)


async def test_epochs_that_begin_while_a_partition_is_taken_pass_it_by(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    await worker.hold(1, 0)
    gate = Gate(monkeypatch, MANY // 2)
    worker.assign(2, 0, 1)
    await gate.reached.wait()
    worker.epoch(1, 100, 0)
    worker.frame(1, begin(110), insert(1))
    # Overtaken in the middle of a transaction, and again before anything has come.
    worker.epoch(2, 100, 0)
    worker.epoch(3, 100, 0)
    worker.frame(3, begin(110), insert(1))
    gate.opened.set()
    await until(lambda: 2 in worker.held)
    # It is there in the middle of a transaction, and must not get the rest of it.
    worker.frame(3, insert(2, 1), commit(110))
    assert worker.lines(0) == {("1", "2")}
    assert worker.lines(1) == {()}
    worker.epoch(4, 100, 0, 1)
    worker.frame(4, begin(110), insert(1), insert(2, 1), commit(110))
    assert worker.lines(0) == worker.lines(1) == {("1", "2")}
    assert worker.feed.reporting == 4


async def test_an_epoch_that_feeds_what_is_not_held_is_not_reported(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who let go of a partition and takes it again may be fed it by an epoch that was on its way: its reports would
    speak for shapes of which half are there."""
    await worker.hold(1, 0)
    gate = Gate(monkeypatch, MANY // 2)
    worker.assign(2, 0, 1)
    await gate.reached.wait()
    worker.epoch(1, 100, 0, 1)
    worker.frame(1, *whole(110, 1))
    gate.opened.set()
    await until(lambda: 2 in worker.held)
    assert worker.feed.reporting == 0
    assert worker.feed.lost
    assert worker.take_said()[:2] == [("started",), ("rewind", 1, True)]
    assert worker.lines(1) == {()}
    worker.epoch(2, 100, 0, 1)
    worker.frame(2, *whole(110, 1))
    assert not worker.feed.lost
    assert worker.feed.reporting == 2
    assert worker.lines(0) == worker.lines(1) == {("1",)}


async def test_what_is_given_back_gets_nothing_more(worker: Worker) -> None:
    await worker.hold(1, 0, 1)
    worker.epoch(1, 100, 0, 1)
    worker.frame(1, *whole(110, 1))
    former = worker.holdings.of_partition(1)
    await worker.hold(2, 0)
    worker.frame(1, *whole(120, 2))
    assert worker.take_said()[-1:] == [("applied", 120, (0,))]
    assert {tuple(e["value"]["id"] for e in entries(shape)) for shape in former} == {("1",)}
    # Taken again, it waits for an epoch that feeds it.
    await worker.hold(3, 0, 1)
    worker.frame(1, *whole(130, 3))
    assert worker.lines(1) == {("1",)}
    worker.epoch(2, 100, 0, 1)
    for lsn, key in (110, 1), (120, 2), (130, 3):
        worker.frame(2, *whole(lsn, key))
    assert worker.lines(0) == worker.lines(1) == {("1", "2", "3")}


async def test_frames_that_are_missing_are_asked_for_until_they_come(worker: Worker) -> None:
    await worker.hold(1, 0)
    worker.epoch(1, 100, 0)
    worker.seq += 1
    worker.take_said()
    worker.frame(1, *whole(110, 1))
    assert worker.take_said() == [("rewind", 1, True)]
    worker.frame(1, *whole(120, 2))
    assert worker.take_said() == []
    assert worker.feed.lost
    assert worker.lines(0) == {()}
    worker.epoch(2, 100, 0)
    assert not worker.feed.lost


async def test_a_full_disk_ends_the_epoch_and_is_tried_again(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "FULL_DISK_PAUSE", 0.01)
    await worker.hold(1, 0)
    worker.epoch(1, 100, 0)
    worker.failing = True
    worker.frame(1, *whole(110, 1))
    worker.frame(1, *whole(120, 2))
    assert worker.syncs.applied == 99
    worker.feed.beat()
    worker.take_said()
    worker.feed.beat()
    assert not worker.take_said()
    await until(lambda: worker.said.count(("rewind", 1, True)) > 2)
    worker.failing = False
    worker.epoch(2, 100, 0)
    worker.frame(2, *whole(110, 1))
    assert worker.lines(0) == {("1",)}
    worker.take_said()
    await asyncio.sleep(0.05)
    assert not worker.take_said()


async def test_what_cannot_be_told_from_the_living_is_not_said_to_be_readable(worker: Worker) -> None:
    await worker.hold(1, 0, 1)
    worker.unmarked[1] = 1
    worker.epoch(1, 100, 0, 1)
    worker.frame(1, *whole(110, 1))
    assert ("applied", 110, (0,)) in worker.take_said()


async def test_a_worker_that_lets_go_reports_nothing_more(worker: Worker) -> None:
    await worker.hold(1, 0)
    worker.epoch(1, 100, 0)
    worker.frame(1, begin(110), insert(1))
    worker.feed.give_up()
    worker.frame(1, commit(110))
    assert worker.feed.reporting == 0
    assert worker.feed.broken
    assert worker.lines(0) == {()}

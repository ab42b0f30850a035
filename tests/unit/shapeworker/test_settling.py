"""Complete shapes become durable and active by the group; what goes wrong with one concerns no other."""

from __future__ import annotations

import asyncio
import errno
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from common.shape import ShapeRequest
from common.shapelog import LogWriter, SnapshotWriter, read_description
from common.shapelog.files import REAL, RealFiles
from common.shapelog.whole_sync import MANY
from shapeworker.catalog import ACTIVE
from shapeworker.holdings import Holdings
from shapeworker.partition import open_partition
from shapeworker.settling import Settling
from shapeworker.shape import Life, Shape
from tests.unit.shapeworker.test_catalog import SNAPSHOT, TABLE

PARTITIONS = 3


class WatchedFiles(RealFiles):
    """Counts syncs; ``broken`` names files whose sync fails, ``whole`` is what a sync of the file system raises."""

    def __init__(self) -> None:
        self.synced: list[str] = []
        self.of_the_system = 0
        self.on_sync: Callable[[], None] = lambda: None
        self.broken: set[int] = set()
        self.whole: Exception | None = None

    def fdatasync(self, fd: int, /) -> None:  # type: ignore[override]
        self.synced.append("file")
        if fd in self.broken:
            raise OSError(errno.EIO, "Input/output error")
        REAL.fdatasync(fd)

    def sync_file_system(self, path: Path, asker: str, /) -> None:
        self.of_the_system += 1
        self.on_sync()
        if self.whole is not None:
            raise self.whole


class Bench:
    def __init__(self, storage: Path) -> None:
        self.files = WatchedFiles()
        self.holdings = Holdings()
        self.holdings.generation = 4
        for number in range(PARTITIONS):
            self.holdings.partitions[number], _ = open_partition(storage, number, 4)
        self.disk = ThreadPoolExecutor(1)
        self.settling = Settling(storage, self.holdings, self.disk, self.files)
        self._storage = storage

    def shape(self, number: int) -> tuple[Shape, SnapshotWriter]:
        """One whose snapshot is complete."""
        request = ShapeRequest(schema="public", table="t", where=f"id = {number}")
        partition = self.holdings.partitions[number % PARTITIONS]
        shape = Shape(
            handle=partition.catalog.create(request, TABLE, ("id",)),
            request=request,
            table=TABLE,
            selected=("id",),
            partition=number % PARTITIONS,
            storage=self._storage,
        )
        self.holdings.add(shape)
        shape.log = LogWriter.create(shape.directory, 1000, self.files)
        shape.snapshot, shape.filter_until = SNAPSHOT, 7
        sink = SnapshotWriter(shape.directory, 1000, shape.log.header, self.files)
        sink.finish(b'{"headers":{}}')
        return shape, sink

    async def settle(self, shapes: list[tuple[Shape, SnapshotWriter]]) -> list[bool | BaseException]:
        return await asyncio.gather(*(self.settling.settle(*shape) for shape in shapes), return_exceptions=True)

    def entered(self) -> set[str]:
        rows = [row for partition in self.holdings.partitions.values() for row in partition.catalog.rows()]
        return {row.handle for row in rows if row.state == ACTIVE}


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.disk.shutdown()
    for partition in bench.holdings.partitions.values():
        partition.close()


async def test_many_are_synced_by_three_syncs_of_the_file_system(bench: Bench) -> None:
    shapes = [bench.shape(number) for number in range(MANY + 5)]
    assert await bench.settle(shapes) == [True] * len(shapes)
    assert bench.entered() == {shape.handle for shape, _ in shapes}
    assert bench.files.synced == []
    assert bench.files.of_the_system == 2
    for shape, _ in shapes:
        assert shape.log is not None
        assert not shape.log.dirty, "it can be closed"
        description = read_description(shape.directory)
        assert description is not None
        assert (description.request, description.generation) == (shape.request, 4)


async def test_a_description_is_written_when_all_it_promises_is_on_the_disk(bench: Bench) -> None:
    bench.settling.whole.many = 2
    shapes = [bench.shape(number) for number in range(6)]
    described: list[int] = []
    entered: list[int] = []

    def look() -> None:
        described.append(sum(read_description(shape.directory) is not None for shape, _ in shapes))
        entered.append(len(bench.entered()))

    bench.files.on_sync = look
    await bench.settle(shapes)
    assert described == [0, 6]
    assert entered == [0, 0]


async def test_few_are_synced_one_by_one(bench: Bench) -> None:
    assert await bench.settle([bench.shape(0), bench.shape(1)]) == [True, True]
    assert bench.files.of_the_system == 0
    # Header, snapshot and description of each.
    assert bench.files.synced == ["file"] * 6


@pytest.mark.parametrize("reason", [NotImplementedError("old kernel"), OSError(errno.EIO, "Input/output error")])
async def test_where_the_file_system_cannot_tell_each_file_does(bench: Bench, reason: Exception) -> None:
    bench.settling.whole.many = 2
    bench.files.whole = reason
    shapes = [bench.shape(number) for number in range(4)]
    log = shapes[2][0].log
    assert log is not None
    bench.files.broken = {log.header.file.fd}
    outcomes = await bench.settle(shapes)
    assert isinstance(outcomes.pop(2), OSError)
    assert outcomes == [True] * 3
    assert bench.entered() == {shape.handle for shape, _ in shapes} - {shapes[2][0].handle}
    assert read_description(shapes[2][0].directory) is None


async def test_one_that_has_ended_is_left_out(bench: Bench) -> None:
    shapes = [bench.shape(number) for number in range(3)]
    ended = shapes[1][0]
    ended.life = Life.ENDED
    bench.holdings.partitions[ended.partition].catalog.end(ended.handle, "because")
    assert await bench.settle(shapes) == [True, False, True]
    assert ended.handle not in bench.entered()
    assert read_description(ended.directory) is None


@pytest.mark.parametrize("together", [1, 10])
async def test_one_that_ends_meanwhile_hurts_no_other(bench: Bench, together: int) -> None:
    """Its log is closed, as the end of a shape does it, while the thread is at the group."""
    bench.settling.whole.many = together
    shapes = [bench.shape(number) for number in range(4)]
    ended = shapes[2][0]
    settling = [asyncio.create_task(bench.settling.settle(*shape)) for shape in shapes]
    await asyncio.sleep(0)
    settling[2].cancel()
    ended.life = Life.ENDED
    assert ended.log is not None
    ended.log.close()
    ended.log = None
    outcomes = await asyncio.gather(*settling, return_exceptions=True)
    assert isinstance(outcomes.pop(2), asyncio.CancelledError)
    assert outcomes == [True] * 3
    assert ended.handle not in bench.entered()


async def test_a_catalog_that_refuses_concerns_its_partition_only(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> set[str]:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(bench.holdings.partitions[1].catalog, "activate", refuse)
    outcomes = await bench.settle([bench.shape(number) for number in range(6)])
    assert [isinstance(outcome, sqlite3.OperationalError) for outcome in outcomes] == [False, True, False] * 2
    assert [outcome for outcome in outcomes if outcome is True] == [True] * 4


async def test_who_comes_while_a_group_is_at_it_goes_with_the_next(bench: Bench) -> None:
    first = asyncio.create_task(bench.settling.settle(*bench.shape(0)))
    await asyncio.sleep(0)
    assert await bench.settle([bench.shape(1), bench.shape(2)]) == [True, True]
    assert await first
    # And after a while without any.
    await asyncio.sleep(0.2)
    assert await bench.settling.settle(*bench.shape(3))


async def test_a_failure_of_the_file_system_may_be_one_of_shapes_that_come_later(bench: Bench) -> None:
    """It is told once: to the group that was at it, not to the one whose bytes are lost."""
    bench.settling.whole.many = 2
    early, late = [bench.shape(number) for number in (0, 1)], [bench.shape(number) for number in (2, 3)]
    bench.files.whole = OSError(errno.EIO, "Input/output error")
    assert await bench.settle(early) == [True, True]
    bench.files.whole = None
    log = late[0][0].log
    assert log is not None
    bench.files.broken = {log.header.file.fd}
    outcomes = await bench.settle(late)
    assert isinstance(outcomes[0], OSError)
    assert outcomes[1] is True

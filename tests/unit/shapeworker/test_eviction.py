"""Which shapes a worker lets go: unused for longest, and nobody waits on them."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from common.messages import Evict, Survey
from common.shape import ShapeRequest, make_handle
from common.xid import Snapshot
from shapeworker.catalog import Catalog, Complete
from shapeworker.eviction import QUIET, Eviction
from shapeworker.holdings import Holdings
from shapeworker.partition import Partition
from shapeworker.shape import Life, Shape
from tests.unit.shapeworker.test_apply import TABLE

NOW = 1_800_000_000.0
MINUTE = 60.0


class World:
    """A worker with shapes that were made long ago."""

    def __init__(self, root: Path) -> None:
        self.now = NOW
        self.waited: set[str] = set()
        self.holdings = Holdings()
        self.partitions = [Partition(number, root, Catalog(root / f"{number}.sqlite3")) for number in range(2)]
        for partition in self.partitions:
            self.holdings.partitions[partition.number] = partition
        self.eviction = Eviction(self.holdings, self.waited.__contains__, lambda: self.now)
        self.eviction.answer(Survey(0, 0), 1)
        self.now += 2 * QUIET

    def shape(self, name: str, *, used: float = 0, made: float = 100 * MINUTE, partition: int = 0) -> Shape:
        """A shape last used, and made, so many seconds ago."""
        request = ShapeRequest(schema="public", table=name)
        shape = Shape(
            handle=make_handle(request.hash(), round((self.now - made) * 1e6)),
            request=request,
            table=TABLE,
            selected=("id", "v"),
            partition=partition,
            storage=Path("/nowhere"),
        )
        shape.life = Life.ACTIVE
        if used:
            shape.used = self.now - used
        self.holdings.add(shape)
        return shape

    def offered(self, most: int = 100, round: int = 1) -> list[float]:
        """The seconds that a survey is told."""
        return [round_(each) for each in self.eviction.answer(Survey(round, most), 5).idle]

    def ended(self, count: int, round: int = 1) -> list[str]:
        """The tables of the shapes that end."""
        chosen = self.eviction.chosen(Evict(round, count, 9, 3))
        for shape, _ in chosen:
            self.holdings.remove(shape)
        return [shape.request.table for shape, _ in chosen]


def round_(seconds: float) -> float:
    return round(seconds, 3)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_the_longest_unused_come_first(world: World) -> None:
    for name, used in (("b", 200), ("a", 300), ("c", 100)):
        world.shape(name, used=used)
    assert world.offered() == [300, 200, 100]
    assert world.offered(most=2) == [300, 200]
    assert world.offered(most=0) == []
    assert world.ended(1) == []
    world.offered()
    assert world.ended(1) == ["a"]
    assert world.offered(round=2) == [200, 100]


def test_what_was_never_used_counts_from_when_it_was_made(world: World) -> None:
    world.shape("old", made=500)
    world.shape("used", used=400)
    world.shape("new", made=QUIET - 1)
    assert world.offered() == [500, 400]


def test_what_clients_use_or_wait_on_stays(world: World) -> None:
    waited = world.shape("waited", used=900)
    touched = world.shape("touched", used=800)
    world.shape("unused", used=700)
    world.waited.add(waited.handle)
    world.eviction.touch({touched.handle: 0.0, "7-7": 0.0})
    assert world.offered() == [700]
    world.now += QUIET
    world.waited.clear()
    assert world.offered() == [900 + QUIET, 700 + QUIET, QUIET]


def test_uses_that_are_told_together_keep_their_order(world: World) -> None:
    first, second, third = (world.shape(name, used=900) for name in "abc")
    world.eviction.touch({first.handle: 3, second.handle: 4, third.handle: 5})
    # Another gateway knows of earlier uses.
    world.eviction.touch({first.handle: 4.5})
    world.now += QUIET
    assert world.offered() == [QUIET + 5, QUIET + 4, QUIET + 3]


def test_what_is_used_between_the_offer_and_the_end_stays(world: World) -> None:
    shapes = [world.shape(str(number), used=900 - number) for number in range(4)]
    assert len(world.offered()) == 4
    world.eviction.touch({shapes[0].handle: 0.0})
    world.waited.add(shapes[1].handle)
    world.holdings.remove(shapes[2])
    # Fewer end then: whether others are the next to go is for the next round.
    assert world.ended(3) == []
    assert world.offered(round=2) == [897]


def test_an_offer_is_taken_once_and_in_its_round(world: World) -> None:
    for name in "abc":
        world.shape(name, used=100)
    world.offered(round=4)
    assert world.ended(1, round=3) == []
    assert len(world.ended(1, round=4)) == 1
    assert world.ended(1, round=4) == []


def test_shapes_in_the_making_and_of_a_partition_just_taken_stay(world: World) -> None:
    world.shape("creating").life = Life.CREATING
    fresh = Partition(1, world.partitions[1].directory, world.partitions[1].catalog)
    world.holdings.partitions[1] = fresh
    world.shape("taken", used=900, partition=1)
    assert world.offered() == []
    world.now += QUIET
    assert world.offered() == [900 + QUIET]
    assert world.eviction.answer(Survey(2, 10), 5).shapes == 2


def test_the_reason_tells_the_setting(world: World) -> None:
    world.shape("a", used=61)
    world.offered()
    [(_, reason)] = world.eviction.chosen(Evict(1, 1, 9, 3))
    assert reason == "there are 9 shapes, ELECTRIC_MAX_SHAPES is 3, and this one has not been used for 61 s"


def test_last_uses_survive_the_worker(tmp_path: Path) -> None:
    path = tmp_path / "catalog.sqlite3"
    catalog = Catalog(path)
    request = ShapeRequest(schema="public", table="t")
    first, second, third = (
        catalog.create(msgspec.structs.replace(request, table=name), TABLE, ("id",)) for name in "abc"
    )
    catalog.activate(Complete(handle, Snapshot(1, 1, frozenset()), 7) for handle in (first, second, third))
    catalog.remember({first: 100, second: 200, "7-7": 300})
    catalog.remember({first: 150})
    catalog.end(second, "over")
    catalog.forget(second)
    partition = Partition(0, tmp_path, catalog)
    partition.used[third] = 400
    partition.close()
    catalog = Catalog(path)
    assert {row.handle: row.used for row in catalog.rows()} == {first: 150, third: 400}
    catalog.close()

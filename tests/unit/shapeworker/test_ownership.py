"""Taking partitions and letting go of them (INV-27, INV-39)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import pytest

from common.messages import Assign
from common.shape import ShapeRequest
from common.table import Column, Table, TypeFacts
from common.xid import Snapshot
from shapeworker import ownership
from shapeworker.catalog import Complete
from shapeworker.filters import Filter, make_filter_aside
from shapeworker.holdings import Holdings
from shapeworker.ownership import Ownership
from shapeworker.partition import open_partition
from shapeworker.shape import Shape

TABLE = Table(
    5,
    "public",
    "t",
    "r",
    "p",
    (Column("id", 1, 23, "int4", -1, 23, True, 0, "", 0, (TypeFacts("pg_catalog", "int4", "b"),)),),
)


class Nothing:
    """Stands for the parts that deal with shapes, and notes which end."""

    def __init__(self) -> None:
        self.ended: dict[str, str] = {}

    def end(self, shape: Shape, reason: str) -> None:
        """The shape is over."""
        self.ended[shape.request.where or ""] = reason

    def add(self, shape: Shape) -> None:
        """The shape is ours."""

    def remove(self, shape: Shape) -> None:
        """The shape is no longer ours."""

    async def settled(self) -> None:
        """No ending is under way."""


class Owner:
    """A worker's ownership over partitions without shapes."""

    def __init__(self, storage: Path) -> None:
        self.holdings = Holdings()
        self.held: list[int] = []
        self.blocked: list[tuple[tuple[int, ...], str]] = []
        self.disk = ThreadPoolExecutor(1)
        self.endings = Nothing()
        nothing = cast(Any, self.endings)
        self.ownership = Ownership(
            storage,
            self.holdings,
            nothing,
            nothing,
            nothing,
            self.disk,
            self.held.append,
            lambda partitions, reason: self.blocked.append((partitions, reason)),
        )
        self.task = asyncio.create_task(self.ownership.run())

    def assign(self, version: int, *partitions: int) -> None:
        self.ownership.assign(
            Assign(version=version, partitions=partitions, total=4, acknowledged=1, generation=1, system="", boot="b")
        )

    async def until_held(self, version: int) -> None:
        await until(lambda: version in self.held)

    async def stop(self) -> None:
        self.task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self.task
        await self.ownership.release_all()
        self.disk.shutdown()


async def until(condition: Any) -> None:
    async with asyncio.timeout(120):
        while not condition():  # noqa: ASYNC110 - it changes with what threads do
            await asyncio.sleep(0.01)


@pytest.fixture
async def owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Owner]:
    monkeypatch.setattr(ownership, "LOCK_WARNING", 0.1)
    made = Owner(tmp_path)
    yield made
    await made.stop()


async def test_what_is_free_is_taken_at_once_and_the_rest_when_it_is(owner: Owner, tmp_path: Path) -> None:
    other, _ = open_partition(tmp_path, 1, 1)
    owner.assign(1, 0, 1, 2)
    await until(lambda: owner.blocked)
    assert set(owner.holdings.partitions) == {0, 2}
    partitions, reason = owner.blocked[0]
    assert partitions == (1,)
    assert reason == (f"another process still holds them; fuser -v {tmp_path}/partitions/01/catalog.sqlite3 names it")
    assert not owner.held
    other.close()
    await owner.until_held(1)
    assert set(owner.holdings.partitions) == {0, 1, 2}


async def test_filters_are_compiled_again_and_end_their_shapes_if_that_fails(
    owner: Owner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    partition, _ = open_partition(tmp_path, 1, 1)
    for where in ("id > $1", "zz = 1", "breaks", None):
        request = ShapeRequest(schema="public", table="t", where=where, params=("5",) if where else ())
        handle = partition.catalog.create(request, TABLE, ("id",))
        partition.catalog.activate([Complete(handle, Snapshot(1, 1, frozenset()), 7)])
        partition.shape_directory(handle).mkdir(parents=True)
    partition.close()

    async def make(request: ShapeRequest, table: Table) -> Filter | None:
        if request.where == "breaks":
            raise RecursionError
        return await make_filter_aside(request, table)

    monkeypatch.setattr(ownership, "make_filter_aside", make)
    owner.assign(1, 1)
    await owner.until_held(1)
    filters = {shape.request.where: shape.filter for shape in owner.holdings}
    first = filters["id > $1"]
    assert first is not None
    assert [bool(first.predicate([text])) for text in (b"5", b"6")] == [False, True]
    assert filters[None] is None
    assert owner.endings.ended == {
        "zz = 1": "its where clause is not valid any more: At location 0: unknown reference zz",
        "breaks": "its where clause is not valid any more: internal error: RecursionError",
    }


async def test_letting_go_frees_everything_for_others(owner: Owner, tmp_path: Path) -> None:
    assert not owner.ownership.let_go()
    owner.assign(1, 0, 1)
    await owner.until_held(1)
    assert owner.ownership.let_go()
    await owner.until_held(0)
    assert not owner.holdings.partitions
    for number in (0, 1):
        partition, _ = open_partition(tmp_path, number, 1)
        partition.close()
    assert not owner.ownership.let_go()
    owner.assign(2, 1)
    await owner.until_held(2)
    assert set(owner.holdings.partitions) == {1}


async def test_letting_go_ends_the_wait_for_what_others_hold(owner: Owner, tmp_path: Path) -> None:
    other, _ = open_partition(tmp_path, 1, 1)
    owner.assign(1, 0, 1)
    await until(lambda: owner.blocked)
    assert owner.ownership.let_go()
    await owner.until_held(0)
    other.close()
    await asyncio.sleep(0.5)
    assert not owner.holdings.partitions

"""Shapes found on the disk when no worker can be asked (engine.md 17.2, INV-33; docs/storage-format.md)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from common.messages import Ensure, Find, NotOwner
from common.shape import ShapeRequest
from common.shapelog.description import DESCRIPTION_NAME, Description, write_description
from common.shapelog.layout import LOG_NAME
from gateway import shapes
from gateway.finder import Finder
from tests.unit.gateway.cluster import (
    GENERATION,
    PARTITIONS,
    SCHEMA,
    SNAPSHOT_END_ITEM,
    Cluster,
    StoredShape,
    cluster,
    entry,
    row,
    until,
)

REQUEST = ShapeRequest(schema="public", table="items")


def write_source(storage: Path, **changes: object) -> None:
    """``source.json`` as far as it matters here."""
    fields = {"format": 1, "partitions": PARTITIONS, "generation": GENERATION, "acknowledged": "0/64", "broken": ""}
    (storage / "source.json").write_text(json.dumps(fields | changes))


def described(shape: StoredShape, generation: int = GENERATION) -> None:
    """Give a shape its description, as its worker does when it is complete."""
    write_description(shape.path, Description(generation=generation, request=shape.request, schema=SCHEMA))


def complete(storage: Path, request: ShapeRequest = REQUEST) -> StoredShape:
    """A shape with a snapshot and two transactions, the second of them beyond what is acknowledged (0/64)."""
    shape = StoredShape(request, storage, 10_000_000)
    shape.add(row(1))
    shape.snapshot.finish(SNAPSHOT_END_ITEM)
    described(shape)
    shape.commit(90, entry(0))
    shape.commit(110, entry(0))
    return shape


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    write_source(tmp_path)
    return tmp_path


def test_finds_what_is_complete(storage: Path) -> None:
    assert Finder(storage).find(REQUEST) is None
    shape = complete(storage)
    found = Finder(storage).find(REQUEST)
    assert found == (shape.place(0), shape.partition)
    shape.commit(120, entry(0))  # its worker goes on
    assert Finder(storage).find(REQUEST) == found
    assert Finder(storage).find(ShapeRequest(schema="public", table="other")) is None


def _no_description(shape: StoredShape, storage: Path) -> None:
    (shape.path / DESCRIPTION_NAME).unlink()


def _torn_description(shape: StoredShape, storage: Path) -> None:
    path = shape.path / DESCRIPTION_NAME
    path.write_bytes(path.read_bytes()[:-3])


def _future_description(shape: StoredShape, storage: Path) -> None:
    path = shape.path / DESCRIPTION_NAME
    path.write_bytes(path.read_bytes().replace(b'"format":1', b'"format":2'))


def _ended(shape: StoredShape, storage: Path) -> None:
    shape.log.mark_ended()


def _other_generation(shape: StoredShape, storage: Path) -> None:
    write_source(storage, generation=GENERATION + 1)


def _no_source(shape: StoredShape, storage: Path) -> None:
    (storage / "source.json").unlink()


def _doomed_source(shape: StoredShape, storage: Path) -> None:
    write_source(storage, broken="the slot is lost")


def _moved_to_the_trash(shape: StoredShape, storage: Path) -> None:
    shape.path.rename(storage / "trash")


def _lost_bytes(shape: StoredShape, storage: Path) -> None:
    """A power cut: the record of the last transaction reached the disk, its bytes did not."""
    path = shape.path / LOG_NAME
    data = path.read_bytes()
    path.write_bytes(data[:-20] + bytes(20))


def _lost_length(shape: StoredShape, storage: Path) -> None:
    path = shape.path / LOG_NAME
    path.write_bytes(path.read_bytes()[:-1])


def _lost_log(shape: StoredShape, storage: Path) -> None:
    (shape.path / LOG_NAME).unlink()


def _lost_index(shape: StoredShape, storage: Path) -> None:
    (shape.path / "log.index").write_bytes(b"")


@pytest.mark.parametrize(
    "damage",
    [
        _no_description,
        _torn_description,
        _future_description,
        _ended,
        _other_generation,
        _no_source,
        _doomed_source,
        _moved_to_the_trash,
        _lost_bytes,
        _lost_length,
        _lost_log,
        _lost_index,
    ],
    ids=lambda damage: damage.__name__.strip("_"),
)
def test_finds_nothing_else(storage: Path, damage: Callable[[StoredShape, Path], None]) -> None:
    shape = complete(storage)
    assert Finder(storage).find(REQUEST) is not None
    damage(shape, storage)
    assert Finder(storage).find(REQUEST) is None


def test_a_snapshot_that_is_not_complete_is_not_found(storage: Path) -> None:
    running = StoredShape(REQUEST, storage, 10_000_000)
    described(running)
    assert Finder(storage).find(REQUEST) is None
    running.snapshot.fail()
    assert Finder(storage).find(REQUEST) is None


def test_what_is_being_made_hides_what_it_replaces(storage: Path) -> None:
    old = complete(storage)
    new = StoredShape(REQUEST, storage, 10_000_000)
    assert Finder(storage).find(REQUEST) is None, "the old one has ended, although its mark is not written yet"
    new.snapshot.finish(SNAPSHOT_END_ITEM)
    described(new)
    assert Finder(storage).find(REQUEST) == (new.place(0), new.partition)
    new.log.mark_ended()
    assert Finder(storage).find(REQUEST) is None
    assert old.path.exists()


def test_another_request_with_the_same_hash_is_passed_over(storage: Path) -> None:
    shape = complete(storage)
    stranger = complete(storage, ShapeRequest(schema="public", table="else"))
    stranger.path.rename(shape.path.with_name(f"{REQUEST.hash()}-9999999999999999"))
    assert Finder(storage).find(REQUEST) == (shape.place(0), shape.partition)


# --------------------------------------------------------------------------------------------------------------------
# through the gateway


async def _waiting(world: Cluster) -> None:
    """Another instance has the lock, and no worker of this one holds anything."""
    write_source(world.storage)
    world.state, world.reason, world.owners, world.generation = "waiting", "pid 7", {}, 0
    world.worker.refusal = NotOwner
    await world.until_health(202)


async def test_an_instance_that_waits_serves_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shapes, "READY_TIMEOUT", 0.3)
    async with cluster() as world:
        await _waiting(world)
        shape = complete(world.storage)
        first = await world.get("offset=-1")
        assert (first.status, first.headers["electric-handle"]) == (200, shape.handle)
        rest = await world.get(f"offset=0_0&handle={shape.handle}")
        # Nobody has said what else was applied: no claim beyond the shape's own last change (INV-42).
        assert rest.items[-1] == {"headers": {"control": "up-to-date", "global_last_seen_lsn": "110"}}
        # No worker tells, but a live request looks for itself.
        live = await world.open(f"/v1/shape?table=items&offset=110_0&handle={shape.handle}&live=true")
        shape.commit(120, entry(0))
        assert (await live.response()).items[0]["value"]["n"] == "0"
        live.close()
        # The other instance ends it.
        shape.log.mark_ended()
        gone = await world.get(f"offset=120_0&handle={shape.handle}")
        assert gone.status in (409, 503)
        assert gone.headers.get("electric-handle") is None
        unknown = await world.ask("/v1/shape?table=unknown&offset=-1")
        assert unknown.status == 503
        assert b"Timeout waiting for Postgres lock acquisition: pid 7" in unknown.raw


async def test_an_active_owner_is_the_authority() -> None:
    async with cluster() as world:
        write_source(world.storage)
        stale = complete(world.storage)
        fresh = await world.get("offset=-1")
        assert fresh.headers["electric-handle"] != stale.handle
        assert isinstance(world.worker.asked[-1], Ensure)


async def test_a_partition_that_moves_is_waited_for() -> None:
    async with cluster() as world:
        write_source(world.storage)
        stale = complete(world.storage)
        world.worker.refusal = NotOwner
        asked = asyncio.create_task(world.get("offset=-1"))
        await until(lambda: len(world.worker.asked) > 2)
        world.worker.refusal = None
        assert (await asked).headers["electric-handle"] != stale.handle


async def test_a_worker_that_can_be_asked_is_asked_first() -> None:
    async with cluster() as world:
        write_source(world.storage)
        complete(world.storage)
        held = world.worker.shape()
        world.state = "starting"
        await world.until_health(202)
        assert (await world.get("offset=-1")).headers["electric-handle"] == held.handle
        assert isinstance(world.worker.asked[-1], Find)


async def test_a_worker_that_knows_of_none_is_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shapes, "READY_TIMEOUT", 0.3)
    async with cluster() as world:
        write_source(world.storage)
        complete(world.storage)
        world.state = "starting"
        await world.until_health(202)
        assert (await world.get("offset=-1")).status == 503
        assert {type(request) for request in world.worker.asked} == {Find}


async def test_an_owner_that_keeps_silent_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shapes, "SILENCE", 0.1)
    async with cluster() as world:
        write_source(world.storage)
        shape = complete(world.storage)
        world.worker.silent = True
        answer = await world.get("offset=-1")
        assert (answer.status, answer.headers["electric-handle"]) == (200, shape.handle)
        assert world.worker.asked


async def test_progress_of_one_generation_says_nothing_about_another() -> None:
    async with cluster() as world:
        shape = world.worker.shape()
        world.worker.apply(500, shape.partition)
        await world.get("offset=-1")
        await _waiting(world)
        write_source(world.storage, generation=GENERATION + 1)
        world.worker.end(shape)
        other = StoredShape(REQUEST, world.storage, 10_000_000)
        other.snapshot.finish(SNAPSHOT_END_ITEM)
        described(other, GENERATION + 1)
        answer = await world.get("offset=0_0&handle=none")
        assert answer.headers["electric-handle"] == other.handle
        answer = await world.get(f"offset=0_inf&handle={other.handle}")
        assert answer.items[-1]["headers"]["global_last_seen_lsn"] == "0"

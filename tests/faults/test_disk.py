"""The disk is full, read-only, or loses what is on it (engine.md 25.12, 28; INV-7, INV-26, INV-28).

A full disk is nobody's fault: no shape ends, nothing later is acknowledged, and all goes on when there is room. What is
damaged ends alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.faults import backends
from tests.faults.scenario import FEW, under_load
from tests.faults.tmpfs import SmallDisk
from tests.pipeline.fixtures import StartStack
from tests.pipeline.fleet import Fleet
from tests.pipeline.launched import galvanic
from tests.pipeline.reader import HANG_SECONDS, Reader
from tests.pipeline.schema import create_schema, mark
from tests.pipeline.stack import Stack
from tests.pipeline.workload import Workload
from tests.ports import free_port

pytestmark = pytest.mark.timeout(600)


# ---- full


@pytest.mark.faults
async def test_full_under_load(small_disk: SmallDisk, database: str, start_stack: StartStack, seed: int) -> None:
    """Filled up twice: once bit by bit by what is written, once at a stroke."""
    await create_schema(database)
    stack = await start_stack(database, workers=2, storage=small_disk.path / "storage")
    async with under_load(stack, database, seed, writers=1, rows=FEW) as fleet:
        small_disk.fill(spare=2_000_000)
        while not any("changes cannot be written; waiting" in stack.log_of(name) for name in stack.workers):
            await fleet.run(0.1)
        small_disk.fill()
        await _wait_full(stack, small_disk)
        for _ in range(2):
            confirmed = await backends.confirmed_flush(database)
            lsn = await mark(database)
            await fleet.run(6)
            assert await backends.confirmed_flush(database) <= lsn, "acknowledged what has no room on the disk"
            assert await backends.confirmed_flush(database) >= confirmed
            await _served(stack, fleet)
            small_disk.empty()
            await stack.wait_active()
            await fleet.readers[0].seen(await mark(database))
            small_disk.fill()
            await _wait_full(stack, small_disk)
        small_disk.empty()


async def test_full_while_a_snapshot_is_taken(
    small_disk: SmallDisk, database: str, start_stack: StartStack, seed: int
) -> None:
    """The shape that has no room is refused, with 503; the others live, and so does the next attempt."""
    await create_schema(database)
    stack = await start_stack(database, storage=small_disk.path / "storage")
    workload = Workload(database, seed, writers=1)
    async with Fleet(stack, workload) as fleet:
        await workload.large(30_000)
        workload.start()
        await fleet.complete()
        small_disk.fill(spare=1_000_000)
        bulk = fleet.add("bulk")
        await stack.wait_logged("w00", "No space left on device")
        await fleet.run(3)
        assert not bulk.view.up_to_date
        small_disk.empty()
        await bulk.current()
        await fleet.rest()
        assert bulk.view.rows


@pytest.mark.faults
async def test_full_while_shapes_end_and_begin(
    small_disk: SmallDisk, database: str, start_stack: StartStack, seed: int
) -> None:
    """A tombstone that has no room holds the slot back, not the other shapes; it is written as soon as there is."""
    await create_schema(database)
    stack = await start_stack(database, workers=2, storage=small_disk.path / "storage")
    async with under_load(stack, database, seed, writers=1, rows=FEW) as fleet:
        truncated = fleet.add("late_0")
        truncated.may_end = True
        await fleet.current()
        before = truncated.view.handle
        small_disk.fill()
        # By a truncation, and while others are asked for.
        async with await backends.connect(database) as connection:
            await connection.execute("TRUNCATE late_0")
        fleet.add("late_1")
        fleet.add("pairs", columns=["slot", "room"])
        await fleet.run(6)
        small_disk.empty()
        await fleet.current()
        await stack.wait_active()
        await fleet.run(3)
        assert truncated.view.handle != before
        await backends.acknowledged(database, await mark(database))


async def test_the_ingester_waits_while_it_cannot_record_a_position(
    small_disk: SmallDisk, database: str, start_stack: StartStack, seed: int
) -> None:
    """``source.json`` has no room: nothing is acknowledged beyond what it says, the process lives, it goes on."""
    await create_schema(database)
    stack = await start_stack(database, storage=small_disk.path / "storage")
    pid = stack.pid("ingester")
    async with under_load(stack, database, seed, writers=1, rows=FEW) as fleet:
        small_disk.fill()
        await stack.wait_logged("ingester", f"the storage directory {stack.storage} is full")
        confirmed = await backends.confirmed_flush(database)
        await fleet.run(3)
        source = json.loads((stack.storage / "source.json").read_text())
        assert await backends.confirmed_flush(database) == confirmed <= _lsn(source["acknowledged"]) + 1
        # A worker that starts anew wants a new epoch, which must be recorded first.
        stack.kill9("w00")
        await fleet.run(5)
        small_disk.empty()
    assert stack.pid("ingester") == pid


# ---- read-only


async def test_read_only_when_processes_start(
    small_disk: SmallDisk, database: str, start_stack: StartStack, seed: int
) -> None:
    """As after an error of the file system: all wait and say so; what is on the disk is served; then they go on."""
    await create_schema(database)
    stack = await start_stack(database, storage=small_disk.path / "storage", keep_alive=False)
    workload = Workload(database, seed, writers=1)
    async with Fleet(stack, workload, monotone_lsn=False) as fleet:
        workload.start()
        fleet.add("items")
        await fleet.complete()
        stack.kill9("w00", "ingester")
        await _remount(small_disk, "ro")
        stack.start()
        await stack.wait_logged("ingester", f"the storage directory {stack.storage} is read-only")
        await fleet.run(2)
        await _remount(small_disk, "rw")
        await stack.wait_active()
        await fleet.rest()


async def test_read_only_storage_stops_the_start(small_disk: SmallDisk, database: str) -> None:
    """`galvanic up` says so in one line."""
    storage = small_disk.path / "storage"
    storage.mkdir()
    small_disk.remount("ro")
    directory = Path(tempfile.mkdtemp(prefix="galvanic-start-"))
    try:
        environment = {"ELECTRIC_INSECURE": "true", "DATABASE_URL": database, "ELECTRIC_STORAGE_DIR": str(storage)}
        with galvanic("up", directory, ELECTRIC_PORT=str(free_port()), **environment) as started:
            assert await asyncio.to_thread(started.wait) == 78
            (line,) = started.output.splitlines()
            assert line.startswith("galvanic: ELECTRIC_STORAGE_DIR: ")
            assert str(storage) in line
    finally:
        shutil.rmtree(directory, ignore_errors=True)


# ---- lost and damaged


def _remove_directory(shape: Path) -> None:
    shutil.rmtree(shape)


def _remove_log(shape: Path) -> None:
    (shape / "log.json").unlink()


def _remove_index(shape: Path) -> None:
    (shape / "log.index").unlink()


def _remove_snapshot(shape: Path) -> None:
    (shape / "snapshot.0000.json").unlink()


def _cut_index(shape: Path) -> None:
    os.truncate(shape / "log.index", 30)


def _damage_header(shape: Path) -> None:
    _overwrite(shape / "log.index", 20)


def _damage_record(shape: Path) -> None:
    _overwrite(shape / "log.index", 64 + 3)


def _cut_log(shape: Path) -> None:
    # Of a running worker the next append would fill the hole with zeros, which only a reading of everything notices.
    os.truncate(shape / "log.json", 10)


def _overwrite(file: Path, at: int) -> None:
    with file.open("r+b") as opened:
        opened.seek(at)
        opened.write(b"\xa5" * 8)


WHILE_RUNNING = (  # not _cut_log: see there
    _remove_directory,
    _remove_log,
    _remove_index,
    _remove_snapshot,
    _cut_index,
    _damage_header,
    _damage_record,
)
FOUND_AT_THE_START = (_remove_directory, _remove_snapshot, _damage_record, _cut_log)
COLUMNS = ("title", "n", "done", "price", "at", "doc", "tags")


@pytest.mark.faults
@pytest.mark.parametrize(
    ("damages", "restarted"),
    [pytest.param(WHILE_RUNNING, False, id="running"), pytest.param(FOUND_AT_THE_START, True, id="restarted")],
)
async def test_damaged_shapes_end_alone(
    database: str, start_stack: StartStack, seed: int, damages: Sequence[Callable[[Path], None]], restarted: bool
) -> None:
    """Their clients get a 409 and a new shape, never an error for ever and never wrong data; all others live."""
    await create_schema(database)
    stack = await start_stack(database)
    workload = Workload(database, seed, writers=2)
    async with Fleet(stack, workload, monotone_lsn=False) as fleet:
        workload.start()
        hurt = {damage: fleet.add("items", ["id", name]) for damage, name in zip(damages, COLUMNS, strict=False)}
        fleet.add("pairs")
        await fleet.moved()  # so that each has a log
        await fleet.complete()
        handles = [reader.view.handle for reader in hurt.values()]
        for damage, reader in hurt.items():
            print(damage.__name__)
            await _damage_one(stack, fleet, reader, damage, restarted)
        await fleet.current()
        await fleet.rest()
    for handle in handles:
        assert not list(stack.storage.glob(f"partitions/*/shapes/{handle}"))


async def _damage_one(
    stack: Stack, fleet: Fleet, reader: Reader, damage: Callable[[Path], None], restarted: bool
) -> None:
    """Damages the shape of one reader, and waits until that has another one."""
    reader.protected, reader.may_end = False, True
    handle = reader.view.handle
    (directory,) = stack.storage.glob(f"partitions/*/shapes/{handle}")
    # A gateway that has the files open reads on in files that were removed: one that starts must open them.
    stack.kill9(*(["w00", "g0"] if restarted else ["g0"]))
    damage(directory)
    # Whoever comes anew needs the part that is gone, whatever a client at the end of the log needs.
    async with Reader(stack.url, "items", columns=reader.columns, monotone_lsn=False) as fresh:
        fresh.may_end = True
        await fresh.current()
        while fresh.view.handle == handle:
            await fleet.run(0.2)
            fresh.check()
    while reader.view.handle == handle:
        await fleet.run(0.2)
    reader.may_end = False
    await fleet.current()


@pytest.mark.faults
@pytest.mark.parametrize("content", [b"this is no database", b""], ids=["rubbish", "empty"])
async def test_damaged_catalog(database: str, start_stack: StartStack, seed: int, content: bytes) -> None:
    """The shapes of its partition end, with one line; the damaged file is kept; nothing else notices."""
    await create_schema(database)
    stack = await start_stack(database)
    workload = Workload(database, seed, writers=1)
    async with Fleet(stack, workload, monotone_lsn=False) as fleet:
        workload.start()
        hurt, other = fleet.add("items"), fleet.add("pairs")
        await fleet.complete()
        handle = hurt.view.handle
        (directory,) = stack.storage.glob(f"partitions/*/shapes/{handle}")
        partition = directory.parent.parent
        assert other.view.handle not in {path.name for path in directory.parent.iterdir()}
        hurt.protected, hurt.may_end = False, True
        stack.kill9("w00")
        for file in partition.glob("catalog.sqlite3-*"):
            file.unlink()
        (partition / "catalog.sqlite3").write_bytes(content)
        while hurt.view.handle == handle:
            await fleet.run(0.2)
        await fleet.current()
        await fleet.rest()
        assert not directory.exists()
        if content:
            (kept,) = partition.glob("catalog.sqlite3.damaged-*")
            assert kept.read_bytes() == content
            assert stack.log_of("w00").count("a catalog is damaged") == 1
        else:
            assert "shapes that the catalog does not know have ended" in stack.log_of("w00")


# ---- helpers


async def _wait_full(stack: Stack, disk: SmallDisk) -> None:
    deadline = asyncio.get_running_loop().time() + HANG_SECONDS
    while True:
        status, body = await stack.health()
        reason = body.get("reason", "")
        # Active as long as only the acknowledgement waits; not when changes do.
        if status == 202 and str(disk.path) in reason and "full" in reason:
            return
        assert asyncio.get_running_loop().time() < deadline, f"{status} {body}"
        await asyncio.sleep(0.1)


async def _served(stack: Stack, fleet: Fleet) -> None:
    """A client that comes now gets what there is of a shape that exists, and no error."""
    async with Reader(stack.url, "items", protected=True, monotone_lsn=False) as reader:
        await reader.current()
    assert reader.view.handle == fleet.readers[1].view.handle
    assert not reader.losses + reader.refusals


async def _remount(disk: SmallDisk, options: str) -> None:
    """Once the last file that a dead process had open for writing is closed."""
    for _ in range(1000):
        with contextlib.suppress(subprocess.CalledProcessError):
            return disk.remount(options)
        await asyncio.sleep(0.1)
    raise AssertionError(f"the disk cannot be remounted {options}")


def _lsn(text: str) -> int:
    high, low = text.split("/")
    return int(high, 16) << 32 | int(low, 16)

"""Crash simulation of shape logs and catalogs: what was durable stays, what is read was written, what ended stays away.

A seed is one history: shapes are made, fed, read, ended; the worker is killed or the power fails inside any operation
on a file; the next worker recovers, the stream begins again at the acknowledged position, many times over. All of the
worker but sockets and Postgres is the real code, SQLite included. See ``storage_model.py`` for what must be true.

    python -m tests.simulation.storage --seeds 10000 --jobs 2
    python -m tests.simulation.storage --seed 123 --trace
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Iterator
from enum import IntEnum
from random import Random
from typing import Any, Final, NamedTuple

import structlog

import common.shapelog.reader
import common.shapelog.snapshot
import common.shapelog.writer
import shapeworker.apply
from common.lsn import BEFORE_ALL, SNAPSHOT_END, Offset
from common.shape import ShapeRequest, partition_of_handle
from common.shapelog import DamagedLog, ShapeReader, SnapshotState
from common.xid import Snapshot
from shapeworker.catalog import ShapeRow
from shapeworker.requests import CannotCreate
from shapeworker.endings import ShapeEnded
from shapeworker.shape import Life, Shape
from tests.simulation import storage_sqlite
from tests.simulation.storage_disk import Crash, Directory, Disk, File, Process
from tests.simulation.storage_model import ShapeModel, Transaction, rows, transaction
from tests.simulation.storage_worker import SNAPSHOT_END_LINE, STORAGE, Worker

DELETED: Final = "deleted by the simulation"

EXPECTED: Final = (
    DELETED,
    "its worker stopped before it was complete",
    "its worker gave the partition away",
    "a new generation",
    "its snapshot was stopped",
    '{"message":"Snapshot timed out',
    "the simulation says no",
)
"""Why shapes may end while the disk does as it is told, as the reasons begin."""

EXPECTED_OF_A_BAD_DISK: Final = (
    "its log cannot be synced",
    "its log cannot be written",
    "its files cannot be made",
    "Input/output error",
    "[Errno",
    "an earlier sync failed",
    "Failed to create shape",
    "internal error: Full",
)

REQUESTS: Final = tuple(
    ShapeRequest(schema="public", table=table, replica=replica)
    for table in ("t5", "t6")
    for replica in ("default", "full")
)


class Failed(Exception):
    """The simulation found something that must not be."""


class Sure(IntEnum):
    """How certain it is that the disk holds a step of a shape's life."""

    NO = 0
    PERHAPS = 1
    YES = 2


class Fate:
    """What the catalog must say of a shape."""

    __slots__ = ("activation", "marked", "tombstone")

    def __init__(self) -> None:
        self.activation = Sure.NO
        self.tombstone = Sure.NO
        self.marked = False


class Facts(NamedTuple):
    """What a snapshot finds."""

    snapshot: Snapshot
    filter_until: int
    rows: list[bytes]


class Gateway:
    """A reader of one shape, in a process that outlives the worker, and what it has seen."""

    def __init__(self, reader: ShapeReader) -> None:
        self.reader = reader
        self.last = SNAPSHOT_END
        self.offsets = [BEFORE_ALL, SNAPSHOT_END]


class Simulation:
    """One seed."""

    def __init__(self, seed: int, trace: bool = False) -> None:
        self.seed = seed
        self.random = random = Random(seed)
        self._trace = trace
        self.steps = 0
        self.crashes = 0
        self._problems: list[str] = []
        self.disk = Disk(random)
        self.disk.root.entries["storage"] = self.disk.root.durable["storage"] = Directory()
        self.history: list[Transaction] = []
        self.acknowledged = 1
        self.reported = 0
        self.chunk_bytes = random.choice((60, 200, 400, 2000))
        self._partitions = random.choice((1, 1, 2))
        self._generation = 1
        self._version = 0
        self._open_logs = random.choice((1, 2, 4))
        self._bad_disk = random.random() < 0.3
        self._hostile = random.random() < 0.7
        self._time = 10**18
        self._fates: dict[str, Fate] = {}
        self._models: dict[str, ShapeModel] = {}
        self._gateways: dict[str, Gateway] = {}
        self._reading = Process(self.disk)
        self._nested = False
        self._worker: Worker | None = None
        self._weights = [random.choice((1, 1, 3)) * weight for _, weight in self._ACTIONS]

    # ---- what happens

    def run(self) -> None:
        """All of it. Raises :class:`Failed`."""
        storage_sqlite.start()
        for _ in range(self.random.randint(1, 5)):
            self._boot()
            try:
                self._live()
                stopped = self.random.random() < 0.3
                if stopped:
                    self._stop()
            except Crash:
                stopped = False
            self._crash(power=self.random.random() < 0.6)
        self._bad_disk = False
        self._boot(crashes=False)
        self._come_to_rest()
        self._check_rest()
        self._crash(power=False)

    def _boot(self, crashes: bool = True) -> None:
        random = self.random
        process = Process(self.disk)
        process.hook = self._between
        if crashes and random.random() < 0.8:
            process.crash_in = random.randint(1, random.choice((30, 150, 600)))
        if random.random() < 0.15:
            self._generation += 1
        self.disk.full = False
        self._worker = Worker(self, process, self._open_logs)
        self.note(f"boot, dies in {process.crash_in}, acknowledged {self.acknowledged}")
        self._assign(tuple(range(self._partitions)))

    def _live(self) -> None:
        random = self.random
        actions = [getattr(self, f"_do_{name}") for name, _ in self._ACTIONS]
        for _ in range(random.choice((20, 60, 150))):
            (action,) = random.choices(actions, self._weights)
            self.steps += 1
            action()
            self._look()

    def _look(self) -> None:
        """After each step: is anything wrong, is the worker still alive?"""
        if self._problems:
            raise Failed(self._problems[0])
        if self._now.process.dead:
            raise Crash
        failure = self._now.failure()
        if failure is not None:
            raise Failed(f"the worker would have crashed: {failure!r}")

    def _stop(self) -> None:
        self.note("stop")
        stopping = self._now.spawn(self._now.stop())
        self.disk.full = False
        for _ in range(2000):
            if stopping.done():
                if stopping.exception() is not None and not self._now.process.dead:
                    raise Failed(f"stopping failed: {stopping.exception()!r}")
                return
            self._go_on()
        raise Failed("the worker does not stop")

    def _crash(self, power: bool) -> None:
        self.crashes += 1
        worker, self._worker = self._now, None
        self.note(f"{'power loss' if power else 'kill'} after {worker.process.operations} operations")
        worker.process.kill()
        worker.loop.abandon()
        if self._problems:
            raise Failed(self._problems[0])
        if power:
            self._gateways.clear()
            self._reading.kill()
            self._reading = Process(self.disk)
            self.disk.lose_power()

    def _go_on(self) -> None:
        """Whatever can happen by itself."""
        loop = self._now.loop
        jobs = loop.startable()
        if loop.ready and (not jobs or self.random.random() < 0.5):
            loop.turn()
        elif jobs:
            loop.work(self.random.choice(jobs))
        elif not loop.advance():
            self._feed()
        self._look()

    def _come_to_rest(self) -> None:
        worker = self._now
        for _ in range(20000):
            if worker.full:
                self._call(worker.start_epoch)
            if worker.streams and not self.random.randrange(3):
                self._feed()
            self._go_on()
            last = self.history[-1].lsn if self.history else 0
            if (
                worker.held_version == self._version
                and not worker.streams
                and not worker.loop.ready
                and not worker.loop.jobs
                and self.reported >= last
                and not worker.endings._tasks
                and not worker.creator._building
            ):
                return
        raise Failed("the worker does not come to rest")

    # ---- steps

    _ACTIONS: Final = (
        ("turn", 30),
        ("work", 30),
        ("feed", 30),
        ("commit", 12),
        ("create", 6),
        ("end", 1.5),
        ("wait", 10),
        ("read", 6),
        ("acknowledge", 4),
        ("sweep", 1),
        ("rewind", 1),
        ("fill", 1),
        ("break", 1),
        ("reassign", 0.7),
    )

    def _do_turn(self) -> None:
        self._now.loop.turn()

    def _do_work(self) -> None:
        jobs = self._now.loop.startable()
        if jobs:
            self._now.loop.work(self.random.choice(jobs))

    def _do_feed(self) -> None:
        for _ in range(self.random.randint(1, 10)):
            self._feed()

    def _do_commit(self) -> None:
        last = self.history[-1].lsn if self.history else 1000
        new = transaction(last + self.random.randint(1, 20), 100 + len(self.history), self.random)
        self.history.append(new)
        for model in self._models.values():
            model.extend(self.history)
        self.note(f"transaction {new.lsn} of {len(new.records) - 2} changes")

    def _do_create(self) -> None:
        worker = self._now
        request = self.random.choice(REQUESTS)
        number = request.hash() % self._partitions
        if number in worker.fed and worker.holdings.may_create(number):
            worker.spawn(self._create(worker, request))

    async def _create(self, worker: Worker, request: ShapeRequest) -> None:
        try:
            await worker.creator.create(request)
        except (CannotCreate, ShapeEnded):
            pass

    def _do_end(self) -> None:
        shapes = list(self._now.holdings)
        if shapes:
            shape = self.random.choice(shapes)
            self.note(f"delete {shape.handle}")
            self._call(self._now.endings.end, shape, DELETED)

    def _do_wait(self) -> None:
        if not self._now.loop.ready:
            self._now.loop.advance()

    def _do_read(self) -> None:
        shapes = [shape for shape in self._now.holdings if shape.snapshot is not None]
        if shapes and (not self._gateways or self.random.random() < 0.5):
            shape = self.random.choice(shapes)
            if shape.handle not in self._gateways:
                try:
                    self._call(self._now.open_log, shape)
                except (DamagedLog, FileNotFoundError) as error:
                    self.problem(f"{shape.handle}: its log cannot be opened: {error}")
                    return
                except OSError:
                    return
                self._gateways[shape.handle] = Gateway(ShapeReader(shape.directory, self._reading))
        self._read()

    def _do_acknowledge(self) -> None:
        self.acknowledged = max(self.acknowledged, self.reported + 1)

    def _do_sweep(self) -> None:
        for partition in list(self._now.holdings.partitions.values()):
            with contextlib.suppress(OSError):
                partition.sweep()

    def _do_rewind(self) -> None:
        if self._now.held_version == self._version:
            self.note(f"the stream begins again at {self.acknowledged}")
            self._call(self._now.start_epoch)

    def _do_fill(self) -> None:
        if self._bad_disk:
            self.disk.full = not self.disk.full
            self.note(f"the disk is full: {self.disk.full}")
        if self._now.full:
            self._call(self._now.start_epoch)

    def _do_break(self) -> None:
        if self._bad_disk:
            if self.random.random() < 0.5:
                self._now.process.bad_syncs += 1
            else:
                self._now.process.bad_truncations += 1
            self.note("the next sync or truncation fails")

    def _do_reassign(self) -> None:
        if self.random.random() < 0.3:
            self._generation += 1
        held = tuple(number for number in range(self._partitions) if self.random.random() < 0.7)
        self._assign(held if self._now.held_version == self._version else tuple(range(self._partitions)))

    def _assign(self, partitions: tuple[int, ...]) -> None:
        self._version += 1
        self.note(f"hold {partitions} of generation {self._generation}")
        self._now.assign(self._version, partitions, self._partitions, self._generation)

    @property
    def _now(self) -> Worker:
        assert self._worker is not None
        return self._worker

    def _call(self, function: Any, *arguments: Any) -> Any:
        """Call something of the worker's as its loop would."""
        return self._now.loop.call(function, *arguments)

    def _feed(self) -> None:
        self._call(self._now.feed)

    def _between(self, name: str) -> None:
        """Before an operation on a file: others may act in the meantime."""
        if self._nested or self._worker is None or not self._hostile:
            return
        chance = self.random.random()
        self._nested = True
        try:
            if chance < 0.04 and self._gateways:
                self._read()
            elif chance < 0.4 and name in ("fdatasync", "sync_directory") and self._now.loop.working:
                # The loop goes on while a thread waits for the disk.
                for _ in range(self.random.randint(1, 4)):
                    if self.random.random() < 0.5:
                        self._feed()
                    else:
                        self._now.loop.turn()
        finally:
            self._nested = False

    # ---- what the worker does, seen from outside

    def clock(self) -> int:
        """Nanoseconds; sometimes they go back."""
        self._time += self.random.choice((1, 10**6, 10**9, -(10**8)))
        return self._time

    def created(self, handle: str) -> None:
        self.note(f"created {handle}")
        if handle in self._fates:
            self.problem(f"{handle} is used a second time (INV-16)")
        self._fates[handle] = Fate()

    def activating(self, handle: str) -> None:
        self._raise(handle, "activation", Sure.PERHAPS)

    def activated(self, handle: str) -> None:
        self.note(f"active: {handle}")
        self._raise(handle, "activation", Sure.YES)
        self._check_durable(handle, self.reported)

    def ending(self, handle: str, reason: str) -> None:
        self.note(f"ending {handle}: {reason}")
        expected = EXPECTED + (EXPECTED_OF_A_BAD_DISK if self._bad_disk else ())
        if not reason.startswith(expected):
            self.problem(f"{handle} ends although nothing was wrong: {reason}")
        self._fates.setdefault(handle, Fate())  # its worker may have died before it knew that it had made it
        self._raise(handle, "tombstone", Sure.PERHAPS)

    def tombstoned(self, handle: str) -> None:
        self._raise(handle, "tombstone", Sure.YES)

    def starting_generation(self, number: int) -> None:
        for handle in self._fates:
            if self._in_partition(handle, number):
                self._raise(handle, "tombstone", Sure.PERHAPS)

    def generation_started(self, number: int) -> None:
        for handle in self._fates:
            if self._in_partition(handle, number):
                self._raise(handle, "tombstone", Sure.YES)

    def ended(self, handle: str) -> None:
        """The worker says so to gateways: its readers must see it from now on (INV-33)."""
        if self._fates[handle].tombstone is not Sure.YES:
            self.problem(f"{handle} is said to have ended before its tombstone (INV-32)")
        self._check_marked(handle)

    def opened(self, number: int, rows: list[ShapeRow]) -> None:
        """A partition is open again: who lives in it?"""
        self.note(f"opened {number}: {[row.handle for row in rows]}")
        living = {row.handle: row for row in rows}
        for handle, fate in self._fates.items():
            if not self._in_partition(handle, number):
                continue
            row = living.pop(handle, None)
            if row is None:
                if fate.activation is Sure.YES and fate.tombstone is Sure.NO:
                    self.problem(f"{handle} was active and is lost")
                fate.tombstone = Sure.YES
                self._check_marked(handle)
                continue
            if fate.tombstone is Sure.YES:
                self.problem(f"{handle} had ended and is back (INV-16, INV-32)")
            if fate.activation is Sure.NO:
                self.problem(f"{handle} is active before it was complete (INV-20)")
            fate.activation, fate.tombstone = Sure.YES, Sure.NO
            model = self._models[handle]
            if (row.snapshot, row.filter_until) != (model.snapshot, model.filter_until):
                self.problem(f"{handle} has another snapshot than it had")
            self._check_durable(handle, self.reported)
        if living:
            self.problem(f"nobody has ever made {list(living)}")

    def log_opened(self, shape: Shape) -> None:
        """A log has been recovered: it is a prefix, with all that was reported durable (INV-26)."""
        model = self._models.get(shape.handle)
        if model is None or shape.log is None:
            return
        self.note(f"log of {shape.handle} opened, ends at {shape.log.last}")
        commit = model.commit_ending(shape.log.last)
        if commit is None:
            self.problem(f"{shape.handle} ends at {shape.log.last}, which is no commit of its (INV-26)")
            return
        if commit.last < model.commit_at(self.reported).last:
            self.problem(f"{shape.handle} ends at {commit.last}, {self.reported} was durable (INV-26)")
        gateway = self._gateways.get(shape.handle)
        if gateway is not None and commit.last < gateway.last:
            self.problem(f"{shape.handle} ends at {commit.last}, a client has seen {gateway.last}")
        index, log = self._files(shape.handle)
        if index[64:] != model.index[64 : commit.index_size] or log != model.log[: commit.log_size]:
            self.problem(f"{shape.handle} has other bytes after recovery (INV-24, INV-26)")

    def applied(self, lsn: int) -> None:
        """Everything up to here can be read."""
        for shape in self._now.holdings:
            if shape.life is Life.ACTIVE and shape.log is not None and shape.partition in self._now.fed:
                expected = self._models[shape.handle].commit_at(lsn).last
                if shape.log.last < expected:
                    self.problem(f"{shape.handle} ends at {shape.log.last} instead of {expected}")

    def durable(self, lsn: int) -> None:
        """The worker reports it: would a power loss right now leave everything up to there (INV-10)?"""
        if len(self._now.fed) < self._partitions:
            return
        self.note(f"durable {lsn}")
        self.reported = max(self.reported, lsn)
        for handle in self._fates:
            self._check_durable(handle, lsn)

    def take(self, handle: str, oid: int) -> Facts:
        """A snapshot of the table at this moment; the newest transactions may not be visible yet."""
        random = self.random
        top = 100 + len(self.history)
        filter_until = self.history[-1].lsn + 1 if self.history else 1
        delivered = self._now.delivered
        late = [xid for place, (_, xid, *_) in enumerate(self.history) if place >= delivered]
        running = frozenset(xid for xid in late[-2:] if random.random() < 0.3)
        snapshot = Snapshot(min(running, default=top), top, running)
        facts = Facts(snapshot, filter_until, list(rows(random)))
        model = ShapeModel(handle, oid, self.chunk_bytes, facts.rows, snapshot, filter_until)
        model.extend(self.history)
        self._models[handle] = model
        self.note(f"snapshot of {handle}: {len(facts.rows)} rows, before {filter_until}, without {set(running)}")
        return facts

    def fails(self) -> bool:
        """Whether a snapshot fails for a reason of the database's."""
        return self.random.random() < 0.05

    # ---- what must be true

    def _check_marked(self, handle: str) -> None:
        self._fates[handle].marked = True
        gateway = self._gateways.get(handle)
        if gateway is not None and not gateway.reader.header().ended:
            self.problem(f"{handle} has ended, its reader is not told (INV-33)")

    def _check_durable(self, handle: str, lsn: int) -> None:
        """On the disk, for certain, is everything of an active shape up to ``lsn``."""
        fate = self._fates[handle]
        if fate.activation is not Sure.YES or fate.tombstone is Sure.YES:
            return
        model = self._models[handle]
        commit = model.commit_at(lsn)
        directory = STORAGE / "partitions" / f"{self._partition(handle):02d}" / "shapes" / handle
        try:
            index = self.disk.find(directory / "log.index", durable=True)
            assert isinstance(index, File)
            if len(index.durable) < 64 or index.durable[20:24] == bytes(4):
                self.problem(f"{handle} is active, its header is not on the disk (INV-20)")
            if index.durable[64 : commit.index_size] != model.index[64 : commit.index_size]:
                self.problem(f"{handle}: records up to {lsn} are not on the disk (INV-10)")
            if commit.log_size:
                log = self.disk.find(directory / "log.json", durable=True)
                assert isinstance(log, File)
                if log.durable[: commit.log_size] != model.log[: commit.log_size]:
                    self.problem(f"{handle}: bytes up to {lsn} are not on the disk (INV-10)")
            for number, chunk in enumerate(model.snapshot_chunks(SNAPSHOT_END_LINE)):
                file = self.disk.find(directory / f"snapshot.{number:04d}.json", durable=True)
                assert isinstance(file, File)
                if file.durable != chunk:
                    self.problem(f"{handle}: chunk {number} of its snapshot is not on the disk (INV-20)")
        except FileNotFoundError as error:
            self.problem(f"{handle}: up to {lsn} is reported durable, but the disk may lose {error.filename}")

    def _read(self) -> None:
        """A request of some client (INV-21, INV-23, INV-28, INV-33)."""
        if not self._gateways:
            return
        handle = self.random.choice(list(self._gateways))
        gateway, model, fate = self._gateways[handle], self._models[handle], self._fates[handle]
        reader = gateway.reader
        try:
            header = reader.header()
            if header.ended:
                if fate.tombstone is not Sure.YES:
                    self.problem(f"{handle} is shown as ended before its tombstone is durable (INV-32)")
                reader.close()
                del self._gateways[handle]
                return
            if fate.marked:
                self.problem(f"{handle} has ended and is still served (INV-33)")
            last = reader.last()
            commit = model.commit_ending(last)
            if commit is None or last < gateway.last:
                self.problem(f"{handle} ends at {last} for a reader, after {gateway.last} (INV-23)")
                return
            gateway.last = last
            offset = self.random.choice(gateway.offsets)
            found = reader.after(offset)
            data = reader.read_log(found.start, found.end - found.start)
            if (data, found.end_offset) != model.after(offset, commit):
                self.problem(f"{handle} gives other bytes after {offset} (INV-21, INV-28)")
            if found.end_offset not in gateway.offsets:
                gateway.offsets.append(found.end_offset)
            chunks = model.snapshot_chunks(SNAPSHOT_END_LINE)
            if header.snapshot is SnapshotState.COMPLETE and header.chunks != len(chunks):
                self.problem(f"{handle} has {header.chunks} chunks instead of {len(chunks)}")
            for number in range(header.chunks):
                if reader.read_snapshot(number, 0, 1 << 20) != chunks[number]:
                    self.problem(f"{handle}: chunk {number} of its snapshot is not what was written (INV-21)")
        except (DamagedLog, FileNotFoundError) as error:
            if not fate.tombstone:
                self.problem(f"{handle} cannot be read: {error!r}")

    def _check_rest(self) -> None:
        """Nothing is going on: all is applied, only what lives is there, the trash can be emptied."""
        self._do_sweep()
        held = dict(self._now.holdings.partitions)
        self.note("at rest")
        for number, partition in held.items():
            active = [shape.handle for shape in self._now.holdings.of_partition(number)]
            listed = [row.handle for row in partition.catalog.rows() if row.state == "active"]
            present = self.disk.directory(partition.directory / "shapes").entries
            if not sorted(active) == sorted(listed) == sorted(present):
                self.problem(f"partition {number}: holds {active}, catalog {listed}, directories {list(present)}")
            if len(partition.catalog.rows()) != len(active):
                self.problem(f"partition {number}: the catalog keeps shapes that are gone")
            if self.disk.directory(partition.trash).entries:
                self.problem(f"partition {number}: the trash is not empty")
            for handle in active:
                model = self._models[handle]
                index, log = self._files(handle)
                if index[64:] != model.index[64:] or log != model.log:
                    self.problem(f"{handle} does not hold what the history says (INV-24, INV-25)")
                self._check_durable(handle, self.reported)
        for _ in range(3):
            self._read()
        self._look()

    def _files(self, handle: str) -> tuple[bytearray, bytearray]:
        directory = STORAGE / "partitions" / f"{self._partition(handle):02d}" / "shapes" / handle
        index = self.disk.find(directory / "log.index")
        assert isinstance(index, File)
        try:
            log = self.disk.find(directory / "log.json")
        except FileNotFoundError:
            return index.data, bytearray()
        assert isinstance(log, File)
        return index.data, log.data

    def _partition(self, handle: str) -> int:
        number = partition_of_handle(handle, self._partitions)
        assert number is not None
        return number

    def _in_partition(self, handle: str, number: int) -> bool:
        return self._partition(handle) == number

    def _raise(self, handle: str, step: str, sure: Sure) -> None:
        fate = self._fates[handle]
        setattr(fate, step, max(getattr(fate, step), sure))

    def note(self, text: str) -> None:
        """A line of the trace."""
        if self._trace:
            print(f"{self.steps:5} {text}", flush=True)

    def problem(self, text: str) -> None:
        """Something that must not be; found at the end of the step, since it may be deep in the worker's code."""
        self.note(f"PROBLEM {text}")
        self._problems.append(text)


# --------------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def small_world(report: list[str] | None = None) -> Iterator[None]:
    """Everything that is cut into pieces is cut into small ones, nothing is logged, nobody waits."""
    settings: list[tuple[Any, str, Any]] = [
        (shapeworker.apply, "SPILL_BYTES", 150),
        (common.shapelog.writer, "BUFFER_BYTES", 400),
        (common.shapelog.snapshot, "BLOCK_BYTES", 64),
        (common.shapelog.reader, "_PAUSE", 0),
    ]
    before = [getattr(module, name) for module, name, _ in settings]
    logging = structlog.get_config()

    def silent(logger: Any, method: str, event: dict[str, Any]) -> Any:
        raise structlog.DropEvent

    for module, name, value in settings:
        setattr(module, name, value)
    structlog.configure(processors=[silent])
    try:
        yield
    finally:
        for (module, name, _), value in zip(settings, before, strict=True):
            setattr(module, name, value)
        structlog.configure(**logging)


def simulate(seed: int, trace: bool = False) -> str | None:
    """Run one seed; what is wrong, or ``None``."""
    simulation = Simulation(seed, trace)
    try:
        simulation.run()
    except Failed as failure:
        return str(failure)
    except Exception:
        return traceback.format_exc()
    return None


def _run_many(seeds: range) -> list[tuple[int, str]]:
    with small_world():
        return [(seed, found) for seed in seeds if (found := simulate(seed)) is not None]


def main() -> int:
    """The command line. Returns the exit code."""
    parser = argparse.ArgumentParser(description="crash simulation of shape logs and catalogs")
    parser.add_argument("--seeds", type=int, default=1000, help="how many seeds")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--seed", type=int, help="only this one")
    parser.add_argument("--trace", action="store_true", help="with every step")
    arguments = parser.parse_args()
    if arguments.seed is not None:
        with small_world():
            found = simulate(arguments.seed, arguments.trace)
        print(found or "nothing found")
        return found is not None
    started = time.monotonic()
    end = arguments.first + arguments.seeds
    parts = [range(start, min(start + 50, end)) for start in range(arguments.first, end, 50)]
    failures: list[tuple[int, str]] = []
    with multiprocessing.Pool(arguments.jobs) as pool:
        for found in pool.imap_unordered(_run_many, parts):
            for seed, text in found:
                print(f"seed {seed}: {text}", flush=True)
            failures += found
    seconds = time.monotonic() - started
    print(f"{arguments.seeds} seeds in {seconds:.0f} s ({arguments.seeds / seconds:.0f}/s): {len(failures)} failed")
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())

"""What must be true of shape logs and catalogs at every moment, whatever was killed and whatever the disk forgot.

The oracle knows the history of the database, what the catalog was asked to write and what clients have read. The worker
tells it what it is about to do and what it claims; the oracle looks at the disk, as it is and as a power loss would
certainly leave it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import IntEnum
from pathlib import Path
from random import Random
from typing import Final

from common.lsn import BEFORE_ALL, SNAPSHOT_END
from common.shape import partition_of_handle
from common.shapelog import DamagedLog, ShapeReader, SnapshotState, read_description
from common.shapelog.examination import look
from shapeworker.catalog import ACTIVE, ENDED, ShapeRow
from shapeworker.partition import Partition
from shapeworker.shape import Life, Shape
from tests.simulation.storage_disk import Disk, File, Process
from tests.simulation.storage_model import ShapeModel, Transaction

STORAGE: Final = Path("/storage")

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
    "its log cannot be opened: [Errno 5]",
    "its files cannot be made",
    "Input/output error",
    "[Errno",
    "an earlier sync failed",
    "Failed to create shape",
    "internal error: Full",
)


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


class Gateway:
    """A reader of one shape, in a process that outlives the worker, and what it has seen."""

    def __init__(self, reader: ShapeReader) -> None:
        self.reader = reader
        self.last = SNAPSHOT_END
        self.offsets = [BEFORE_ALL, SNAPSHOT_END]


class Oracle:
    """Watches one storage directory through all generations of its workers."""

    def __init__(
        self, disk: Disk, random: Random, partitions: int, bad_disk: bool, note: Callable[[str], None]
    ) -> None:
        """``bad_disk``: the disk may be full or fail, so that shapes may end because of it."""
        self.reported = 0
        self.models: dict[str, ShapeModel] = {}
        self.problems: list[str] = []
        self.note = note
        self._disk = disk
        self._random = random
        self._partitions = partitions
        self._bad_disk = bad_disk
        self._fates: dict[str, Fate] = {}
        self._gateways: dict[str, Gateway] = {}
        self._reading = Process(disk)

    def problem(self, text: str) -> None:
        """Something that must not be; looked at after the step, since this may be deep in the worker's code."""
        self.note(f"PROBLEM {text}")
        self.problems.append(text)

    # ---- clients

    @property
    def readers(self) -> bool:
        """Whether anybody reads anything."""
        return bool(self._gateways)

    def reads(self, handle: str) -> bool:
        """Whether somebody reads this shape."""
        return handle in self._gateways

    def follow(self, shape: Shape) -> None:
        """Somebody reads this shape from now on."""
        self._gateways[shape.handle] = Gateway(ShapeReader(shape.directory, self._reading))

    def check_descriptions(self) -> None:
        """The power went: whoever finds a shape by its description, without a worker, finds all that it promises."""
        for handle, model in self.models.items():
            if self._fates[handle].tombstone is not Sure.NO:
                continue  # marked, and perhaps removed in part
            directory = self._directory(handle)
            try:
                if read_description(directory, self._reading) is None:
                    continue
            except FileNotFoundError:
                continue
            try:
                header = look(directory, self._reading)
                chunks = [self._disk.find(directory / f"snapshot.{number:04d}.json") for number in range(header.chunks)]
            except (DamagedLog, FileNotFoundError) as error:
                self.problem(f"{handle} has a description, but {error!r}")
                continue
            found = [bytes(chunk.data) for chunk in chunks if isinstance(chunk, File)]
            if header.snapshot is not SnapshotState.COMPLETE or found != model.snapshot_chunks():
                self.problem(f"{handle} has a description, but not all of its snapshot")

    def forget_readers(self) -> None:
        """The machine, and with it all that clients hold open, is gone."""
        self._gateways.clear()
        self._reading.kill()
        self._reading = Process(self._disk)

    def extend(self, history: list[Transaction]) -> None:
        """The database has committed something."""
        for model in self.models.values():
            model.extend(history)

    # ---- what the worker does

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

    def catalog_opened(self, number: int, rows: list[ShapeRow]) -> None:
        """What the catalog says now is what counts, and must stay."""
        found = {row.handle: row for row in rows}
        for handle, row in found.items():
            fate = self._fates.setdefault(handle, Fate())  # perhaps its worker died before it knew that it had made it
            if row.state == ENDED:
                if fate.tombstone is Sure.NO:
                    self.problem(f"{handle} ended, nobody asked for it")
                fate.tombstone = Sure.YES
                continue
            if fate.tombstone is Sure.YES:
                self.problem(f"{handle} had ended and is back (INV-16, INV-32)")
            fate.tombstone = Sure.NO
            if row.state != ACTIVE:
                if fate.activation is Sure.YES:
                    self.problem(f"{handle} was active and is not any more")
                continue
            if fate.activation is Sure.NO:
                self.problem(f"{handle} is active before it was complete (INV-20)")
                continue
            fate.activation = Sure.YES
            model = self.models[handle]
            if (row.snapshot, row.filter_until) != (model.snapshot, model.filter_until):
                self.problem(f"{handle} has another snapshot than it had")
            self._check_durable(handle, self.reported)
        for handle, fate in self._fates.items():
            if self._in_partition(handle, number) and handle not in found:
                if fate.activation is Sure.YES and fate.tombstone is Sure.NO:
                    self.problem(f"{handle} was active and is lost")
                fate.tombstone = Sure.YES

    def opened(self, number: int, rows: list[ShapeRow]) -> None:
        """A partition is open again. Who does not live in it any more is shown as ended."""
        living = [row.handle for row in rows]
        self.note(f"opened {number}: {living}")
        for handle, fate in self._fates.items():
            if not self._in_partition(handle, number):
                continue
            expected = fate.activation is Sure.YES and fate.tombstone is Sure.NO
            if expected != (handle in living):
                self.problem(f"{handle} is {'not taken over' if expected else 'taken over although it is not active'}")
            if not expected:
                self._check_marked(handle)

    def log_opened(self, shape: Shape) -> None:
        """A log has been recovered: it is a prefix, with all that was reported durable (INV-26)."""
        model = self.models.get(shape.handle)
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

    def applied(self, lsn: int, shapes: Iterable[Shape]) -> None:
        """Everything up to here can be read in these shapes."""
        for shape in shapes:
            if shape.life is Life.ACTIVE and shape.log is not None:
                expected = self.models[shape.handle].commit_at(lsn).last
                if shape.log.last < expected:
                    self.problem(f"{shape.handle} ends at {shape.log.last} instead of {expected}")

    def durable(self, lsn: int) -> None:
        """The worker reports it: would a power loss right now leave everything up to there (INV-10)?"""
        self.note(f"durable {lsn}")
        self.reported = max(self.reported, lsn)
        for handle in self._fates:
            self._check_durable(handle, lsn)

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
        model = self.models[handle]
        commit = model.commit_at(lsn)
        directory = self._directory(handle)
        try:
            index = self._disk.find(directory / "log.index", durable=True)
            assert isinstance(index, File)
            if len(index.durable) < 64 or index.durable[20:24] == bytes(4):
                self.problem(f"{handle} is active, its header is not on the disk (INV-20)")
            if index.durable[64 : commit.index_size] != model.index[64 : commit.index_size]:
                self.problem(f"{handle}: records up to {lsn} are not on the disk (INV-10)")
            if commit.log_size:
                log = self._disk.find(directory / "log.json", durable=True)
                assert isinstance(log, File)
                if log.durable[: commit.log_size] != model.log[: commit.log_size]:
                    self.problem(f"{handle}: bytes up to {lsn} are not on the disk (INV-10)")
            for number, chunk in enumerate(model.snapshot_chunks()):
                file = self._disk.find(directory / f"snapshot.{number:04d}.json", durable=True)
                assert isinstance(file, File)
                if file.durable != chunk:
                    self.problem(f"{handle}: chunk {number} of its snapshot is not on the disk (INV-20)")
        except FileNotFoundError as error:
            self.problem(f"{handle}: up to {lsn} is reported durable, but the disk may lose {error.filename}")

    def read(self) -> None:
        """A request of some client (INV-21, INV-23, INV-28, INV-33)."""
        if not self._gateways:
            return
        handle = self._random.choice(list(self._gateways))
        gateway, model, fate = self._gateways[handle], self.models[handle], self._fates[handle]
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
            offset = self._random.choice(gateway.offsets)
            found = reader.after(offset)
            data = reader.read_log(found.start, found.end - found.start)
            if (data, found.end_offset) != model.after(offset, commit):
                self.problem(f"{handle} gives other bytes after {offset} (INV-21, INV-28)")
            if found.end_offset not in gateway.offsets:
                gateway.offsets.append(found.end_offset)
            chunks = model.snapshot_chunks()
            if header.snapshot is SnapshotState.COMPLETE and header.chunks != len(chunks):
                self.problem(f"{handle} has {header.chunks} chunks instead of {len(chunks)}")
            for number in range(header.chunks):
                if reader.read_snapshot(number, 0, 1 << 20) != chunks[number]:
                    self.problem(f"{handle}: chunk {number} of its snapshot is not what was written (INV-21)")
        except (DamagedLog, FileNotFoundError) as error:
            if not fate.tombstone:
                self.problem(f"{handle} cannot be read: {error!r}")

    def check_rest(self, partition: Partition, shapes: list[Shape]) -> None:
        """Nothing is going on: all is applied, only what lives is there, the trash has been emptied."""
        number = partition.number
        active = sorted(shape.handle for shape in shapes)
        listed = sorted(row.handle for row in partition.catalog.rows())
        present = sorted(self._disk.directory(partition.directory / "shapes").entries)
        if not active == listed == present:
            self.problem(f"partition {number}: holds {active}, catalog {listed}, directories {present}")
            return
        if self._disk.directory(partition.trash).entries:
            self.problem(f"partition {number}: the trash is not empty")
        for handle in active:
            model = self.models[handle]
            index, log = self._files(handle)
            if index[64:] != model.index[64:] or log != model.log:
                self.problem(f"{handle} does not hold what the history says (INV-24, INV-25)")
            self._check_durable(handle, self.reported)

    def _directory(self, handle: str) -> Path:
        return STORAGE / "partitions" / f"{self._partition(handle):02d}" / "shapes" / handle

    def _files(self, handle: str) -> tuple[bytearray, bytearray]:
        directory = self._directory(handle)
        index = self._disk.find(directory / "log.index")
        assert isinstance(index, File)
        try:
            log = self._disk.find(directory / "log.json")
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

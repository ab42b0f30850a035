"""A history of one storage directory, drawn from a seed: what clients, the database, the disk and fate do to a worker.

Shapes are made, fed, read, ended; the worker is killed or the power fails inside any operation on a file; the next
worker recovers, and the stream begins again at the acknowledged position. After each step the oracle is asked.
"""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable
from random import Random
from typing import Any, Final

from common.shape import ShapeRequest
from common.shapelog import DamagedLog
from common.xid import Snapshot
from shapeworker.endings import ShapeEnded
from shapeworker.requests import CannotCreate
from tests.simulation import storage_sqlite
from tests.simulation.storage_disk import Crash, Directory, Disk, Process
from tests.simulation.storage_model import ShapeModel, Transaction, rows, transaction
from tests.simulation.storage_oracle import DELETED, Oracle
from tests.simulation.storage_worker import Facts, Worker

REQUESTS: Final = tuple(
    ShapeRequest(schema="public", table=table, replica=replica, where=where)
    for table in ("t5", "t6")
    for replica in ("default", "full")
    # All rows match, of some shapes by the router's index, of others by evaluation.
    for where in (None, "id LIKE 'k%' OR v LIKE '%'", "id IS NOT NULL")
)


class Failed(Exception):
    """The simulation found something that must not be."""


class Scenario:
    """One seed."""

    def __init__(self, seed: int, trace: Callable[[str], None] = lambda line: None) -> None:
        """``trace`` is given a line for each step of interest."""
        self.random = random = Random(seed)
        self._trace = trace
        self._steps = 0
        self.disk = Disk(random)
        self.disk.root.entries["storage"] = self.disk.root.durable["storage"] = Directory()
        self.history: list[Transaction] = []
        self.acknowledged = 1
        self.chunk_bytes = random.choice((60, 200, 400, 2000))
        self.together = random.choice((1, 2, 8))
        self._partitions = random.choice((1, 1, 2))
        self._generation = 1
        self._version = 0
        self._open_logs = random.choice((1, 2, 4))
        self._bad_disk = random.random() < 0.3
        self._hostile = random.random() < 0.7
        self._time = 10**18
        self._dispatched = 0
        self.oracle = Oracle(self.disk, random, self._partitions, self._bad_disk, self._note)
        self._nested = False
        self._worker: Worker | None = None
        self._weights = [random.choice((1, 1, 3)) * weight for _, weight in self._ACTIONS]

    # ---- what happens

    def run(self) -> None:
        """All of it. Raises :class:`Failed`."""
        storage_sqlite.start()
        for _ in range(self.random.randint(2, 6)):
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
        self._do_sweep()
        self._note("at rest")
        for number, partition in list(self._now.holdings.partitions.items()):
            self.oracle.check_rest(partition, self._now.holdings.of_partition(number))
            self.oracle.read()
        self._look()
        self._crash(power=False)

    def _boot(self, crashes: bool = True) -> None:
        random = self.random
        process = Process(self.disk)
        process.hook = self._between
        if crashes and random.random() < 0.8:
            process.crash_in = random.randint(1, random.choice((30, 150, 500, 1000)))
        if random.random() < 0.04:
            self._generation += 1
        self.disk.full = False
        self._worker = Worker(self, self.oracle, process, self._open_logs, self._partitions)
        self._note(f"boot, dies in {process.crash_in}, acknowledged {self.acknowledged}")
        self._assign(tuple(range(self._partitions)))

    def _live(self) -> None:
        random = self.random
        actions = [getattr(self, f"_do_{name}") for name, _ in self._ACTIONS]
        for _ in range(random.choice((20, 60, 120))):
            (action,) = random.choices(actions, self._weights)
            self._steps += 1
            action()
            self._look()

    def _look(self) -> None:
        """After each step: is anything wrong, is the worker still alive?"""
        if self.oracle.problems:
            raise Failed(self.oracle.problems[0])
        if self._now.process.dead:
            raise Crash
        failure = self._now.failure()
        if failure is not None:
            raise Failed("".join(["the worker would have crashed: ", *traceback.format_exception(failure)]).strip())

    def _stop(self) -> None:
        self._note("stop")
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
        worker, self._worker = self._now, None
        self._note(f"{'power loss' if power else 'kill'} after {worker.process.operations} operations")
        worker.process.kill()
        worker.loop.abandon()
        if self.oracle.problems:
            raise Failed(self.oracle.problems[0])
        if power:
            self.disk.lose_power()
        if power or worker.process.faults:
            # After a failed sync the page cache may lose what clients have seen: only then a kill is like a power loss.
            self.oracle.forget_readers()
            self.oracle.check_descriptions()

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
                and self.oracle.reported >= last
                and not worker.endings._tasks
                and not worker.creator._building
            ):
                return
        raise Failed("the worker does not come to rest")

    # ---- steps

    _ACTIONS: Final = (
        ("run", 30),
        ("feed", 15),
        ("commit", 6),
        ("create", 4),
        ("end", 0.4),
        ("wait", 10),
        ("read", 3),
        ("acknowledge", 2),
        ("sweep", 0.5),
        ("rewind", 0.5),
        ("fill", 0.4),
        ("break", 0.4),
        ("reassign", 0.2),
    )

    def _do_run(self) -> None:
        loop = self._now.loop
        for _ in range(self.random.choice((1, 3, 10))):
            loop.turn()
            jobs = loop.startable()
            if jobs and not self._now.process.dead:
                loop.work(self.random.choice(jobs))

    def _do_feed(self) -> None:
        for _ in range(self.random.randint(1, 10)):
            self._feed()

    def _do_commit(self) -> None:
        last = self.history[-1].lsn if self.history else 1000
        new = transaction(last + self.random.randint(1, 20), 100 + len(self.history), self.random)
        self.history.append(new)
        self.oracle.extend(self.history)
        self._note(f"transaction {new.lsn} of {len(new.records) - 2} changes")

    def _do_create(self) -> None:
        worker = self._now
        request = self.random.choice(REQUESTS)
        number = request.hash() % self._partitions
        if worker.holdings.is_fed(number):
            worker.spawn(self._create(worker, request))

    async def _create(self, worker: Worker, request: ShapeRequest) -> None:
        with contextlib.suppress(CannotCreate, ShapeEnded):
            await worker.creator.create(request)

    def _do_end(self) -> None:
        shapes = list(self._now.holdings)
        if shapes:
            shape = self.random.choice(shapes)
            self._note(f"delete {shape.handle}")
            self._call(self._now.endings.end, shape, DELETED)

    def _do_wait(self) -> None:
        if not self._now.loop.ready:
            self._now.loop.advance()

    def _do_read(self) -> None:
        shapes = [shape for shape in self._now.holdings if shape.snapshot is not None]
        if shapes and (not self.oracle.readers or self.random.random() < 0.5):
            shape = self.random.choice(shapes)
            if not self.oracle.reads(shape.handle):
                try:
                    self._call(self._now.open_log, shape)
                except (DamagedLog, FileNotFoundError) as error:
                    self.oracle.problem(f"{shape.handle}: its log cannot be opened: {error}")
                    return
                except OSError:
                    return
                self.oracle.follow(shape)
        self.oracle.read()

    def _do_acknowledge(self) -> None:
        self.acknowledged = max(self.acknowledged, self.oracle.reported + 1)

    def _do_sweep(self) -> None:
        for partition in list(self._now.holdings.partitions.values()):
            with contextlib.suppress(OSError):
                partition.sweep()

    def _do_rewind(self) -> None:
        if self._now.held_version == self._version:
            self._note(f"the stream begins again at {self.acknowledged}")
            self._call(self._now.start_epoch)

    def _do_fill(self) -> None:
        if self._bad_disk:
            self.disk.full = not self.disk.full
            self._note(f"the disk is full: {self.disk.full}")
        if self._now.full:
            self._call(self._now.start_epoch)

    def _do_break(self) -> None:
        if self._bad_disk:
            if self.random.random() < 0.5:
                self._now.process.bad_syncs += 1
            else:
                self._now.process.bad_truncations += 1
            self._note("the next sync or truncation fails")

    def _do_reassign(self) -> None:
        if self.random.random() < 0.2:
            self._generation += 1
        held = tuple(number for number in range(self._partitions) if self.random.random() < 0.7)
        self._assign(held if self._now.held_version == self._version else tuple(range(self._partitions)))

    def _assign(self, partitions: tuple[int, ...]) -> None:
        self._version += 1
        self._note(f"hold {partitions} of generation {self._generation}")
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
            if chance < 0.04:
                self.oracle.read()
            elif chance < 0.4 and name in ("fdatasync", "sync_directory") and self._now.loop.working:
                # The loop goes on while a thread waits for the disk.
                for _ in range(self.random.randint(1, 4)):
                    if self.random.random() < 0.5:
                        self._feed()
                    else:
                        self._now.loop.turn()
        finally:
            self._nested = False

    # ---- the world that the worker meets

    def clock(self) -> int:
        """Nanoseconds; sometimes they go back."""
        self._time += self.random.choice((1, 10**6, 10**9, -(10**8)))
        return self._time

    def dispatched(self, place: int) -> None:
        """The stream has brought something of this transaction: snapshots taken from now on must show it."""
        self._dispatched = max(self._dispatched, place + 1)

    def take(self, handle: str, oid: int) -> Facts:
        """A snapshot of the table at this moment; the newest transactions may not be visible yet."""
        random = self.random
        top = 100 + len(self.history)
        filter_until = self.history[-1].lsn + 1 if self.history else 1
        late = [xid for _, xid, *_ in self.history[self._dispatched :]]
        running = frozenset(xid for xid in late[-2:] if random.random() < 0.3)
        snapshot = Snapshot(min(running, default=top), top, running)
        facts = Facts(snapshot, filter_until, list(rows(random)))
        model = ShapeModel(handle, oid, self.chunk_bytes, facts.rows, snapshot, filter_until)
        model.extend(self.history)
        self.oracle.models[handle] = model
        self._note(f"snapshot of {handle}: {len(facts.rows)} rows, before {filter_until}, without {set(running)}")
        return facts

    def fails(self) -> bool:
        """Whether a snapshot fails for a reason of the database's."""
        return self.random.random() < 0.05

    def _note(self, text: str) -> None:
        self._trace(f"{self._steps:5} {text}")


def simulate(seed: int, trace: bool = False) -> str | None:
    """Run one seed; what is wrong, or ``None``. To be called in :func:`~tests.simulation.storage.small_world`."""
    try:
        Scenario(seed, print if trace else lambda line: None).run()
    except Failed as failure:
        return str(failure)
    except Exception:  # noqa: BLE001 - a failure like any other
        return traceback.format_exc()
    return None

"""One simulated installation: its processes and who starts them again, Postgres, clients, and its faults.

``Plan`` is what a seed decides beforehand. ``World.run`` lets everything happen, first with faults, then without, until
all is at rest: a world that does not come to rest is a failure, too.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Final, cast

import orjson

import gateway.gateway
import gateway.main
import ingester.main
import shapeworker.main
from common.config import Settings
from common.lsn import Offset
from common.shapelog.reader import ShapeReader
from ingester.watermark import Watermark
from shapeworker.catalog import ACTIVE, ShapeRow
from shapeworker.shape import Life
from tests.simulation.clients import Client, Door
from tests.simulation.database import Database
from tests.simulation.disk import Disk, SimPath
from tests.simulation.edges import EVICTION_QUIET, replaced
from tests.simulation.faults import Faults
from tests.simulation.network import Network
from tests.simulation.oracle import Cut, Oracle, View, cut_of
from tests.simulation.plan import Plan
from tests.simulation.postgres import Server
from tests.simulation.process import Process
from tests.simulation.scheduler import Scheduler
from tests.simulation.writers import Writers

REST_SECONDS: Final = 150.0
"""Virtual seconds that all may take to come to rest once nothing disturbs it any more."""


class CheckedWatermark(Watermark):
    """Believes no report without looking at the disk (INV-10)."""

    oracle: Oracle

    def durable(self, partitions: Any, lsn: int) -> None:
        """A report."""
        oracle = CheckedWatermark.oracle
        try:
            oracle.check_durable(lsn, tuple(partitions), "reported durable")
        except AssertionError as error:
            oracle.fail(error)
        super().durable(partitions, lsn)


class World:
    """A seed's world."""

    def __init__(self, seed: int, echo: Callable[[str], None] | None = None) -> None:
        self.scheduler = Scheduler(seed)
        self.scheduler.echo = echo
        rng = self.rng = self.scheduler.rng
        plan = self.plan = Plan(rng)
        self.server = Server(self.scheduler, plan.tables)
        self.server.standby_lag = lambda: rng.random() * plan.standby_lag if rng.random() < 0.5 else 0.0
        self.database = Database(self.server, plan.round_trip, sends_empty=plan.sends_empty, on_report=self._on_report)
        self.disk = Disk(self.scheduler, plan.sync_seconds)
        self.network = Network(self.scheduler, delay=plan.delay, hint_loss=plan.hint_loss)
        self.storage = SimPath("storage")
        self.settings = Settings(
            database_url="postgresql://u@localhost/db",
            insecure=True,
            partitions=plan.partitions,
            workers=plan.workers,
            chunk_bytes=plan.chunk_bytes,
            long_poll_timeout_ms=plan.long_poll_ms,
            integration_testing=True,
            max_shapes=plan.max_shapes,
            stream_endpoint="tcp://ingester:1",
            status_endpoint="tcp://ingester:2",
        )
        self.settings.storage_dir, self.settings.run_dir = cast(Path, self.storage), cast(Path, SimPath("run"))
        self.oracle = Oracle(self.server, self.disk, self.storage)
        self.oracle.fail = self.scheduler.fail
        self.oracle.on_eviction = self._on_eviction
        CheckedWatermark.oracle = self.oracle
        self.writers = Writers(self.server, rng, plan)
        self.alive: dict[str, Process] = {}
        self.wanted: dict[str, Callable[[], None]] = {}
        self.workers: dict[str, shapeworker.main.Worker] = {}
        self.doors: dict[str, Door] = {}
        self.clients: list[Client] = []
        self.powered = True
        self.calm = False
        self.reported = 0
        self.incarnations = 0

    # ---- the whole

    def run(self) -> None:
        """Let it happen. Raises what it finds."""
        scheduler, plan = self.scheduler, self.plan
        with (
            replaced(scheduler, self.network, self.database, self.disk, CheckedWatermark, plan.sizes, self._on_log),
            self._captured(),
        ):
            self._start_all()
            self.writers.start()
            for _ in range(plan.clients):
                self.add_client()
            for _ in range(plan.passers):
                self._let_pass()
            faults = Faults(self)
            for _ in range(plan.faults):
                scheduler.after(self.rng.uniform(1, plan.seconds), faults.one)
            scheduler.run(plan.seconds)
            self._calm_down()
            if not scheduler.run(scheduler.now + REST_SECONDS, self._at_rest):
                raise AssertionError("does not come to rest: " + self._restless())
            self._check_logs()
        if scheduler.failure is not None:
            raise scheduler.failure

    def _calm_down(self) -> None:
        self.scheduler.trace("calm")
        self.calm = self.writers.calm = True
        self.disk.full = False
        self.disk.bad_syncs = 0
        self.disk.crash = None
        self.server.standby_lag = lambda: 0.0

    def _at_rest(self) -> bool:
        return self._restless() == ""

    def _restless(self) -> str:
        server = self.server
        if self.writers.busy:
            return f"{self.writers.busy} writers"
        if server.running:
            return "transactions are running"
        if server.slot is None:
            return "there is no slot"
        if not self.doors:
            return "there is no gateway"
        if server.flush < server.insert:
            return "the server has not flushed its WAL"
        for client in self.clients:
            if not client.view.up_to_date or client.view.rows != self.oracle.table(client.shape):
                return (
                    f"{client.name} (last status {client.last_status}) at {client.view.offset} of {client.view.handle},"
                    f" up to date: {client.view.up_to_date}, holds {client.view.rows}, Postgres "
                    f"{self.oracle.table(client.shape)}"
                )
        if server.slot.confirmed < server.flush:
            return f"INV-8: the slot is at {server.slot.confirmed}, the server at {server.flush}"
        used = len({client.view.handle for client in self.clients})
        if self.plan.max_shapes is not None and self.oracle.alive() > max(used, self.plan.max_shapes):
            return (
                f"there are {self.oracle.alive()} shapes, of which clients use {used}, at most {self.plan.max_shapes}"
            )
        for worker in self.workers.values():
            for shape in worker._holdings:
                if shape.life is Life.ACTIVE and (shape.building or shape.started):
                    return f"{shape.handle} still has what it was built with: a task, or a future"
        for door in self.doors.values():
            status, body = door.gateway._service.health(self.scheduler.now)
            if status != 200:
                return f"INV-37: health is {status} {body!r}"
        return ""

    def _check_logs(self) -> None:
        with self.scheduler.running(next(iter(self.doors.values())).process):
            for row in self.oracle.active():
                reader = ShapeReader(self._directory(row))  # type: ignore[arg-type]
                end = reader.after(Offset(0, 0)) if reader.last().tx else None
                data = b""
                while end is not None:
                    data += reader.read_log(end.start, end.end - end.start)
                    if end.end_offset == reader.last():
                        break
                    end = reader.after(end.end_offset)
                reader.close()
                items = orjson.loads(b"[" + data[:-2] + b"]")
                entries = [Offset(int(item["headers"]["lsn"]), item["headers"]["op_position"]) for item in items]
                self.oracle.check_log(row, entries)

    def _directory(self, row: ShapeRow) -> SimPath:
        return self.storage / "partitions" / self.oracle.partition(row) / "shapes" / row.handle

    # ---- processes

    def _captured(self) -> Any:
        world = self

        class CapturedWorker(shapeworker.main.Worker):
            def __init__(self, settings: Settings, worker_id: str, *more: Any) -> None:
                super().__init__(settings, worker_id, *more)
                world.workers[worker_id] = self

        class CapturedGateway(gateway.gateway.Gateway):
            async def start(self) -> None:
                await super().start()
                process = world.scheduler.current
                assert process is not None
                name = process.name.split("#")[0]
                world.doors[name] = Door(process, self)

            async def stop(self) -> None:
                process = world.scheduler.current
                assert process is not None
                world.doors.pop(process.name.split("#")[0], None)
                await super().stop()

        return _Patched(
            (shapeworker.main, "Worker", CapturedWorker),
            (gateway.main, "Gateway", CapturedGateway),
            (gateway.gateway, "Server", _Server),
        )

    def _start_all(self) -> None:
        self._want("ingester", lambda: ingester.main._run(self.settings))
        for number in range(self.plan.workers):
            self.want_worker(f"w{number}")
        for number in range(self.plan.gateways):
            name = f"g{number}"
            self._want(name, lambda name=name: gateway.main._serve(self.settings, name))  # type: ignore[misc]

    def want_worker(self, name: str) -> None:
        """From now on there is a worker of this name."""
        self._want(name, lambda: shapeworker.main._run(self.settings, name))

    def _want(self, name: str, main: Callable[[], Coroutine[Any, Any, int]]) -> None:
        def start() -> None:
            if self.wanted.get(name) is not start or name in self.alive:
                return
            if not self.powered:
                return
            self.incarnations += 1
            process = Process(self.scheduler, f"{name}#{self.incarnations}")
            self.scheduler.trace("start", process.name)
            self.alive[name] = process
            process.on_kill.append(lambda: self._died(name, process))
            process.start(main, lambda code: self._exited(process, code))

        self.wanted[name] = start
        self.scheduler.after(self.rng.random() * 0.5, start)

    def _exited(self, process: Process, code: int) -> None:
        if process.alive:
            self.scheduler.trace("exit", process.name, code)
            process.kill()

    def _died(self, name: str, process: Process) -> None:
        self.scheduler.trace("dead", process.name)
        self.disk.forget(process)
        self.workers.pop(name, None)
        self.doors.pop(name, None)
        if self.alive.get(name) is process:
            del self.alive[name]
        if name in self.wanted:
            self.scheduler.after(self.rng.uniform(0.05, self.rng.choice((0.3, 3.0, 9.0))), self.wanted[name])

    # ---- clients

    def add_client(self) -> None:
        """One more that stays."""
        client = self._client(f"c{len(self.clients)}")
        self.clients.append(client)
        client.process.start(client.run, lambda _: None)

    def _let_pass(self) -> None:
        client = self._client("passer")
        client.process.start(client.pass_by, lambda _: None)

    def _rest(self) -> float:
        if self.calm or self.plan.max_shapes is None or self.rng.random() > 0.1:
            return 0.0
        return self.rng.uniform(0, 6)

    def _client(self, name: str) -> Client:
        rng = self.rng
        columns = rng.choice((None, ("id", "a"), ("id", "b"), ("a", "b", "id")))
        view = View(rng.choice(list(self.server.tables)), ("a", "b", "id") if columns is None else columns)
        view = View(view.table, tuple(sorted(view.selected)))
        process = Process(self.scheduler, name)
        replica = rng.choice(("default", "default", "full"))
        doors = lambda: list(self.doors.values())  # noqa: E731
        return Client(process, name, view, columns, replica, doors, self._on_claim, self._rest)

    def _on_eviction(self, row: ShapeRow, alive: int) -> None:
        """Of too many shapes one ended: there are too many, and nobody waits for that one. ``alive``: in all catalogs.

        Where something goes wrong, a worker may hear late of either; all that clients see of it is a 409.
        """
        most, now = self.plan.max_shapes, self.scheduler.now
        if most is None:
            self.scheduler.fail(AssertionError(f"{row.handle} ends without a limit: {row.reason}"))
        elif self.plan.faults == 0:
            alive += self._in_the_making()
            if alive <= most:
                self.scheduler.fail(
                    AssertionError(f"{row.handle} ends, although there are {alive} shapes: {row.reason}")
                )
            for client in self.clients:
                since = client.waits_since
                if client.view.handle == row.handle and since is not None and now - since > EVICTION_QUIET:
                    self.scheduler.fail(
                        AssertionError(f"{row.handle} ends, although {client.name} waits: {row.reason}")
                    )

    def _in_the_making(self) -> int:
        """Shapes that count for their workers, but are in no catalog before they are complete."""
        entered = {handle for rows in self.oracle.rows.values() for handle in rows}
        return sum(shape.handle not in entered for worker in self.workers.values() for shape in worker._holdings)

    def _on_claim(self, client: Client) -> None:
        """INV-42: whoever is told that it is up to date at an LSN has everything up to there."""
        cut = self._cut(client.view.handle or "")
        if cut is None:
            return
        must = self.oracle.last(client.shape, cut, client.view.lsn)
        if must is not None and must.ops and Offset(must.lsn, must.ops[-1]) > client.view.offset:
            raise AssertionError(
                f"INV-42: {client.name} at {client.view.offset} is told that it has all up to {client.view.lsn}, "
                f"but lacks {must.lsn}"
            )

    def _cut(self, handle: str) -> Cut | None:
        for worker in self.workers.values():
            shape = worker._holdings.by_handle(handle)
            if shape is not None and shape.snapshot is not None:
                return Cut(shape.snapshot, shape.filter_until)
        for rows in self.oracle.rows.values():
            row = rows.get(handle)
            if row is not None and row.state == ACTIVE:
                return cut_of(row)
        return None

    # ---- what the product says

    def _on_report(self, flushed: int) -> None:
        """INV-7, INV-9: what is acknowledged is durable, and never less than before."""
        if flushed > self.reported:
            self.reported = flushed
            try:
                self.oracle.check_durable(flushed - 1, None, "acknowledged")
            except AssertionError as error:
                self.scheduler.fail(error)

    def _on_log(self, level: str, event: str, fields: dict[str, Any]) -> None:
        process = self.scheduler.current
        if process is None or not process.alive:
            return
        error = fields.get("exc_info")
        if self.scheduler.echo is not None:
            self.scheduler.echo(f"{self.scheduler.now:10.6f}  {process.name} [{level}] {event} {fields}")
        if "generation begins" in event or (error is not None and not _is_shortage(error)):
            failure = AssertionError(f"{process.name}: {event} {fields}")
            if isinstance(error, BaseException):
                failure.__cause__ = error
            self.scheduler.fail(failure)


def _is_shortage(error: object) -> bool:
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EIO)


class _Server:
    """``gateway.connection.Server``: nobody connects."""

    def __init__(self, *_: object, **__: object) -> None:
        """Nothing."""

    async def listen(self, host: str, port: int) -> None:
        """Nothing."""

    def close_listener(self) -> None:
        """Nothing."""

    def drain(self) -> None:
        """Nothing."""

    async def stop(self, patience: float) -> None:
        """Nothing."""

    def advance(self, now: float) -> None:
        """Nothing."""


class _Patched:
    """These names are replaced inside of it."""

    def __init__(self, *edges: tuple[Any, str, Any]) -> None:
        self._edges = edges
        self._before: list[tuple[Any, str, Any]] = []

    def __enter__(self) -> None:
        for module, name, value in self._edges:
            self._before.append((module, name, getattr(module, name)))
            setattr(module, name, value)

    def __exit__(self, *_: object) -> None:
        for module, name, value in self._before:
            setattr(module, name, value)

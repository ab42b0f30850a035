"""Where the product meets the world: the names that are replaced while a simulation runs, and nothing else.

Sockets, Postgres, the disk, threads and clocks; everything between these is the product as it is. A name that does not
exist any more fails here, so that a change of the product cannot silently take a part of it out of the simulation.
"""

from __future__ import annotations

import functools
import random
import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any, Final

import zmq

import gateway.finder
import gateway.gateway
import gateway.main
import gateway.shape
import gateway.shapes
import gateway.touches
import gateway.workers
import ingester.eviction
import ingester.fanout
import ingester.feed
import ingester.group
import ingester.inspection
import ingester.main
import ingester.session
import ingester.source
import ingester.subscriptions
import ingester.watermark
import shapeworker.announcer
import shapeworker.apply
import shapeworker.catalog
import shapeworker.credits
import shapeworker.descriptions
import shapeworker.eviction
import shapeworker.main
import shapeworker.ownership
import shapeworker.reconciler
import shapeworker.settling
import shapeworker.snapshot
import shapeworker.snapshot_member
import shapeworker.snapshot_work
from common.shapelog import files, whole_sync, writer
from tests.simulation import database as db
from tests.simulation.catalog import SimSqlite
from tests.simulation.database import Database
from tests.simulation.disk import Disk, SimFcntl, SimOs, SimPath
from tests.simulation.network import Network, SimChannel
from tests.simulation.replication import SimStream
from tests.simulation.scheduler import EPOCH, Scheduler, SimLock

PRODUCT = ("common", "ingester", "shapeworker", "gateway")


class SimTime:
    """The part of ``time`` that the product uses."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler

    def monotonic(self) -> float:
        """Seconds."""
        return self._scheduler.now

    def monotonic_ns(self) -> int:
        """Nanoseconds."""
        return int(self._scheduler.now * 1e9)

    def time(self) -> float:
        """Unix seconds."""
        return EPOCH + self._scheduler.now

    def time_ns(self) -> int:
        """Unix nanoseconds."""
        return int((EPOCH + self._scheduler.now) * 1e9)

    def sleep(self, seconds: float) -> None:
        """In a thread."""
        self._scheduler.pause(seconds)


class SimInstruments:
    """``common.instruments.Instruments``, which is about real processes and clocks."""

    def __init__(self, *_: object) -> None:
        pass

    async def __aenter__(self) -> SimInstruments:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    def watch(self, *_: object) -> None:
        """Nobody asks."""

    def obstacles(self) -> list[object]:
        """None."""
        return []


class SimEvent:
    """``threading.Event``."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._set = False

    def set(self) -> None:
        """It has happened."""
        self._set = True

    def is_set(self) -> bool:
        """Whether it has."""
        return self._set

    def wait(self, timeout: float) -> bool:
        """For so long at most."""
        if not self._set:
            self._scheduler.pause(timeout)
        return self._set


class SimFuture:
    """``concurrent.futures.Future`` as a thread waits for it."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._done = False
        self._result: Any = None
        self._failure: BaseException | None = None

    def set_result(self, result: Any) -> None:
        """Done."""
        self._done, self._result = True, result

    def set_exception(self, failure: BaseException) -> None:
        """Failed."""
        self._done, self._failure = True, failure

    def result(self, timeout: float) -> Any:
        """What was set within so many seconds. Raises ``TimeoutError``."""
        until = self._scheduler.now + timeout
        while not self._done:
            if self._scheduler.now >= until:
                raise TimeoutError
            self._scheduler.pause(0.003)
        if self._failure is not None:
            raise self._failure
        return self._result


class SimLog:
    """The log of a module."""

    def __init__(self, on_log: Callable[[str, str, dict[str, Any]], None]) -> None:
        self._on_log = on_log

    def __getattr__(self, level: str) -> Callable[..., None]:
        def line(event: str, **fields: Any) -> None:
            if level == "exception":
                fields["exc_info"] = sys.exception()
            self._on_log(level, event, fields)

        return line


EVICTION_QUIET: Final = 1.5
"""Seconds without use after which one shape of too many may end."""


@contextmanager
def replaced(
    scheduler: Scheduler,
    network: Network,
    database: Database,
    disk: Disk,
    watermark: Callable[[int, int], Any],
    sizes: dict[str, float],
    on_log: Callable[[str, str, dict[str, Any]], None],
) -> Iterator[None]:
    """Replace the edges. ``watermark`` makes the ingester's, ``sizes`` are limits in bytes, ``on_log(level, event,
    fields)`` gets every line of the log."""
    SimPath.disk = disk
    slots = db.SimSlots(database)
    bound = _socket(network.bind)
    connected = _socket(network.connect)

    async def connect(*_: object, **__: object) -> db.SimConnection:
        await database.wait()
        return db.SimConnection(database)

    async def nothing(*_: object) -> None:
        await database.wait()

    async def no_rows(*_: object) -> list[object]:
        await database.wait()
        return []

    async def resolve(text: str, _: bool) -> str:
        return text

    def pool(*_: object, **__: object) -> db.SimPool:
        return db.SimPool(database)

    edges: list[tuple[Any, str, Any]] = [
        (ingester.group, "Channel", SimChannel),
        (ingester.group, "bound", bound),
        (ingester.group, "Watermark", watermark),
        (ingester.main, "Instruments", SimInstruments),
        (ingester.main, "Pool", pool),
        (ingester.main, "Publication", lambda *_, **__: db.SimPublication(database)),
        (ingester.session, "connect", connect),
        (ingester.session, "slot", slots),
        (ingester.session, "server", slots),
        (ingester.session, "acquire_lock", slots.acquire_lock),
        (ingester.session, "publication_setup", SimpleNamespace(ensure_publication=db.ensure_publication)),
        (ingester.session, "full_xid", db.full_xid),
        (ingester.subscriptions, "current_snapshot", db.current_snapshot),
        (ingester.feed, "ReplicationStream", functools.partial(SimStream, database)),
        (ingester.feed, "end_readers", slots.end_readers),
        (ingester.feed, "check_continuity", slots.check_continuity),
        (ingester.main, "Reconciler", db.SimReconciler),
        (ingester.inspection, "_blocked", no_rows),
        (ingester.inspection, "_slot_state", nothing),
        (shapeworker.reconciler, "describe_oids", db.describe_oids),
        (ingester.source, "os", SimOs),
        (ingester.source, "fcntl", SimFcntl),
        (shapeworker.main, "Instruments", SimInstruments),
        (shapeworker.main, "Channel", SimChannel),
        (shapeworker.main, "bound", bound),
        (shapeworker.main, "connected", connected),
        (shapeworker.main, "Pool", pool),
        (shapeworker.announcer, "Channel", SimChannel),
        (shapeworker.descriptions, "describe", db.describe),
        (shapeworker.descriptions, "version", db.version),
        (shapeworker.catalog, "sqlite3", SimSqlite(disk)),
        (shapeworker.snapshot_work, "SnapshotConnection", lambda _, stop: db.SimSnapshotConnection(database, stop)),
        (shapeworker.snapshot_work, "copy_statement", db.copy_statement),
        (shapeworker.snapshot_member, "is_large", lambda plan: scheduler.rng.random() < sizes["alone"]),
        (shapeworker.ownership, "AT_ONCE", 1),
        (whole_sync, "MANY", sizes["together"]),
        (shapeworker.snapshot, "resolve", resolve),
        (shapeworker.snapshot, "Event", lambda: SimEvent(scheduler)),
        (shapeworker.snapshot_work, "Future", lambda: SimFuture(scheduler)),
        (gateway.main, "Instruments", SimInstruments),
        (gateway.gateway, "Channel", SimChannel),
        (gateway.gateway, "connected", connected),
        (gateway.workers, "Channel", SimChannel),
        (gateway.workers, "connected", connected),
        (gateway.workers, "parse_monitor_message", lambda _: {"event": zmq.EVENT_DISCONNECTED}),
        (gateway.shape, "os", SimOs),
        (gateway.shapes, "os", SimOs),
        (gateway.finder, "os", SimOs),
        (ingester.fanout, "FRAME_BYTES", sizes["frame"]),
        (ingester.fanout, "CREDIT_BYTES", sizes["credit"]),
        (ingester.fanout, "RING", sizes["ring"]),
        (shapeworker.credits, "STEP", sizes["frame"]),
        (shapeworker.apply, "SPILL_BYTES", sizes["spill"]),
        (shapeworker.apply, "HELD_BYTES", sizes["held"]),
        (writer, "BUFFER_BYTES", sizes["buffer"]),
        (gateway.log, "SLICE", sizes["slice"]),
        # Shapes end after a second and a half without use instead of fifteen.
        (gateway.touches, "EVERY", 0.5),
        (shapeworker.eviction, "QUIET", EVICTION_QUIET),
        (ingester.eviction, "EVERY", 1.0),
        (ingester.eviction, "AGAIN", 0.1),
    ]
    clock = SimTime(scheduler)
    # Bound when the class was made.
    edges.append((shapeworker.catalog.Catalog.__init__, "__defaults__", (shapeworker.catalog.connect, clock.time_ns)))
    edges.append((shapeworker.eviction.Eviction.__init__, "__defaults__", (clock.time,)))
    chance = random.Random(scheduler.rng.random())
    tokens = SimpleNamespace(token_hex=lambda size: f"{chance.getrandbits(8 * size):0{2 * size}x}")
    locks = SimpleNamespace(Lock=lambda: SimLock(lambda: scheduler))
    for module in _product_modules():
        for name, real, simulated in (
            ("time", time, clock),
            ("random", random, chance),
            ("secrets", secrets, tokens),
            ("threading", threading, locks),
        ):
            if getattr(module, name, None) is real:
                edges.append((module, name, simulated))
    file_calls = [name for name in vars(files.Files) if not name.startswith("_")]

    for module in _product_modules():
        if type(getattr(module, "log", None)).__module__.startswith("structlog"):
            edges.append((module, "log", SimLog(on_log)))
    before = [(module, name, getattr(module, name)) for module, name, _ in edges]
    try:
        for module, name, simulated in edges:
            setattr(module, name, simulated)
        for name in file_calls:
            getattr(files.REAL, name)
            setattr(files.REAL, name, getattr(disk, name))
        yield
    finally:
        scheduler.dispose()
        for name in file_calls:
            delattr(files.REAL, name)
        for module, name, real in before:
            setattr(module, name, real)


def _product_modules() -> list[ModuleType]:
    return [module for name, module in sorted(sys.modules.items()) if name.split(".")[0] in PRODUCT]


def _socket(make: Callable[[int, str, dict[int, int | bytes]], Any]) -> Callable[..., Any]:
    def socket(_: object, kind: int, endpoint: str, options: dict[int, int | bytes] | None = None) -> Any:
        return make(kind, endpoint, options or {})

    return socket

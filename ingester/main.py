"""The ingester process: one replication session after the other, and the stream of each (architecture.md 2, 3)."""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
import time
from collections.abc import Callable
from typing import Final, NoReturn

import psycopg
import structlog
import uvloop

from common.config import Settings
from common.crash import CrashOnly
from common.instruments import Instruments
from common.messages import Subscribe
from common.obstacles import Obstacle
from common.postgres import DATABASE_ERRORS, DatabaseProblem, Kind, Pool, Problem, classify
from common.process import collect_rarely
from common.remedies import Remedies
from common.shortage import describe, is_shortage
from ingester.feed import Feed
from ingester.group import Group
from ingester.inspection import Inspection
from ingester.measures import Measures
from ingester.publication import Publication
from ingester.publication_setup import drop_publication
from ingester.reconciler import Reconciler
from ingester.replication import StreamLost
from ingester.session import Session, keep_lock, open_session
from ingester.slot import drop_slot
from ingester.source import SourceFile, SourceReleased
from ingester.subscriptions import Subscriptions

log = structlog.get_logger()

FATAL_EXIT: Final = 78
"""Exit code that supervisord does not restart: somebody has to change a setting first (EX_CONFIG)."""

HEARTBEAT: Final = 1.0
"""Seconds between two Status messages when nothing happens."""

ACKNOWLEDGE: Final = 0.5
"""Seconds between two movements of the acknowledged position."""

BACKOFF: Final = (0.5, 10.0)
"""Seconds: first and longest pause between two attempts to get a session."""

HEALTHY: Final = 5.0
"""Seconds a session must have lasted before the next loss starts with the shortest pause again."""

SHORT_STATUS: Final = 2.0
"""Seconds between two status updates below which the server is too impatient for comfort."""

DRAIN: Final = 3.0
"""Seconds that workers get at the end to report what they have made durable."""


FAREWELL: Final = 10.0
"""Seconds that the database gets at the end to give up what it was asked for."""


class Ingester:
    """The only one that talks to the slot."""

    def __init__(self, settings: Settings, obstacles: Callable[[], list[Obstacle]] = list) -> None:
        """``obstacles``: what the process around it sees in its way."""
        self._settings = settings
        self._obstacles = obstacles
        self._slot = settings.slot_name
        self._file = SourceFile(settings.storage_dir)
        self._crash = CrashOnly()
        self._wake = asyncio.Event()
        self._opened = asyncio.Event()
        self._group = Group(
            settings,
            secrets.token_hex(8),
            on_subscribe=self._on_subscribe,
            on_credit=lambda: self._feed.resume("credit"),
            on_change=self._wake.set,
        )
        self._admin = Pool(
            settings.pooled_database_url,
            "galvanic admin",
            max(4, settings.db_pool_size // 4),
            pooled=True,
            prepares=not settings.has_pooler,
            prefer_ipv6=settings.database_use_ipv6,
            setting=settings.pooled_setting,
        )
        self._remedies = Remedies()
        self._feed = Feed(settings, self._slot, self._group, self._admin, self._crash, self._on_lost)
        self._inspection = Inspection(self._slot, self._group, self._feed, self._admin, self._subscriptions_waiting)
        self._subscriptions: Subscriptions | None = None
        self._session: Session | None = None
        self._lost: Exception | None = None
        self._epoch = 0
        self._acknowledging = asyncio.Lock()
        self._unrecorded: list[Obstacle] = []
        self._epochs_started = 0
        self.measures = Measures(settings, self._group, self._feed, self._inspection, lambda: self._epochs_started)

    # ---- life

    async def run(self) -> int:
        """Work until told to stop, or until a problem that only a changed setting can solve. Returns the exit code."""
        log.info("ingester started", slot=self._slot)
        look, ask = self._inspection.run(), self._inspection.ask_database()
        for work in (self._group.run(), self._beat(), self._acknowledge(), look, ask):
            self._crash.spawn(work)
        life = asyncio.get_running_loop().create_task(self._live())
        crashed = await self._crash.end(life)
        if crashed is not None:
            return crashed
        if life.done():
            return life.result()
        await self._shut_down(life)
        return 0

    async def _shut_down(self, life: asyncio.Task[int]) -> None:
        """Stop reading, let the workers report what they have, acknowledge it, let go of the slot."""
        log.info("ingester stops")
        self._group.say("starting", "the ingester is stopping")
        watermark = self._group.watermark
        if self._feed.is_open and watermark is not None:
            self._feed.halt("shutdown")
            deadline = time.monotonic() + DRAIN
            # Workers that have left will report nothing more.
            while not watermark.all_durable and self._group.has_workers and time.monotonic() < deadline:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
            await self._move_acknowledged()
        self._feed.close()
        if self._settings.temporary_slot and (self._session is not None or self._settings.temporary_slot_random_name):
            await self._drop_slot()
        # What it waits for in the database is cancelled there, too, which takes a moment: else a backend would go on
        # waiting to make a slot that nobody wants any more (engine.md 3.3).
        life.cancel()
        await asyncio.wait({life}, timeout=FAREWELL)
        self._end_session()
        self._crash.cancel()
        if self._subscriptions is not None:
            await self._subscriptions.close()
        await self._admin.close()

    async def _drop_slot(self) -> None:
        """The slot was asked to go with us: what is in the storage directory ends with it at the next start.

        While the lock is held, or it might be another's by now. The publication goes first, so that a successor cannot
        take the slot for whole (engine.md 3.3); unless it has users besides the slot of this name.
        """
        settings = self._settings
        try:
            async with self._admin.connection() as connection:
                if not settings.manual_table_publishing and not settings.temporary_slot_random_name:
                    await drop_publication(connection, settings.publication_name)
                await drop_slot(connection, self._slot)
        except DATABASE_ERRORS as error:
            log.warning("the replication slot could not be dropped", slot=self._slot, error=classify(error).message)

    async def _live(self) -> int:
        """One session after the other, until a problem is fatal."""
        pause = BACKOFF[0]
        while True:
            started = time.monotonic()
            problem = await self._try_session()
            if problem.kind is Kind.FATAL:
                log.error("cannot go on until a setting is changed", reason=problem.message)
                self._group.say("fatal", problem.message)
                await asyncio.sleep(0.2)
                return FATAL_EXIT
            if time.monotonic() - started > HEALTHY:
                pause = BACKOFF[0]
            log.warning("no replication session; trying again", reason=problem.message, seconds=round(pause, 1))
            # As long as there has been none, «waiting», as the reference, whatever it is that we wait for.
            self._group.say("starting" if self._epoch else "waiting", problem.message)
            await asyncio.sleep(pause * random.uniform(0.8, 1.2))
            pause = min(pause * 2, BACKOFF[1])

    async def _try_session(self) -> Problem:
        try:
            self._session = await open_session(self._settings, self._slot, self._file, self._admin, self._waiting)
            await self._run_session(self._session)
        except (*DATABASE_ERRORS, StreamLost) as error:
            if isinstance(error, OSError) and is_shortage(error):
                return Problem(Kind.RETRY, describe(error, self._settings.storage_dir))
            problem = classify(error)
            if problem.kind is Kind.SLOT_LOST:
                try:
                    await asyncio.to_thread(self._file.poison, problem.message)
                except OSError as failure:
                    # The next attempt finds the slot lost again.
                    log.error("the loss of the slot cannot be recorded", reason=str(failure))
            return problem
        finally:
            self._end_session()

    def _waiting(self, state: str, reason: str) -> None:
        log.info("waiting", reason=reason)
        self._group.say(state, reason, superseded=state == "waiting")

    # ---- a session

    async def _run_session(self, session: Session) -> NoReturn:
        """Stream until the session is lost, and raise why."""
        group, source = self._group, session.source
        self._epoch = source.epoch
        group.adopt(source.partitions, source.generation, session.position, source.system_identifier)
        assert group.coordinator is not None
        group.fanout.set_anchor(session.xid_anchor)
        publication = self._feed.publication = Publication(
            self._admin,
            self._settings.publication_name,
            manual=self._settings.manual_table_publishing,
            standings=source.tables,
            on_standings=lambda standings: asyncio.to_thread(self._file.update, tables=standings),
            on_gap=group.fanout.gap,
            on_remedy=self._remedies.offer,
        )
        subscriptions = self._subscriptions = Subscriptions(
            publication, self._admin, group.coordinator, group.fanout, self._feed.at_boundary
        )
        reconciler = Reconciler(
            publication,
            lambda: None if group.tables is None else group.tables | subscriptions.tables,
            lambda version: asyncio.to_thread(self._file.update, publication_version=version),
            version=source.publication_version,
            period=self._settings.publication_refresh_period,
        )
        self._lost = None
        group.coordinator.expire_epoch()
        group.lead()
        log.info("session opened", position=session.position, generation=source.generation)
        if session.status_interval < SHORT_STATUS:
            log.warning(
                "wal_sender_timeout of the server is so short that a busy moment ends the stream; set it to 30s",
                seconds=round(3 * session.status_interval, 1),
            )
        self._wake.set()
        self._opened.set()
        lock = asyncio.get_running_loop().create_task(keep_lock(session.lock))
        lock.add_done_callback(self._on_lock_lost)
        looks = asyncio.get_running_loop().create_task(reconciler.run())
        looks.add_done_callback(self._on_publication_lost)
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                if self._lost is not None:
                    raise self._lost
                if group.coordinator.needs_epoch:
                    await self._new_epoch(session)
                self._say_progress()
        finally:
            lock.cancel()
            looks.cancel()

    def _on_lock_lost(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            error = task.exception()
            lost = StreamLost("the lock's connection is silent")
            self._on_lost(error if isinstance(error, psycopg.Error | DatabaseProblem) else lost)

    def _on_publication_lost(self, task: asyncio.Task[str]) -> None:
        if not task.cancelled():
            error = task.exception() or DatabaseProblem(Kind.RETRY, task.result())
            self._on_lost(error if isinstance(error, Exception) else StreamLost(str(error)))

    def _on_lost(self, error: Exception) -> None:
        self._lost = error
        self._wake.set()

    async def _new_epoch(self, session: Session) -> None:
        """Rewind: stop the stream if it runs, and start it from what is durable everywhere (architecture.md 2.2)."""
        self._feed.close()
        self._epoch = (await asyncio.to_thread(self._file.update, epoch=self._epoch + 1)).epoch
        await self._move_acknowledged()
        assert self._feed.publication is not None
        fed = self._group.start_epoch(self._epoch, self._feed.publication.gaps())
        self._feed.reached_boundary()
        await self._feed.open(session.system, session.status_interval)
        self._epochs_started += 1
        log.info("epoch started", epoch=self._epoch, position=self._group.flushed, workers=fed)

    def _end_session(self) -> None:
        self._opened.clear()
        self._group.follow()
        self._feed.close()
        # First this, then the lock: whoever waits for the lock needs both.
        self._file.release()
        if self._session is not None:
            self._session.lock.pgconn.finish()
            self._session = None
        if self._group.coordinator is not None:
            self._group.coordinator.expire_epoch()

    # ---- acknowledging and telling

    def _on_subscribe(self, worker: str, peer: bytes, request: Subscribe) -> None:
        self._crash.spawn(self._subscribe(worker, peer, request))

    async def _subscribe(self, worker: str, peer: bytes, request: Subscribe) -> None:
        await self._opened.wait()
        assert self._subscriptions is not None
        self._subscriptions.subscribe(worker, peer, request)

    def _subscriptions_waiting(self, now: float) -> list[tuple[int, str, float]]:
        return [] if self._subscriptions is None else self._subscriptions.waiting(now)

    async def _acknowledge(self) -> None:
        while True:
            await asyncio.sleep(ACKNOWLEDGE)
            if self._session is not None:
                await self._move_acknowledged()

    async def _move_acknowledged(self) -> None:
        group = self._group
        async with self._acknowledging:
            assert group.watermark is not None
            position = group.watermark.acknowledged()
            if position > group.flushed:
                # Recorded first: a slot that is ahead of what is recorded means that somebody else moved it (INV-2).
                try:
                    await asyncio.to_thread(self._file.update, acknowledged=position - 1)
                except SourceReleased:
                    return  # the session ended meanwhile
                except OSError as error:
                    self._on_unrecorded(error)
                    return
                self._unrecorded = []
                group.flushed = max(group.flushed, position)
                self._feed.report()

    def _on_unrecorded(self, error: OSError) -> None:
        """Typically a full disk. Nothing more is acknowledged until there is room; all else goes on."""
        text = f"the acknowledged position cannot be recorded: {describe(error, self._settings.storage_dir)}"
        if not self._unrecorded:
            log.error("nothing more is acknowledged to Postgres", reason=text)
        self._unrecorded = [Obstacle("source.json", text)]

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT)
            self._group.fanout.beat()
            if self._session is not None and self._group.state in ("active", "starting"):
                self._say_progress()
            else:
                self._group.publish()

    def _say_progress(self) -> None:
        self._group.obstacles = [*self._inspection.present, *self._unrecorded, *self._obstacles()]
        if self._feed.stalled:
            self._group.say("starting", self._feed.stalled)
        elif self._feed.is_open:
            # Also while partitions wait for a worker: gateways know which, and the others go on.
            if self._group.state != "active":
                log.info("active")
            self._group.say("active", "")
        elif self._group.missing:
            self._group.say("starting", self._group.missing)
        else:
            self._group.publish()


async def _run(settings: Settings) -> int:
    settings.storage_dir.mkdir(parents=True, exist_ok=True)
    settings.run_dir.mkdir(parents=True, exist_ok=True)
    async with contextlib.AsyncExitStack() as stack:
        server = None
        if settings.prometheus_port is not None:
            # Only here, since it takes a web server's memory.
            from ingester.metrics_server import MetricsServer

            server = await stack.enter_async_context(MetricsServer(settings, settings.prometheus_port))
        instruments = await stack.enter_async_context(Instruments(settings, "ingester"))
        refused = server.obstacles if server is not None else list
        ingester = Ingester(settings, lambda: [*instruments.obstacles(), *refused()])
        instruments.watch(ingester.measures, server.take if server is not None else None)
        return await ingester.run()


def main(settings: Settings) -> int:
    """Run the ingester until SIGTERM. Returns the exit code; :data:`FATAL_EXIT` for what only a setting can change."""
    collect_rarely()
    code = uvloop.run(_run(settings))
    log.info("ingester stopped", code=code)
    return code

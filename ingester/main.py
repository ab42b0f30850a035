"""The ingester process: one replication session after the other, and the stream of each (architecture.md 2, 3)."""

from __future__ import annotations

import asyncio
import random
import secrets
import signal
import time
from collections.abc import Callable, Coroutine
from typing import Any, Final, NoReturn

import psycopg
import structlog
import uvloop

from common import pgoutput
from common.config import Settings
from common.messages import Subscribe
from common.postgres import Connection, DatabaseProblem, Kind, Pool, Problem, classify
from ingester.group import Group
from ingester.publication import Publication
from ingester.replication import ReplicationStream, StreamLost
from ingester.session import Session, connect_stream, keep_lock, open_session
from ingester.slot import drop_slot, end_readers
from ingester.source import CorruptSource, SourceFile
from ingester.subscriptions import Subscriptions

log = structlog.get_logger()

FATAL_EXIT: Final = 78
"""Exit code that supervisord does not restart: somebody has to change a setting first (EX_CONFIG)."""

HEARTBEAT: Final = 1.0
"""Seconds between two Status messages when nothing happens."""

ACKNOWLEDGE: Final = 0.5
"""Seconds between two movements of the acknowledged position."""

SLOT_PATIENCE: Final = 30.0
"""Seconds that Postgres gets to notice that the former stream of the slot is closed."""

SLOT_RETRY: Final = 0.1

RELATION_RETRY: Final = 0.5
"""Seconds between two attempts to look a relation up while the stream waits for it."""

BACKOFF: Final = (0.5, 10.0)
"""Seconds: first and longest pause between two attempts to get a session."""

HEALTHY: Final = 5.0
"""Seconds a session must have lasted before the next loss starts with the shortest pause again."""

DRAIN: Final = 3.0
"""Seconds that workers get at the end to report what they have made durable."""

_DATABASE_ERRORS: Final = (psycopg.Error, DatabaseProblem, OSError)


class Ingester:
    """The only one that talks to the slot."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._slot = settings.slot_name
        self._file = SourceFile(settings.storage_dir)
        self._stop = asyncio.Event()
        self._wake = asyncio.Event()
        self._opened = asyncio.Event()
        self._group = Group(
            settings,
            secrets.token_hex(8),
            on_subscribe=self._on_subscribe,
            on_credit=lambda: self._resume("credit"),
            on_change=self._wake.set,
        )
        self._admin = Pool(
            settings.pooled_database_url,
            "galvanic admin",
            max(4, settings.db_pool_size // 4),
            pooled=True,
            prefer_ipv6=settings.database_use_ipv6,
        )
        self._publication: Publication | None = None
        self._subscriptions: Subscriptions | None = None
        self._session: Session | None = None
        self._connection: Connection | None = None
        self._stream: ReplicationStream | None = None
        self._lost: Exception | None = None
        self._epoch = 0
        self._halts: set[str] = set()
        self._stalled = False
        self._at_boundary: list[Callable[[], None]] = []
        self._acknowledging = asyncio.Lock()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._adopting: set[int] = set()

    # ---- life

    async def run(self) -> int:
        """Work until told to stop, or until a problem that only a changed setting can solve. Returns the exit code."""
        loop = asyncio.get_running_loop()
        failed: asyncio.Future[int] = loop.create_future()

        def on_exception(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
            # Crash only: a part that failed in a way nobody foresaw must not go on half-working.
            log.error("the ingester failed", error=context.get("message"), exc_info=context.get("exception"))
            if not failed.done():
                failed.set_result(1)

        def fail(_: Exception) -> None:
            if not failed.done():
                failed.set_result(1)

        loop.set_exception_handler(on_exception)
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signum, self._stop.set)
        log.info("ingester started", slot=self._slot)
        try:
            stored = self._file.load()
        except CorruptSource:
            stored = None  # the session says so, and decides
        if stored is not None and not stored.broken:
            # Workers may open their partitions while the database is still out of reach.
            self._group.adopt(stored.partitions, stored.generation, stored.acknowledged + 1)
        for coroutine in (self._group.run(), self._beat(), self._acknowledge()):
            self._spawn(coroutine, on_failure=fail)
        life = loop.create_task(self._live())
        waits: list[asyncio.Future[Any]] = [life, failed, loop.create_task(self._stop.wait())]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        if failed.done():
            return failed.result()
        if life.done() and not self._stop.is_set():
            return life.result()
        await self._shut_down()
        life.cancel()
        return 0

    def _spawn(
        self, coroutine: Coroutine[Any, Any, None], on_failure: Callable[[Exception], None] = lambda _: None
    ) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)

        def done(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            error = None if task.cancelled() else task.exception()
            if error is not None:
                log.error("a task of the ingester failed", exc_info=error)
                on_failure(error if isinstance(error, Exception) else RuntimeError(str(error)))

        task.add_done_callback(done)

    async def _shut_down(self) -> None:
        """Stop reading, let the workers report what they have, acknowledge it, let go of the slot."""
        log.info("ingester stops")
        self._group.say("starting", "the ingester is stopping")
        watermark = self._group.watermark
        if self._stream is not None and watermark is not None:
            self._halt("shutdown")
            deadline = time.monotonic() + DRAIN
            while not watermark.all_durable and time.monotonic() < deadline:  # noqa: ASYNC110 - it changes with messages
                await asyncio.sleep(0.05)
            await self._move_acknowledged()
        self._end_session()
        if self._settings.temporary_slot:
            await self._drop_slot()
        for task in list(self._tasks):
            task.cancel()
        if self._subscriptions is not None:
            await self._subscriptions.close()
        await self._admin.close()

    async def _drop_slot(self) -> None:
        """The slot was asked to go with us: what is in the storage directory ends with it at the next start."""
        try:
            async with self._admin.connection() as connection:
                await drop_slot(connection, self._slot)
        except _DATABASE_ERRORS as error:
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
            if problem.kind is Kind.SLOT_LOST:
                await asyncio.to_thread(self._file.poison, problem.message)
            if time.monotonic() - started > HEALTHY:
                pause = BACKOFF[0]
            log.warning("no replication session; trying again", reason=problem.message, seconds=round(pause, 1))
            # As long as there has been none, another instance may well hold the lock: «waiting», as the reference.
            self._group.say("starting" if self._epoch else "waiting", problem.message)
            await asyncio.sleep(pause * random.uniform(0.8, 1.2))
            pause = min(pause * 2, BACKOFF[1])

    async def _try_session(self) -> Problem:
        try:
            self._session = await open_session(self._settings, self._slot, self._file, self._admin, self._waiting)
            await self._run_session(self._session)
        except (*_DATABASE_ERRORS, StreamLost) as error:
            return classify(error)
        finally:
            self._end_session()

    def _waiting(self, state: str, reason: str) -> None:
        log.info("waiting", reason=reason)
        self._group.say(state, reason)

    # ---- a session

    async def _run_session(self, session: Session) -> NoReturn:
        """Stream until the session is lost, and raise why."""
        group, source = self._group, session.source
        self._epoch = source.epoch
        group.adopt(source.partitions, source.generation, session.position, source.system_identifier)
        assert group.coordinator is not None
        group.fanout.set_anchor(session.xid_anchor)
        self._publication = Publication(
            self._admin,
            self._settings.publication_name,
            manual=self._settings.manual_table_publishing,
            settled=source.published,
            on_settled=lambda settled: asyncio.to_thread(self._file.update, published=settled),
            on_remedy=lambda reason, remedy: log.warning("an operator can help", reason=reason, sql=remedy),
        )
        self._subscriptions = Subscriptions(
            self._publication, self._admin, group.coordinator, group.fanout, self._when_between
        )
        self._lost = None
        group.coordinator.expire_epoch()
        log.info("session opened", position=session.position, generation=source.generation)
        self._wake.set()
        self._opened.set()
        lock = asyncio.get_running_loop().create_task(keep_lock(session.lock))
        lock.add_done_callback(self._on_lock_lost)
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

    def _on_lock_lost(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            error = task.exception()
            self.lost(error if isinstance(error, psycopg.Error) else StreamLost("the lock's connection is silent"))

    async def _new_epoch(self, session: Session) -> None:
        """Rewind: stop the stream if it runs, and start it from what is durable everywhere (architecture.md 2.2)."""
        self._close_stream()
        self._epoch = (await asyncio.to_thread(self._file.update, epoch=self._epoch + 1)).epoch
        await self._move_acknowledged()
        self._halts.clear()
        self._stalled = False
        fed = self._group.start_epoch(self._epoch)
        self._reached_boundary()
        await self._open_stream(session)
        log.info("epoch started", epoch=self._epoch, position=self._group.flushed, workers=fed)

    async def _open_stream(self, session: Session) -> None:
        deadline = time.monotonic() + SLOT_PATIENCE
        while True:
            self._connection = await connect_stream(self._settings)
            stream = ReplicationStream(self._connection, self, session.status_interval)
            try:
                await stream.start(self._slot, self._settings.publication_name, self._group.flushed)
            except psycopg.errors.ObjectInUse:
                # The walsender of the former stream is busy and has not noticed yet that nobody listens.
                self._close_stream()
                if time.monotonic() > deadline:
                    raise
                async with self._admin.connection() as connection:
                    await end_readers(connection, self._slot)
                await asyncio.sleep(SLOT_RETRY)
            else:
                self._stream = stream
                return

    def _close_stream(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None
        if self._connection is not None:
            # At once and not gracefully: the server may be gone.
            self._connection.pgconn.finish()
            self._connection = None

    def _end_session(self) -> None:
        self._opened.clear()
        self._close_stream()
        if self._session is not None:
            self._session.lock.pgconn.finish()
            self._session = None
        if self._group.coordinator is not None:
            self._group.coordinator.expire_epoch()

    # ---- the stream (ingester.replication.Sink)

    def message(self, payload: bytes) -> None:
        """A pgoutput message."""
        kind = payload[0]
        fanout = self._group.fanout
        if kind == pgoutput.RELATION:
            self._halt("relation")
            self._spawn(self._on_relation(payload), on_failure=self.lost)
            return
        fanout.message(payload)
        if kind == pgoutput.COMMIT:
            assert self._group.watermark is not None
            self._group.watermark.dispatched(fanout.dispatched)
            if self._at_boundary:
                self._reached_boundary()
        if fanout.blocked:
            self._halt("credit")

    def keepalive(self, position: int) -> None:
        """Postgres has sent everything before ``position``."""
        if not self._group.fanout.open and self._group.watermark is not None:
            self._group.watermark.idle(position)

    def drained(self) -> None:
        """The socket is empty for now."""
        self._group.fanout.flush()
        if self._group.fanout.blocked:
            self._halt("credit")

    def flushed(self) -> int:
        """The position to report."""
        return self._group.flushed

    def lost(self, error: Exception) -> None:
        """The stream is gone."""
        self._lost = error
        self._wake.set()

    async def _on_relation(self, payload: bytes) -> None:
        """Learn the relation's ancestors before its changes are routed; the stream waits (engine.md 5.9)."""
        stream, publication, fanout = self._stream, self._publication, self._group.fanout
        assert publication is not None
        oid = pgoutput.relation_oid(payload)
        while self._stream is stream:
            try:
                ancestors = (await publication.family(oid)).ancestors
            except _DATABASE_ERRORS as error:
                reason = f"a relation cannot be looked up: {classify(error).message}"
                log.warning("the stream waits", oid=oid, reason=reason)
                self._stalled = True
                self._group.say("starting", reason)
                await asyncio.sleep(RELATION_RETRY)
                continue
            if self._stream is not stream:
                return
            self._stalled = False
            fanout.set_ancestors(oid, ancestors)
            fanout.message(payload)
            if fanout.wants(oid) and pgoutput.parse_relation(payload).identity != "f":
                self._spawn(self._adopt_leaf(publication, oid))
            self._resume("relation")
            return

    async def _adopt_leaf(self, publication: Publication, oid: int) -> None:
        if oid not in self._adopting:
            self._adopting.add(oid)
            try:
                await publication.adopt_leaf(oid)
            finally:
                self._adopting.discard(oid)

    def _halt(self, cause: str) -> None:
        self._halts.add(cause)
        if self._stream is not None:
            self._stream.pause()

    def _resume(self, cause: str) -> None:
        if cause in self._halts:
            self._halts.discard(cause)
            if not self._halts and self._stream is not None:
                self._stream.resume()

    def _when_between(self, action: Callable[[], None]) -> None:
        """Do this between two transactions: now, or right after the commit of the one that is passing."""
        if self._group.fanout.open:
            self._at_boundary.append(action)
        else:
            action()

    def _reached_boundary(self) -> None:
        actions, self._at_boundary = self._at_boundary, []
        for action in actions:
            action()

    # ---- acknowledging and telling

    def _on_subscribe(self, worker: str, peer: bytes, request: Subscribe) -> None:
        self._spawn(self._subscribe(worker, peer, request))

    async def _subscribe(self, worker: str, peer: bytes, request: Subscribe) -> None:
        await self._opened.wait()
        assert self._subscriptions is not None
        self._subscriptions.subscribe(worker, peer, request)

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
                await asyncio.to_thread(self._file.update, acknowledged=position - 1)
                group.flushed = max(group.flushed, position)
                if self._stream is not None:
                    self._stream.send_status()

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT)
            if self._stream is not None and self._group.state in ("active", "starting"):
                self._say_progress()
            else:
                self._group.publish()

    def _say_progress(self) -> None:
        unowned = self._group.unowned
        if unowned:
            self._group.say("starting", f"{unowned} partitions have no worker yet")
        elif self._stream is not None and self._stalled:
            self._group.publish()
        elif self._stream is not None:
            if self._group.state != "active":
                log.info("active")
            self._group.say("active", "")


async def _run(settings: Settings) -> int:
    settings.storage_dir.mkdir(parents=True, exist_ok=True)
    settings.run_dir.mkdir(parents=True, exist_ok=True)
    return await Ingester(settings).run()


def main(settings: Settings) -> int:
    """Run the ingester until SIGTERM. Returns the exit code; :data:`FATAL_EXIT` for what only a setting can change."""
    code = uvloop.run(_run(settings))
    log.info("ingester stopped", code=code)
    return code

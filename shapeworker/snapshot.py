"""Taking a shape's snapshot: the rows of one repeatable-read transaction, and what that transaction shows.

It runs in a thread beside the loop that applies transactions. The order matters (engine.md 10.4): the table is locked
against changes of its definition, then the snapshot is taken, then the WAL insert position is read. Every transaction
that the snapshot shows has its commit record below that position, ``filter_until``.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event
from typing import Final, NamedTuple, Protocol, TypeVar

import orjson
import psycopg
from psycopg import sql

from common.lsn import parse_lsn
from common.postgres import conninfo, is_unavailable, resolve, transaction_settings
from common.shape import LogMode
from common.table import TABLE_BY_OID_QUERY, Table, difference, parse_table
from common.xid import Snapshot
from shapeworker.snapshot_connection import DeadlinePassed, SnapshotConnection, Stopped
from shapeworker.snapshot_query import copy_statement

FIRST_ROW_SECONDS: Final = 30.0
"""How long a query may take to give its first row; it has no limit after that (engine.md 10.5)."""

START_SECONDS: Final = 30.0
"""How long lock, snapshot and description of the table may take, with all retries."""

LOCK_SECONDS: Final = 20.0

FLUSH_SECONDS: Final = 60.0
"""How long the server may take to flush the WAL that the snapshot builds on; clients read the snapshot meanwhile."""

_COMMIT_SECONDS = 10.0
_RETRY_SECONDS = (0.010, 0.050)
_RETRY_AFTER = 10

T = TypeVar("T")


class SnapshotPlan(NamedTuple):
    """What to take. ``explicit``: the client named the columns. ``unseen``: transactions that the snapshot must show.

    The latter are 64-bit ids of transactions that the stream delivered before the shape was subscribed (H-C).
    ``condition`` says which rows, if not all; ``required`` are the columns that it reads.
    """

    table: Table
    selected: tuple[str, ...]
    explicit: bool
    log: LogMode = "full"
    unseen: tuple[int, ...] = ()
    condition: sql.Composable | None = None
    required: frozenset[str] = frozenset()


class SnapshotTaken(NamedTuple):
    """All rows and the end marker are with the sink. ``rows`` is their number."""

    snapshot: Snapshot
    filter_until: int
    rows: int


class SnapshotFailed(Exception):
    """No snapshot, and what to tell the client (http-api.md 25): status 409 means that the table changed, 400 that the
    filter fails for a row.

    ``retry_after`` is in seconds; ``known`` marks causes that are recognised, not faults of ours; ``remedy`` is the
    SQL by which an operator could help. ``reason`` is for logs, if the message may quote a row.
    """

    def __init__(
        self,
        status: int,
        message: str,
        retry_after: int | None = None,
        known: bool = False,
        remedy: str = "",
        reason: str = "",
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.reason = reason or message
        self.retry_after = retry_after
        self.known = known
        self.remedy = remedy


class SnapshotSink(Protocol):
    """Where rows go; called in the snapshot's thread only. ``OSError`` ends the snapshot and is raised by ``take``."""

    def add(self, rows: list[bytes]) -> None:
        """Rows, each a JSON object without separator."""

    def flush(self) -> None:
        """Let readers see the rows added so far."""

    def finish(self, end_line: bytes) -> None:
        """No more rows; the snapshot-end message comes last."""


class Snapshots:
    """Takes snapshots, at most ``threads`` at a time, first come, first served."""

    def __init__(
        self,
        url: str,
        *,
        threads: int,
        prefer_ipv6: bool = False,
        system_identifier: int | None = None,
        first_row_seconds: float = FIRST_ROW_SECONDS,
    ) -> None:
        """``url`` may lead through a transaction-mode pooler; clusters other than ``system_identifier`` are refused.

        The latter may be set later, before the first snapshot.
        """
        self._conninfo = conninfo(url, "galvanic snapshot")
        self._prefer_ipv6 = prefer_ipv6
        self.system_identifier = system_identifier
        self._first_row_seconds = first_row_seconds
        self.turns = threads
        self.queued: dict[object, float] = {}
        """Since when (monotonic time) each of those that wait for their turn does so."""
        self._turns = asyncio.Semaphore(threads)
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="snapshot")

    async def take(
        self,
        plan: SnapshotPlan,
        sink: SnapshotSink,
        on_started: Callable[[Snapshot, int], bool],
        on_readable: Callable[[], None] = lambda: None,
    ) -> SnapshotTaken:
        """Take a snapshot into ``sink``. Raises SnapshotFailed, Stopped if ``on_started`` said so, the sink's OSError.

        On the loop are called: ``on_started`` with the snapshot and ``filter_until`` before the first row is read,
        which goes on only if it returns true; and ``on_readable`` once the first rows, or the end, can be read. Cancel
        the task to stop; when it has ended, the thread has let go of the sink.
        """
        loop = asyncio.get_running_loop()
        key = object()
        self.queued[key] = time.monotonic()
        try:
            await self._turns.acquire()
        finally:
            del self.queued[key]
        try:
            try:
                target = await resolve(self._conninfo, self._prefer_ipv6)
            except psycopg.Error as error:
                raise failure(error) from error
            stop = Event()

            def call(function: Callable[[], T]) -> T:
                return _call_on(loop, stop, function)

            work = _Work(plan, sink, stop, self.system_identifier, self._first_row_seconds)
            running = loop.run_in_executor(self._threads, work.run, target, call, on_started, on_readable)
            try:
                return await asyncio.shield(running)
            finally:
                stop.set()
                await asyncio.wait([running])
                # Looked at, so that asyncio does not report it as forgotten when this task was cancelled.
                running.exception()
        finally:
            self._turns.release()

    async def close(self) -> None:
        """Free the threads. Cancel the tasks in ``take`` before."""
        self._threads.shutdown(wait=False)


class _Work:
    def __init__(
        self,
        plan: SnapshotPlan,
        sink: SnapshotSink,
        stop: Event,
        system_identifier: int | None,
        first_row_seconds: float,
    ) -> None:
        self._plan = plan
        self._sink = sink
        self._stop = stop
        self._system_identifier = system_identifier
        self._first_row_seconds = first_row_seconds

    def run(
        self,
        target: str,
        call: Callable[[Callable[[], object]], object],
        on_started: Callable[[Snapshot, int], bool],
        on_readable: Callable[[], None],
    ) -> SnapshotTaken:
        connection: SnapshotConnection | None = None
        try:
            connection = SnapshotConnection(target, self._stop)
            start = self._start(connection)
            if not call(lambda: on_started(start.snapshot, start.filter_until)):
                raise Stopped
            rows = 0
            if self._plan.log == "full":
                rows = self._stream(connection, start, lambda: call(on_readable))
            # A pooler throws away the server's connection when a client leaves it in a transaction.
            connection.query(b"COMMIT", time.monotonic() + _COMMIT_SECONDS)
            self._sink.finish(end_line(start.snapshot))
            if not rows:
                call(on_readable)
            self._await_flush(connection, start.filter_until)
            return SnapshotTaken(start.snapshot, start.filter_until, rows)
        except DeadlinePassed:
            raise SnapshotFailed(503, "Database connection not available", _RETRY_AFTER, known=True) from None
        except psycopg.errors.InsufficientPrivilege as error:
            refused = failure(error)
            assert connection is not None
            refused.remedy = grant(self._plan.table, connection.user)
            raise refused from error
        except psycopg.Error as error:
            raise failure(error) from error
        finally:
            if connection is not None:
                connection.close()

    def _start(self, connection: SnapshotConnection) -> _Start:
        deadline = time.monotonic() + START_SECONDS
        try:
            while True:
                connection.query(_opening(self._plan.table, connection.server_version), deadline)
                (facts,) = connection.query(_FACTS, deadline)
                start = _read_facts(facts, self._system_identifier)
                if all(start.snapshot.shows(xid) for xid in self._plan.unseen):
                    break
                connection.query(b"ROLLBACK", deadline)
                if self._stop.wait(random.uniform(*_RETRY_SECONDS)):
                    raise Stopped
                if time.monotonic() > deadline:
                    raise DeadlinePassed
            found = connection.query(TABLE_BY_OID_QUERY.encode(), deadline, [b"%d" % self._plan.table.oid])
        except DeadlinePassed:
            message = "Snapshot query took too long to start reading from the database"
            raise SnapshotFailed(503, message, _RETRY_AFTER, known=True) from None
        table = parse_table(found[0][0] or b"") if found else None
        plan = self._plan
        reason = difference(plan.table, table, plan.selected, plan.explicit, plan.required)
        if table is None or reason is not None:
            raise SnapshotFailed(409, f"the table changed: {reason}", known=True)
        return start._replace(table=table)

    def _stream(self, connection: SnapshotConnection, start: _Start, readable: Callable[[], object]) -> int:
        statement = copy_statement(start.table or self._plan.table, self._plan.selected, self._plan.condition)
        count = 0
        try:
            for rows, pause in connection.copy(statement, time.monotonic() + self._first_row_seconds):
                self._sink.add(rows)
                if pause or not count:
                    self._sink.flush()
                if not count:
                    readable()
                count += len(rows)
        except psycopg.Error as error:
            if self._plan.condition is None or (error.sqlstate or "")[:2] not in _OF_VALUES:
                raise
            text = " ".join((error.diag.message_primary or str(error)).split())
            message = f"The where clause fails for a row of the table: {text}"
            reason = f"its where clause fails for a row of the table: {type(error).__name__} ({error.sqlstate})"
            raise SnapshotFailed(400, message, known=True, reason=reason) from error
        except DeadlinePassed:
            limit = f"{self._first_row_seconds * 1000:.0f}ms"
            message = (
                f"Snapshot query took too long to return data (cancelled after {limit}). "
                "Please ensure snapshot queries are using an index to avoid taking up all database connections."
            )
            raise SnapshotFailed(503, message, _RETRY_AFTER, known=True) from None
        return count

    def _await_flush(self, connection: SnapshotConnection, filter_until: int) -> None:
        """Until the server's WAL is on its disk up to ``filter_until``.

        A crash of the server takes back what was not flushed, and then gives the same positions, and the ids of
        transactions that had not finished, to others, which ``filter_until`` and the snapshot would judge wrongly
        (engine.md H-E). Asked on the snapshot's own connection, which does not survive a crash.
        """
        started = time.monotonic()
        deadline = started + FLUSH_SECONDS
        forced = connection.server_version < 170000
        try:
            while True:
                ((flushed,),) = connection.query(_FLUSHED, deadline)
                if parse_lsn((flushed or b"0/0").decode()) >= filter_until:
                    return
                if not forced and time.monotonic() > started + _FORCE_FLUSH_SECONDS:
                    # An idle server may leave the end of its WAL in memory for 15 s.
                    connection.query(_FLUSH, deadline)
                    forced = True
                if self._stop.wait(_FLUSH_POLL):
                    raise Stopped
        except DeadlinePassed:
            message = "the database does not flush its WAL"
            raise SnapshotFailed(503, message, _RETRY_AFTER, known=True) from None


class _Start(NamedTuple):
    snapshot: Snapshot
    filter_until: int
    table: Table | None = None


_FLUSHED = b"SELECT pg_catalog.pg_current_wal_flush_lsn()::pg_catalog.text"
_FLUSH = b"SELECT pg_catalog.pg_logical_emit_message(false, 'galvanic', '', true)"
_FLUSH_POLL = 0.02
_FORCE_FLUSH_SECONDS = 0.3

_FACTS = b"""
SELECT pg_catalog.pg_current_snapshot()::pg_catalog.text,
       CASE WHEN NOT pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_current_wal_insert_lsn()::pg_catalog.text END,
       (SELECT system_identifier::pg_catalog.text FROM pg_catalog.pg_control_system())
"""
"""A repeatable-read transaction takes its only snapshot before its first such statement is executed, so the position,
which is read during execution, is never below the commit record of a transaction that the snapshot shows."""


def _opening(table: Table, server_version: int) -> bytes:
    """None of this takes the snapshot. The lock comes first: rewriting a table is invisible to older snapshots, which
    then see it empty, and the description that follows must be that of the table that the query reads."""
    only = sql.SQL("" if table.kind == "p" else "ONLY ")
    lock = sql.SQL("LOCK TABLE {}{} IN ACCESS SHARE MODE").format(only, sql.Identifier(table.schema, table.name))
    statements = [
        b"BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",
        transaction_settings(server_version).encode(),
        # A line is thousands of cheap operators on a wide table: compiling them costs more than it saves.
        b"SET LOCAL jit TO 'off'",
        b"SET LOCAL lock_timeout TO '%dms'" % (LOCK_SECONDS * 1000),
        lock.as_bytes(None),
    ]
    return b"; ".join(statements)


def _read_facts(facts: list[bytes | None], system_identifier: int | None) -> _Start:
    snapshot, position, system = (None if value is None else value.decode() for value in facts)
    if snapshot is None or position is None or (system_identifier is not None and system != str(system_identifier)):
        # A misdirected pooler (H-F): neither snapshot nor position would mean anything.
        message = "the pooled database connection leads to a standby or to another cluster than DATABASE_URL"
        raise SnapshotFailed(503, f"Database connection not available: {message}", _RETRY_AFTER, known=True)
    return _Start(Snapshot.parse(snapshot), parse_lsn(position))


def end_line(snapshot: Snapshot) -> bytes:
    """The snapshot-end message (http-api.md 14.8)."""
    headers = {
        "control": "snapshot-end",
        "xmin": str(snapshot.xmin),
        "xmax": str(snapshot.xmax),
        "xip_list": [str(xid) for xid in sorted(snapshot.xip)],
    }
    return orjson.dumps({"headers": headers})


_CHANGED: Final = frozenset(("42P01", "42703", "42883", "3F000"))
_NO_PRIVILEGE: Final = "42501"
_LOCK_NOT_AVAILABLE: Final = "55P03"
_CANCELLED: Final = "57014"
_OF_VALUES: Final = ("22", "54")
"""Classes of errors that an expression's values or its size are the cause of."""


def failure(error: psycopg.Error) -> SnapshotFailed:
    """What a database error means to a client that waits for the snapshot (http-api.md 25, engine.md 10.5)."""
    state = error.sqlstate or ""
    text = " ".join((error.diag.message_primary or str(error)).split())
    if state in _CHANGED:
        return SnapshotFailed(409, f"the table changed: {text}", known=True)
    if state in (_NO_PRIVILEGE, _CANCELLED):
        return SnapshotFailed(503, f"Unable to create initial snapshot: {text}", _RETRY_AFTER, known=True)
    if state == _LOCK_NOT_AVAILABLE:
        return SnapshotFailed(503, "Snapshot timed out while waiting for a table lock", _RETRY_AFTER, known=True)
    if is_unavailable(error):
        return SnapshotFailed(503, "Database connection not available", _RETRY_AFTER, known=True)
    return SnapshotFailed(500, f"Unexpected error while creating snapshot: {text}")


def grant(table: Table, role: str) -> str:
    """The SQL that lets the role read the table."""
    return (
        sql.SQL("GRANT USAGE ON SCHEMA {} TO {role}; GRANT SELECT ON TABLE {} TO {role};")
        .format(sql.Identifier(table.schema), sql.Identifier(table.schema, table.name), role=sql.Identifier(role))
        .as_string(None)
    )


def _call_on(loop: asyncio.AbstractEventLoop, stop: Event, function: Callable[[], T]) -> T:
    """Call on the loop, from another thread, and wait for the result; Stopped when nobody wants it any more."""
    answer: Future[T] = Future()

    def run() -> None:
        if stop.is_set():
            return
        try:
            answer.set_result(function())
        except BaseException as error:  # noqa: BLE001 - it is raised where the call was made
            answer.set_exception(error)

    loop.call_soon_threadsafe(run)
    while True:
        try:
            return answer.result(timeout=0.1)
        except TimeoutError:
            if stop.is_set():
                raise Stopped from None

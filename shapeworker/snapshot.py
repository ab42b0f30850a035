"""Taking a shape's snapshot: the rows of one repeatable-read transaction, and what that transaction shows.

It runs in a thread beside the loop that applies transactions. The WAL position that its transaction begins with is the
shape's ``filter_until``.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event
from typing import Final, NamedTuple, Protocol, TypeVar

import orjson
import psycopg
from psycopg import sql

from common.postgres import conninfo, resolve
from common.shape import LogMode
from common.table import Table
from common.xid import Snapshot
from shapeworker.snapshot_connection import DeadlinePassed, SnapshotConnection, Stopped
from shapeworker.snapshot_failure import OF_VALUES, RETRY_AFTER, SnapshotFailed, failure, grant
from shapeworker.snapshot_items import SnapshotItems
from shapeworker.snapshot_query import copy_statement
from shapeworker.snapshot_start import await_flush, start

FIRST_ROW_SECONDS: Final = 30.0
"""How long a query may take to give its first row; it has no limit after that (engine.md 10.5)."""

COMMIT_SECONDS: Final = 10.0

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


class SnapshotSink(Protocol):
    """Where rows go; called in the snapshot's thread only. ``OSError`` ends the snapshot and is raised by ``take``."""

    def add(self, items: bytes, rows: int) -> None:
        """The items of so many rows, each followed by the log's separator."""

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
            plan = self._plan
            begun = start(
                connection,
                plan.table,
                selected=plan.selected,
                explicit=plan.explicit,
                required=plan.required,
                unseen=plan.unseen,
                system_identifier=self._system_identifier,
                stop=self._stop,
            )
            if not call(lambda: on_started(begun.snapshot, begun.position)):
                raise Stopped
            rows = 0
            if self._plan.log == "full":
                rows = self._stream(connection, begun.table, lambda: call(on_readable))
            # A pooler throws away the server's connection when a client leaves it in a transaction.
            connection.query(b"COMMIT", time.monotonic() + COMMIT_SECONDS)
            self._sink.finish(end_line(begun.snapshot))
            if not rows:
                call(on_readable)
            await_flush(connection, begun.position, self._stop)
            return SnapshotTaken(begun.snapshot, begun.position, rows)
        except DeadlinePassed:
            raise SnapshotFailed(503, "Database connection not available", RETRY_AFTER, known=True) from None
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

    def _stream(self, connection: SnapshotConnection, table: Table, readable: Callable[[], object]) -> int:
        statement = copy_statement(table, self._plan.selected, self._plan.condition)
        items = SnapshotItems(table, self._plan.selected)
        count = 0
        try:
            for rows, pause in connection.copy(statement, time.monotonic() + self._first_row_seconds):
                self._sink.add(items.of(rows), len(rows))
                if pause or not count:
                    self._sink.flush()
                if not count:
                    readable()
                count += len(rows)
        except psycopg.Error as error:
            if self._plan.condition is None or (error.sqlstate or "")[:2] not in OF_VALUES:
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
            raise SnapshotFailed(503, message, RETRY_AFTER, known=True) from None
        return count


def end_line(snapshot: Snapshot) -> bytes:
    """The snapshot-end message (http-api.md 14.8)."""
    headers = {
        "control": "snapshot-end",
        "xmin": str(snapshot.xmin),
        "xmax": str(snapshot.xmax),
        "xip_list": [str(xid) for xid in sorted(snapshot.xip)],
    }
    return orjson.dumps({"headers": headers})


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

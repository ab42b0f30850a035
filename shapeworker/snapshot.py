"""Taking a shape's snapshot: the rows of one repeatable-read transaction, and what that transaction shows.

It runs in a thread beside the loop that applies transactions. The WAL position that its transaction begins with is the
shape's ``filter_until``.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import islice
from threading import Event
from typing import Final, NamedTuple, Protocol, TypeVar

import orjson
import psycopg
from psycopg import sql

from common.postgres import conninfo, is_unavailable, resolve
from common.shape import LogMode
from common.table import Table, difference
from common.xid import Snapshot
from shapeworker.idle_connections import IdleConnections
from shapeworker.snapshot_connection import DeadlinePassed, SnapshotConnection, Stopped
from shapeworker.snapshot_failure import OF_VALUES, RETRY_AFTER, SnapshotFailed, failure, grant
from shapeworker.snapshot_group import GROUPS, STATEMENT_BYTES, GroupSizes, NotSmall, read_group
from shapeworker.snapshot_items import SnapshotItems
from shapeworker.snapshot_query import copy_statement
from shapeworker.snapshot_start import Start, await_flush, start

FIRST_ROW_SECONDS: Final = 30.0
"""How long a query may take to give its first row; it has no limit after that (engine.md 10.5)."""

COMMIT_SECONDS: Final = 10.0

IDLE_SECONDS: Final = 60.0
"""How long a connection that nobody needs is kept."""

T = TypeVar("T")


class SnapshotPlan(NamedTuple):
    """What to take. ``explicit``: the client named the columns. ``unseen``: transactions that the snapshot must show.

    The latter are 64-bit ids of transactions that the stream delivered before the shape was subscribed (H-C).
    ``condition`` says which rows, if not all; ``required`` are the columns that it reads. ``version`` is that of the
    table (:mod:`common.table_version`) if it has one; ``alone``: not together with others.
    """

    table: Table
    selected: tuple[str, ...]
    explicit: bool
    log: LogMode = "full"
    unseen: tuple[int, ...] = ()
    condition: sql.Composable | None = None
    required: frozenset[str] = frozenset()
    version: str = ""
    alone: bool = False


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


def is_large(plan: SnapshotPlan) -> bool:
    """Whether it is left out of groups: it has all rows of a table, or its query is long."""
    if plan.log != "full":
        return False
    return plan.condition is None or len(plan.condition.as_bytes(None)) > STATEMENT_BYTES


class _Member:
    """One snapshot that somebody waits for. All but its sink belongs to the loop."""

    __slots__ = ("alone", "begun", "done", "fresh", "group", "on_readable", "on_started", "plan", "sink", "wanted")

    def __init__(
        self,
        plan: SnapshotPlan,
        sink: SnapshotSink,
        on_started: Callable[[Snapshot, int], bool],
        on_readable: Callable[[], None],
    ) -> None:
        self.plan = plan
        self.sink = sink
        self.on_started = on_started
        self.on_readable = on_readable
        self.done: asyncio.Future[SnapshotTaken] = asyncio.get_running_loop().create_future()
        self.wanted = True
        self.begun = False
        """Whether a thread may use the sink."""
        self.group: _Group | None = None
        self.alone = plan.alone or is_large(plan)
        self.fresh = False
        """Whether it needs a new connection, because one that was kept has turned out to be lost."""

    def begin(self, snapshot: Snapshot, position: int) -> bool:
        """What it shows is known; whether rows are wanted."""
        if not self.wanted:
            return False
        try:
            self.begun = self.on_started(snapshot, position)
        except Exception as error:  # noqa: BLE001 - it is raised where it is waited for
            self.settle(error)
            return False
        if not self.begun:
            self.settle(Stopped())
        return self.begun

    def settle(self, outcome: SnapshotTaken | BaseException) -> None:
        """It is over, and the sink is free."""
        if self.done.done():
            return
        if isinstance(outcome, SnapshotTaken):
            self.done.set_result(outcome)
        else:
            self.done.set_exception(outcome)
            self.done.exception()  # whoever waits looks at it, if anybody still does

    def statement(self, table: Table) -> bytes:
        """What reads its rows."""
        return copy_statement(table, self.plan.selected, self.plan.condition)


class _Group(NamedTuple):
    """Those that a thread takes together; ``stop`` makes it give up."""

    members: list[_Member]
    stop: Event
    table: int
    small: bool

    def drop(self) -> None:
        """One is not wanted any more."""
        if not any(member.wanted for member in self.members):
            self.stop.set()


class Snapshots:
    """Takes snapshots in at most ``threads`` transactions at a time, first come, first served.

    Those of one table that wait for their turn together are read together, as long as they are small.
    """

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
        self.queued: dict[_Member, float] = {}
        """Since when (monotonic time) each of those that wait for their turn does so; the first is next."""
        self._free = threads
        self._sizes = GroupSizes()
        self._groups: Counter[int] = Counter()
        self._idle = IdleConnections(threads)
        self._target = ""
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="snapshot")
        self._running: set[asyncio.Task[None]] = set()

    async def take(
        self,
        plan: SnapshotPlan,
        sink: SnapshotSink,
        on_started: Callable[[Snapshot, int], bool],
        on_readable: Callable[[], None] = lambda: None,
    ) -> SnapshotTaken:
        """Take a snapshot into ``sink``. Raises SnapshotFailed, Stopped if ``on_started`` said so, the sink's OSError.

        On the loop are called: ``on_started`` with the snapshot and ``filter_until`` before the sink gets the first
        row, which goes on only if it returns true; and ``on_readable`` once the first rows, or the end, can be read.
        Cancel the task to stop; when it has ended, the thread has let go of the sink.
        """
        member = _Member(plan, sink, on_started, on_readable)
        self.queued[member] = time.monotonic()
        # Not at once: others of the table may come in the same turn of the loop.
        asyncio.get_running_loop().call_soon(self._dispatch)
        try:
            await asyncio.wait([member.done])
        finally:
            self.queued.pop(member, None)
            if not member.done.done():
                member.wanted = False
                if member.group is not None:
                    member.group.drop()
                if member.begun:
                    await asyncio.wait([member.done])
        return member.done.result()

    def sweep(self) -> None:
        """Close connections that nobody needs any more. May be called in a thread."""
        self._idle.close(IDLE_SECONDS)

    async def close(self) -> None:
        """Free threads and connections. Cancel the tasks in ``take`` before."""
        if self._running:
            await asyncio.wait(self._running)
        self._threads.shutdown(wait=False)
        self._idle.close()

    # ---- on the loop

    def _dispatch(self) -> None:
        while self._free and (group := self._next()) is not None:
            for member in group.members:
                del self.queued[member]
                member.group = group
            self._free -= 1
            if group.small:
                self._groups[group.table] += 1
            task = asyncio.get_running_loop().create_task(self._perform(group))
            self._running.add(task)
            task.add_done_callback(partial(self._performed, group))

    def _next(self) -> _Group | None:
        """The first whose turn it is, and those that are read with it."""
        now = time.monotonic()
        full: set[int] = set()
        for first in self.queued:
            table = first.plan.table
            if table.oid in full and not first.alone:
                continue
            limit = 1 if first.alone else self._sizes.limit(table.oid, now)
            others = (m for m in self.queued if m is not first and not m.alone and m.plan.table == table)
            members = [first, *islice(others, limit - 1)]
            # One by itself may take as long as it likes.
            small = len(members) > 1
            if not small or self._groups[table.oid] < GROUPS:
                return _Group(members, Event(), table.oid, small)
            full.add(table.oid)
        return None

    def _performed(self, group: _Group, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._free += 1
        if group.small:
            self._groups[group.table] -= 1
            if not self._groups[group.table]:
                del self._groups[group.table]
        self._dispatch()

    async def _perform(self, group: _Group) -> None:
        """Settles each of the group, or puts it back to the front of the queue."""
        members = group.members
        try:
            if not self._idle or any(member.fresh for member in members):
                self._target = await resolve(self._conninfo, self._prefer_ipv6)
            work = _Work(
                group,
                self._idle,
                self._target,
                asyncio.get_running_loop(),
                self.system_identifier,
                self._first_row_seconds,
            )
            outcomes = await asyncio.get_running_loop().run_in_executor(self._threads, work.run)
        except _Again:
            self._again(members)
        except psycopg.Error as error:
            for member in members:
                member.settle(failure(error))
        except BaseException as error:
            for member in members:
                member.settle(error if isinstance(error, Exception) else Stopped())
            if not isinstance(error, Exception):
                raise
        else:
            for member, outcome in zip(members, outcomes, strict=True):
                member.settle(outcome)

    def _again(self, members: list[_Member]) -> None:
        """Each by itself, before all others: nobody has seen anything of them."""
        if len(members) > 1:
            self._sizes.given_up(members[0].plan.table.oid, len(members), time.monotonic())
        wanted = [member for member in members if member.wanted]
        for member in wanted:
            member.group = None
            member.fresh |= member.alone
            member.alone = True
        self.queued = dict.fromkeys(wanted, time.monotonic()) | self.queued


class _Again(Exception):
    """What was begun for several has to be done for each by itself, or over another connection."""


class _Work:
    """What a thread does for a group."""

    def __init__(
        self,
        group: _Group,
        idle: IdleConnections,
        target: str,
        loop: asyncio.AbstractEventLoop,
        system_identifier: int | None,
        first_row_seconds: float,
    ) -> None:
        self._members, self._stop, *_ = group
        self._plan = self._members[0].plan
        self._sink = self._members[0].sink
        self._idle = idle
        self._target = target
        self._loop = loop
        self._system_identifier = system_identifier
        self._first_row_seconds = first_row_seconds

    def run(self) -> list[SnapshotTaken | Exception]:
        """The outcome for each member. Raises :class:`_Again`, ``Stopped``, or what goes for all."""
        connection: SnapshotConnection | None = None
        kept = None if self._members[0].fresh else self._idle.take(self._stop)
        try:
            connection = kept or SnapshotConnection(self._target, self._stop)
            outcomes = self._together(connection) if len(self._members) > 1 else self._alone(connection)
            self._idle.give(connection)
            connection = None
            return outcomes
        except (DeadlinePassed, NotSmall, SnapshotFailed, psycopg.Error) as error:
            if not any(member.begun for member in self._members):
                lost = isinstance(error, psycopg.Error) and is_unavailable(error)
                if len(self._members) > 1 or (lost and kept is not None):
                    raise _Again from error
            raise self._meaning(error, connection) from error
        finally:
            if connection is not None:
                connection.close()

    def _meaning(self, error: Exception, connection: SnapshotConnection | None) -> Exception:
        if isinstance(error, DeadlinePassed):
            return SnapshotFailed(503, "Database connection not available", RETRY_AFTER, known=True)
        if not isinstance(error, psycopg.Error):
            return error
        refused = failure(error)
        if isinstance(error, psycopg.errors.InsufficientPrivilege):
            assert connection is not None
            refused.remedy = grant(self._plan.table, connection.user)
        return refused

    def _start(self, connection: SnapshotConnection) -> Start:
        plan = self._plan
        unseen = {xid for member in self._members for xid in member.plan.unseen}
        return start(
            connection,
            plan.table,
            selected=plan.selected,
            explicit=plan.explicit,
            required=plan.required,
            unseen=unseen,
            system_identifier=self._system_identifier,
            stop=self._stop,
            version=plan.version,
        )

    def _begin(self, begun: Start) -> list[_Member]:
        """Those that still want rows."""
        return self._call(lambda: [member for member in self._members if member.begin(begun.snapshot, begun.position)])

    def _call(self, function: Callable[[], T]) -> T:
        return _call_on(self._loop, self._stop, function)

    def _together(self, connection: SnapshotConnection) -> list[SnapshotTaken | Exception]:
        begun = self._start(connection)
        for plan in (member.plan for member in self._members):
            if difference(plan.table, begun.table, plan.selected, plan.explicit, plan.required) is not None:
                raise _Again
        asked = [member for member in self._members if member.plan.log == "full"]
        statements = [member.statement(begun.table) for member in asked]
        read, flushed = read_group(connection, statements, begun.position)
        rows = dict(zip(asked, read, strict=True))
        outcomes: dict[_Member, SnapshotTaken | Exception] = {}
        accepted = self._begin(begun)
        end = end_line(begun.snapshot)
        for member in accepted:
            found = rows.get(member, [])
            try:
                if found:
                    member.sink.add(SnapshotItems(begun.table, member.plan.selected).of(found), len(found))
                member.sink.finish(end)
                outcomes[member] = SnapshotTaken(begun.snapshot, begun.position, len(found))
            except (OSError, ValueError) as error:
                outcomes[member] = error
        readable = [member for member in accepted if isinstance(outcomes[member], SnapshotTaken)]
        self._loop.call_soon_threadsafe(_tell_readable, readable)
        if not flushed:
            await_flush(connection, begun.position, self._stop)
        return [outcomes.get(member, Stopped()) for member in self._members]

    def _alone(self, connection: SnapshotConnection) -> list[SnapshotTaken | Exception]:
        begun = self._start(connection)
        if not self._begin(begun):
            raise Stopped
        on_readable = self._members[0].on_readable
        rows = 0
        if self._plan.log == "full":
            rows = self._stream(connection, begun.table, lambda: self._call(on_readable))
        # A pooler throws away the server's connection when a client leaves it in a transaction.
        connection.query(b"COMMIT", time.monotonic() + COMMIT_SECONDS)
        self._sink.finish(end_line(begun.snapshot))
        if not rows:
            self._call(on_readable)
        await_flush(connection, begun.position, self._stop)
        return [SnapshotTaken(begun.snapshot, begun.position, rows)]

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


def _tell_readable(members: list[_Member]) -> None:
    for member in members:
        member.on_readable()


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

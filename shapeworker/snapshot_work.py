"""Reading the snapshots of a group, in a thread beside the loop that applies transactions."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Future
from threading import Event
from typing import Final, TypeVar

import orjson
import psycopg

from common.postgres import is_unavailable
from common.table import Table, difference
from common.xid import Snapshot
from shapeworker.idle_connections import IdleConnections
from shapeworker.snapshot_connection import DeadlinePassed, SnapshotConnection, Stopped
from shapeworker.snapshot_failure import OF_VALUES, RETRY_AFTER, SnapshotFailed, failure, grant
from shapeworker.snapshot_group import NotSmall, read_group
from shapeworker.snapshot_items import SnapshotItems
from shapeworker.snapshot_member import Group, Member, SnapshotTaken
from shapeworker.snapshot_query import copy_statement
from shapeworker.snapshot_start import Start, await_flush, start

COMMIT_SECONDS: Final = 10.0

T = TypeVar("T")


class Again(Exception):
    """What was begun for several has to be done for each by itself, or over another connection."""


class SnapshotWork:
    """What the thread does for one group."""

    def __init__(
        self,
        group: Group,
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
        """The outcome for each member. Raises :class:`Again`, ``Stopped``, or what goes for all."""
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
                    raise Again from error
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

    def _call(self, function: Callable[[], T]) -> T:
        return _call_on(self._loop, self._stop, function)

    def _together(self, connection: SnapshotConnection) -> list[SnapshotTaken | Exception]:
        begun = self._start(connection)
        for plan in (member.plan for member in self._members):
            if plan.table is not begun.table and (
                difference(plan.table, begun.table, plan.selected, plan.explicit, plan.required) is not None
            ):
                raise Again
        asked = [member for member in self._members if member.plan.log == "full"]
        statements = [copy_statement(begun.table, member.plan.selected, member.plan.condition) for member in asked]
        read, flushed = read_group(connection, statements, begun.position)
        items = {columns: SnapshotItems(begun.table, columns) for columns in {member.plan.selected for member in asked}}
        found = {
            member: (items[member.plan.selected].of(rows) if rows else b"", len(rows))
            for member, rows in zip(asked, read, strict=True)
        }
        end = end_line(begun.snapshot)

        def write() -> list[SnapshotTaken | Exception]:
            return [_written(member, begun, *found.get(member, (b"", 0)), end) for member in self._members]

        # On the loop, as logs are written: a thread that makes many short calls waits after each until the loop pauses.
        outcomes = self._call(write)
        if not flushed:
            await_flush(connection, begun.position, self._stop)
        return outcomes

    def _alone(self, connection: SnapshotConnection) -> list[SnapshotTaken | Exception]:
        begun = self._start(connection)
        (member,) = self._members
        if not self._call(lambda: member.begin(begun.snapshot, begun.position)):
            raise Stopped
        on_readable = member.on_readable
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


def _written(member: Member, begun: Start, items: bytes, rows: int, end: bytes) -> SnapshotTaken | Exception:
    """What becomes of a member, if it still wants rows, when all of them are at hand."""
    if not member.begin(begun.snapshot, begun.position):
        return Stopped()
    try:
        if rows:
            member.sink.add(items, rows)
        member.sink.finish(end)
    except (OSError, ValueError) as error:
        return error
    member.on_readable()
    return SnapshotTaken(begun.snapshot, begun.position, rows)


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

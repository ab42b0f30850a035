"""A snapshot that somebody waits for: what it is of, where its rows go, and who is told; and those read together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from threading import Event
from typing import NamedTuple, Protocol

from psycopg import sql

from common.shape import LogMode
from common.table import Table
from common.xid import Snapshot
from shapeworker.snapshot_connection import Stopped
from shapeworker.snapshot_group import STATEMENT_BYTES


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
    """Where rows go: from the snapshot's thread, or all at once from the loop while that waits. ``OSError`` ends the
    snapshot and is raised by ``take``."""

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


class Member:
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
        self.group: Group | None = None
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


class Group(NamedTuple):
    """Those that a thread takes together; ``stop`` makes it give up."""

    members: list[Member]
    stop: Event
    table: int
    small: bool

    def drop(self) -> None:
        """One is not wanted any more."""
        if not any(member.wanted for member in self.members):
            self.stop.set()

"""Taking shapes' snapshots: the rows of one repeatable-read transaction, and what that transaction shows.

The WAL position that its transaction begins with is the shape's ``filter_until``. Whose turn it is and who is read
together is decided here; :mod:`shapeworker.snapshot_work` does it, in a thread.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from threading import Event
from typing import Final

import psycopg

from common.postgres import conninfo, resolve
from common.xid import Snapshot
from shapeworker.idle_connections import IdleConnections
from shapeworker.snapshot_connection import Stopped
from shapeworker.snapshot_failure import failure
from shapeworker.snapshot_group import GROUPS, GroupSizes
from shapeworker.snapshot_member import Group, Member, SnapshotPlan, SnapshotSink, SnapshotTaken
from shapeworker.snapshot_work import Again, SnapshotWork

FIRST_ROW_SECONDS: Final = 30.0
"""How long a query may take to give its first row; it has no limit after that (engine.md 10.5)."""

IDLE_SECONDS: Final = 60.0
"""How long a connection that nobody needs is kept."""


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
        self.queued: dict[Member, float] = {}
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
        member = Member(plan, sink, on_started, on_readable)
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

    def _next(self) -> Group | None:
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
                return Group(members, Event(), table.oid, small)
            full.add(table.oid)
        return None

    def _performed(self, group: Group, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._free += 1
        if group.small:
            self._groups[group.table] -= 1
            if not self._groups[group.table]:
                del self._groups[group.table]
        self._dispatch()

    async def _perform(self, group: Group) -> None:
        """Settles each of the group, or puts it back to the front of the queue."""
        members = group.members
        try:
            if not self._idle or any(member.fresh for member in members):
                self._target = await resolve(self._conninfo, self._prefer_ipv6)
            work = SnapshotWork(
                group,
                self._idle,
                self._target,
                asyncio.get_running_loop(),
                self.system_identifier,
                self._first_row_seconds,
            )
            outcomes = await asyncio.get_running_loop().run_in_executor(self._threads, work.run)
        except Again:
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

    def _again(self, members: list[Member]) -> None:
        """Each by itself, before all others: nobody has seen anything of them."""
        if len(members) > 1:
            self._sizes.given_up(members[0].plan.table.oid, len(members), time.monotonic())
        wanted = [member for member in members if member.wanted]
        for member in wanted:
            member.group = None
            member.fresh |= member.alone
            member.alone = True
        self.queued = dict.fromkeys(wanted, time.monotonic()) | self.queued

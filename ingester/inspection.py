"""Looks around, once a second, for what holds things back; the database is asked less often (engine.md 6.5, INV-37)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

from common.obstacles import Obstacle, ObstacleLog
from common.postgres import DATABASE_ERRORS, Connection, Pool
from ingester.feed import Feed
from ingester.group import Group
from ingester.obstacles import LOCKED, Backlog, Blocked, Inspector, SlotState, WorkerState, of_locks, of_slot, of_stream

LOOK: Final = 1.0
"""Seconds between two looks at the workers."""

ASK: Final = 5.0
"""Seconds between two questions to the database."""


class Inspection:
    """Keeps :attr:`present` up to date, and the log informed."""

    def __init__(
        self,
        slot: str,
        group: Group,
        feed: Feed,
        admin: Pool,
        waiting: Callable[[float], list[tuple[int, str, float]]],
    ) -> None:
        """``waiting(now)``: subscriptions under way, as oid, name and seconds."""
        self._feed = feed
        self._slot = slot
        self._group = group
        self._admin = admin
        self._waiting = waiting
        self._inspector = Inspector()
        self._log = ObstacleLog()
        self._database: list[Obstacle] = []
        self.present: list[Obstacle] = []
        self.slot: SlotState | None = None
        """The slot as the database last described it."""

    async def run(self) -> None:
        """Look for ever, while there is a stream."""
        while True:
            await asyncio.sleep(LOOK)
            now = time.monotonic()
            found = [*of_stream(self._feed.silent), *self._workers(now), *self._group.surplus, *self._database]
            self.present = found if self._feed.is_open else []
            self._log.tell(now, self.present)

    async def ask_database(self) -> None:
        """The same with what only the database knows, in a task of its own: it may not answer."""
        while True:
            await asyncio.sleep(ASK)
            self._database = await self._ask(time.monotonic()) if self._feed.is_open else []
            if not self._feed.is_open:
                self.slot = None

    def _workers(self, now: float) -> list[Obstacle]:
        group = self._group
        coordinator, watermark = group.coordinator, group.watermark
        if coordinator is None or watermark is None:
            return []
        starved, dealt = set(group.fanout.starved()), group.fanout.dealt
        told = {name: [obstacle] for name, obstacle in group.obstructed.items()}
        for name, obstacles in group.told.items():
            told.setdefault(name, []).extend(obstacles)
        states = [
            WorkerState(name, now - member.heard, False, 0, name in starved, dealt.get(name, 0), told.get(name, ()))
            for name, member in coordinator.members.items()
        ]
        unowned = set(coordinator.unowned())
        states += [
            WorkerState(name, now - member.heard, True, len(unowned & member.assigned), False, 0, ())
            for name, member in coordinator.given_up.items()
        ]
        partition, bound = watermark.slowest()
        owner = coordinator.owners().get(partition, "")
        backlog = Backlog(partition, owner, bound, group.fanout.dispatched)
        return [*self._inspector.workers(now, states), *self._inspector.backlog(now, backlog)]

    async def _ask(self, now: float) -> list[Obstacle]:
        """What the database says. A database that does not answer is told elsewhere."""
        try:
            async with self._admin.connection() as connection:
                blocked = await _blocked(connection, [each for each in self._waiting(now) if each[2] >= LOCKED])
                self.slot = await _slot_state(connection, self._slot)
                return [*of_locks(blocked), *of_slot(self._slot, self.slot)]
        except DATABASE_ERRORS:
            self.slot = None
            return []


async def _blocked(connection: Connection, waiting: list[tuple[int, str, float]]) -> list[Blocked]:
    found = []
    for oid, name, seconds in waiting:
        cursor = await connection.execute(_HOLDERS, [oid])
        rows = await cursor.fetchall()
        found.append(Blocked(name, "publishing", seconds, [row[0] for row in rows], rows[0][1] if rows else ""))
    cursor = await connection.execute(_SNAPSHOTS)
    found += [Blocked(row[0], "the snapshot of", row[1], row[2], row[3] or "") for row in await cursor.fetchall()]
    return found


async def _slot_state(connection: Connection, slot: str) -> SlotState | None:
    cursor = await connection.execute(_SLOT, [slot])
    row = await cursor.fetchone()
    if row is None:
        return None
    oldest = None if row[3] is None else (row[3], row[4] or "", float(row[5]))
    return SlotState(row[0] or "", int(row[1] or 0), int(row[2] or 0), oldest)


_HOLDERS: Final = """
SELECT l.pid, coalesce(a.state, '') FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
WHERE l.relation = %s AND l.granted AND l.mode NOT IN ('AccessShareLock', 'RowShareLock')
  AND a.application_name NOT LIKE 'galvanic %%'
ORDER BY a.xact_start LIMIT 3
"""
"""Those who keep a table from being published. Not ``pg_blocking_pids``: we wait only for moments."""

_SNAPSHOTS: Final = """
SELECT l.relation::regclass::text, extract(epoch FROM clock_timestamp() - a.xact_start)::float8,
       pg_blocking_pids(a.pid),
       (SELECT b.state FROM pg_stat_activity b WHERE b.pid = (pg_blocking_pids(a.pid))[1])
FROM pg_stat_activity a JOIN pg_locks l ON l.pid = a.pid AND NOT l.granted AND l.relation IS NOT NULL
WHERE a.application_name = 'galvanic snapshot' AND a.datname = current_database() AND a.wait_event_type = 'Lock'
"""

_SLOT: Final = """
SELECT s.wal_status, pg_current_wal_insert_lsn() - s.restart_lsn, pg_current_wal_insert_lsn() - s.confirmed_flush_lsn,
       o.pid, o.state, extract(epoch FROM clock_timestamp() - o.xact_start)::float8
FROM pg_replication_slots s LEFT JOIN LATERAL (
    SELECT pid, state, xact_start FROM pg_stat_activity WHERE backend_xid IS NOT NULL ORDER BY xact_start LIMIT 1
) o ON true
WHERE s.slot_name = %s
"""

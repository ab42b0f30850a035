"""The advisory lock that lets one instance alone use the slot, and the end of holders that are remains (engine.md 3).

The admin pool looks at what the session waits for, since the session itself is then busy.
"""

from __future__ import annotations

import asyncio
from typing import NamedTuple

from psycopg import errors, sql

from common.postgres import DATABASE_ERRORS, Connection, Pool, classify
from ingester.waiting import WATCH_SECONDS, OnWaiting, meanwhile


class Holder(NamedTuple):
    """A backend that holds the lock. ``since`` changes whenever the backend is given something to do."""

    pid: int
    since: str | None
    name: str | None
    address: str | None
    slot_idle: bool


def stale(before: frozenset[Holder], now: frozenset[Holder]) -> frozenset[Holder]:
    """The holders to be ended: twice in a row idle, while the slot is there and nobody reads it (engine.md 3.2).

    Twice, because a healthy instance holds the lock for a moment before it begins to read.
    """
    return frozenset(holder for holder in before & now if holder.slot_idle)


async def acquire_lock(
    connection: Connection,
    slot_name: str,
    *,
    admin: Pool,
    on_waiting: OnWaiting,
    interval: float = WATCH_SECONDS,
) -> None:
    """Takes the lock that lets one instance alone use the slot; waits for it as long as it takes (engine.md 3.1).

    The key is the one Electric uses for the same slot name, so that one can take over from the other. Holders that are
    but the remains of a lost session are ended. Raises ``psycopg.Error`` when the session is lost.
    """
    key = sql.Literal(slot_name)
    cursor = await connection.execute(sql.SQL("SELECT pg_try_advisory_lock(hashtext({}))").format(key))
    row = await cursor.fetchone()
    if row is not None and row[0]:
        return
    async with meanwhile(_watch_holders(connection.info.backend_pid, slot_name, admin, on_waiting, interval)):
        while True:
            try:
                await connection.execute(sql.SQL("SELECT pg_advisory_lock(hashtext({}))").format(key))
            except errors.QueryCanceled as error:
                if "statement timeout" not in str(error):
                    raise
                on_waiting("the wait for the lock was cut short by statement_timeout; waiting again")
                await asyncio.sleep(0.1)
            else:
                return


async def lock_holders(admin: Connection, slot_name: str, own_pid: int) -> frozenset[Holder]:
    """The other backends of this database that hold the slot's lock. Raises ``psycopg.Error``."""
    cursor = await admin.execute(
        """
        SELECT l.pid, a.state_change::text, a.application_name, host(a.client_addr), EXISTS (
                   SELECT FROM pg_replication_slots s
                   WHERE s.slot_name = %(slot)s AND s.database = current_database() AND NOT s.active)
        FROM pg_locks l LEFT JOIN pg_stat_activity a ON a.pid = l.pid
        WHERE l.locktype = 'advisory' AND l.objsubid = 1 AND l.granted AND l.pid <> %(own)s
          AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
          AND l.classid::bigint = (hashtext(%(slot)s)::bigint >> 32) & 4294967295
          AND l.objid::bigint = hashtext(%(slot)s)::bigint & 4294967295
        """,
        {"slot": slot_name, "own": own_pid},
    )
    return frozenset([Holder(*row) async for row in cursor])


async def _watch_holders(own_pid: int, slot_name: str, admin: Pool, on_waiting: OnWaiting, interval: float) -> None:
    before: frozenset[Holder] = frozenset()
    while True:
        text = f"another instance holds the lock of slot {slot_name!r}"
        try:
            async with admin.connection() as connection:
                now = await lock_holders(connection, slot_name, own_pid)
                if now:
                    text += ": " + ", ".join(
                        f"pid {h.pid} ({h.name or 'unnamed'}, from {h.address or 'this host'})" for h in now
                    )
                on_waiting(text)
                for holder in stale(before, now):
                    on_waiting(f"ending pid {holder.pid}, which holds the lock but does not use slot {slot_name!r}")
                    await connection.execute("SELECT pg_terminate_backend(%s)", (holder.pid,))
                before = now
        except DATABASE_ERRORS as error:
            on_waiting(f"{text}; could not look at it: {classify(error).message}")
        await asyncio.sleep(interval)

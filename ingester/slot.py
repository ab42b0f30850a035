"""The replication slot: judged, made, left behind, dropped (engine.md 3).

The functions take a connection that ``common.postgres.connect(..., replication=True)`` opened, unless they ask for an
admin connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, NamedTuple

import structlog
from psycopg import errors, sql

from common.lsn import format_lsn, parse_lsn
from common.postgres import DATABASE_ERRORS, Connection, DatabaseProblem, Kind, Pool, Problem, classify
from ingester.server import System, identify
from ingester.waiting import WATCH_SECONDS, OnWaiting, meanwhile

log = structlog.get_logger()

DROP_ATTEMPTS: Final = 30

_NO_FAILOVER: Final = (
    errors.SyntaxError,
    errors.FeatureNotSupported,
    errors.InvalidParameterValue,
    errors.InternalError_,
)
"""How a server or a proxy in front of it says that it does not know the option."""


class SlotState(NamedTuple):
    """A slot to stream from. ``confirmed_flush`` of a created slot is its consistent point; ``reason`` says why it was
    created."""

    created: bool
    confirmed_flush: int
    reason: str = ""


class Usable(NamedTuple):
    """The slot can be continued from here."""

    confirmed_flush: int


class Create(NamedTuple):
    """A slot must be created; if there is one, it must be dropped before."""

    reason: str
    drop: bool


def judge(
    slot: Mapping[str, Any] | None, *, database: str, own_pid: int, recreate: str = ""
) -> Usable | Create | Problem:
    """What to do about the slot of our name. ``slot`` is its row in pg_replication_slots of any version (engine.md 28).

    A slot that cannot be ours is never dropped. ``recreate`` is a reason of the caller's to begin with a new one.
    """
    if slot is None:
        return Create(recreate or "there was no slot", drop=False)
    name = slot["slot_name"]
    if slot["slot_type"] != "logical" or slot["plugin"] != "pgoutput" or slot["database"] != database:
        kind = slot["plugin"] or slot["slot_type"]
        return Problem(
            Kind.FATAL,
            f"replication slot {name!r} is not Galvanic's: {kind} slot of database {slot['database']!r}; if nobody "
            f"needs it run SELECT pg_drop_replication_slot('{name}'), else set ELECTRIC_REPLICATION_STREAM_ID to "
            "another name",
        )
    if slot["active"] and slot["active_pid"] != own_pid:
        return Problem(Kind.RETRY, f"replication slot {name!r} is in use by pid {slot['active_pid']}")
    invalid = slot.get("invalidation_reason") or (slot["wal_status"] == "lost" and "lost") or slot.get("conflicting")
    if invalid:
        cause = f" ({invalid})" if isinstance(invalid, str) else ""
        return Create(f"Postgres invalidated the slot{cause}", drop=True)
    if recreate:
        return Create(recreate, drop=True)
    if slot["confirmed_flush_lsn"] is None:
        return Create("the slot was not created completely", drop=True)
    if slot["temporary"]:
        return Create("a permanent slot is wanted", drop=True)
    return Usable(parse_lsn(slot["confirmed_flush_lsn"]))


def create_command(name: str, server_version: int, *, failover: bool) -> sql.Composed:
    """CREATE_REPLICATION_SLOT in the words of this server version. With ``failover``, where servers know that (17 and
    later), standbys that synchronise slots keep a copy."""
    if server_version < 150000:
        options = "NOEXPORT_SNAPSHOT"
    elif failover and server_version >= 170000:
        options = "(SNAPSHOT 'nothing', FAILOVER true)"
    else:
        options = "(SNAPSHOT 'nothing')"
    return sql.SQL("CREATE_REPLICATION_SLOT {} LOGICAL pgoutput {}").format(sql.Identifier(name), sql.SQL(options))


async def ensure_slot(
    connection: Connection,
    name: str,
    *,
    admin: Pool,
    before_create: Callable[[str], Awaitable[object]],
    on_waiting: OnWaiting,
    recreate: str = "",
    interval: float = WATCH_SECONDS,
) -> SlotState:
    """The slot of this name, made if it is not there or cannot be continued. The lock must be held.

    ``before_create`` is awaited with the reason before a slot is dropped or created: what it then records durably ends
    all shapes even if this process dies before it can say that the slot is new (engine.md 28). Creation waits for the
    transactions that are open at that time. Raises ``DatabaseProblem``, ``psycopg.Error``.
    """
    cursor = await connection.execute(
        sql.SQL("SELECT to_jsonb(s) FROM pg_replication_slots s WHERE slot_name = {}").format(sql.Literal(name))
    )
    row = await cursor.fetchone()
    info = connection.info
    verdict = judge(row[0] if row else None, database=info.dbname, own_pid=info.backend_pid, recreate=recreate)
    if isinstance(verdict, Problem):
        raise DatabaseProblem(verdict.kind, verdict.message + await _reader(admin, name))
    if isinstance(verdict, Usable):
        return SlotState(False, verdict.confirmed_flush)
    await before_create(verdict.reason)
    if verdict.drop:
        await connection.execute(sql.SQL("DROP_REPLICATION_SLOT {}").format(sql.Identifier(name)))
    async with meanwhile(_watch_creation(admin, on_waiting, interval)):
        try:
            cursor = await connection.execute(create_command(name, info.server_version, failover=True))
        except _NO_FAILOVER as error:
            if info.server_version < 170000:
                raise
            log.warning("the server makes no failover slot; a promoted standby will lack it", error=str(error))
            cursor = await connection.execute(create_command(name, info.server_version, failover=False))
        made = await cursor.fetchone()
    if made is None:
        raise DatabaseProblem(Kind.RETRY, f"Postgres did not say where replication slot {name!r} begins")
    return SlotState(True, parse_lsn(made[1]), verdict.reason)


async def check_continuity(connection: Connection, name: str, system: System, position: int) -> None:
    """Makes sure, before a stream begins, that ``connection`` leads where it led, and nobody moved the slot.

    ``position`` is the highest that Postgres was told to be durable. Otherwise raises ``DatabaseProblem``: the session
    that follows finds out what became of it. A slot that is not there is left to START_REPLICATION to complain about.
    """
    found = await identify(connection)
    if (found.system_identifier, found.timeline) != (system.system_identifier, system.timeline):
        raise DatabaseProblem(Kind.RETRY, "DATABASE_URL leads to another server, or another timeline, than before")
    cursor = await connection.execute(
        sql.SQL("SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = {}").format(sql.Literal(name))
    )
    row = await cursor.fetchone()
    if row is not None and row[0] is not None and parse_lsn(row[0]) > position:
        text = f"replication slot {name!r} is at {row[0]}, beyond {format_lsn(position)}: somebody else advanced it"
        raise DatabaseProblem(Kind.RETRY, text)


async def drop_leftover(lock: Connection, name: str) -> bool:
    """Drops a slot that an earlier run left behind, unless somebody reads it or holds its lock. Whether it was dropped.

    ``lock`` is a direct connection without an open transaction. Raises ``psycopg.Error``.
    """
    cursor = await lock.execute("SELECT pg_try_advisory_lock(hashtext(%s))", [name])
    if await cursor.fetchone() != (True,):
        return False
    try:
        cursor = await lock.execute(
            """
            SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots
            WHERE slot_name = %s AND plugin = 'pgoutput' AND database = current_database() AND NOT active
            """,
            [name],
        )
        return await cursor.fetchone() is not None
    except errors.ObjectInUse:
        return False
    finally:
        await lock.execute("SELECT pg_advisory_unlock(hashtext(%s))", [name])


async def end_readers(admin: Connection, name: str) -> None:
    """Ends whoever reads the slot. For the holder of the lock: it can only be a stream that itself has left."""
    await admin.execute(
        "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = %s AND active", [name]
    )


async def drop_slot(admin: Connection, name: str) -> None:
    """Drops the slot, after ending whoever reads it. Raises ``psycopg.Error``."""
    for attempt in range(DROP_ATTEMPTS):
        await end_readers(admin, name)
        try:
            await admin.execute(
                "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = %s", [name]
            )
            return
        except errors.ObjectInUse:
            if attempt == DROP_ATTEMPTS - 1:
                raise
            await asyncio.sleep(0.1)


async def _reader(admin: Pool, name: str) -> str:
    """Who reads the slot, to end a sentence with; empty if nobody does or it cannot be found out."""
    try:
        async with admin.connection() as connection:
            cursor = await connection.execute(
                """
                SELECT format(' (%%s, from %%s)', coalesce(nullif(a.application_name, ''), 'unnamed'),
                              coalesce(host(a.client_addr), 'this host'))
                FROM pg_replication_slots s JOIN pg_stat_activity a ON a.pid = s.active_pid WHERE s.slot_name = %s
                """,
                [name],
            )
            row = await cursor.fetchone()
    except DATABASE_ERRORS:
        return ""
    return str(row[0]) if row is not None else ""


async def _watch_creation(admin: Pool, on_waiting: OnWaiting, interval: float) -> None:
    """Says which transactions the creation waits for; makes an idle server log what ends the wait (engine.md 3.6).

    The server logs its running transactions at once if it is asked to, which exists since 16 and by default only
    superusers may do; after any other transaction, such as one with a mere message, within 15 s.
    """
    log_snapshot = b"SELECT pg_log_standby_snapshot()"
    while True:
        await asyncio.sleep(interval)
        text = "the creation of the replication slot waits for open transactions to commit or roll back"
        try:
            async with admin.connection() as connection, asyncio.timeout(5):
                cursor = await connection.execute("""
                    SELECT format('pid %s (%s, %s, for %s s)', pid, application_name, state,
                                  extract(epoch FROM clock_timestamp() - xact_start)::int)
                    FROM pg_stat_activity WHERE backend_xid IS NOT NULL AND pid <> pg_backend_pid()
                    UNION ALL SELECT format('prepared transaction %L of database %I', gid, database) FROM
                    pg_prepared_xacts LIMIT 5
                """)
                on_waiting(": ".join([text, *filter(None, [", ".join([row[0] async for row in cursor])])]))
                await connection.execute(log_snapshot)
        except (errors.UndefinedFunction, errors.InsufficientPrivilege):
            log_snapshot = b"SELECT pg_logical_emit_message(true, 'galvanic', '')"
        except DATABASE_ERRORS as error:
            on_waiting(f"{text}; could not look at them: {classify(error).message}")

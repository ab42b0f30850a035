"""The replication session's claims: the server it talks to, the lock, the slot (engine.md 3).

The functions take a connection that ``common.postgres.connect(..., replication=True)`` opened. The admin pool looks at
what the session waits for, since the session itself is then busy.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final, NamedTuple

import msgspec
import structlog
from psycopg import errors, sql

from common.lsn import format_lsn, parse_lsn
from common.postgres import DATABASE_ERRORS, Connection, DatabaseProblem, Kind, Pool, Problem, classify

log = structlog.get_logger()

OLDEST_SERVER: Final = 140000
WATCH_SECONDS: Final = 10.0
"""How often a wait for the lock or for the slot's creation is looked into (engine.md 3.2, 3.6)."""

DROP_ATTEMPTS: Final = 30

_NO_FAILOVER: Final = (
    errors.SyntaxError,
    errors.FeatureNotSupported,
    errors.InvalidParameterValue,
    errors.InternalError_,
)
"""How a server or a proxy in front of it says that it does not know the option."""

OnWaiting = Callable[[str], None]
"""Told in one line what is being waited for: at once, then every WATCH_SECONDS."""


class System(NamedTuple):
    """The answer to IDENTIFY_SYSTEM: ``wal_lsn`` is how far the server's WAL is flushed."""

    system_identifier: str
    timeline: int
    wal_lsn: int
    database: str


async def identify(connection: Connection) -> System:
    """Which server and database the replication connection leads to. Raises ``psycopg.Error``."""
    cursor = await connection.execute("IDENTIFY_SYSTEM")
    row = await cursor.fetchone()
    if row is None or row[3] is None:
        raise DatabaseProblem(Kind.FATAL, "the replication connection is not tied to a database")
    return System(str(row[0]), int(row[1]), parse_lsn(row[2]), str(row[3]))


class ServerFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What the server is and allows. ``wal_sender_timeout`` in seconds, 0 for none; ``version`` as 180001.

    ``may_replicate`` knows the attribute, superusers and the role that Amazon RDS uses instead; another provider may
    have another way, so the last word is the replication connection's.
    """

    version: int
    wal_level: str
    wal_sender_timeout: float
    in_recovery: bool
    encoding: str
    may_replicate: bool
    user: str
    database: str
    database_oid: int
    system_identifier: str

    def problem(self) -> Problem | None:
        """Why Galvanic cannot work with this server, ``None`` if it can (engine.md 2.3)."""
        if self.version < OLDEST_SERVER:
            return Problem(Kind.FATAL, f"Postgres {self.version // 10000} is too old; Galvanic needs 14 or newer")
        if self.in_recovery:
            return Problem(Kind.RETRY, "the database is a standby in recovery; Galvanic needs the primary")
        if self.wal_level != "logical":
            advice = "set wal_level = logical in the configuration of Postgres and restart it"
            return Problem(Kind.FATAL, f"wal_level is {self.wal_level!r}; {advice}")
        return None


async def server_facts(admin: Connection) -> ServerFacts:
    """Asks the server what it is, in one round trip. Raises ``psycopg.Error``."""
    cursor = await admin.execute("""
        SELECT current_setting('server_version_num')::int, current_setting('wal_level'),
               (SELECT setting::int / 1000.0 FROM pg_settings WHERE name = 'wal_sender_timeout'),
               pg_is_in_recovery(), pg_encoding_to_char(d.encoding),
               r.rolsuper OR r.rolreplication OR EXISTS (
                   SELECT FROM pg_roles m WHERE m.rolname = 'rds_replication' AND pg_has_role(r.oid, m.oid, 'MEMBER')),
               r.rolname, d.datname, d.oid::bigint, (SELECT system_identifier::text FROM pg_control_system())
        FROM pg_database d, pg_roles r WHERE d.datname = current_database() AND r.rolname = current_user
    """)
    row = await cursor.fetchone()
    if row is None:
        raise DatabaseProblem(Kind.RETRY, "the database was dropped or renamed while it was being looked at")
    return ServerFacts(
        version=row[0],
        wal_level=row[1],
        wal_sender_timeout=float(row[2]),
        in_recovery=row[3],
        encoding=row[4],
        may_replicate=row[5],
        user=row[6],
        database=row[7],
        database_oid=row[8],
        system_identifier=row[9],
    )


# --------------------------------------------------------------------------------------------------------------------
# the lock


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
    async with _meanwhile(_watch_holders(connection.info.backend_pid, slot_name, admin, on_waiting, interval)):
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


# --------------------------------------------------------------------------------------------------------------------
# the slot


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
    async with _meanwhile(_watch_creation(admin, on_waiting, interval)):
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


@asynccontextmanager
async def _meanwhile(watch: Awaitable[None]) -> AsyncIterator[None]:
    task = asyncio.ensure_future(watch)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})
    if not task.cancelled():
        task.result()

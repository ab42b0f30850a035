"""One replication session, from the connection to the moment before the stream starts (engine.md 2.1).

The order is a matter of correctness: lock, publication, slot, identity, decision about the shapes on disk, and that
decision durable before anything is streamed (INV-1).

The lock has a connection of its own. On the replication connection, as engine.md 3.1 has it, every rewind would let go
of it, since a rewind needs a new connection (see replication.py), and an instance that waits would take over each time.
Two instances still cannot stream at once: the slot admits one reader.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final, NamedTuple

import structlog

from common.config import Settings
from common.postgres import Connection, DatabaseProblem, Kind, Pool, connect
from ingester import publication_setup, server, slot, source
from ingester.lock import acquire_lock
from ingester.moment import full_xid
from ingester.publication_setup import PublicationState
from ingester.server import ServerFacts, System
from ingester.source import Continue, CorruptSource, NewGeneration, Observed, Source, SourceFile, SourceInUse
from ingester.waiting import WATCH_SECONDS

log = structlog.get_logger()

LOCK_CHECK: Final = 3.0
"""Seconds between two looks at the connection that holds the lock."""

LOCK_PATIENCE: Final = 20.0
"""Seconds that such a look may take."""

CLAIM_RETRY: Final = 0.2
"""Seconds between two attempts to claim the storage directory."""


class Session(NamedTuple):
    """Everything to stream from ``position`` for the shapes of ``source``, for as long as ``lock`` is connected.

    ``system`` is the server that it is all about.
    """

    lock: Connection
    system: System
    source: Source
    position: int
    xid_anchor: int
    status_interval: float
    decision: Continue | NewGeneration


async def open_session(
    settings: Settings,
    slot_name: str,
    file: SourceFile,
    admin: Pool,
    on_waiting: Callable[[str, str], None],
) -> Session:
    """Get everything that streaming needs; waits for the lock as long as it takes.

    Claims ``file``, which the caller releases, also after an error. ``on_waiting(state, reason)`` is told what is being
    waited for: ``waiting`` means that another instance is at work. Raises ``DatabaseProblem``, ``psycopg.Error``,
    ``OSError``, for ``common.postgres.classify``.
    """
    # First, so that a URL that leads to a pooler is refused before the pooler gets hold of the lock.
    (await connect_stream(settings)).pgconn.finish()
    lock = await connect(settings.database_url, "galvanic lock", prefer_ipv6=settings.database_use_ipv6)
    replication: Connection | None = None
    try:
        facts = await _server_facts(settings, lock, admin)
        await acquire_lock(lock, slot_name, admin=admin, on_waiting=lambda text: on_waiting("waiting", text))
        await _claim(file, lock, lambda text: on_waiting("waiting", text))
        replication = await connect_stream(settings)
        system = await server.identify(replication)
        stored = await asyncio.to_thread(_load, file)
        if stored is not None and stored.slot != slot_name:
            await _leave_slot(lock, stored, system, facts)

        async def before_change(reason: str) -> None:
            # Durable before anything changes: if we die in between, the next start still knows that a gap is possible.
            await asyncio.to_thread(file.poison, reason)

        async with admin.connection() as connection:
            published = await publication_setup.ensure_publication(
                connection,
                settings.publication_name,
                manual=settings.manual_table_publishing,
                before_change=before_change,
            )
            anchor = await full_xid(connection)
        state = await slot.ensure_slot(
            replication,
            slot_name,
            admin=admin,
            before_create=before_change,
            on_waiting=lambda text: on_waiting("starting", text),
            recreate=_reason_to_recreate(stored, published),
        )
        observed = Observed(
            system_identifier=system.system_identifier,
            timeline=system.timeline,
            database=system.database,
            database_oid=facts.database_oid,
            slot=slot_name,
            slot_created=state.created,
            slot_reason=state.reason,
            confirmed_flush=state.confirmed_flush,
            publication_oid=published.oid,
            publication_version=published.version,
            publication_found=published.found,
        )
        decision = source.decide(stored, source.storage_is_empty(settings.storage_dir), observed)
        if isinstance(decision, NewGeneration) and not decision.first:
            log.warning("a new generation begins; all shapes end and clients fetch anew", reason=decision.reason)
        current = source.session(
            stored,
            decision,
            observed,
            partitions=settings.partitions,
            now=int(time.time()),
            temporary=settings.temporary_slot,
        )
        await asyncio.to_thread(file.save, current)
    except BaseException:
        lock.pgconn.finish()
        raise
    finally:
        if replication is not None:
            replication.pgconn.finish()
    patience = facts.wal_sender_timeout / 3 if facts.wal_sender_timeout else 10.0
    position = max(state.confirmed_flush, current.acknowledged + 1)
    return Session(lock, system, current, position, anchor, min(10.0, patience), decision)


async def _server_facts(settings: Settings, lock: Connection, admin: Pool) -> ServerFacts:
    """What the server is that both URLs lead to. Raises ``DatabaseProblem`` if it will not do, or they differ."""
    facts = await server.server_facts(lock)
    problem = facts.problem()
    if problem is not None:
        raise DatabaseProblem(problem.kind, f"DATABASE_URL: {problem.message}")
    async with admin.connection() as connection:
        pooled = await server.server_facts(connection)
    if pooled.in_recovery or (pooled.system_identifier, pooled.database_oid) != (
        facts.system_identifier,
        facts.database_oid,
    ):
        what = "a standby" if pooled.in_recovery else "another server or database"
        text = f"{settings.pooled_setting} leads to {what} (database {pooled.database!r}), not where DATABASE_URL leads"
        raise DatabaseProblem(Kind.RETRY, f"{text} (database {facts.database!r})")
    return facts


async def _leave_slot(lock: Connection, stored: Source, system: System, facts: ServerFacts) -> None:
    """The slot that fed this storage directory until now has another name; nobody must have to find it much later."""
    if (stored.system_identifier, stored.database_oid) != (system.system_identifier, facts.database_oid):
        return
    if stored.temporary:
        if await slot.drop_leftover(lock, stored.slot):
            log.info("dropped the temporary slot that the last run left behind", slot=stored.slot)
        return
    cursor = await lock.execute(
        "SELECT format('SELECT pg_drop_replication_slot(%%L)', slot_name) FROM pg_replication_slots "
        "WHERE slot_name = %s AND NOT active",
        [stored.slot],
    )
    row = await cursor.fetchone()
    if row is not None:
        reason = "this storage directory no longer uses the slot, and it keeps WAL on the server"
        log.warning(reason, slot=stored.slot, sql=row[0])


async def _claim(file: SourceFile, lock: Connection, on_waiting: Callable[[str], None]) -> None:
    """Become the only writer of the storage directory: a former holder of the lock may not know yet that it lost it."""
    told = 0.0
    while True:
        try:
            file.claim()
            return
        except SourceInUse as error:
            if time.monotonic() - told > WATCH_SECONDS:
                told = time.monotonic()
                on_waiting(str(error))
        await asyncio.sleep(CLAIM_RETRY)
        # For an instance behind us, too: it ends holders of the lock that do nothing (lock.py).
        await lock.execute("SELECT 1")


async def connect_stream(settings: Settings) -> Connection:
    """A connection to stream on. Raises ``psycopg.Error``."""
    return await connect(
        settings.database_url, "galvanic ingester", replication=True, prefer_ipv6=settings.database_use_ipv6
    )


async def keep_lock(lock: Connection) -> None:
    """Returns never; raises ``psycopg.Error`` or ``DatabaseProblem`` once the session that holds the lock is lost.

    The statements also show that the holder lives: an instance that waits ends holders that do nothing (lock.py).
    """
    holder: int | None = None
    while True:
        async with asyncio.timeout(LOCK_PATIENCE):
            cursor = await lock.execute("SELECT pg_backend_pid()")
            row = await cursor.fetchone()
        assert row is not None
        if holder not in (None, row[0]):
            text = "DATABASE_URL leads through a pooler that changes sessions, so the lock is not held for sure"
            raise DatabaseProblem(Kind.FATAL, f"{text}; give the pooler as ELECTRIC_POOLED_DATABASE_URL")
        holder = row[0]
        await asyncio.sleep(LOCK_CHECK)


def _reason_to_recreate(stored: Source | None, published: PublicationState) -> str:
    """Why the slot must be made anew even if it is there: its past was not, or not surely, filtered as it should be."""
    if published.fresh:
        return "the publication was made anew"
    if stored is None:
        return ""
    if stored.publication_oid != published.oid:
        return "the publication was dropped and created again by somebody else"
    return stored.broken


def _load(file: SourceFile) -> Source | None:
    try:
        return file.load()
    except CorruptSource as error:
        log.error("the source file is damaged", error=str(error))
        return None

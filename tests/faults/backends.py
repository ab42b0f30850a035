"""What an operator or a failing server does to single connections: found and ended by application name."""

from __future__ import annotations

import asyncio

import psycopg

from tests.pipeline.reader import HANG_SECONDS

LOCK = "galvanic lock"
STREAM = "galvanic ingester"
SNAPSHOT = "galvanic snapshot"
ADMIN = "galvanic admin"


async def connect(url: str) -> psycopg.AsyncConnection:
    """A connection in autocommit mode, for ``async with``."""
    return await psycopg.AsyncConnection.connect(url, autocommit=True)


async def backends(url: str, application: str = "galvanic%") -> list[int]:
    """The process ids of our connections to this database whose application name is LIKE ``application``."""
    async with await connect(url) as connection:
        found = await connection.execute(
            "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE %s",
            [application],
        )
        return [int(row[0]) for row in await found.fetchall()]


async def terminate(url: str, application: str = "galvanic%") -> int:
    """``pg_terminate_backend`` for each of them; how many there were."""
    async with await connect(url) as connection:
        found = await connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND application_name LIKE %s",
            [application],
        )
        return found.rowcount


async def keep_terminating(url: str, application: str, every: float = 1.0) -> None:
    """Do that for ever."""
    while True:
        await terminate(url, application)
        await asyncio.sleep(every)


async def confirmed_flush(url: str) -> int:
    """What the slot of this database has confirmed, as an LSN; 0 without a slot."""
    async with await connect(url) as connection:
        found = await connection.execute(
            "SELECT (confirmed_flush_lsn - '0/0'::pg_lsn)::bigint FROM pg_replication_slots "
            "WHERE database = current_database() AND slot_name LIKE 'electric%'"
        )
        row = await found.fetchone()
        return 0 if row is None else int(row[0])


async def acknowledged(url: str, lsn: int) -> None:
    """Wait until the slot has confirmed everything up to ``lsn``."""
    async with asyncio.timeout(HANG_SECONDS):
        while await confirmed_flush(url) < lsn:  # noqa: ASYNC110 - only Postgres knows
            await asyncio.sleep(0.2)


async def insert_position(url: str) -> int:
    """Where the WAL ends now, as an LSN."""
    async with await connect(url) as connection:
        found = await connection.execute("SELECT (pg_current_wal_insert_lsn() - '0/0'::pg_lsn)::bigint")
        row = await found.fetchone()
        assert row is not None
        return int(row[0])

"""What an operator or a failing server does to single connections: found and ended by application name."""

from __future__ import annotations

import asyncio

import psycopg

LOCK = "galvanic lock"
STREAM = "galvanic ingester"
SNAPSHOT = "galvanic snapshot"
ADMIN = "galvanic admin"


async def backends(url: str, application: str = "galvanic%") -> list[int]:
    """The process ids of our connections to this database whose application name is LIKE ``application``."""
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        found = await connection.execute(
            "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE %s",
            [application],
        )
        return [int(row[0]) for row in await found.fetchall()]


async def terminate(url: str, application: str = "galvanic%") -> int:
    """``pg_terminate_backend`` for each of them; how many there were."""
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
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
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        found = await connection.execute(
            "SELECT (confirmed_flush_lsn - '0/0'::pg_lsn)::bigint FROM pg_replication_slots "
            "WHERE database = current_database() AND slot_name LIKE 'electric%'"
        )
        row = await found.fetchone()
        return 0 if row is None else int(row[0])

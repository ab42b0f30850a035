"""The rows that everything is measured with: ten columns, about 430 bytes as an item of JSON."""

from __future__ import annotations

import asyncio
import time
from typing import Final, LiteralString, Self

import psycopg
from psycopg import sql

_TABLE: Final = """
CREATE TABLE {} (
    id bigint PRIMARY KEY, token uuid NOT NULL, title text NOT NULL, body text NOT NULL, org integer NOT NULL,
    price numeric(14, 2), open boolean, at timestamptz, extra jsonb, note text
)"""

_INSERT: Final = """
INSERT INTO {} SELECT
    i, md5(i::text)::uuid, 'title w' || mod(i, 100) || ' of ' || i, 'lorem ipsum dolor sit amet consetetur',
    mod(i, %(orgs)s::bigint)::integer, i * 1.07, mod(i, 2) = 0,
    timestamptz '2026-01-01 00:00:00Z' + i * interval '1 second',
    jsonb_build_object('n', i, 'tag', 'x' || mod(i, 9)), %(note)s::text
FROM generate_series(%(first)s::bigint, %(last)s::bigint) i"""

NOTE: Final = "a note as people write them"
WORDS: Final = 100
"""As many different words ``w0`` … are in the titles, each in every hundredth."""


async def create(database: str, table: str) -> None:
    """Makes the table, empty."""
    await execute(database, _TABLE, table)


async def drop(database: str, table: str) -> None:
    """And away with it."""
    await execute(database, "DROP TABLE IF EXISTS {}", table)


async def fill(database: str, table: str, count: int, *, orgs: int = 1000, note: str = NOTE) -> None:
    """Rows 1 to ``count``, in one transaction, and what a table has that has existed for a while."""
    await write(database, table, 1, count, count, orgs=orgs, note=note)
    await execute(database, "VACUUM (ANALYZE) {}", table)


async def execute(database: str, statement: LiteralString, table: str) -> None:
    """A statement with the name of the table in its ``{}``."""
    async with await psycopg.AsyncConnection.connect(database, autocommit=True) as connection:
        await connection.execute(_with_table(statement, table))


async def write(
    database: str, table: str, first: int, count: int, per_transaction: int, *, orgs: int = 1000, note: str = NOTE
) -> float:
    """Rows ``first`` and so on, so many to a transaction, one after the other; seconds that took.

    The rows are made on the server, so that nothing but commits costs the client anything.
    """
    return await asyncio.to_thread(_write, database, table, first, count, per_transaction, orgs, note)


def _write(database: str, table: str, first: int, count: int, per_transaction: int, orgs: int, note: str) -> float:
    statement = _with_table(_INSERT, table)
    with psycopg.connect(database, autocommit=True, prepare_threshold=0) as connection, connection.cursor() as cursor:
        begun = time.monotonic()
        for start in range(first, first + count, per_transaction):
            last = min(start + per_transaction, first + count) - 1
            cursor.execute(statement, {"orgs": orgs, "note": note, "first": start, "last": last})
        return time.monotonic() - begun


class Writer:
    """A connection that stays, for one row after the other, each in a transaction of its own."""

    def __init__(self, database: str, table: str) -> None:
        self._database = database
        self._statement = _with_table(_INSERT, table)
        self._table = table
        self._next = 0

    async def __aenter__(self) -> Self:
        self._connection = await psycopg.AsyncConnection.connect(self._database, autocommit=True, prepare_threshold=0)
        found = await self._connection.execute(_with_table("SELECT coalesce(max(id), 0) + 1 FROM {}", self._table))
        self._next = (await found.fetchone() or (1,))[0]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._connection.close()

    async def write(self, note: str, count: int = 1) -> None:
        """The next rows, with this note, in one transaction."""
        values = {"orgs": 1000, "note": note, "first": self._next, "last": self._next + count - 1}
        self._next += count
        await self._connection.execute(self._statement, values)


def _with_table(statement: LiteralString, table: str) -> sql.Composed:
    return sql.SQL(statement).format(sql.Identifier(table))

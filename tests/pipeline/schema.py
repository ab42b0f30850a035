"""The tables of the pipeline tests."""

from __future__ import annotations

from typing import Final

import psycopg
from psycopg import sql

ITEMS: Final = ("items", "late_0", "late_1", "late_2")
"""Tables of the same kind; tests make the first shape of a `late_…` one while it is being written."""

ROWS: Final = 1000
"""Ids of these tables are mostly 1 to ROWS, so that writers meet."""

_SCHEMA = """
CREATE TABLE items (
    id bigint PRIMARY KEY, title text, n integer, done boolean NOT NULL DEFAULT false, price numeric(12,2),
    at timestamptz DEFAULT now(), doc jsonb, tags text[], body text);
ALTER TABLE items ALTER COLUMN body SET STORAGE EXTERNAL;
CREATE TABLE late_0 (LIKE items INCLUDING ALL);
CREATE TABLE late_1 (LIKE items INCLUDING ALL);
CREATE TABLE late_2 (LIKE items INCLUDING ALL);
CREATE TABLE pairs (room text, label text, slot integer, PRIMARY KEY (slot, room));
CREATE TABLE bare (uid text, n integer, note text);
CREATE TABLE "Mixed Case" ("Id" integer PRIMARY KEY, "a.b" text, "is ""it"" so" boolean);
CREATE TABLE bulk (id bigint PRIMARY KEY, batch integer NOT NULL, v text);
CREATE TABLE marker (id bigserial PRIMARY KEY);
"""


async def create_schema(url: str) -> None:
    """Makes the tables, with some rows to snapshot."""
    async with await psycopg.AsyncConnection.connect(url) as connection:
        await connection.execute(_SCHEMA)
        for table in ITEMS:
            insert = sql.SQL(
                "INSERT INTO {} (id, title, n, body) SELECT i, 'row ' || i, i, "
                "CASE WHEN i %% 5 = 0 THEN repeat(md5(i::text), 150) END FROM generate_series(1, %s, 2) i"
            )
            await connection.execute(insert.format(sql.Identifier(table)), [ROWS])
        await connection.execute("INSERT INTO pairs SELECT 'r' || i % 7, 'label', i FROM generate_series(1, 100) i")
        await connection.execute(
            "INSERT INTO bare SELECT 'first ' || i, NULLIF(i % 5, 0) FROM generate_series(1, 50) i"
        )


async def mark(url: str) -> int:
    """Commits a row into `marker`. Returns an LSN above every earlier commit and at or below this one."""
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        found = await connection.execute("SELECT (pg_current_wal_insert_lsn() - '0/0'::pg_lsn)::bigint")
        row = await found.fetchone()
        await connection.execute("INSERT INTO marker DEFAULT VALUES")
    assert row is not None
    return int(row[0])

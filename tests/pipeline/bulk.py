"""Tables of many bytes, and a reader that follows one by counting: for what is too large to be held twice.

The reader keeps a number per row instead of the row: what Postgres and the reader add up must be equal.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from typing import Final, NamedTuple

import aiohttp
import orjson
import psycopg
from psycopg import sql

HANG_SECONDS: Final = 300.0
"""Without any progress for so long, there will be none."""

WIDE_BYTES: Final = 10_000
"""Of a wide row's text, which does not compress."""

_SCHEMA = """
CREATE TABLE wide (id bigint PRIMARY KEY, batch integer NOT NULL, body text NOT NULL);
ALTER TABLE wide ALTER COLUMN body SET STORAGE EXTERNAL;
CREATE TABLE small (id bigint PRIMARY KEY, batch integer NOT NULL, body text NOT NULL);
CREATE TABLE marker (id bigserial PRIMARY KEY);
CREATE UNLOGGED TABLE pool (n integer PRIMARY KEY, body text NOT NULL);
ALTER TABLE pool ALTER COLUMN body SET STORAGE EXTERNAL;
INSERT INTO pool SELECT n, (SELECT substr(string_agg(md5(n::text || '/' || i::text), ''), 1, 10000)
                            FROM generate_series(1, 313) i) FROM generate_series(0, 199) n;
"""

_SUM = "sum(('x' || substr(md5({text}), 1, 15))::bit(60)::bigint)"


class Sum(NamedTuple):
    """How many rows, and the sum of a number made of each."""

    rows: int
    total: int


def number_of(values: Sequence[str]) -> int:
    """The number that :func:`expected` makes of a row."""
    return int(hashlib.md5("/".join(values).encode(), usedforsecurity=False).hexdigest()[:15], 16)


async def create_tables(url: str) -> None:
    """``wide`` with texts of :data:`WIDE_BYTES`, ``small``, and ``marker`` as in schema.py."""
    async with await psycopg.AsyncConnection.connect(url) as connection:
        await connection.execute(_SCHEMA)


async def insert(url: str, table: str, first: int, count: int, batch: int = 0) -> None:
    """One transaction that inserts so many rows, made on the server."""
    body = {
        "wide": "(SELECT body FROM pool WHERE n = abs(i) % 200)",
        "small": "'row ' || i",
    }[table]
    async with await psycopg.AsyncConnection.connect(url) as connection:
        await connection.execute(
            sql.SQL("INSERT INTO {} SELECT i, {}, {} FROM generate_series({}, {}) i").format(
                sql.Identifier(table),
                sql.Literal(batch),
                sql.SQL(body),
                sql.Literal(first),
                sql.Literal(first + count - 1),
            )
        )


async def expected(url: str, table: str, columns: Sequence[str] = ("id", "batch", "body")) -> Sum:
    """What a reader of all rows should have counted."""
    text = sql.SQL(" || '/' || ").join(sql.SQL("{}::text").format(sql.Identifier(name)) for name in columns)
    async with await psycopg.AsyncConnection.connect(url) as connection:
        found = await connection.execute(
            sql.SQL("SELECT count(*), coalesce({}, 0) FROM {}").format(
                sql.SQL(_SUM).format(text=text), sql.Identifier(table)
            )
        )
        row = await found.fetchone()
    assert row is not None
    return Sum(int(row[0]), int(row[1]))


class BulkReader:
    """Follows one shape to which only inserts come; a 409 makes it begin anew."""

    def __init__(self, url: str, table: str, columns: Sequence[str] | None = None, **query: str) -> None:
        self.columns = ("id", "batch", "body") if columns is None else tuple(columns)
        self.refetches = 0
        self.bytes = 0
        self._url = f"{url}/v1/shape"
        self._query = {"table": table, **query}
        if columns is not None:
            self._query["columns"] = ",".join(columns)
        self.handle = ""
        self.offset = "-1"
        self._current = False
        self._seen: dict[str, int] = {}

    @property
    def sum(self) -> Sum:
        """What has come so far."""
        return Sum(len(self._seen), sum(self._seen.values()))

    async def follow(self, rows: int) -> Sum:
        """Reads until so many rows have come and the answer is up to date. Raises AssertionError when nothing comes."""
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None, sock_read=HANG_SECONDS)) as session:
            async with asyncio.timeout(None) as limit:
                while not (self._current and len(self._seen) >= rows):
                    before = len(self._seen)
                    await self._step(session)
                    if len(self._seen) > before or limit.when() is None:
                        limit.reschedule(asyncio.get_running_loop().time() + HANG_SECONDS)
        return self.sum

    async def _step(self, session: aiohttp.ClientSession) -> None:
        query = {**self._query, "offset": self.offset}
        if self.handle:
            query["handle"] = self.handle
        if self._current:
            query["live"] = "true"
        try:
            async with session.get(self._url, params=query) as response:
                body = await response.read()
        except (aiohttp.ClientError, TimeoutError, ConnectionError):
            await asyncio.sleep(0.2)
            return
        if response.status == 409:
            self.refetches += 1
            self._restart()
        elif response.status != 200:
            assert response.status in (429, 503), (response.status, body[:300])
            await asyncio.sleep(0.5)
        else:
            self.handle = response.headers["electric-handle"]
            self.offset = response.headers["electric-offset"]
            self._current = "electric-up-to-date" in response.headers
            self.bytes += len(body)
            await asyncio.to_thread(self._take, body)

    def _take(self, body: bytes) -> None:
        for item in orjson.loads(body):
            if item["headers"].get("operation") == "insert":
                key, value = item["key"], item["value"]
                assert key not in self._seen, f"{key} came twice"
                self._seen[key] = number_of([value[name] for name in self.columns])

    def _restart(self) -> None:
        self.handle, self.offset, self._current = "", "-1", False
        self._seen = {}

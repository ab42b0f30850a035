"""Tables for the packages, and a writer that changes them at random."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import Counter
from types import TracebackType
from typing import Final, Self

import psycopg

NOTES: Final = 300
ACCOUNTS: Final = 20
TOTAL: Final = 2 * ACCOUNTS * 1000
"""What all accounts hold together, at any time."""

SCHEMA: Final = """
CREATE TABLE notes (id bigint PRIMARY KEY, title text, n integer, done boolean, at timestamptz, body text);
CREATE TABLE checking (id integer PRIMARY KEY, amount integer NOT NULL);
CREATE TABLE savings (id integer PRIMARY KEY, amount integer NOT NULL);
"""
"""Also what a local copy looks like."""

_ROWS: Final = f"""
ALTER TABLE notes ALTER COLUMN body SET STORAGE EXTERNAL;
INSERT INTO notes SELECT i, 'note ' || i, i % 50, i % 2 = 0, '2026-11-23T02:00:00Z'::timestamptz + i * interval '1 s',
  CASE WHEN i % 10 = 0 THEN repeat(md5(i::text), 80) END FROM generate_series(1, {NOTES}) i;
INSERT INTO checking SELECT i, 1000 FROM generate_series(1, {ACCOUNTS}) i;
INSERT INTO savings SELECT i, 1000 FROM generate_series(1, {ACCOUNTS}) i;
"""

TABLES: Final = ("notes", "checking", "savings")

_TEXTS: Final = (
    "",
    "plain",
    "'; --",
    'quo"te',
    "back\\slash",
    "a\nb\r\t",
    "\x01\x7f",
    "Ünï 🜁",
    "a/b//c",
    ",\n",
    "NULL",
)
_NOTES: Final = {
    "INSERT INTO notes VALUES (%(id)s, %(text)s, %(n)s, NULL, now(), %(body)s) "
    "ON CONFLICT (id) DO UPDATE SET title = excluded.title": 8,
    "UPDATE notes SET n = %(n)s, done = NOT done WHERE id = %(id)s": 8,
    "UPDATE notes SET title = %(text)s, at = clock_timestamp() WHERE id BETWEEN %(id)s AND %(id)s + 5": 4,
    "UPDATE notes SET title = NULL, done = NULL WHERE id = %(id)s": 2,
    "UPDATE notes SET body = %(body)s WHERE id = %(id)s": 2,
    "UPDATE notes SET n = n WHERE id BETWEEN %(id)s AND %(id)s + 5": 1,
    "UPDATE notes SET id = id + 1000 WHERE id = %(id)s AND NOT EXISTS (SELECT FROM notes WHERE id = %(id)s + 1000)": 2,
    "DELETE FROM notes WHERE id = %(id)s": 4,
    "DELETE FROM notes WHERE id = %(id)s + 1000": 2,
}
_FIRST_TICK: Final = 1_000_000


class Traffic:
    """Transactions on notes and transfers between accounts, from `async with` on until its end.

    Each transfer keeps the total of both account tables; some move all of an account, which deletes and inserts rows.
    """

    def __init__(self, database: str, seed: int, writers: int = 3) -> None:
        self.database = database
        self.stats: Counter[str] = Counter()
        self._choices = [random.Random(f"{seed}:{number}") for number in range(writers)]
        self._stopping = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._stopping.clear()
        self._tasks = [asyncio.create_task(self._write(choice)) for choice in self._choices]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        await asyncio.gather(*self._tasks)

    async def _write(self, choice: random.Random) -> None:
        async with await psycopg.AsyncConnection.connect(self.database, autocommit=True) as connection:
            while not self._stopping.is_set():
                write = choice.choice([_notes, _transfer])
                try:
                    async with connection.transaction():
                        await write(connection, choice)
                        if choice.random() < 0.1:
                            self.stats["rolled back"] += 1
                            raise psycopg.Rollback
                except (psycopg.errors.DeadlockDetected, psycopg.errors.UniqueViolation):
                    self.stats["failed"] += 1
                else:
                    self.stats[write.__name__.strip("_")] += 1
                await asyncio.sleep(choice.uniform(0, 0.03))


async def _notes(connection: psycopg.AsyncConnection, choice: random.Random) -> None:
    for statement in choice.choices(list(_NOTES), list(_NOTES.values()), k=choice.randint(1, 6)):
        values = {
            "id": choice.randint(1, NOTES),
            "n": choice.randint(0, 60),
            "text": choice.choice(_TEXTS) + str(choice.randint(0, 9)),
            # Beyond 2 kB it is TOASTed, and updates of other columns come without it.
            "body": choice.choice([None, choice.randbytes(1300).hex()]),
        }
        await connection.execute(statement.encode(), values)


async def _transfer(connection: psycopg.AsyncConnection, choice: random.Random) -> None:
    source, target = choice.choice([("checking", "savings"), ("savings", "checking")])
    numbers = {"source": choice.randint(1, ACCOUNTS), "target": choice.randint(1, ACCOUNTS)}
    # One row lock at a time would let two transfers wait for each other.
    await connection.execute("LOCK TABLE checking, savings IN SHARE ROW EXCLUSIVE MODE")
    if choice.random() < 0.3:
        taken = f"DELETE FROM {source} WHERE id = %(source)s RETURNING amount"
    else:
        amount = f"least(amount, {choice.randint(1, 100)})"
        taken = (
            f"UPDATE {source} SET amount = {source}.amount - t.part FROM (SELECT id, {amount} AS part FROM {source} "
            f"WHERE id = %(source)s) t WHERE t.id = {source}.id RETURNING t.part AS amount"
        )
    await connection.execute(
        f"WITH taken AS ({taken}) INSERT INTO {target} SELECT %(target)s, amount FROM taken "
        f"ON CONFLICT (id) DO UPDATE SET amount = {target}.amount + excluded.amount".encode(),
        numbers,
    )


async def create(database: str) -> None:
    """Makes the tables and fills them."""
    await run(database, SCHEMA, _ROWS)


async def run(database: str, *statements: str) -> None:
    """Runs each statement in a transaction of its own."""
    async with await psycopg.AsyncConnection.connect(database, autocommit=True) as connection:
        for statement in statements:
            await connection.execute(statement.encode())


_ticks = itertools.count(_FIRST_TICK)


async def tick(database: str) -> int:
    """Adds a row to each table that has these tables' columns, in one transaction: who holds it has all before it."""
    number = next(_ticks)
    await run(
        database,
        f"INSERT INTO notes VALUES ({number}, 'tick', 7, true, now(), NULL); "
        f"INSERT INTO checking VALUES ({number}, 0); INSERT INTO savings VALUES ({number}, 0)",
    )
    return number

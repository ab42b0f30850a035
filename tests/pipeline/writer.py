"""The random choices of one writer: which rows of which table it changes how, and inside which savepoints."""

from __future__ import annotations

import contextlib
import random
from collections import Counter
from typing import Any

import psycopg
from psycopg import sql

from tests.pipeline.schema import ITEMS, ROWS

_TABLES = {"items": 6, "pairs": 2, "bare": 2, "Mixed Case": 2, "late_0": 2, "late_1": 2, "late_2": 2}
_KEY_CHANGE = "UPDATE {t} SET id = %(other)s WHERE id = %(id)s AND NOT EXISTS (SELECT 1 FROM {t} WHERE id = %(other)s)"
_ITEMS = {
    "INSERT INTO {t} (id, title, n, price, doc, tags, body) VALUES (%(id)s, %(text)s, %(n)s, %(n)s / 7.0, "
    "%(doc)s::jsonb, ARRAY[%(text)s, NULL], %(body)s) ON CONFLICT (id) DO UPDATE SET title = excluded.title": 8,
    "UPDATE {t} SET n = %(n)s, done = NOT done WHERE id = %(id)s": 8,
    "UPDATE {t} SET title = %(text)s, at = clock_timestamp() WHERE id BETWEEN %(id)s AND %(id)s + 4": 4,
    "UPDATE {t} SET body = %(body)s WHERE id = %(id)s": 2,
    "UPDATE {t} SET title = NULL, tags = NULL, doc = NULL WHERE id = %(id)s": 2,
    "UPDATE {t} SET n = n, body = body WHERE id BETWEEN %(id)s AND %(id)s + 2": 2,
    _KEY_CHANGE: 3,
    "DELETE FROM {t} WHERE id = %(id)s": 4,
    "WITH gone AS (DELETE FROM {t} WHERE id = %(id)s RETURNING *) INSERT INTO {t} (id, title) "
    "SELECT id + 100000, title FROM gone ON CONFLICT DO NOTHING": 1,
}
_PAIRS = {
    "INSERT INTO {t} VALUES (%(text)s, %(text)s, %(slot)s) ON CONFLICT (slot, room) DO UPDATE SET label = 'again'": 3,
    "UPDATE {t} SET label = %(text)s WHERE slot = %(slot)s": 2,
    "UPDATE {t} SET room = room || '/x' WHERE slot = %(slot)s AND length(room) < 20": 1,
    "UPDATE {t} SET label = label WHERE slot = %(slot)s": 1,
    "DELETE FROM {t} WHERE slot = %(slot)s": 1,
}
# Two equal rows would be one key for clients, and more than SQL can tell apart: every uid is new.
_BARE = {
    "INSERT INTO {t} VALUES (%(uid)s, %(n)s, %(text)s)": 3,
    "INSERT INTO {t} VALUES (%(uid)s, NULL, NULL)": 1,
    "UPDATE {t} SET n = %(n)s WHERE uid IN (SELECT min(uid) FROM {t})": 1,
    "UPDATE {t} SET note = %(text)s, n = NULL WHERE uid IN (SELECT max(uid) FROM {t})": 1,
    "UPDATE {t} SET note = note WHERE uid IN (SELECT max(uid) FROM {t})": 1,
    "DELETE FROM {t} WHERE uid IN (SELECT max(uid) FROM {t})": 2,
}
_MIXED = {
    'INSERT INTO {t} VALUES (%(slot)s, %(text)s, %(n)s > 500) ON CONFLICT ("Id") DO UPDATE SET "a.b" = %(text)s': 3,
    'UPDATE {t} SET "is ""it"" so" = NOT "is ""it"" so" WHERE "Id" = %(slot)s': 2,
    'DELETE FROM {t} WHERE "Id" = %(slot)s': 2,
}
_STATEMENTS = dict.fromkeys(ITEMS, _ITEMS) | {"pairs": _PAIRS, "bare": _BARE, "Mixed Case": _MIXED}
_TEXTS = ("", "plain", "'; --", 'quo"te', "back\\slash", "a\nb\r\t", "\x01\x1f\x7f", "Ünï 🜁", "a/b//c", ",\n", "NULL")


class Writer:
    """One writer; the same seed and number make the same choices."""

    def __init__(self, seed: int, number: int, stats: Counter[str]) -> None:
        self.random = random.Random(f"{seed}:{number}")
        self._number = number
        self._stats = stats
        self._made = 0

    async def statement(self, connection: psycopg.AsyncConnection) -> None:
        """Changes some rows of some table."""
        table = self._one_of(_TABLES)
        statement = self._one_of(_STATEMENTS[table])
        query = sql.SQL(statement).format(t=sql.Identifier(table))
        done = await connection.execute(query, self._values())
        if statement is _KEY_CHANGE:
            self._stats["key changes"] += done.rowcount

    async def savepoint(self, connection: psycopg.AsyncConnection, depth: int = 2) -> None:
        """Statements in up to `depth` nested savepoints more, each kept or rolled back."""
        undo = self.random.random() < 0.5
        with contextlib.suppress(psycopg.Rollback):
            async with connection.transaction():
                await self.statement(connection)
                if depth and self.random.random() < 0.5:
                    await self.savepoint(connection, depth - 1)
                if undo:
                    self._stats["undone savepoints"] += 1
                    raise psycopg.Rollback

    def _one_of(self, weights: dict[str, int]) -> str:
        return self.random.choices(list(weights), list(weights.values()))[0]

    def _values(self) -> dict[str, Any]:
        self._made += 1
        return {
            "id": self.random.randint(1, ROWS),
            "other": self.random.randint(1, ROWS),
            "n": self.random.randint(0, 1000),
            "slot": self.random.randint(1, 120),
            "text": self.random.choice(_TEXTS) + str(self.random.randint(0, 9)),
            "doc": '{"a": [1, null, "x"]}',
            # Beyond 2 kB it is TOASTed, and updates of other columns come without it.
            "body": self.random.randbytes(2500).hex(),
            "uid": f"{self.random.choice('amz')}{self._number}-{self._made}",
        }

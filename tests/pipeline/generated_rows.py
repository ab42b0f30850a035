"""A table with columns of all types, a pool of rows for it, writers that draw from the pool, and clauses over it.

Rows and clauses come from the generators of the filter language's own tests, which draw their constants from the same
values: so rows sit on the clauses' bounds and move in and out. The pool is finite, so that a clause is known not to
fail for any row that will ever be written.
"""

from __future__ import annotations

import random
import re
from typing import Any, Final, NamedTuple

import psycopg
from psycopg import sql

from shapeworker.where import InvalidWhere, compile_where
from shapeworker.where.tree import Apply, Expression, Quantified, parts
from shapeworker.where.types import NAME
from tests.pipeline.writer import Writer
from tests.unit.shapeworker.routing.test_router import indexable
from tests.unit.shapeworker.where.expressions import Expressions, row
from tests.unit.shapeworker.where.oracle import COLUMNS, sql_type

TABLE: Final = "everything"
FAMILIES: Final = 60
VARIANTS: Final = 4
"""Rows of a family differ in a few columns."""

_IDS: Final = 150
_COLUMNS: Final = ", ".join(f'"{column.name}" {sql_type(column.type)}' for column in COLUMNS)
_NAMES: Final = ", ".join(f'"{column.name}"' for column in COLUMNS)
_SCHEMA: Final = f"""
CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy', 'Zen', 'null');
CREATE DOMAIN amount AS int4;
CREATE TABLE pool (place int PRIMARY KEY, {_COLUMNS});
CREATE TABLE {TABLE} (LIKE pool, id int PRIMARY KEY);
CREATE TABLE marker (id bigserial PRIMARY KEY);
"""
_ROW: Final = f"SELECT place, {_NAMES} FROM pool"
_STATEMENTS: Final = {
    f"INSERT INTO {TABLE} SELECT pool.*, %(id)s FROM pool WHERE place = %(place)s ON CONFLICT DO NOTHING": 6,
    f"UPDATE {TABLE} SET (place, {_NAMES}) = ({_ROW} WHERE place = %(place)s) WHERE id = %(id)s": 6,
    f"UPDATE {TABLE} t SET (place, {_NAMES}) = ({_ROW} WHERE place = t.place / {VARIANTS} * {VARIANTS} + %(variant)s)"
    " WHERE id BETWEEN %(id)s AND %(id)s + 5": 6,
    f"UPDATE {TABLE} SET id = %(other)s WHERE id = %(id)s AND NOT EXISTS (SELECT FROM {TABLE} WHERE id = %(other)s)": 1,
    f"UPDATE {TABLE} SET i4 = i4, t = t WHERE id BETWEEN %(id)s AND %(id)s + 3": 1,
    f"DELETE FROM {TABLE} WHERE id = %(id)s": 4,
}


class Clause(NamedTuple):
    """A filter over TABLE, as a client sends it."""

    where: str
    params: list[str]


class PoolWriter(Writer):
    """A writer that puts rows of the pool into TABLE, exchanges them and deletes them."""

    async def statement(self, connection: psycopg.AsyncConnection) -> None:
        await connection.execute(self._one_of(_STATEMENTS), self._values())

    def _values(self) -> dict[str, Any]:
        return {
            "id": self.random.randint(1, _IDS),
            "other": self.random.randint(1, _IDS),
            "place": self.random.randrange(FAMILIES * VARIANTS),
            "variant": self.random.randrange(VARIANTS),
        }


def _families(choice: random.Random) -> list[dict[str, str | None]]:
    rows = []
    for _ in range(FAMILIES):
        first = row(choice)
        rows.append(first)
        for _ in range(VARIANTS - 1):
            other = row(choice)
            changed = choice.sample([column.name for column in COLUMNS], choice.choice((1, 3, 10)))
            rows.append(first | {name: other.get(name) for name in changed})
    return rows


async def create_everything(url: str, seed: int) -> None:
    """Makes the tables, the pool, and some rows to snapshot."""
    async with await psycopg.AsyncConnection.connect(url) as connection:
        await connection.execute(_SCHEMA.encode())
        for place, values in enumerate(_families(random.Random(f"{seed}:rows"))):
            names = [sql.Identifier("place"), *map(sql.Identifier, values)]
            literals = [sql.Literal(place), *map(sql.Literal, values.values())]
            insert = sql.SQL("INSERT INTO pool ({}) VALUES ({})")
            await connection.execute(insert.format(sql.SQL(", ").join(names), sql.SQL(", ").join(literals)))
        some = f"place / 3 FROM pool WHERE place % 3 = 0 AND place / 3 BETWEEN 1 AND {_IDS}"
        await connection.execute(f"INSERT INTO {TABLE} SELECT pool.*, {some}".encode())


async def clauses(url: str, seed: int, count: int) -> list[Clause]:
    """Different clauses that fail for no row of the pool, and are true for some of its rows but not for all."""
    choice = random.Random(f"{seed}:clauses")
    expressions = Expressions(choice)
    found: dict[str, Clause] = {}
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        while len(found) < count:
            if choice.random() < 0.4:
                text = indexable(choice, expressions)
            else:
                text = expressions.condition(choice.choice((1, 2, 2, 3)))
            # Postgres has no operators between an array of a domain and one of its base type.
            if '"ao"' in text or text in found or not await _divides(connection, text):
                continue
            found[text] = _with_parameters(text) if choice.random() < 0.3 else Clause(text, [])
    return list(found.values())


async def _divides(connection: psycopg.AsyncConnection, text: str) -> bool:
    try:
        if any(map(_differs, parts(compile_where(text, {}, COLUMNS).tree))):
            return False
        # Once in the list and once as the condition, since the planner treats them differently.
        for query in (f"SELECT count(*) FILTER (WHERE {text}) FROM pool", f"SELECT count(*) FROM pool WHERE {text}"):
            fetched = await (await connection.execute(query.encode())).fetchone()
    except (InvalidWhere, psycopg.Error):
        return False
    assert fetched is not None
    matching: int = fetched[0]
    return 0 < matching < FAMILIES * VARIANTS


def _differs(node: Expression) -> bool:
    """Whether this is one of the places where the language is known to differ from the client's own text.

    A cast of a text to a time: Postgres reads forms that end the shape here. ILIKE of a name: to Postgres, names have
    letters of ASCII only.
    """
    if not isinstance(node, Apply | Quantified):
        return False
    function = node.function
    if function.role == "cast":
        return function.arguments[0].category == "S" and function.result.category in "DT"
    return function.role in ("~~*", "!~~*") and function.arguments[0] is NAME


def _with_parameters(text: str) -> Clause:
    """The same with parameters for its constants that are texts of unknown type, as far as that is allowed."""
    where, params = "", list[str]()
    end = 0
    for literal in re.finditer(r"'((?:[^']|'')*)'", text):
        where += text[end : literal.start()]
        end = literal.end()
        if text.startswith("::", end):
            where += literal[0]
        else:
            params.append(literal[1].replace("''", "'"))
            where += f"${len(params)}"
    where += text[end:]
    try:
        compile_where(where, {str(number): value for number, value in enumerate(params, 1)}, COLUMNS)
    except InvalidWhere:
        return Clause(text, [])
    # The judge puts the values in by text, and must not take one for a parameter.
    return Clause(where, params) if "$" not in text else Clause(text, [])

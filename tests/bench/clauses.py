"""The table, rows and clauses of the benchmarks about filters: those that most applications have, at any number."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from shapeworker.where import Column, Columns, ColumnType

TABLE_SQL: Final = (
    "CREATE TABLE {} (id bigint PRIMARY KEY, org integer, status text, n integer, title text, tags text[])"
)


class Clause(NamedTuple):
    """A where clause; ``params`` are the values of its parameters for the shape of this number, each another."""

    name: str
    where: str
    params: Callable[[int], tuple[str, ...]]


def _type(name: str) -> ColumnType:
    return ColumnType("pg_catalog", name)


COLUMNS: Final = Columns(
    (
        Column("id", 0, _type("int8")),
        Column("org", 1, _type("int4")),
        Column("status", 2, _type("text")),
        Column("n", 3, _type("int4")),
        Column("title", 4, _type("text")),
        Column("tags", 5, ColumnType("pg_catalog", "_text", "a", element=_type("text"))),
    )
)
_WORDS: Final = [f"{a}{b}{c}" for a in ("lorem", "ipsum", "dolor", "amet") for b in "abcdefghij" for c in "klmnopqrst"]

CLAUSES: Final = (
    Clause("=", "org = $1", lambda k: (str(k),)),
    Clause("IN of 5", "org IN ($1, $2, $3, $4, $5)", lambda k: tuple(str(k * 5 + i) for i in range(5))),
    Clause("@> of 2", "tags @> ARRAY[$1, $2]", lambda k: (f"tag{k % 5000}", f"tag{(k * 7 + k // 5000) % 4999}")),
    Clause("BETWEEN", "n BETWEEN $1 AND $2", lambda k: (str(k * 10), str(k * 10 + 15))),
    Clause(">", "n > $1", lambda k: (str(1_000_000 + k),)),
    Clause("LIKE 'x%'", "title LIKE $1", lambda k: (f"{_WORDS[k % 400]}{k}%",)),
    Clause("ILIKE '%x%'", "title ILIKE $1", lambda k: (f"%{_WORDS[k % 400].upper()}{k // 400}%",)),
    Clause("AND", "org = $1 AND status = 'open' AND n > $2", lambda k: (str(k), str(k % 1000))),
    Clause("OR", "org = $1 OR (n > $2 AND status = 'open')", lambda k: (str(k), str(2_000_000 + k))),
    Clause("= literal", "org = {} AND status = 'open'", lambda k: (str(k),)),
)
NO_INDEX: Final = Clause("no index", "n % $1::int4 = 1", lambda k: (str(k + 2),))
"""Each row is evaluated for each shape."""


def request(clause: Clause, number: int) -> tuple[str, tuple[str, ...]]:
    """The clause of a shape as a client writes it, and its parameters."""
    if "{}" in clause.where:
        return clause.where.format(*clause.params(number)), ()
    return clause.where, clause.params(number)


def row(number: int) -> list[bytes]:
    """A row that few clauses match, as Postgres prints it."""
    return [
        b"%d" % number,
        b"%d" % (number * 7919 % 1_000_000),
        b"open" if number % 2 else b"closed",
        b"%d" % (number * 104_729 % 1_000_000),
        f"{_WORDS[number % 400]}{number * 31 % 250} {_WORDS[number * 17 % 400]}x".encode(),
        b"{tag%d,tag%d,tag%d,tag%d}" % tuple((number * step + step) % 5000 for step in (1, 7, 11, 13)),
    ]

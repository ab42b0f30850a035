"""Postgres as the judge of expressions: a table with columns of all types, and what it says about each of its rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

import psycopg
from psycopg import pq, sql

from common.postgres import DISPLAY_SETTINGS
from shapeworker.where import Column, ColumnType

MOOD: Final = ColumnType("public", "mood", "e", labels=("sad", "ok", "happy", "Zen", "null"))


def _base(name: str) -> ColumnType:
    return ColumnType("pg_catalog", name)


def _array(element: ColumnType) -> ColumnType:
    return ColumnType(element.schema, "_" + element.name, "a", element=element)


AMOUNT: Final = ColumnType("public", "amount", "d", base=_base("int4"))
_SCALARS: Final = {
    "i2": "int2", "i4": "int4", "j4": "int4", "i8": "int8", "n": "numeric", "m": "numeric", "f4": "float4",
    "f8": "float8", "g8": "float8", "b": "bool", "c": "bool", "t": "text", "s": "text", "vc": "varchar", "nm": "name",
    "bp": "bpchar", "u": "uuid", "w": "uuid", "by": "bytea", "d": "date", "e1": "date", "tm": "time", "tt": "timetz",
    "ts": "timestamp", "us": "timestamp", "tz": "timestamptz", "uz": "timestamptz", "iv": "interval",
    "jv": "interval", "js": "jsonb", "kj": "jsonb", "jn": "json", "ip": "inet", "iq": "inet", "ci": "cidr",
    "ri": "int4range", "si": "int4range", "rl": "int8range",
    "rn": "numrange", "rd": "daterange", "sd": "daterange", "rt": "tsrange", "rz": "tstzrange", "pt": "point",
}  # fmt: skip
_ARRAYS: Final = {
    "ai": "int4", "bi": "int4", "al": "int8", "at": "text", "an": "numeric", "af": "float8", "ab": "bool", "ad": "date",
    "az": "timestamptz", "av": "interval", "au": "uuid", "ap": "inet", "ar": "int4range",
}  # fmt: skip

COLUMNS: Final = (
    *(Column(name, place, _base(type_)) for place, (name, type_) in enumerate(_SCALARS.items())),
    *(Column(name, len(_SCALARS) + place, _array(_base(type_))) for place, (name, type_) in enumerate(_ARRAYS.items())),
    Column("mo", len(_SCALARS) + len(_ARRAYS), MOOD),
    Column("mp", len(_SCALARS) + len(_ARRAYS) + 1, MOOD),
    Column("am", len(_SCALARS) + len(_ARRAYS) + 2, _array(MOOD)),
    Column("do", len(_SCALARS) + len(_ARRAYS) + 3, AMOUNT),
    Column("ao", len(_SCALARS) + len(_ARRAYS) + 4, _array(AMOUNT)),
)
BY_NAME: Final = {column.name: column for column in COLUMNS}


def sql_type(column_type: ColumnType) -> str:
    """The type as DDL spells it."""
    if column_type.kind == "a":
        assert column_type.element is not None
        return sql_type(column_type.element) + "[]"
    name = f"{column_type.schema}.{column_type.name}"
    return "char(6)" if name == "pg_catalog.bpchar" else name


_SETUP: Final = """
CREATE TYPE public.mood AS ENUM ('sad', 'ok', 'happy', 'Zen', 'null');
CREATE DOMAIN public.amount AS int4;
CREATE TABLE public.t (id int4 PRIMARY KEY, {columns});
CREATE FUNCTION public.verdict(r public.t, expression text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE v text;
BEGIN
  -- OFFSET keeps the planner from calculating with the row's values before it plans.
  EXECUTE 'SELECT (' || expression || E'\n)::text FROM (SELECT ($1).* OFFSET 0) AS t' INTO v USING r;
  RETURN coalesce('=' || v, 'null');
EXCEPTION WHEN OTHERS THEN RETURN 'error: ' || SQLERRM;
END $$;
"""


class Oracle:
    """A connection to a database with the table ``public.t``."""

    def __init__(self, url: str) -> None:
        self.connection = psycopg.connect(url, autocommit=True)
        columns = ", ".join(f'"{column.name}" {sql_type(column.type)}' for column in COLUMNS)
        self.connection.execute(_SETUP.format(columns=columns).encode())
        # As the sessions of snapshots have it; this one is not inside a transaction.
        self.connection.execute(DISPLAY_SETTINGS.replace("SET LOCAL", "SET").encode())
        self.rows: list[list[bytes | None]] = []

    def close(self) -> None:
        """Ends the connection."""
        self.connection.close()

    def accepts(self, type_name: str, text: str) -> str | None:
        """What a literal of this type is printed as; None if it is none."""
        try:
            query = sql.SQL("SELECT {}::{}::text").format(sql.Literal(text), sql.SQL(type_name))
            row = self.connection.execute(query).fetchone()
        except psycopg.Error:
            return None
        assert row is not None
        value: str = row[0]
        return value

    def plans(self, condition: str) -> bool:
        """Whether Postgres gets as far as looking at a row, rather than failing over the constants."""
        try:
            self.connection.execute(f"EXPLAIN SELECT FROM public.t WHERE ({condition}\n)".encode())
        except psycopg.Error:
            return False
        return True

    def fill(self, rows: Iterable[dict[str, str | None]]) -> None:
        """Replaces the rows by these, given as literals by column; columns that are missing are NULL."""
        self.connection.execute("DELETE FROM public.t")
        for number, row in enumerate(rows):
            names = [sql.Identifier("id"), *map(sql.Identifier, row)]
            values = [sql.Literal(number), *map(sql.Literal, row.values())]
            statement = sql.SQL("INSERT INTO public.t ({}) VALUES ({})")
            self.connection.execute(statement.format(sql.SQL(", ").join(names), sql.SQL(", ").join(values)))
        self.rows = self._read()

    def _read(self) -> list[list[bytes | None]]:
        names = ", ".join(f'"{column.name}"' for column in COLUMNS)
        # In text format, values are what their output functions give, as in pgoutput.
        result = self.connection.pgconn.exec_params(
            f"SELECT {names} FROM public.t ORDER BY id".encode(), None, result_format=pq.Format.TEXT
        )
        assert result.status == pq.ExecStatus.TUPLES_OK, result.error_message
        return [[result.get_value(row, column) for column in range(result.nfields)] for row in range(result.ntuples)]

    def verdicts(self, expressions: Sequence[str]) -> list[list[str]]:
        """For each expression and row: ``=`` and the value as text, ``null``, or ``error: …``."""
        if not expressions:
            return []
        cursor = self.connection.execute(
            "SELECT array_agg(public.verdict(whole, x) ORDER BY whole.id)"
            " FROM unnest(%s::text[]) WITH ORDINALITY AS x(x, place) CROSS JOIN public.t AS whole"
            " GROUP BY place ORDER BY place",
            [list(expressions)],
        )
        found: list[list[str]] = [row[0] for row in cursor.fetchall()]
        return found


def shown(value: Any) -> str:
    """A verdict of ours in the oracle's words."""
    return "null" if value is None else f"={'true' if value else 'false'}"

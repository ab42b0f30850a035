"""SQL that gives the rows of a table as the JSON items of a snapshot.

Key and value are what :mod:`shapeworker.projection` makes of the same row from the stream (engine.md INV-13). Therefore
every value goes through its type's output function, as in logical decoding: a cast to ``text`` is another function for
``bpchar``, ``inet``, ``"char"`` and types with casts of their own, so only types known to be equal are cast.

The line is a balanced tree of ``||``: a chain would copy the growing line once per column and nest as deep as the table
is wide (1600 columns).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import orjson
from psycopg import sql

from common.table import Column, Table, key_columns
from shapeworker.projection import table_key

_TEXT_TYPES: Final = frozenset((25, 1043))
"""text and varchar: casts to text keep every byte, but values need JSON escapes."""

Part = str | sql.Composable
"""A piece of text that is known now, or an SQL expression of type text that is never NULL."""


def copy_statement(table: Table, selected: Iterable[str], condition: sql.Composable | None = None) -> bytes:
    """``COPY … TO STDOUT`` in binary format whose only column is the snapshot item of each row.

    ``condition`` is a trusted boolean expression over the table's columns, with its parameters already inside.
    Rows of classic inheritance children are left out, because the stream shows them as changes of the child.
    """
    only = sql.SQL("" if table.kind == "p" else "ONLY ")
    relation = sql.Identifier(table.schema, table.name)
    where = sql.SQL("") if condition is None else sql.SQL(" WHERE ({})").format(condition)
    statement = sql.SQL("COPY (SELECT {} FROM {}{}{}) TO STDOUT (FORMAT binary)")
    return statement.format(row_expression(table, selected), only, relation, where).as_bytes(None)


def row_expression(table: Table, selected: Iterable[str], headers: str = "") -> sql.Composable:
    """A text expression over the table's columns: the JSON item of a row, never NULL, without line breaks.

    ``headers`` are further members of its headers, as JSON.
    """
    names = sorted(selected)
    columns = {column.name: column for column in table.columns}
    parts: list[Part] = ['{"key":', *_key(table), ',"value":{']
    for number, name in enumerate(names):
        parts.append(("," if number else "") + _json(name) + ":")
        parts.extend(_value(columns[name]))
    parts.append('},"headers":{"operation":"insert","relation":' + _json([table.schema, table.name]) + f"{headers}}}}}")
    return _joined(parts)


def _key(table: Table) -> list[Part]:
    columns = {column.name: column for column in table.columns}
    keys = [columns[name] for name in key_columns(table)]
    prefix = table_key(table.schema, table.name)
    if all(column.plain_text and column.key_index is not None for column in keys):
        # Nothing in such a key can need an escape, so its quotes are escaped here instead of for each row.
        parts: list[Part] = ['"' + _json(prefix)[1:-1]]
        for column in keys:
            parts += ['/\\"', _output(column), '\\"']
        return [*parts, '"']
    text: list[Part] = [prefix]
    for column in keys:
        text += ["/", *_key_section(column)]
    return [sql.SQL("pg_catalog.to_json({})::pg_catalog.text").format(_joined(text))]


def _key_section(column: Column) -> list[Part]:
    output = _output(column)
    if not column.plain_text and not column.is_boolean:
        output = sql.SQL("pg_catalog.replace({}, '/', '//')").format(output)
    if column.key_index is not None:
        return ['"', output, '"']
    return [_unless_null(column, _joined(['"', output, '"']), "_")]


def _value(column: Column) -> list[Part]:
    output = _output(column)
    if column.plain_text or column.is_boolean:
        if column.key_index is not None:
            return ['"', output, '"']
        return [_unless_null(column, _joined(['"', output, '"']), "null")]
    return [_unless_null(column, sql.SQL("pg_catalog.to_json({})::pg_catalog.text").format(output), "null")]


def _output(column: Column) -> sql.Composable:
    """The value as text, by its output function; NULL or an empty string for NULL."""
    name = sql.Identifier(column.name)
    if column.is_boolean:
        return sql.SQL("({}::pg_catalog.bool)::pg_catalog.text").format(name)
    if column.plain_text or column.base_oid in _TEXT_TYPES:
        return sql.SQL("{}::pg_catalog.text").format(name)
    # concat() calls the output function of whatever it is given.
    return sql.SQL("pg_catalog.concat({})").format(name)


def _unless_null(column: Column, expression: sql.Composable, otherwise: str) -> sql.Composable:
    # Not the column's NOT NULL: such a constraint may be there without being valid (Postgres 18). And not IS NULL: of a
    # row of NULLs that is true, whereas this is the plain test for any type, without needing an equality operator.
    test = sql.SQL("CASE WHEN {} IS NOT DISTINCT FROM NULL THEN {} ELSE {} END")
    return test.format(sql.Identifier(column.name), sql.Literal(otherwise), expression)


def _joined(parts: Sequence[Part]) -> sql.Composable:
    merged: list[Part] = []
    for part in parts:
        if isinstance(part, str) and merged and isinstance(merged[-1], str):
            merged[-1] += part
        else:
            merged.append(part)
    level = [sql.Literal(part) if isinstance(part, str) else part for part in merged]
    concatenation = sql.SQL("({} || {})")
    while len(level) > 1:
        pairs = [concatenation.format(left, right) for left, right in zip(level[::2], level[1::2], strict=False)]
        level = pairs + level[len(pairs) * 2 :]
    return level[0]


def _json(value: object) -> str:
    return orjson.dumps(value).decode()

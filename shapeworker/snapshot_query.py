"""SQL that reads rows of a table for their items, which :mod:`shapeworker.snapshot_items` makes of COPY's text.

COPY calls the output function of each column's type, as logical decoding does, so that snapshot and stream agree
(engine.md INV-13). The server does no more than for any COPY: JSON built in SQL costs it three times as much.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

from psycopg import sql

from common.table import Column, Table, key_columns


def copy_statement(table: Table, selected: Iterable[str], condition: sql.Composable | None = None) -> bytes:
    """``COPY … TO STDOUT`` of the :func:`read_columns` of each row, in text format.

    ``condition`` is a trusted boolean expression over the table's columns, with its parameters already inside.
    """
    where = b"" if condition is None else b" WHERE (%b)" % condition.as_bytes(None)
    return b"COPY (%b%b) TO STDOUT" % (_select(table, tuple(selected)), where)


@lru_cache(maxsize=256)
def _select(table: Table, selected: tuple[str, ...]) -> bytes:
    return select(table, selected).as_bytes(None)


def select(table: Table, selected: Iterable[str]) -> sql.Composable:
    """``SELECT`` and ``FROM`` of the statement.

    Rows of classic inheritance children are left out, because the stream shows them as changes of the child.
    """
    columns = {column.name: column for column in table.columns}
    expressions = sql.SQL(", ").join(_expression(columns[name]) for name in read_columns(table, selected))
    only = sql.SQL("" if table.kind == "p" else "ONLY ")
    return sql.SQL("SELECT {} FROM {}{}").format(expressions, only, sql.Identifier(table.schema, table.name))


def read_columns(table: Table, selected: Iterable[str]) -> tuple[str, ...]:
    """The columns that an item needs, in the order in which they are read."""
    return tuple(sorted({*selected, *key_columns(table)}))


def _expression(column: Column) -> sql.Composable:
    name = sql.Identifier(column.name)
    # Clients get true and false, the output function says t and f.
    return sql.SQL("({}::pg_catalog.bool)::pg_catalog.text").format(name) if column.is_boolean else name

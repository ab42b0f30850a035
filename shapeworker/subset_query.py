"""The query of a subset snapshot, from what a client sent: understood by parsing, written anew (http-api.md 18)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import msgspec
from psycopg import sql

from common.subset import SubsetRequest
from common.table import Table
from shapeworker.filters import columns_of
from shapeworker.snapshot_query import select
from shapeworker.where import Columns, InvalidWhere, compile_where, syntax
from shapeworker.where.ordering import SortKey, parse_ordering
from shapeworker.where.parser import parse

ALL_KINDS = ("", "s", "v")
"""Generated columns, too: no stream has to carry what only a query reads."""


class InvalidSubset(Exception):
    """What a client has to change: the text about one ``field`` of the subset."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field
        self.message = message


class Selection(NamedTuple):
    """Which rows, in which order. ``condition`` is SQL over the table's columns; without one, all rows."""

    condition: sql.Composable | None
    order: tuple[SortKey, ...]
    limit: int | None
    offset: int | None


def understand(table: Table, subset: SubsetRequest) -> Selection:
    """What a client asks of this table. Raises :class:`InvalidSubset`.

    Long texts take up to a second: not on the loop.
    """
    allowed = {column.name for column in table.columns}
    if subset.queryable is not None:
        allowed &= set(subset.queryable)
    condition = None
    try:
        if subset.where is not None:
            if _has_subquery(parse(subset.where)):
                raise InvalidSubset("where", "Subqueries are not allowed in subsets")
            columns = (column for column in columns_of(table, ALL_KINDS) if column.name in allowed)
            condition = compile_where(subset.where, subset.params, Columns(tuple(columns))).sql
        order = () if subset.order_by is None else _ordering(subset.order_by, allowed)
    except InvalidWhere as error:
        raise InvalidSubset(error.field, error.message) from None
    return Selection(condition, order, subset.limit, subset.offset)


def subset_statement(table: Table, selected: Iterable[str], base: sql.Composable | None, selection: Selection) -> bytes:
    """``COPY … TO STDOUT`` of the columns that an item needs, as for a snapshot. ``base`` is the shape's condition."""
    parts: list[sql.Composable] = [select(table, selected)]
    conditions = [sql.SQL("({})").format(part) for part in (base, selection.condition) if part is not None]
    if conditions:
        parts += [sql.SQL(" WHERE "), sql.SQL(" AND ").join(conditions)]
    if selection.order:
        # With its table's name a column cannot be taken for the name of a result column.
        keys = (
            sql.Identifier(table.schema, table.name, key.column) + sql.SQL(key.direction) for key in selection.order
        )
        parts += [sql.SQL(" ORDER BY "), sql.SQL(", ").join(keys)]
    if selection.limit is not None:
        parts.append(sql.SQL(f" LIMIT {selection.limit:d}"))
    if selection.offset is not None:
        parts.append(sql.SQL(f" OFFSET {selection.offset:d}"))
    return sql.SQL("COPY ({}) TO STDOUT").format(sql.Composed(parts)).as_bytes(None)


def _ordering(text: str, allowed: set[str]) -> tuple[SortKey, ...]:
    try:
        return parse_ordering(text, allowed)
    except InvalidWhere as error:
        raise InvalidSubset("order_by", error.message) from None


def _has_subquery(part: object) -> bool:
    """Whether there is one in a clause, which is never deeper than the parser lets in."""
    if isinstance(part, syntax.Sublink):
        return True
    inner = msgspec.structs.astuple(part) if isinstance(part, msgspec.Struct) else part
    return isinstance(inner, tuple) and any(map(_has_subquery, inner))

"""The filter of a shape: its clause, compiled against the table that the shape was made for."""

from __future__ import annotations

import asyncio
from functools import lru_cache
from typing import Final

from common.shape import ShapeRequest
from common.table import Table, TypeFacts
from shapeworker.where import Column, Columns, ColumnType, Filter, InvalidWhere, compile_where

LONG_BYTES: Final = 1000
"""Clauses that are longer, with their parameters, are compiled beside the loop: the longest take about a second."""

STORED_PUBLISHED: Final = 180000
"""The server version that can publish stored generated columns first; virtual ones never are."""


def make_filter(request: ShapeRequest, table: Table, server_version: int = STORED_PUBLISHED) -> Filter | None:
    """The filter that a request asks for; ``None`` if it asks for all rows. Raises InvalidWhere.

    Its rows have a value for each column of ``table``, in that order. A clause that was accepted once needs no
    ``server_version``: it mentions no column that was not published.
    """
    if request.where is None:
        return None
    params = {str(number): value for number, value in enumerate(request.params, 1)}
    return compile_where(request.where, params, _columns(table, server_version >= STORED_PUBLISHED))


async def make_filter_aside(
    request: ShapeRequest, table: Table, server_version: int = STORED_PUBLISHED
) -> Filter | None:
    """As :func:`make_filter`, without holding the loop up for long."""
    size = len(request.where or "") + sum(map(len, request.params))
    if size <= LONG_BYTES:
        return make_filter(request, table, server_version)
    return await asyncio.to_thread(_made_completely, request, table, server_version)


def _made_completely(request: ShapeRequest, table: Table, server_version: int) -> Filter | None:
    found = make_filter(request, table, server_version)
    if found is not None:
        # Both are made when they are first asked for, which would be on the loop.
        found.make_all()
    return found


_KEPT: Final = 256
_recent: Final[dict[tuple[int, bool], tuple[Table, Columns]]] = {}


def _columns(table: Table, stored: bool) -> Columns:
    # Most calls come with a table that an earlier one had; to compare descriptions takes as long as a known clause.
    known = _recent.get((id(table), stored))
    if known is None:
        if len(_recent) >= _KEPT:
            _recent.clear()
        # The table is kept alive, and so its id is not given to another.
        known = _recent[id(table), stored] = table, _made_columns(table, stored)
    return known[1]


@lru_cache(maxsize=_KEPT)
def _made_columns(table: Table, stored: bool) -> Columns:
    return Columns(columns_of(table, ("", "s") if stored else ("",)))


def columns_of(table: Table, kinds: tuple[str, ...]) -> tuple[Column, ...]:
    """What a clause must know of the columns; only those are published whose values are
    generated in one of these ways (``pg_attribute.attgenerated``).
    """
    return tuple(
        Column(column.name, position, _type(column.types), column.deterministic, column.generated in kinds)
        for position, column in enumerate(table.columns)
        # Shapes of versions before filters do not know their types, and have no filters.
        if column.types
    )


def _type(types: tuple[TypeFacts, ...]) -> ColumnType:
    found: ColumnType | None = None
    for facts in reversed(types):
        match facts.kind:
            case "d":
                found = ColumnType(facts.schema, facts.name, facts.kind, base=found)
            case "a":
                found = ColumnType(facts.schema, facts.name, facts.kind, element=found)
            case _:
                found = ColumnType(facts.schema, facts.name, facts.kind, labels=facts.labels)
    assert found is not None
    return found


__all__ = ["Filter", "InvalidWhere", "columns_of", "make_filter", "make_filter_aside"]

"""The answer to ``/v1/explain``: what became of a clause, and how changes of its table find it (docs/where.md)."""

from __future__ import annotations

from typing import Final

import msgspec

from common.table import Column, Table
from shapeworker.filters import Filter
from shapeworker.routing.explanation import SHOWN, Access, Lookup, explain
from shapeworker.where.canonical import identifier

_COSTS: Final = {
    "nothing": "no row can meet the clause, so no change is looked at",
    "constant": "one hash look-up for each change, however many shapes there are",
    "logarithmic": "one look-up in sorted bounds for each change",
    "elements": "a look-up for each element of the row's array",
    "pattern": "look-ups by the beginning or by all parts of the row's text",
    "scan": "the clause is evaluated for each change of the table, which adds up over shapes",
}
_ALL: Final = "every change of the table concerns the shape; nothing is looked up"


class ReadColumn(msgspec.Struct, frozen=True):
    """A column that the clause reads, with its type in the database."""

    name: str
    type: str


class AccessPath(msgspec.Struct, frozen=True):
    """How a change finds the shape."""

    summary: str
    lookups: tuple[Lookup, ...]


class Explained(msgspec.Struct, frozen=True, kw_only=True):
    """The body of the answer; ``parsed``, ``sql`` and ``residual`` are None where there is no such text."""

    table: str
    parsed: str | None
    sql: str
    columns: tuple[ReadColumn, ...]
    access: AccessPath
    residual: str | None
    cost: str
    advice: str | None


def explanation(table: Table, filter_: Filter | None) -> bytes:
    """The answer's body; takes as long as compiling the filter."""
    return msgspec.json.encode(explained(table, filter_))


def explained(table: Table, filter_: Filter | None) -> Explained:
    """The explanation of a filter of this table, or of none."""
    name = f"{identifier(table.schema)}.{identifier(table.name)}"
    if filter_ is None:
        return Explained(
            table=name,
            parsed=None,
            sql=f"SELECT * FROM {name}",
            columns=(),
            access=AccessPath(_ALL, ()),
            residual=None,
            cost="everything",
            advice=None,
        )
    access = explain(filter_)
    return Explained(
        table=name,
        parsed=filter_.canonical,
        sql=f"SELECT * FROM {name} WHERE {filter_.sql.as_string(None)}",
        columns=tuple(
            ReadColumn(column.name, shown_type(column)) for column in table.columns if column.name in filter_.columns
        ),
        access=AccessPath(_summary(access), access.lookups),
        residual=None if access.exact else filter_.canonical,
        cost=access.cost,
        advice=access.advice,
    )


def shown_type(column: Column) -> str:
    """The name of a column's type; that of its own domain or enum with the schema."""
    types, brackets = column.types, ""
    while types and types[0].kind == "a":
        types, brackets = types[1:], brackets + "[]"
    if not types:
        return column.type_name
    facts = types[0]
    return (facts.name if facts.schema == "pg_catalog" else f"{facts.schema}.{facts.name}") + brackets


def _summary(access: Access) -> str:
    lookups = [
        f"{lookup.index} of {', '.join(lookup.columns)}: "
        + " or ".join(lookup.conditions)
        + (f" or {lookup.entries - SHOWN} more" if lookup.entries > SHOWN else "")
        for lookup in access.lookups
    ]
    then = "" if access.exact or not lookups else "; the clause is then evaluated for each row found"
    return "; ".join([_COSTS[access.cost], *lookups]) + then

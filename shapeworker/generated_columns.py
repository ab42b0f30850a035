"""Stored generated columns: whether the publication has the values of those that a shape needs (Postgres 18)."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final, NamedTuple

import psycopg
from psycopg import sql

from common.table import Table

_QUERY: Final = "SELECT pg_catalog.to_jsonb(p) ->> 'pubgencols' FROM pg_catalog.pg_publication p WHERE p.pubname = %s"


class Unpublished(NamedTuple):
    """What clients are told (http-api.md 25), and the SQL that would change it."""

    message: str
    remedy: str


def has_generated(table: Table, names: Collection[str]) -> bool:
    """Whether one of these columns is generated."""
    return any(column.generated and column.name in names for column in table.columns)


async def unpublished(connection: psycopg.AsyncConnection[Any], publication: str) -> Unpublished | None:
    """Why generated columns are not in the stream; ``None`` if they are, or nothing is known of the publication."""
    row = await (await connection.execute(_QUERY.encode(), [publication])).fetchone()
    if row is None or row[0] == "s":
        return None
    setting = sql.SQL("ALTER PUBLICATION {} SET (publish_generated_columns = stored);")
    return Unpublished(
        f'Publication "{publication}" does not publish generated columns. This is a feature introduced in PostgreSQL '
        "18 and requires setting the publication parameter 'publish_generated_columns' to 'stored'. Alternatively, you "
        "can exclude them from the shape by explicitly listing which columns to fetch in the 'columns' query param, "
        "and leave them out of its where clause.",
        setting.format(sql.Identifier(publication)).as_string(None),
    )

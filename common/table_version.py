"""Whether a table is still what it was when it was described: one cheap look instead of a whole description.

A description joins many catalogs, which takes the server some milliseconds. The version names the rows of the catalogs
that it was made of, each with the transaction that wrote it: it changes with whatever they say. It does not speak of
the types of columns, so it holds only for tables whose types are Postgres' own, which nobody alters.
"""

from __future__ import annotations

from typing import Any, Final

import psycopg
from psycopg.rows import tuple_row

from common.table import Table

_FIRST_FREE_OID: Final = 16384
"""Objects with a lower oid came with the cluster (``FirstNormalObjectId``)."""

_VERSION: Final = """
SELECT pg_catalog.concat_ws(' ', c.oid, c.xmin, n.oid, n.xmin,
  (SELECT pg_catalog.string_agg(pg_catalog.concat(a.attnum, ':', a.xmin), ',' ORDER BY a.attnum)
   FROM pg_catalog.pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0),
  (SELECT pg_catalog.concat(i.indexrelid, ':', i.xmin)
   FROM pg_catalog.pg_index i WHERE i.indrelid = c.oid AND i.indisprimary))
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE {match}"""

VERSION_BY_OID: Final = _VERSION.format(match="c.oid = {oid:d}::pg_catalog.oid")
"""An SQL query with a place for the oid; gives one text, or no row."""

_VERSION_BY_NAME: Final = _VERSION.format(match="n.nspname = $1::pg_catalog.text AND c.relname = $2::pg_catalog.text")


async def version(connection: psycopg.AsyncConnection[Any], schema: str, name: str) -> str | None:
    """The version of the relation with this name; ``None`` if there is none. One round trip."""
    async with psycopg.AsyncRawCursor(connection, row_factory=tuple_row) as cursor:
        await cursor.execute(_VERSION_BY_NAME.encode(), (schema, name), prepare=True)
        row = await cursor.fetchone()
    return None if row is None else str(row[0])


def is_told_by_version(table: Table) -> bool:
    """Whether the version of this table changes with whatever its description says."""
    return all(max(column.type_oid, column.base_oid) < _FIRST_FREE_OID for column in table.columns)

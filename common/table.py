"""What the catalog says about one table: columns, types, key; and what follows from it for clients.

Described in one round trip, as one JSON document that Postgres builds, so that asynchronous connections, the snapshot's
raw connection and a shape's catalog row all read the same form. Only ordinary and partitioned tables outside the system
schemas exist here; everything else is «not found» (http-api.md 7.2).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, Final

import msgspec
import psycopg
from psycopg.rows import tuple_row

BOOL: Final = 16

_PLAIN_TYPES: Final = frozenset(
    (
        20, 21, 23, 26, 28, 29,  # int8, int2, int4, oid, xid, cid
        700, 701, 1700,  # float4, float8, numeric
        2950,  # uuid
        1082, 1083, 1266, 1114, 1184, 1186,  # date, time, timetz, timestamp, timestamptz, interval
        829, 774, 1560, 1562,  # macaddr, macaddr8, bit, varbit
        600, 601, 602, 603, 604, 628, 718,  # point, lseg, path, box, polygon, line, circle
        5069, 27,  # xid8, tid
        1005, 1007, 1016, 1021, 1022, 1231,  # arrays of int2, int4, int8, float4, float8, numeric
        1000, 2951,  # arrays of bool, uuid
        3904, 3926, 3906,  # int4range, int8range, numrange
    )
)  # fmt: skip

_LENGTH_HEADER = 4
"""Modifiers of varlena types count four bytes of length header."""

_INTERVAL_FIELDS = ((2, "YEAR"), (1, "MONTH"), (3, "DAY"), (10, "HOUR"), (11, "MINUTE"), (12, "SECOND"))
_ALL_INTERVAL_FIELDS = 0x7FFF
_NO_INTERVAL_PRECISION = 0xFFFF


class TypeFacts(msgspec.Struct, frozen=True, array_like=True):
    """A type as its values are understood: ``kind`` is pg_type.typtype, or ``a`` for a true array.

    ``labels`` are those of an enum, in its order, or number and type of each attribute of a composite type.
    """

    schema: str
    name: str
    kind: str
    labels: tuple[str, ...] = ()


class Column(msgspec.Struct, frozen=True):
    """A column as of one moment.

    ``type_name`` is the catalog's name, for arrays that of the element type; ``type_oid`` is always the column's own
    type, as Relation messages carry it. ``base_oid`` is the type below all domains. ``key_index`` is the place in the
    primary key. ``generated`` is ``''``, ``s`` (stored) or ``v`` (virtual). ``dims`` is 0 for what is no array.

    ``types`` is the column's type, then what it is made of: below a domain its base, below an array its elements, and
    so on. It and ``deterministic`` (of the collation) are what filters need; shapes of older versions have neither.
    ``written`` is the transaction that last wrote the column's row of the catalog; 0 in shapes of older versions.
    """

    name: str
    attnum: int
    type_oid: int
    type_name: str
    type_mod: int
    base_oid: int
    not_null: bool
    key_index: int | None
    generated: str
    dims: int
    types: tuple[TypeFacts, ...] = ()
    deterministic: bool = True
    written: int = 0

    @property
    def is_boolean(self) -> bool:
        """Whether values are written ``true`` and ``false``; also for domains over ``bool``."""
        return self.base_oid == BOOL

    @property
    def plain_text(self) -> bool:
        """Whether values hold no ``"``, ``\\``, ``/`` or control character, and ``::text`` is the output function."""
        return self.base_oid in _PLAIN_TYPES


class Table(msgspec.Struct, frozen=True):
    """A table as of one moment. ``kind`` is ``r`` or ``p`` (partitioned), ``columns`` are in attribute order.

    ``persistence`` is ``p``, ``u`` (unlogged) or ``t`` (temporary); only ``p`` can be replicated. ``file`` stands for
    the file that holds the rows, or those of all leaves: another one says that they were all written anew.
    ``deferrable``: the primary key holds at the end of a statement or transaction only.
    """

    oid: int
    schema: str
    name: str
    kind: str
    persistence: str
    columns: tuple[Column, ...]
    file: int = 0
    deferrable: bool = False

    @property
    def is_replicable(self) -> bool:
        """Whether the table's changes reach the WAL at all."""
        return self.persistence == "p"

    def column(self, name: str) -> Column | None:
        """The column of this name, or ``None``."""
        return next((column for column in self.columns if column.name == name), None)


_QUERY = """
SELECT pg_catalog.json_build_object(
  'oid', c.oid::pg_catalog.int8, 'schema', n.nspname, 'name', c.relname, 'kind', c.relkind,
  'persistence', c.relpersistence, 'deferrable', COALESCE(pg_catalog.bool_or(NOT i.indimmediate), false),
  'file', CASE c.relkind WHEN 'r' THEN c.relfilenode::pg_catalog.int8 ELSE (
    WITH RECURSIVE tree(oid) AS (
      SELECT c.oid
      UNION ALL
      SELECT down.inhrelid FROM tree JOIN pg_catalog.pg_inherits down ON down.inhparent = tree.oid)
    SELECT pg_catalog.sum(leaf.relfilenode::pg_catalog.int8)::pg_catalog.int8
    FROM tree JOIN pg_catalog.pg_class leaf ON leaf.oid = tree.oid) END,
  'columns', pg_catalog.json_agg(pg_catalog.json_build_object(
    'name', a.attname, 'attnum', a.attnum,
    'type_oid', a.atttypid::pg_catalog.int8, 'type_name', COALESCE(element.typname, t.typname),
    'type_mod', a.atttypmod, 'base_oid', base.oid::pg_catalog.int8,
    'not_null', a.attnotnull, 'key_index', key.place, 'generated', a.attgenerated,
    'dims', CASE WHEN element.oid IS NULL THEN 0 ELSE GREATEST(a.attndims, 1) END,
    'types', made.types, 'deterministic', COALESCE(letters.collisdeterministic, true),
    'written', a.xmin::pg_catalog.text::pg_catalog.int8
  ) ORDER BY a.attnum))::pg_catalog.text
FROM pg_catalog.pg_class c
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
LEFT JOIN pg_catalog.pg_type element ON element.oid = t.typelem AND element.typarray = t.oid
LEFT JOIN pg_catalog.pg_index i ON i.indrelid = c.oid AND i.indisprimary
CROSS JOIN LATERAL (
  WITH RECURSIVE below(oid, kind, next) AS (
    SELECT t.oid, t.typtype, t.typbasetype
    UNION ALL
    SELECT b.oid, b.typtype, b.typbasetype FROM below JOIN pg_catalog.pg_type b ON b.oid = below.next
    WHERE below.kind = 'd')
  SELECT oid FROM below WHERE kind <> 'd') AS base
CROSS JOIN LATERAL (
  WITH RECURSIVE level(depth, oid) AS (
    SELECT 0, t.oid
    UNION ALL
    SELECT level.depth + 1, CASE WHEN x.typtype = 'd' THEN x.typbasetype ELSE x.typelem END
    FROM level JOIN pg_catalog.pg_type x ON x.oid = level.oid
    LEFT JOIN pg_catalog.pg_type item ON item.oid = x.typelem AND item.typarray = x.oid
    WHERE x.typtype = 'd' OR item.oid IS NOT NULL)
  SELECT pg_catalog.json_agg(pg_catalog.json_build_array(
    space.nspname, x.typname, CASE WHEN item.oid IS NULL THEN x.typtype ELSE 'a' END,
    (SELECT COALESCE(pg_catalog.json_agg(part.label ORDER BY part.place), '[]')
     FROM (
       SELECT e.enumlabel::pg_catalog.text, e.enumsortorder FROM pg_catalog.pg_enum e WHERE e.enumtypid = x.oid
       UNION ALL
       SELECT pg_catalog.concat(m.attnum, ':', m.atttypid::pg_catalog.int8), m.attnum
       FROM pg_catalog.pg_attribute m WHERE m.attrelid = x.typrelid AND m.attnum > 0 AND NOT m.attisdropped
     ) AS part(label, place))) ORDER BY level.depth) AS types
  FROM level JOIN pg_catalog.pg_type x ON x.oid = level.oid
  JOIN pg_catalog.pg_namespace space ON space.oid = x.typnamespace
  LEFT JOIN pg_catalog.pg_type item ON item.oid = x.typelem AND item.typarray = x.oid) AS made
LEFT JOIN pg_catalog.pg_collation letters ON letters.oid = a.attcollation
LEFT JOIN LATERAL (
  SELECT place FROM pg_catalog.generate_series(0, i.indnkeyatts - 1) AS place WHERE i.indkey[place] = a.attnum
) AS key ON true
WHERE {match} AND c.relkind IN ('r', 'p')
  AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast')
GROUP BY c.oid, n.nspname
"""

TABLE_QUERY: Final = _QUERY.format(match="n.nspname = $1::pg_catalog.text AND c.relname = $2::pg_catalog.text")
"""Parameters: schema, name. One row with the JSON of a Table; none when there is no such table or it has no column."""

TABLE_BY_OID_QUERY: Final = _QUERY.format(match="c.oid = $1::pg_catalog.oid")
"""Parameter: oid. Same result as TABLE_QUERY."""

_TABLES_BY_OID_QUERY: Final = _QUERY.format(match="c.oid = ANY ($1::pg_catalog.oid[])")

parse_table = msgspec.json.Decoder(Table).decode
"""The Table in the JSON document that TABLE_QUERY gives."""


async def describe(connection: psycopg.AsyncConnection[Any], schema: str, name: str) -> Table | None:
    """The ordinary or partitioned table of this exact name; ``None`` if there is none. One round trip."""
    async with psycopg.AsyncRawCursor(connection, row_factory=tuple_row) as cursor:
        await cursor.execute(TABLE_QUERY.encode(), (schema, name))
        row = await cursor.fetchone()
    return None if row is None else parse_table(row[0])


async def describe_oids(connection: psycopg.AsyncConnection[Any], oids: Iterable[int]) -> dict[int, Table]:
    """Those of the tables with these oids that exist. One round trip."""
    async with psycopg.AsyncRawCursor(connection, row_factory=tuple_row) as cursor:
        await cursor.execute(_TABLES_BY_OID_QUERY.encode(), ("{" + ",".join(map(str, oids)) + "}",))
        tables = [parse_table(row[0]) for row in await cursor.fetchall()]
    return {table.oid: table for table in tables}


def key_columns(table: Table) -> tuple[str, ...]:
    """The columns a row's key is made of: the primary key in its order, else all columns in attribute order.

    Without a primary key, generated columns are left out: they follow from the others, and servers before 18 do not
    publish them, so that with them no shape of such a table could exist.
    """
    key = sorted((column.key_index, column.name) for column in table.columns if column.key_index is not None)
    if key:
        return tuple(name for _, name in key)
    return tuple(column.name for column in table.columns if not column.generated)


def selection(
    table: Table, requested: Iterable[str] | None, server_version: int
) -> tuple[str, ...] | dict[str, list[str]]:
    """The columns of a shape, sorted by name, or the errors that make the request a 400 (http-api.md 8).

    ``requested`` is ``None`` when the client named no columns. ``server_version`` is numeric (180001): 18 and later
    publish stored generated columns, none publishes virtual ones.
    """

    def unpublished(columns: Iterable[Column]) -> str:
        return ", ".join(c.name for c in columns if c.generated and (c.generated != "s" or server_version < 180000))

    generated = "The following columns are generated and cannot be included in the shape: "
    if requested is None:
        if names := unpublished(table.columns):
            hint = "You can exclude them from the shape by explicitly listing which columns to fetch in the"
            return {"columns": [f"{generated}{names}. {hint} 'columns' query param"]}
        return tuple(sorted(column.name for column in table.columns))

    names_requested = list(dict.fromkeys(requested))
    chosen = set(names_requested)
    if missing := [name for name in key_columns(table) if name not in chosen]:
        text = "The list of columns must include all primary key columns, missing: "
        return {"columns": [text + ", ".join(missing)]}
    known = {column.name for column in table.columns}
    if unknown := [name for name in names_requested if name not in known]:
        return {"columns": ["The following columns are not found on the table: " + ", ".join(unknown)]}
    if names := unpublished(column for column in table.columns if column.name in chosen):
        return {"columns": [generated + names]}
    return tuple(sorted(chosen))


def queryable_errors(table: Table, queryable: Iterable[str]) -> dict[str, list[str]] | None:
    """What is wrong with a list of columns that subsets may mention; ``None`` if nothing is (http-api.md 8)."""
    given = list(dict.fromkeys(queryable))
    keyed = sorted((column.key_index, column.name) for column in table.columns if column.key_index is not None)
    if missing := [name for _, name in keyed if name not in given]:
        text = "The list of queryable columns must include all primary key columns, missing: "
        return {"queryable_columns": [text + ", ".join(missing)]}
    known = {column.name for column in table.columns}
    if unknown := [name for name in given if name not in known]:
        text = "The following queryable columns are not found on the table: "
        return {"queryable_columns": [text + ", ".join(unknown)]}
    return None


def difference(
    before: Table, now: Table | None, selected: Iterable[str], explicit: bool, filtered: Iterable[str] = ()
) -> str | None:
    """Why a shape made for ``before`` does not fit the table as it is ``now``; ``None`` while it does (engine.md 8.3).

    ``explicit`` says that the client named the columns; if not, a column more or less is a difference too. So is what
    the schema header tells clients about a selected column, such as nullability: it is the same for as long as the
    shape lives. Of the columns that its filter reads, ``filtered``, all counts that gives their values a meaning, such
    as the labels of an enum. Defaults, constraints and all about other columns may change freely.
    """
    if now is None:
        return "the table is gone"
    if now.oid != before.oid:
        return "the table was replaced by another of the same name"
    if (now.schema, now.name) != (before.schema, before.name):
        return "the table was renamed"
    if now.kind != before.kind or now.persistence != before.persistence:
        return "the table is of another kind"
    if key_columns(now) != key_columns(before) or now.deferrable > before.deferrable:
        return "the primary key changed"
    if not explicit and {c.name for c in now.columns} != {c.name for c in before.columns}:
        return "a column was added, dropped or renamed"
    was = {column.name: column for column in before.columns}
    has = {column.name: column for column in now.columns}
    filtered = tuple(filtered)
    for name in (*selected, *filtered):
        if name not in has:
            return f"column {name!r} is gone"
        if (has[name].type_oid, has[name].base_oid) != (was[name].type_oid, was[name].base_oid):
            return f"column {name!r} has another type"
        if has[name].generated != was[name].generated:
            return f"column {name!r} is generated differently"
        if not _read_alike(was[name].types, has[name].types):
            return f"column {name!r} has a type whose labels or attributes were altered"
    for name in filtered:
        if (has[name].types, has[name].type_mod) != (was[name].types, was[name].type_mod):
            return f"column {name!r}, which the filter reads, has a type that was altered"
        if has[name].deterministic != was[name].deterministic:
            return f"column {name!r}, which the filter reads, has another collation"
    for name in selected:
        if _properties(has[name]) != _properties(was[name]):
            return f"column {name!r} has another modifier, nullability or name of its type"
    return None


def rewritten(before: Table, now: Table, names: Iterable[str]) -> str | None:
    """Why values of these columns may be others, although no change tells of it; ``None`` if they are not.

    ALTER … TYPE … USING and SET EXPRESSION write the rows anew, and the column's own row in the catalog. Other commands
    do one or the other: so the less time there is between the two descriptions, the surer this is.
    """
    if now.file == before.file:
        return None
    has = {column.name: column.written for column in now.columns}
    was = {column.name: column.written for column in before.columns}
    for name in names:
        if name in has and was.get(name, 0) not in (0, has[name]):
            return f"column {name!r} was altered and the table's rows were written anew"
    return None


def _read_alike(before: Iterable[TypeFacts], now: Iterable[TypeFacts]) -> bool:
    """Whether a value that is stored reads as it did, by the types that a column's type is made of."""
    for was, has in zip(before, now, strict=False):
        if was.kind == "e":
            # New labels may stand between, but those that values can have are there, in their order.
            labels = iter(has.labels)
            if not all(label in labels for label in was.labels):
                return False
        elif was.labels and was.labels != has.labels:
            return False
    return True


@lru_cache(maxsize=256)
def schema_header(table: Table, selected: tuple[str, ...]) -> str:
    """The ``electric-schema`` header (http-api.md 24), in ASCII so that every HTTP stack carries it unchanged."""
    columns = {column.name: column for column in table.columns}
    properties = {name: _properties(columns[name]) for name in sorted(selected)}
    return json.dumps(properties, ensure_ascii=True, separators=(",", ":"))


def _properties(column: Column) -> dict[str, Any]:
    properties: dict[str, Any] = {"type": column.type_name}
    if column.dims:
        properties["dims"] = column.dims
    if column.not_null:
        properties["not_null"] = True
    if column.key_index is not None:
        properties["pk_index"] = column.key_index
    properties.update(_modifier(column.type_name, column.type_mod))
    return properties


def _modifier(type_name: str, modifier: int) -> dict[str, Any]:
    if type_name in ("bit", "varbit"):
        return {"length": modifier}
    if modifier < 0:
        return {}
    match type_name:
        case "varchar" | "text":
            return {"max_length": modifier - _LENGTH_HEADER}
        case "bpchar":
            return {"length": modifier - _LENGTH_HEADER}
        case "numeric":
            # 11 bits with a sign since Postgres 15; before, scales were never negative, so this reads all.
            scale = ((modifier - _LENGTH_HEADER & 0x7FF) ^ 0x400) - 0x400
            return {"precision": modifier - _LENGTH_HEADER >> 16, "scale": scale}
        case "interval":
            return _interval(modifier)
        case "time" | "timetz" | "timestamp" | "timestamptz" | "date" if modifier > 0:
            return {"precision": modifier}
    return {"type_mod": modifier}


def _interval(modifier: int) -> dict[str, Any]:
    mask, precision = modifier >> 16, modifier & 0xFFFF
    properties: dict[str, Any] = {}
    if mask != _ALL_INTERVAL_FIELDS:
        fields = [name for bit, name in _INTERVAL_FIELDS if mask >> bit & 1]
        properties["fields"] = fields[0] if len(fields) == 1 else f"{fields[0]} TO {fields[-1]}"
    if precision != _NO_INTERVAL_PRECISION:
        properties["precision"] = precision
    return properties

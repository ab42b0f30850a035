"""Tables as the catalog describes them, and what clients are told about them."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import psycopg
import pytest
from psycopg.rows import dict_row

from common.table import (
    Column,
    Table,
    TypeFacts,
    describe,
    describe_oids,
    difference,
    key_columns,
    queryable_errors,
    rewritten,
    schema_header,
    selection,
)


def column(name: str, attnum: int = 1, **changes: Any) -> Column:
    facts: dict[str, Any] = {
        "type_oid": 23,
        "type_name": "int4",
        "type_mod": -1,
        "base_oid": changes.get("type_oid", 23),
        "not_null": False,
        "key_index": None,
        "generated": "",
        "dims": 0,
    }
    return Column(name=name, attnum=attnum, **(facts | changes))


def table(*columns: Column, **changes: Any) -> Table:
    facts: dict[str, Any] = {"oid": 7, "schema": "public", "name": "t", "kind": "r", "persistence": "p"}
    return Table(columns=columns, **(facts | changes))


ID = column("id", key_index=0, not_null=True)
A, B = column("a", 2), column("b", 3)
STORED = column("s", 4, generated="s")
VIRTUAL = column("v", 5, generated="v")

# --------------------------------------------------------------------------------------------------------------------
# decisions


def test_key_is_the_primary_key_in_its_own_order() -> None:
    keyed = table(column("x", 1, key_index=1), column("y", 2), column("z", 3, key_index=0))
    assert key_columns(keyed) == ("z", "x")


def test_key_without_primary_key_is_every_stored_column_in_attribute_order() -> None:
    assert key_columns(table(column("z", 1), column("a", 2), STORED, VIRTUAL)) == ("z", "a")


def test_selection_of_everything_is_sorted_by_name() -> None:
    assert selection(table(ID, column("z", 2), A), None, 160000) == ("a", "id", "z")
    assert selection(table(ID, A, B), ("id", "b"), 160000) == ("b", "id")


MISSING = "The list of columns must include all primary key columns, missing: "
GENERATED = "The following columns are generated and cannot be included in the shape: "
UNKNOWN = "The following columns are not found on the table: "
HINT = ". You can exclude them from the shape by explicitly listing which columns to fetch in the 'columns' query param"


@pytest.mark.parametrize(
    ("of", "requested", "version", "text"),
    [
        (table(ID, A), ("a",), 180000, MISSING + "id"),
        (table(A, B), ("b",), 180000, MISSING + "a"),
        (table(A, B), ("c",), 180000, MISSING + "a, b"),
        (table(ID, A), ("a", "x"), 180000, MISSING + "id"),
        (table(ID, A), ("id", "x", "y"), 180000, UNKNOWN + "x, y"),
        (table(ID, STORED), ("id", "s", "x"), 170005, UNKNOWN + "x"),
        (table(ID, STORED), ("id", "s"), 170005, GENERATED + "s"),
        (table(ID, STORED, VIRTUAL), ("id", "s", "v"), 180000, GENERATED + "v"),
        (table(ID, STORED), None, 170005, GENERATED + "s" + HINT),
        (table(ID, STORED, VIRTUAL), None, 180000, GENERATED + "v" + HINT),
        (table(ID, STORED, VIRTUAL), None, 150000, GENERATED + "s, v" + HINT),
    ],
)
def test_selection_that_cannot_be(of: Table, requested: tuple[str, ...] | None, version: int, text: str) -> None:
    assert selection(of, requested, version) == {"columns": [text]}


def test_stored_generated_columns_are_selectable_since_18() -> None:
    assert selection(table(ID, STORED), None, 180000) == ("id", "s")
    assert selection(table(ID, STORED, VIRTUAL), ("id", "s"), 180000) == ("id", "s")
    assert selection(table(ID, A, STORED), ("id", "a"), 140000) == ("a", "id")


def test_difference_sees_what_ends_a_shape() -> None:
    before = table(ID, A, B)
    other_type = column("a", 2, type_oid=20)
    cases: list[tuple[Table | None, str]] = [
        (None, "gone"),
        (table(ID, A, B, oid=8), "replaced"),
        (table(ID, A, B, name="u"), "renamed"),
        (table(ID, A, B, schema="s"), "renamed"),
        (table(ID, A, B, persistence="u"), "kind"),
        (table(column("id", key_index=None), column("a", 2, key_index=0), B), "primary key"),
        (table(ID, other_type, B), "another type"),
        (table(ID, A, column("b", 3, generated="s")), "generated"),
        (table(ID, A, B, deferrable=True), "primary key"),
        (table(ID, A), "dropped"),
        (table(ID, A, B, column("c", 4)), "added"),
    ]
    for now, word in cases:
        reason = difference(before, now, ("a", "b", "id"), explicit=False)
        assert reason is not None, now
        assert word in reason, (now, reason)


def test_difference_does_not_look_at_what_the_shape_does_not_show() -> None:
    before = table(ID, A, B)
    other_b = table(ID, A, column("b", 3, type_oid=20), column("c", 4))
    assert difference(before, other_b, ("a", "id"), explicit=True) is None
    assert difference(before, table(ID, A), ("a", "id"), explicit=True) is None
    assert "gone" in (difference(before, table(ID, A), ("b", "id"), explicit=True) or "")


def test_columns_that_a_filter_reads_may_only_keep_their_meaning() -> None:
    mood = (TypeFacts("public", "mood", "e", ("sad", "ok")),)
    before = table(ID, column("a", 2, types=mood), B)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"types": (TypeFacts("public", "mood", "e", ("sad", "ok", "new")),)}, "altered"),
        ({"types": mood, "deterministic": False}, "collation"),
        ({"types": mood, "type_mod": 7}, "altered"),
        ({"types": mood, "generated": "s"}, "generated"),
    ]
    for change, word in cases:
        now = table(ID, column("a", 2, **change), B)
        assert word in (difference(before, now, ("b", "id"), True, ("a",)) or ""), change
        assert difference(before, now, ("b", "id"), True) is None
    assert "gone" in (difference(before, table(ID, B), ("b", "id"), True, ("a",)) or "")
    assert difference(before, table(ID, column("a", 2, types=mood, not_null=True), B), ("id",), True, ("a",)) is None


def test_rows_that_were_written_anew_end_the_shape_only_if_a_column_of_it_was_altered() -> None:
    before = table(ID, column("a", 2, written=700), B, file=1)
    altered = table(ID, column("a", 2, written=701), B, file=2)
    assert "anew" in (rewritten(before, altered, ("id", "a")) or "")
    assert rewritten(before, altered, ("b", "id")) is None
    assert rewritten(before, table(ID, column("a", 2, written=701), B, file=1), ("a", "id")) is None
    assert rewritten(before, table(ID, column("a", 2, written=700), B, file=2), ("a", "id")) is None
    # Shapes of older versions know of neither.
    assert rewritten(table(ID, A, B), altered, ("a", "id")) is None


@pytest.mark.parametrize(
    ("kind", "labels", "ends"),
    [
        ("e", ("sad", "ok"), False),
        ("e", ("new", "sad", "newer", "ok", "last"), False),
        ("e", ("sad", "blue"), True),
        ("e", ("ok", "sad"), True),
        ("c", ("1:23", "2:25", "3:23"), True),
        ("c", ("1:23",), True),
        ("c", ("1:23", "2:25"), False),
    ],
)
def test_values_that_are_stored_must_read_as_they_did(kind: str, labels: tuple[str, ...], ends: bool) -> None:
    had = ("sad", "ok") if kind == "e" else ("1:23", "2:25")
    of = TypeFacts("public", "_x", "a")
    before = table(ID, column("a", 2, types=(of, TypeFacts("public", "x", kind, had))))
    now = table(ID, column("a", 2, types=(of, TypeFacts("public", "x", kind, labels))))
    assert (difference(before, now, ("a", "id"), True) is not None) is ends
    assert difference(before, now, ("id",), True) is None


@pytest.mark.parametrize("change", [{"not_null": True}, {"type_mod": 12}, {"type_name": "varchar"}, {"dims": 1}])
def test_what_the_schema_header_says_may_only_change_for_columns_not_shown(change: dict[str, Any]) -> None:
    now = table(ID, column("a", 2, **change), B)
    assert "column 'a'" in (difference(table(ID, A, B), now, ("a", "b", "id"), explicit=False) or "")
    assert difference(table(ID, A, B), now, ("b", "id"), explicit=True) is None


def test_schema_header_is_ascii_and_only_of_the_selected_columns() -> None:
    text = schema_header(table(ID, column('ü"🎉', 2), A), ("id", 'ü"🎉'))
    assert text.isascii()
    assert json.loads(text) == {"id": {"type": "int4", "not_null": True, "pk_index": 0}, 'ü"🎉': {"type": "int4"}}


def test_serialised_tables_are_equal() -> None:
    original = table(ID, STORED, column('"\n', 9, dims=2))
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(original), type=Table) == original
    assert msgspec.json.decode(msgspec.json.encode(original), type=Table) == original


# --------------------------------------------------------------------------------------------------------------------
# the catalog


async def described(url: str, statements: str, schema: str, name: str) -> Table | None:
    async with await psycopg.AsyncConnection.connect(url, autocommit=True, row_factory=dict_row) as connection:
        await connection.execute(statements.encode())
        found = await describe(connection, schema, name)
        if found is not None:
            assert await describe_oids(connection, [found.oid]) == {found.oid: found}
        return found


async def test_describe_reads_columns_key_and_types(database: str) -> None:
    found = await described(
        database,
        """
        CREATE SCHEMA "S.1"; CREATE DOMAIN flag AS bool; CREATE DOMAIN flag2 AS flag; CREATE DOMAIN label AS text;
        CREATE TABLE "S.1"."T ""x"" y" (
          gone int, b int8 NOT NULL, "A%s" text, c flag2, d varchar(3)[], e label,
          f int GENERATED ALWAYS AS (1) STORED, g bool[],
          CONSTRAINT pk PRIMARY KEY ("A%s", b) INCLUDE (e));
        ALTER TABLE "S.1"."T ""x"" y" DROP COLUMN gone
        """,
        "S.1",
        'T "x" y',
    )
    assert found is not None
    assert (found.schema, found.name, found.kind, found.persistence) == ("S.1", 'T "x" y', "r", "p")
    assert found.is_replicable
    assert [(c.name, c.attnum) for c in found.columns] == [
        ("b", 2), ("A%s", 3), ("c", 4), ("d", 5), ("e", 6), ("f", 7), ("g", 8),
    ]  # fmt: skip
    assert key_columns(found) == ("A%s", "b")
    by_name = {c.name: c for c in found.columns}
    assert [c.name for c in found.columns if c.is_boolean] == ["c"]
    assert [c.name for c in found.columns if c.plain_text] == ["b", "f", "g"]
    assert [c.name for c in found.columns if c.not_null] == ["b", "A%s"]
    assert (by_name["c"].type_name, by_name["d"].type_name, by_name["d"].dims) == ("flag2", "varchar", 1)
    assert by_name["f"].generated == "s"
    assert found.column("e") == by_name["e"]
    assert found.column("nope") is None


async def test_describe_tells_what_filters_need(database: str) -> None:
    found = await described(
        database,
        """
        CREATE TYPE mood AS ENUM ('sad', 'happy'); ALTER TYPE mood ADD VALUE 'it''s "ok"' BEFORE 'happy';
        CREATE DOMAIN amount AS numeric(9, 2); CREATE DOMAIN moods AS mood[]; CREATE DOMAIN more AS amount;
        CREATE COLLATION caseless FROM "C"; -- this server may be built without ICU, which alone has such ones
        UPDATE pg_collation SET collisdeterministic = false WHERE collname = 'caseless';
        CREATE TABLE t (i int4, m mood, d more, a moods, da amount[], c text COLLATE caseless, p point, n name)
        """,
        "public",
        "t",
    )
    assert found is not None
    labels = ("sad", 'it\'s "ok"', "happy")
    mood, number = TypeFacts("public", "mood", "e", labels), TypeFacts("pg_catalog", "numeric", "b")
    amount = TypeFacts("public", "amount", "d")
    assert {c.name: c.types for c in found.columns} == {
        "i": (TypeFacts("pg_catalog", "int4", "b"),),
        "m": (mood,),
        "d": (TypeFacts("public", "more", "d"), amount, number),
        "a": (TypeFacts("public", "moods", "d"), TypeFacts("public", "_mood", "a"), mood),
        "da": (TypeFacts("public", "_amount", "a"), amount, number),
        "c": (TypeFacts("pg_catalog", "text", "b"),),
        "p": (TypeFacts("pg_catalog", "point", "b"),),  # its typelem makes it no array
        "n": (TypeFacts("pg_catalog", "name", "b"),),
    }
    assert [c.name for c in found.columns if not c.deterministic] == ["c"]


async def test_describe_tells_what_no_change_in_the_stream_does(database: str) -> None:
    """Rows that an ALTER TABLE has written anew, and types whose stored values read differently."""

    async def after(statement: str) -> tuple[int, dict[str, int], list[str]]:
        found = await described(database, statement, "public", "t")
        assert found is not None
        (point,) = (facts for facts in found.columns[2].types if facts.kind == "c")
        return found.file, {column.name: column.written for column in found.columns}, [*point.labels]

    first, written, labels = await after(
        "CREATE TYPE spot AS (x int, y text); CREATE TABLE t (id int PRIMARY KEY, n int, at spot[])"
    )
    assert labels == ["1:23", "2:25"]
    second, written_2, _ = await after("VACUUM FULL t")
    assert (second != first, written_2) == (True, written)
    third, written_3, _ = await after("ALTER TABLE t ALTER n SET STATISTICS 5")
    assert third == second
    assert {name for name in written if written_3[name] != written_2[name]} == {"n"}
    fourth, written_4, _ = await after("ALTER TABLE t ALTER n TYPE int USING n + 1")
    assert fourth != third
    assert written_4["n"] != written_3["n"]
    *_, labels = await after("ALTER TYPE spot ADD ATTRIBUTE z int, DROP ATTRIBUTE x")
    assert labels == ["2:25", "3:23"]


@pytest.mark.parametrize(
    ("key", "deferrable"), [("PRIMARY KEY", False), ("PRIMARY KEY DEFERRABLE", True), ("UNIQUE DEFERRABLE", False)]
)
async def test_describe_tells_a_deferrable_key(database: str, key: str, deferrable: bool) -> None:
    found = await described(database, f"CREATE TABLE t (id int {key}, v text)", "public", "t")
    assert found is not None
    assert found.deferrable is deferrable


async def test_describe_of_a_root_sees_leaves_that_are_written_anew(database: str) -> None:
    root = "CREATE TABLE r (id int PRIMARY KEY) PARTITION BY RANGE (id);"
    leaves = "CREATE TABLE low PARTITION OF r FOR VALUES FROM (0) TO (9) PARTITION BY RANGE (id);"
    leaf = "CREATE TABLE leaf PARTITION OF low FOR VALUES FROM (0) TO (5)"
    first = await described(database, root + leaves + leaf, "public", "r")
    second = await described(database, "VACUUM FULL leaf", "public", "r")
    assert first is not None
    assert second is not None
    assert first.file != second.file


async def test_describe_finds_only_tables(database: str) -> None:
    setup = """
        CREATE TABLE empty (); CREATE VIEW seen AS SELECT 1 AS x; CREATE SEQUENCE counter;
        CREATE MATERIALIZED VIEW stored AS SELECT 1 AS x; CREATE TABLE dropped (x int); ALTER TABLE dropped DROP x
    """
    assert await described(database, setup, "public", "empty") is None
    for name in ("seen", "counter", "stored", "dropped", "Empty", "", "x" * 70):
        assert await described(database, "SELECT 1", "public", name) is None, name
    assert await described(database, "SELECT 1", "pg_catalog", "pg_class") is None
    assert await described(database, "SELECT 1", "information_schema", "sql_features") is None


async def test_describe_tells_partitioned_and_unlogged_tables(database: str) -> None:
    setup = """
        CREATE TABLE parted (id int, r text, PRIMARY KEY (id, r)) PARTITION BY LIST (r);
        CREATE UNLOGGED TABLE unlogged (id int)
    """
    parted = await described(database, setup, "public", "parted")
    assert parted is not None
    assert parted.kind == "p"
    unlogged = await described(database, "SELECT 1", "public", "unlogged")
    assert unlogged is not None
    assert not unlogged.is_replicable


async def test_a_long_name_is_not_cut_to_that_of_another_table(database: str) -> None:
    setup = f"CREATE TABLE {'x' * 63} (id int)"
    assert await described(database, setup, "public", "x" * 63) is not None
    assert await described(database, "SELECT 1", "public", "x" * 64) is None


async def test_schema_header_has_the_modifiers_clients_know(database: str) -> None:
    found = await described(
        database,
        """
        CREATE TYPE mood AS ENUM ('ok'); CREATE TYPE comp AS (x int); CREATE DOMAIN posint AS int CHECK (VALUE > 0);
        CREATE TABLE mods (
          id int PRIMARY KEY, vc varchar(20) NOT NULL, vn varchar, tx text, ch char(5), c1 char,
          bt bit(3), b1 bit, vb varbit, v4 varbit(4), n numeric, n1 numeric(5), n2 numeric(10,2), nn numeric(3,-2),
          nb numeric(3,5), t timestamp, t0 timestamp(0), t3 timestamptz(3), tt time(2), tz timetz(1), d date,
          iv interval, i3 interval(3), iy interval year, ids interval day to second,
          ids2 interval day to second(2), iym interval year to month, ihm interval hour to minute,
          ia int[], ia2 int[][], va varchar(7)[], ma mood[], m mood, cp comp, dm posint);
        """,
        "public",
        "mods",
    )
    assert found is not None
    header = json.loads(schema_header(found, tuple(c.name for c in found.columns)))
    assert header == {
        "id": {"type": "int4", "not_null": True, "pk_index": 0},
        "vc": {"type": "varchar", "max_length": 20, "not_null": True},
        "vn": {"type": "varchar"},
        "tx": {"type": "text"},
        "ch": {"type": "bpchar", "length": 5},
        "c1": {"type": "bpchar", "length": 1},
        "bt": {"type": "bit", "length": 3},
        "b1": {"type": "bit", "length": 1},
        "vb": {"type": "varbit", "length": -1},
        "v4": {"type": "varbit", "length": 4},
        "n": {"type": "numeric"},
        "n1": {"type": "numeric", "precision": 5, "scale": 0},
        "n2": {"type": "numeric", "precision": 10, "scale": 2},
        "nn": {"type": "numeric", "precision": 3, "scale": -2},
        "nb": {"type": "numeric", "precision": 3, "scale": 5},
        "t": {"type": "timestamp"},
        "t0": {"type": "timestamp", "type_mod": 0},
        "t3": {"type": "timestamptz", "precision": 3},
        "tt": {"type": "time", "precision": 2},
        "tz": {"type": "timetz", "precision": 1},
        "d": {"type": "date"},
        "iv": {"type": "interval"},
        "i3": {"type": "interval", "precision": 3},
        "iy": {"type": "interval", "fields": "YEAR"},
        "ids": {"type": "interval", "fields": "DAY TO SECOND"},
        "ids2": {"type": "interval", "fields": "DAY TO SECOND", "precision": 2},
        "iym": {"type": "interval", "fields": "YEAR TO MONTH"},
        "ihm": {"type": "interval", "fields": "HOUR TO MINUTE"},
        "ia": {"type": "int4", "dims": 1},
        "ia2": {"type": "int4", "dims": 2},
        "va": {"type": "varchar", "dims": 1, "max_length": 7},
        "ma": {"type": "mood", "dims": 1},
        "m": {"type": "mood"},
        "cp": {"type": "comp"},
        "dm": {"type": "posint"},
    }


def test_queryable_columns_hold_the_key_and_nothing_unknown() -> None:
    keyed = table(column("k2", 1, key_index=1), A, column("k1", 3, key_index=0), STORED)
    assert queryable_errors(keyed, ["a", "k2", "k1", "a", "s"]) is None
    missing = "The list of queryable columns must include all primary key columns, missing: k1, k2"
    assert queryable_errors(keyed, ["a", "nope"]) == {"queryable_columns": [missing]}
    unknown = "The following queryable columns are not found on the table: x, y"
    assert queryable_errors(keyed, ["k1", "k2", "x", "y"]) == {"queryable_columns": [unknown]}

"""Rows read by the snapshot query and rows decoded from the stream give the same keys and values (engine.md INV-13).

Against a real server: rows are inserted, then read once as a snapshot and once as pgoutput messages of a slot.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import sql

from common import pgoutput
from common.postgres import session_settings
from common.table import Table, describe, selection
from shapeworker.projection import Projection, transaction_headers
from shapeworker.snapshot import Snapshots
from shapeworker.snapshot_member import SnapshotPlan

HOSTILE = (
    "",
    " ",
    "t",
    "NULL",
    '"',
    "\\",
    "/",
    "a/b//c",
    'quote " and \\" and \\\\',
    "".join(map(chr, range(1, 33))) + "\x7f\x80\x85\xa0",
    "</script><!--",
    "\u2028\u2029\ufeff\ufffe\uffff",
    "héllo 日本語 🎉 \U0010ffff e\u0301",
    "{}[],:%s$1",
    "line\nbreak\r\n\ttab",
    "\\u0000\\x00",
    "x" * 9000 + '"',
)

SAMPLES: dict[str, Sequence[str]] = {
    "aclitem": ("=r/postgres", "postgres=arwd*/postgres"),
    "bit": ("0", "1"),
    "bool": ("t", "f"),
    "box": ("(1,2),(3,4)", "(-1e300,0),(NaN,Infinity)"),
    "bpchar": ("", "a  ", "t", "x/y \\ "),
    "bytea": ("\\x", "\\xdeadbeef00ff5c22"),
    "char": ("", "a", "\\377", '"', "\\", "/", " "),
    "cid": ("0", "4294967295"),
    "cidr": ("10.0.0.0/8", "::1/128", "192.168.1.1/32", "2001:db8::/32"),
    "circle": ("<(1,2),3>", "<(0.1,NaN),Infinity>"),
    "date": ("2024-02-29", "infinity", "-infinity", "4713-01-01 BC", "5874897-12-31"),
    "datemultirange": ("{}", "{[2024-01-01,2024-02-01),[2025-01-01,)}", "{[0044-03-15 BC,0043-01-01 BC)}"),
    "daterange": ("empty", "[2024-01-01,)", "[0044-03-15 BC,infinity)"),
    "float4": ("0", "-0", "1.1", "NaN", "Infinity", "-Infinity", "1e-45", "3.4028235e38"),
    "float8": ("0.30000000000000004", "-0", "NaN", "Infinity", "-Infinity", "5e-324", "1e20", "1.7976931348623157e308"),
    "inet": ("192.168.0.1", "192.168.0.1/24", "::1", "::1/64", "10.0.0.0/8", "::ffff:1.2.3.4"),
    "int2": ("0", "-32768", "32767"),
    "int2vector": ("", "1 2 3"),
    "int4": ("0", "-2147483648", "2147483647"),
    "int4multirange": ("{}", "{[1,3),[7,)}"),
    "int4range": ("empty", "[1,10)", "(,5]", "(,)"),
    "int8": ("0", "-9223372036854775808", "9223372036854775807"),
    "int8multirange": ("{}", "{[1,3),[7,)}"),
    "int8range": ("empty", "[1,10)"),
    "interval": ("P0Y", "1 year 2 mons -3 days 04:05:06.789", "-1 days -00:00:01", "178000000 years", "infinity"),
    "json": ("null", '{"b": 1,  "a": [1,2,"x\\u00e9\\n"]}', '"\\"\\\\"'),
    "jsonb": ("null", '{"b": 1,  "a": [1.10,1e3,"x\\u00e9\\n"], "a": 2}', '"\\"\\\\"'),
    "jsonpath": ("$", '$."a b"[*] ? (@.x > 1 && @.y == "q\\"")'),
    "line": ("{1,2,3}", "{0.1,-1,Infinity}"),
    "lseg": ("[(1,2),(3,4)]",),
    "macaddr": ("08:00:2b:01:02:03",),
    "macaddr8": ("08:00:2b:01:02:03:04:05",),
    "money": ("$12.34", "-1", "92233720368547758.07", "1234567.89"),
    "name": (*HOSTILE[:9], "x" * 63),
    "numeric": ("0", "-0.010", "NaN", "Infinity", "-Infinity", "12345678901234567890.123456789", "1e-20", "1e400"),
    "nummultirange": ("{}", "{[1.50,3),(7,)}"),
    "numrange": ("empty", "[1.10,2.0)", "(,NaN]", "[Infinity,]"),
    "oid": ("0", "4294967295"),
    "oidvector": ("", "1 4294967295"),
    "path": ("((1,2),(3,4))", "[(1,2),(3,4)]"),
    "pg_lsn": ("0/0", "16/B374D848", "FFFFFFFF/FFFFFFFF"),
    "pg_snapshot": ("10:20:10,14,15", "1:1:"),
    "point": ("(1,2)", "(-0,1e-7)", "(NaN,Infinity)"),
    "polygon": ("((0,0),(1,1),(0.1,-2e300))",),
    "refcursor": ('a "cursor"', ""),
    "regclass": ("pg_class", 'odd."Ta.b""le"', "4000000000", "-"),
    "regcollation": ('"C"', "4000000000"),
    "regconfig": ("english", "simple"),
    "regdatabase": ("postgres", "template1"),
    "regdictionary": ("simple", "english_stem"),
    "regnamespace": ("public", "odd", '"quo""ted"'),
    "regoper": ("||/", "0"),
    "regoperator": ("+(integer,integer)", "-(NONE,integer)"),
    "regproc": ("now", 'odd."Func /"', "4000000000"),
    "regprocedure": ("sum(integer)", 'odd."Func /"(integer)'),
    "regrole": ("postgres", "pg_monitor"),
    "regtype": ("integer", "timestamp with time zone", "odd.mood", "text[]"),
    "text": HOSTILE,
    "tid": ("(0,1)", "(4294967295,65535)"),
    "time": ("00:00:00", "24:00:00", "23:59:59.999999"),
    "timestamp": ("2024-02-29 23:59:59.123456", "infinity", "-infinity", "0044-03-15 00:00:00 BC", "294276-12-31"),
    "timestamptz": ("2024-02-29 23:59:59.123456+05:30", "infinity", "-infinity", "0044-03-15 00:00:00+00 BC"),
    "timetz": ("12:00:00+02", "00:00:00-15:59:59", "24:00:00+00"),
    "tsmultirange": ("{}", "{[2024-01-01 00:00,2024-01-02 00:00)}"),
    "tsquery": ("'fat' & ('rat' | !'c\"a\\\\t':*)", "'a' <-> 'b'"),
    "tsrange": ("empty", '["2024-01-01 00:00:00","2024-01-02 00:00:00")', "(,infinity]"),
    "tstzmultirange": ("{}", "{[2024-01-01 00:00+01,)}"),
    "tstzrange": ("empty", "[2024-01-01 00:00+01,)"),
    "tsvector": ("", "'a':1A 'cat':2 'it''s \\\\ \"x\"'"),
    "txid_snapshot": ("10:20:10,14,15",),
    "uuid": ("00000000-0000-0000-0000-000000000000", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"),
    "varbit": ("", "10101"),
    "varchar": HOSTILE,
    "xid": ("0", "4294967295"),
    "xid8": ("0", "18446744073709551615"),
    "xml": ("<a>b</a>", '<?xml version="1.0"?><a b="c&quot;d">é</a>', "text"),
}
"""For each built-in type that a column can have: texts its input function takes."""

NO_INPUT = {
    "gtsvector",
    "pg_brin_bloom_summary",
    "pg_brin_minmax_multi_summary",
    "pg_dependencies",
    "pg_mcv_list",
    "pg_ndistinct",
    "pg_node_tree",
}
"""Built-in types of which no value can be inserted."""

_PARAMETER = {'pg_catalog."xml"': "convert_to(%s, 'UTF8')::xml"}
"""How a text becomes a value where the input function may be missing: without libxml there is none for xml."""

SETUP = """
    CREATE CAST (bytea AS xml) WITHOUT FUNCTION;
    CREATE SCHEMA odd; CREATE SCHEMA "quo""ted"; CREATE TYPE odd.mood AS ENUM ('ok', 'sa"d', 'a/b', '\\', '');
    CREATE TABLE odd."Ta.b""le" (x int); CREATE FUNCTION odd."Func /"(int) RETURNS int LANGUAGE sql AS 'SELECT $1';
    CREATE TYPE odd.comp AS (a int, b text, c bool, d odd.mood);
    CREATE DOMAIN odd.flag AS bool; CREATE DOMAIN odd.flags AS odd.flag; CREATE DOMAIN odd.posint AS int4;
    CREATE DOMAIN odd.code AS char(5); CREATE DOMAIN odd.host AS inet; CREATE DOMAIN odd.ints AS int4[];
    CREATE DOMAIN odd.pair AS odd.comp; CREATE TYPE odd.textrange AS RANGE (subtype = text);
    CREATE FUNCTION odd.shout(odd.mood) RETURNS text LANGUAGE sql AS $$SELECT 'cast, not output'$$;
    CREATE CAST (odd.mood AS text) WITH FUNCTION odd.shout(odd.mood) AS IMPLICIT;
    CREATE FUNCTION odd.show(odd.comp) RETURNS text LANGUAGE sql AS $$SELECT 'cast, not output'$$;
    CREATE CAST (odd.comp AS text) WITH FUNCTION odd.show(odd.comp) AS ASSIGNMENT;
    CREATE PUBLICATION everything FOR ALL TABLES
"""


class Source:
    """A database with a publication of all tables and a slot that gives back what was written since the last look."""

    def __init__(self, url: str, connection: psycopg.Connection) -> None:
        self.url = url
        self.connection = connection

    def execute(self, *statements: str) -> None:
        for statement in statements:
            self.connection.execute(statement.encode())

    def fill(self, name: str, columns: dict[str, Sequence[str | None]], key: Sequence[str] = ()) -> None:
        """A table in public; each column, ``"name type" -> texts``, repeats its texts as often as the longest needs."""
        definition = ", ".join([*columns, *([f"PRIMARY KEY ({', '.join(key)})"] if key else [])])
        table = sql.Identifier("public", name)
        self.execute(f"CREATE TABLE {table.as_string()} ({definition})")
        marks = sql.SQL(", ").join(
            sql.SQL(_PARAMETER.get(c.split(" ", 1)[1], "%s::" + c.split(" ", 1)[1])) for c in columns
        )
        statement = sql.SQL("INSERT INTO {} VALUES ({})").format(table, marks)
        for row in range(max(map(len, columns.values()))):
            values = [texts[row % len(texts)] for texts in columns.values()]
            self.connection.execute(statement, values)

    def snapshot(self, name: str, schema: str = "public") -> tuple[Table, list[Any]]:
        """The table and its snapshot items."""
        return asyncio.run(self._snapshot(schema, name))

    async def _snapshot(self, schema: str, name: str) -> tuple[Table, list[Any]]:
        async with await psycopg.AsyncConnection.connect(self.url) as connection:
            table = await describe(connection, schema, name)
            version = connection.info.server_version
        assert table is not None
        selected = selection(table, None, version)
        assert isinstance(selected, tuple), selected
        rows: list[bytes] = []
        snapshots = Snapshots(self.url, threads=1)
        await snapshots.take(SnapshotPlan(table, selected, False), Rows(rows), lambda *_: True)
        await snapshots.close()
        return table, [json.loads(row) for row in rows]

    def stream(self, table: Table) -> list[Any]:
        """The log entries of what happened to the table since the last call."""
        messages = self.connection.execute(
            "SELECT data FROM pg_logical_slot_get_binary_changes("
            "'agreement', NULL, NULL, 'proto_version', '1', 'publication_names', 'everything')"
        ).fetchall()
        selected = [column.name for column in table.columns]
        projections: dict[int, Projection] = {}
        shared, op = b"", 0
        lines: list[bytes] = []
        for (data,) in messages:
            if data[0] == pgoutput.BEGIN:
                lsn, _, xid = pgoutput.parse_begin(data)
                shared, op = transaction_headers(lsn, xid), 0
            elif data[0] == pgoutput.RELATION:
                relation = pgoutput.parse_relation(data)
                if relation.oid == table.oid or table.kind == "p":
                    projections[relation.oid] = Projection(relation, table, selected, explicit=False)
            elif data[0] in pgoutput.CHANGES:
                projection = projections.get(pgoutput.relation_oid(data))
                if projection is not None:
                    if data[0] == pgoutput.INSERT:
                        lines.append(projection.insert(pgoutput.parse_insert(data), shared, op))
                    elif data[0] == pgoutput.DELETE:
                        lines.append(projection.delete(pgoutput.parse_delete(data), shared, op))
                    else:
                        lines.extend(projection.update(*pgoutput.parse_update(data), shared, op))
                op += 2
        return [json.loads(line) for line in lines]

    def compare(self, name: str, schema: str = "public") -> list[Any]:
        """Read both ways, check that they agree, return the snapshot's items."""
        table, snapshot = self.snapshot(name, schema)
        streamed = self.stream(table)
        assert snapshot, "nothing was compared"
        for item in snapshot:
            assert item["headers"] == {"operation": "insert", "relation": [schema, name]}
        assert ordered(snapshot) == ordered(streamed)
        return snapshot


class Rows:
    """A sink that keeps all rows."""

    def __init__(self, rows: list[bytes]) -> None:
        self._rows = rows

    def add(self, items: bytes, rows: int) -> None:
        lines = items.split(b",\n")
        assert lines.pop() == b""
        assert len(lines) == rows
        self._rows += lines

    def flush(self) -> None:
        pass

    def finish(self, end_line: bytes) -> None:
        assert json.loads(end_line)["headers"]["control"] == "snapshot-end"


def ordered(items: Iterable[Any]) -> list[tuple[str, Any]]:
    return sorted(((item["key"], item["value"]) for item in items), key=lambda pair: (pair[0], json.dumps(pair[1])))


@contextmanager
def opened(url: str) -> Iterator[Source]:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(SETUP)
        connection.execute(session_settings(connection.info.server_version).encode())
        connection.execute("SELECT pg_create_logical_replication_slot('agreement', 'pgoutput')")
        yield Source(url, connection)


@pytest.fixture
def source(database: str) -> Iterator[Source]:
    with opened(database) as source:
        yield source


def quoted(name: str) -> str:
    return f'pg_catalog."{name}"'


def builtin_types(source: Source) -> list[tuple[str, bool, str]]:
    """``(name, whether arrays can be read, delimiter of arrays)``."""
    found = source.connection.execute(
        "SELECT typname::text, typarray <> 0 AND typname <> 'xml', typdelim::text FROM pg_type "
        "WHERE typnamespace = 'pg_catalog'::regnamespace AND typtype IN ('b', 'r', 'm') "
        "AND NOT EXISTS (SELECT FROM pg_type element WHERE element.typarray = pg_type.oid) ORDER BY 1"
    ).fetchall()
    return [(name, arrays, delimiter) for name, arrays, delimiter in found if name not in NO_INPUT]


def array_literals(samples: Sequence[str], delimiter: str) -> list[str]:
    """An empty array, one of everything, one with other bounds, one of two dimensions."""
    elements = ['"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"' for text in samples]
    first, everything = elements[0], delimiter.join([*elements, "NULL"])
    return [
        "{}",
        "{" + everything + "}",
        "[2:3]={" + f"{first}{delimiter}NULL" + "}",
        "{{" + first + "}" + delimiter + "{NULL}}",
    ]


def test_every_builtin_type_as_value(source: Source) -> None:
    types = builtin_types(source)
    assert {name for name, _, _ in types} - set(SAMPLES) == set(), "no samples for these types"
    columns: dict[str, Sequence[str | None]] = {"id int4": [str(n) for n in range(20)]}
    for name, arrays, delimiter in types:
        columns[f"v_{name} {quoted(name)}"] = [*SAMPLES[name], None]
        if arrays:
            columns[f"a_{name} {quoted(name)}[]"] = [*array_literals(SAMPLES[name], delimiter), None]
    source.fill("everything", columns, key=["id"])
    items = source.compare("everything")
    # Not a comparison of nothing with nothing: each column has both a value and a NULL somewhere.
    for column in items[0]["value"]:
        if column != "id":
            values = [item["value"][column] for item in items]
            assert None in values, column
            assert any(isinstance(value, str) for value in values), column


def test_every_builtin_type_as_key(source: Source) -> None:
    """Without a primary key, all columns are the key: also their NULLs."""
    for name, arrays, delimiter in builtin_types(source):
        array: list[str | None] = [*array_literals(SAMPLES[name], delimiter), None] if arrays else [None]
        kind = f"{quoted(name)}[]" if arrays else "int4"
        source.fill(
            f"key {name}",
            {f"v {quoted(name)}": [*SAMPLES[name], None], f"a {kind}": array, "n int4": ["1", "2", None]},
        )
        items = source.compare(f"key {name}")
        assert len(items) >= len(SAMPLES[name]) + 1


def test_types_of_users(source: Source) -> None:
    moods = ("ok", 'sa"d', "a/b", "\\", "", None)
    comps = ("(,,,)", '(1,"x y",t,ok)', '(2,"quo""te \\\\ /\n",f,"sa""d")', None)
    columns: dict[str, Sequence[str | None]] = {
        "id int4": [str(n) for n in range(7)],
        "mood odd.mood": moods,
        "moods odd.mood[]": ('{ok,"sa\\"d",NULL}', "{}", None),
        "comp odd.comp": comps,
        "comps odd.comp[]": ('{"(,,,)",NULL}', None),
        "pair odd.pair": comps,
        "flag odd.flag": ("t", "f", None),
        "flags odd.flags": ("f", "t", None),
        "flagged odd.flags[]": ("{t,f,NULL}", None),
        "posint odd.posint": ("5", None),
        "code odd.code": ("ab", "", None),
        "host odd.host": ("10.0.0.1", "10.0.0.1/8", None),
        "ints odd.ints": ("[0:1]={1,2}", "{{1},{2}}", None),
        "span odd.textrange": ('["a ""b","c/d\\\\"]', "empty", None),
        "spans odd.textmultirange": ('{["a","b"]}', "{}", None),
        "vc varchar(20)": ("v", "", None),
        "ch char(5)": ("ab", "", "     ", None),
        "b3 bit(3)": ("101", None),
        "n2 numeric(10,2)": ("1.5", "-0.01", "0", None),
        "t0 timestamp(0)": ("2024-01-01 00:00:00.5", None),
        "iv interval day to second(2)": ("1 day 2.345 s", None),
    }
    source.fill("users", columns, key=["id"])
    items = {item["value"]["id"]: item["value"] for item in source.compare("users")}
    assert items["0"]["comp"] == "(,,,)"
    assert items["0"]["mood"] == "ok"
    assert (items["0"]["flag"], items["0"]["flags"], items["0"]["flagged"]) == ("true", "false", "{t,f,NULL}")
    assert (items["0"]["ch"], items["0"]["host"]) == ("ab   ", "10.0.0.1")
    source.fill("keyless", columns)
    assert len(source.compare("keyless")) == 7


@pytest.mark.parametrize(
    ("kind", "samples"),
    [
        ("bool", ["t", "f"]),
        ("odd.flags", ["t", "f"]),
        ("char(9)", ["a", "a/b", '"']),
        ("inet", ["10.0.0.1", "10.0.0.1/8"]),
        ("text", HOSTILE[:-1]),
        ("numeric", ["1.50", "NaN"]),
        ("odd.mood", ["a/b", 'sa"d', ""]),
        ("odd.comp", ["(1,a/b,t,ok)", "(,,,)"]),
        ("pg_lsn", ["16/B374D848", "0/0"]),
        ("bytea", ["\\x2f5c", "\\x"]),
        ("int4range", ["[1,5)", "empty"]),
    ],
)
def test_primary_keys(source: Source, kind: str, samples: list[str]) -> None:
    source.fill("single", {f"k {kind}": samples, "v text": ["x", None]}, key=["k"])
    assert len(source.compare("single")) == len(samples)
    source.fill("pair", {f"k {kind}": samples, "id int8": list(map(str, range(len(samples))))}, key=["id", "k"])
    assert all(item["key"].startswith('"public"."pair"/"') for item in source.compare("pair"))


@pytest.mark.parametrize(
    "name", ["plain", "My Things", "do.t", "sla/sh", 'quo"te', "back\\slash", "tab\t\nü🎉", "%s $1"]
)
def test_names(source: Source, name: str) -> None:
    schema, table, column = (sql.Identifier(prefix + name).as_string() for prefix in ("s", "", "c"))
    source.execute(
        f"CREATE SCHEMA {schema}",
        f"CREATE TABLE {schema}.{table} (id int PRIMARY KEY, {column} text)",
        f"INSERT INTO {schema}.{table} VALUES (1, 'x')",
    )
    (item,) = source.compare(name, "s" + name)
    assert item["value"] == {"c" + name: "x", "id": "1"}
    source.execute(
        f"CREATE TABLE {schema}.keyless ({column} text)",
        f"INSERT INTO {schema}.keyless VALUES ('x/y')",
    )
    (item,) = source.compare("keyless", "s" + name)
    assert item["value"] == {"c" + name: "x/y"}


def test_partitions_and_inheritance(source: Source) -> None:
    source.execute(
        "CREATE TABLE public.root (id int, region text, v text, PRIMARY KEY (id, region)) PARTITION BY LIST (region)",
        "CREATE TABLE public.eu (v text, gone int, region text NOT NULL, id int NOT NULL)",
        "ALTER TABLE public.eu DROP gone",
        "ALTER TABLE public.root ATTACH PARTITION public.eu FOR VALUES IN ('eu')",
        "CREATE TABLE public.us PARTITION OF public.root FOR VALUES IN ('us')",
        "INSERT INTO public.root VALUES (1, 'eu', 'a'), (2, 'us', NULL), (3, 'eu', 'c')",
    )
    items = source.compare("root")
    assert sorted(item["key"] for item in items) == [
        '"public"."root"/"1"/"eu"',
        '"public"."root"/"2"/"us"',
        '"public"."root"/"3"/"eu"',
    ]
    source.execute(
        "CREATE TABLE public.parent (id int PRIMARY KEY)",
        "CREATE TABLE public.child () INHERITS (public.parent)",
        "INSERT INTO public.parent VALUES (1)",
        "INSERT INTO public.child VALUES (2)",
    )
    assert [item["value"] for item in source.compare("parent")] == [{"id": "1"}]


def test_updates_reach_what_a_later_snapshot_shows(source: Source) -> None:
    """Also values that an update leaves in the TOAST table, and dropped columns."""
    source.execute(
        "CREATE TABLE public.toasted (id int PRIMARY KEY, gone int, big text, n int)",
        "ALTER TABLE public.toasted REPLICA IDENTITY FULL",
        "ALTER TABLE public.toasted ALTER big SET STORAGE EXTERNAL",
        "ALTER TABLE public.toasted DROP gone",
        "INSERT INTO public.toasted SELECT i, repeat(chr(64 + i) || '\"', 5000), i FROM generate_series(1, 4) i",
        "UPDATE public.toasted SET n = n + 1",
        "UPDATE public.toasted SET id = id + 100 WHERE id = 2",
        "DELETE FROM public.toasted WHERE id = 3",
    )
    table, snapshot = source.snapshot("toasted")
    held: dict[str, Any] = {}
    for entry in source.stream(table):
        match entry["headers"]["operation"]:
            case "insert":
                held[entry["key"]] = entry["value"]
            case "update":
                assert "big" not in entry["value"]
                held[entry["key"]] |= entry["value"]
            case "delete":
                del held[entry["key"]]
    assert ordered(snapshot) == sorted(held.items())
    assert len(held) == 3


def test_a_table_as_wide_as_possible(source: Source) -> None:
    names = [f"c{n}" for n in range(1600)]
    source.execute(f"CREATE TABLE public.wide ({', '.join(f'{name} bool' for name in names)})")
    source.execute("INSERT INTO public.wide (c0, c1599) VALUES (true, false)")
    (item,) = source.compare("wide")
    assert len(item["value"]) == 1600
    assert item["key"] == '"public"."wide"/"true"' + "/_" * 1598 + '/"false"'


texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"))
anything = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@anything
@given(st.lists(st.tuples(texts, texts, st.none() | texts), min_size=1, max_size=20, unique_by=lambda row: row[:2]))
def test_any_text_in_keys_and_values(source: Source, rows: list[tuple[str, str, str | None]]) -> None:
    source.execute('CREATE TABLE IF NOT EXISTS public.texts (a text, "b/" varchar, c text, PRIMARY KEY ("b/", a))')
    source.execute("TRUNCATE public.texts")
    with source.connection.cursor() as cursor:
        cursor.executemany("INSERT INTO public.texts VALUES (%s, %s, %s)", rows)
    items = source.compare("texts")
    expected = {f'"public"."texts"/"{b.replace("/", "//")}"/"{a.replace("/", "//")}"': (a, b, c) for a, b, c in rows}
    assert {item["key"]: tuple(item["value"].values()) for item in items} == expected

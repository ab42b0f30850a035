"""Ranges, inet and cidr: every operator over every pair of awkward values, and what each literal means, as Postgres
says."""

from __future__ import annotations

from random import Random

import pytest
from psycopg import sql

from shapeworker.where import InvalidWhere, compile_where
from shapeworker.where.functions import OPERATORS
from shapeworker.where.overloads import select
from shapeworker.where.types import BY_NAME, CIDR, INET, RANGES, Type
from tests.unit.shapeworker.where.expressions import VALUES, quoted, row
from tests.unit.shapeworker.where.oracle import COLUMNS, Oracle
from tests.unit.shapeworker.where.test_differential import agree, compiled

COMPARISONS = ("=", "<>", "<", "<=", ">", ">=")
RANGE_TESTS = ("@>", "<@", "&&", "<<", ">>", "&<", "&>", "-|-")
NETWORK_TESTS = ("<<", "<<=", ">>", ">>=", "&&")


def said(oracle: Oracle, name: str, left: Type, right: Type) -> dict[tuple[str, str], bool]:
    """What Postgres says about the operator between all values of two types."""
    query = sql.SQL(
        "SELECT a, b, a::{} {} b::{} FROM unnest(%s::text[]) AS a CROSS JOIN unnest(%s::text[]) AS b"
    ).format(sql.SQL(left.sql), sql.SQL(name), sql.SQL(right.sql))
    values = [list(VALUES[left.name]), list(VALUES[right.name])]
    return {(a, b): verdict for a, b, verdict in oracle.connection.execute(query, values).fetchall()}


def check(oracle: Oracle, name: str, left: Type, right: Type) -> None:
    """That our operator says the same."""
    found = select(OPERATORS[name, 2], (left, right))
    assert found is not None, (name, left, right)
    body = found.overload.make(*found.arguments)
    assert left.input is not None
    assert right.input is not None
    expected = said(oracle, name, left, right)
    assert set(expected.values()) == {True, False}
    for (a, b), verdict in expected.items():
        assert bool(body(left.input(a), right.input(b))) is verdict, (a, name, b)


@pytest.mark.parametrize("type_", RANGES, ids=str)
def test_operators_of_ranges(oracle: Oracle, type_: Type) -> None:
    for name in (*COMPARISONS, *RANGE_TESTS):
        check(oracle, name, type_, type_)
    assert type_.subtype is not None
    check(oracle, "@>", type_, type_.subtype)
    check(oracle, "<@", type_.subtype, type_)


@pytest.mark.parametrize("left", [INET, CIDR], ids=str)
@pytest.mark.parametrize("right", [INET, CIDR], ids=str)
def test_operators_of_networks(oracle: Oracle, left: Type, right: Type) -> None:
    for name in (*COMPARISONS, *NETWORK_TESTS):
        check(oracle, name, left, right)


LITERALS = {
    "int4range": (
        "[1,2]", " [1,2] ", "[ 1, 2 ]", '["1","2"]', '[ "1" , 2]', "[1\\2,15]", '["1""",2]', "[,]", "(,)", "[1,1)",
        "Empty", "[2,1]", "[1,2", "1,2]", "[1]", "[1,2,3]", "[1,2]x", "", "emptyx", "[a,b]", '["",1]', "[1 ,]",
        "[ ,1]", "[1,2)3", "[2147483647,)", "(2147483647,)", "[1,2147483647]", "[1,2147483647)", "(,2147483647]",
        "[(1,2]", "[1,2\\", '["1,2]', "(2147483646,2147483647)", "[-2147483648,-2147483648]", "{1,2}", "[1;2]",
        "empty ,", '[1"0",20]', '[1"0"0,"2"00]',
    ),
    "numrange": (
        "[1.50,1.5]", "[1.5,1.50)", "[NaN,Infinity]", "[Infinity,NaN]", "[-inf,inf]", "[1e2,1E3]", "[0x10,0x20]",
    ),
    "daterange": (
        "[2024-01-01,2024-01-01]", "[infinity,infinity]", "(infinity,infinity]", "[-infinity,-infinity]",
        "(infinity,)", "[5874897-12-31,)", "(5874897-12-31,)", "[2024-01-01,5874897-12-31]", "[epoch,2024-01-01)",
        "(,infinity]", "[Jan 8 1999,2024-1-2]", '["Jan 8, 1999",2024-1-2]', "[Jan 8, 1999,2024-1-2]",
        "[2024-01-01 BC,0044-03-15 BC]",
    ),
    "tsrange": (
        '["2024-01-01 10:00",2024-01-01T11:00)', "[2024-01-01 10:00,2024-01-01 11:00]", "[infinity,infinity]",
    ),
    "tstzrange": (
        '["2024-01-01 10:00+02",2024-01-01T11:00Z)', "[2024-01-01 10:00 Europe/Berlin,infinity)", "(,-infinity]",
    ),
    "inet": (
        "10.0.0.1/", "10.0.0.1/33", "10.0.0.256", "10.0.0.1.1", "10", "10.1", "10/8", "10/7", "10/16", "10/15",
        "10.1/23", " 10.0.0.1", "10.0.0.1 ", "010.001.0.1", "10.0.0.1/08", "0x0a000001", "10..1", ".1", "10.0.0.",
        "10.0.0.1/32", "::", "::1/128", "::1/129", "::1/08", "1::2::3", ":::", "1:2:3:4:5:6:7:8",
        "1:2:3:4:5:6:7:8:9", "1:2:3:4:5:6:7", "::ffff:1.2.3.4/120", "::1.2.3.4", "::1.2.3", "::0.1.0.0", "0:0:1::",
        "1:0:0:2:0:0:0:3", "1:0:0:2:0:0:3:4", "g::", "ABCD::EF", "00001::", "0:0:0:0:0:ffff:0:1", "::ffff:0:0",
        "0:0:0:0:0:1:0:0", "1::", "fe80::1%eth0", "::/0", "1:2::/16",
    ),
    "cidr": (
        "10", "10.1", "10.1.2", "128", "192", "192.168", "224", "224.1", "240", "255", "127.0.0.1", "10.0.0.1/8",
        "10.1/8", "10/8", "10.0.0.0/8", "192.168.0.0/24", "192.168.0.1/24", "0", "0/0", "::1", "::1/64",
        "2001:db8::/32", "10.1/32", "224.0", "223", "239.1.2.3", "10/33",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LITERALS)
def test_literals(oracle: Oracle, name: str) -> None:
    type_ = BY_NAME[name]
    assert type_.input is not None
    refused = []
    for text in (*LITERALS[name], *VALUES[name]):
        expected = oracle.accepts(f"{name}::text", text)
        try:
            value = type_.input(text)
        except ValueError:
            refused += [text] if expected is not None else []
            continue
        assert type_.output(value) == expected, text
        # What the output function prints is read alike.
        assert type_.read(type_.printed(value).encode()) == value, text
    # More than Postgres nothing is accepted, and less only in what is nobody's spelling.
    assert set(refused) <= {"0x0a000001", "[Jan 8 1999,2024-1-2]", "::1.2.3"}, refused


RESOLVED = {
    True: (
        "ri @> i4", "i4 <@ ri", "ri @> 5", "ri @> '[1,2)'", "'[1,2)' <@ ri", "ri && '[1,5]'", "rl @> i8",
        "rn @> 1.5", "rd @> date '2024-01-01'", "ts <@ rt", "rz @> tz", "ri = '[1,4]'", "ri IN ('[1,2)', 'empty')",
        "ri = ANY (ar)", "i4 <@ ANY (ar)", "lower(ri) = 1", "upper(rn) > 2", "lower('A') = 'a'", "lower(vc) = 'a'",
        "isempty(rd)", "int4range(i4, j4) && ri", "int4range(i4, NULL, '[]') @> 5", "numrange(1, 2.5) = rn",
        "ri -|- si", "NOT isempty(ri)", "ip << '10.0.0.0/8'", "ci = '10.0.0.1/8'", "ci << ip", "ip >>= ci", "ip && ci",
        "ip = ci", "ci IN ('10/8', '10.1/16')", "ip <<= ci", "ip::cidr = ci", "ip::text LIKE '10.%'", "t::inet = ip",
        "family(ip) = 4", "masklen(ci) > 8", "host(ip) = '::1'", "network(ip) = ci", "t || ip = 'x'",
        "ip = ANY (ap)", "ci = ANY (ap)", "ri BETWEEN 'empty' AND si", "lower_inf(rz)", "GREATEST(ip, ci) = ip",
        "COALESCE(ci, ip) = ip", "NULLIF(ci, ci) IS NULL", "nm::inet = ip", "ri::text = 'empty'", "b::name = 't'",
        "ip::name = '10.0.0.1'", "ri &< si AND ri &> si", "(t || '.0')::inet << '0/0'", "t::int4range = ri",
    ),
    False: (
        "rl @> i4", "rl @> 5", "rn @> 1", "rn @> i4", "ri @> '5'", "ri @> i8", "i4 <@ '[1,2)'", "ri && rd",
        "ri = rl", "rd @> '2024-01-01'", "rz @> ts", "rt @> tz", "rd @> ts", "'[1,2)' && '[1,3)'", "lower(i4) = 1",
        "isempty('empty')", "ri << 5", "ip << 5", "ip << t", "ip <<= i4", "ci = t", "ip @> ci", "ip = '10.0.0.1/33'",
        "ri = '[2,1]'", "ri @> NULL::int8", "i4::int4range = ri", "ri::int8range = rl",
        "upper(ar) = 1", "int4range(5, 1) = ri", "int4range(1, 2, '[') = ri", "int4range(i4, i8) = ri",
    ),
}  # fmt: skip


@pytest.mark.parametrize("accepted", RESOLVED)
def test_operators_are_found_as_in_postgres(oracle: Oracle, accepted: bool) -> None:
    random = Random(3)
    oracle.fill([row(random) for _ in range(40)])
    for text in RESOLVED[accepted]:
        filter_ = compiled(text)
        assert (filter_ is not None) is accepted, text
        if filter_ is None:
            (client,) = oracle.verdicts([text])
            assert all(verdict.startswith("error") for verdict in client), text
            continue
        client, snapshot = oracle.verdicts([text, filter_.sql.as_string(None)])
        for row_, *verdicts in zip(oracle.rows, client, snapshot, strict=True):
            assert agree(filter_, row_, *verdicts), (text, verdicts)


@pytest.mark.parametrize("range_", ["empty", "(,)", "[1,1)"])
def test_what_the_planner_decides_without_the_value_is_refused(range_: str) -> None:
    for text in ("$1::int4range @> i4", "i4 <@ $1::int4range", f"i4 <@ int4range '{range_}'"):
        with pytest.raises(InvalidWhere, match="holds NULL depends on the version"):
            compile_where(text, {"1": range_}, COLUMNS)
    for text in ("ri @> $1", "i4 <@ ANY (ARRAY[$1, '[1,2)']::int4range[])", "$1::int4range @> ANY (ai)"):
        compile_where(text, {"1": range_}, COLUMNS)


def test_parameters_take_the_type_of_a_range() -> None:
    filter_ = compile_where("ri @> $1 AND $2 <@ ri AND ip << $3", {"1": "[2,3]", "2": "empty", "3": "10/8"}, COLUMNS)
    assert quoted("[2,4)") + "::int4range" in filter_.canonical
    assert "'10.0.0.0/8'::inet" in filter_.canonical

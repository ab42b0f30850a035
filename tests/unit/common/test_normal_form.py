"""Two spellings of a clause have one normal form, and it means what they mean: the grammar and the compiler say so."""

from __future__ import annotations

import json
import re
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common import normal_form as module
from common.normal_form import MAX_BYTES, MAX_TOKENS, normal_form
from common.pg_query import GrammarError, parse
from shapeworker.where import InvalidWhere, compile_where
from tests.unit.shapeworker.where.expressions import Expressions
from tests.unit.shapeworker.where.oracle import COLUMNS

PARAMS = ("one", "two", "three")


@pytest.mark.parametrize(
    "spellings",
    [
        ("id<5", "id  <  5", " id<5\n", "ID < 5", "id/* five */<5", "id<5 -- five", "/* a /* b */ */ id\t<\r\n5"),
        ("id = 1 AND NOT done", "Id=1 and\nnot DONE", "id=1 And Not Done"),
        ("id <> 1", "id != 1", "id!=1"),
        ("n=-1", "n = - 1"),
        ("t='A' OR t=E'\\n'", "T = 'A' or T = E'\\n'"),
        ("t = N'a'", "t = nchar'a'", "t = n'a'"),
        ("a.b::Int4[]", "A . B :: INT4 [ ]"),
        ("ä = 1", "ä=1"),
    ],
)
def test_spellings_that_are_one(spellings: tuple[str, ...]) -> None:
    assert len({normal_form(spelling, ()) for spelling in spellings}) == 1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("t = 'a'", "t = 'A'"),
        ("t = 'a  b'", "t = 'a b'"),
        ("t = 'a--b'", "t = 'a'"),
        ("t = '/**/'", "t = ''"),
        ('"Id" = 1', '"id" = 1'),
        ('"id" = 1', '"i d" = 1'),
        ("t = E'\\n'", "t = '\\n'"),
        ("t = $$A$$", "t = $$a$$"),
        ("t = $a$x$a$", "t = $A$x$A$"),
        ("t = 'a'\n'b'", "t = 'a' 'b'"),
        ("t = N'a'", "t = n 'a'"),
        ("i - -1 > 0", "i --1 > 0"),
        ("Ä = 1", "ä = 1"),
        ("f = 1e5", "f = 1.0e5"),
        ("a b = 1", "ab = 1"),
        ("i = 1", "i = 2"),
    ],
)
def test_spellings_that_are_not(one: str, other: str) -> None:
    assert normal_form(one, ()) != normal_form(other, ())


def test_what_is_long_is_still_one() -> None:
    numbers = [str(number) for number in range(MAX_TOKENS // 2 - 4)]
    assert normal_form(f"id IN ({','.join(numbers)})", ()) == normal_form(f"ID in ( {' , '.join(numbers)} )", ())
    text = "x" * (MAX_BYTES - 10)
    assert normal_form(f"t='{text}'", ()) == normal_form(f"T = '{text}'", ())


def test_parameters_are_numbered_as_they_come_without_those_that_nobody_uses() -> None:
    same = ("a = $1 and b = $2 or c = $1", ("one", "three"))
    assert normal_form("a=$1 AND b=$3 OR c=$1", PARAMS)[1] == same[1]
    assert normal_form("a=$1 AND b=$3 OR c=$1", PARAMS) == normal_form(*same)
    assert normal_form("a=$2 AND b=$1 OR c=$2", ("three", "one")) == normal_form(*same)
    assert normal_form("a = 1", PARAMS) == ("a = 1", ())
    assert normal_form("a = $1", ("one",)) != normal_form("a = $1", ("two",))
    assert normal_form("a = $1 or b = $1", ("x",)) != normal_form("a = $1 or b = $2", ("x", "x"))


@pytest.mark.parametrize(
    ("where", "params"),
    [
        ("a  =  'b", ()),
        ("A = 1a", ()),
        ("A = $2", ("one",)),
        ("A = $0", ("one",)),
        ("A = $99999999999999999999", ("one",)),
        ("A = 1\0", ()),
        ("A = '\ud800'", ()),
        ("-- A", ()),
        ("", ()),
        ("A = 1" + " " * MAX_BYTES, ()),
        ("A=1" + "+1" * (MAX_TOKENS // 2), ()),
    ],
)
def test_what_is_wrong_or_long_stays_as_it_is(where: str, params: tuple[str, ...]) -> None:
    assert normal_form(where, params) == (where, params)


@pytest.mark.parametrize("piece", ["(", "a,", "$1", "'", "/*", '"', "--", "A ", "\\", "+-*", "E'\\", "$a$", "1e", "é"])
def test_hostile_clauses_take_bounded_work(piece: str) -> None:
    text = (piece * MAX_BYTES)[: MAX_BYTES // len(piece.encode())]
    where, params = normal_form(text, ("one",))
    assert len(where) <= 2 * MAX_BYTES
    assert normal_form(where, params) == (where, params)
    assert module._scanned.cache_info().maxsize is not None


_PLACE = re.compile("location|stmt_len|list_start|list_end")


def _tree(where: str, params: tuple[str, ...]) -> Any:
    """What the grammar makes of a clause, without places, with the values of parameters."""

    def bare(node: Any) -> Any:
        if isinstance(node, list):
            return [bare(item) for item in node]
        if not isinstance(node, dict):
            return node
        if "ParamRef" in node:
            number = node["ParamRef"].get("number", 0)
            return {"value": params[number - 1] if 0 < number <= len(params) else f"${number}"}
        return {key: bare(value) for key, value in node.items() if not _PLACE.search(key)}

    try:
        return bare(json.loads(parse(b"SELECT 1 WHERE " + where.encode())))
    except GrammarError:
        return None


_PIECES = (
    *("id", "Id", '"Id"', '"a""b"', "N", "nchar", "E", "b", "x", "U&", "uescape", "int", "é", "É", "_a$1"),
    *("'a'", "'A '' b'", "N'x'", "E'\\'x'", "U&'\\0041'", "B'01'", "x'1F'", "$$a$$", "$t$ -- $t$", "''", "interval"),
    *("1", "1.5", ".5", "1e3", "0x1F", "1_000", "1.", "$1", "$2", "$3", "$01", "-1", "+1"),
    *(
        "=",
        "<>",
        "!=",
        "<=",
        "<",
        ">",
        "->>",
        "->",
        "@>",
        "<@",
        "||",
        "~*",
        "::",
        ":",
        ".",
        "..",
        ",",
        "@-",
        "-",
        "+",
        "*",
    ),
    *("and", "OR", "Not", "IS NULL", "in (1, 2)", "between", "like", "case when", "end", "(", ")", "[", "]", ";", "?"),
    *("date", "timestamp with time zone", "at time zone", "collate", "operator(pg_catalog.!=)", "array["),
)
_GAPS = ("", " ", "\n", "\t ", "/**/", " -- x'\n", "\n--\n", "/* /* ' */ */", "\r\n\f\v")


@given(st.lists(st.tuples(st.sampled_from(_PIECES), st.sampled_from(_GAPS)), min_size=1, max_size=12))
@settings(max_examples=600, deadline=None, database=None)
def test_the_grammar_sees_no_difference(pieces: list[tuple[str, str]]) -> None:
    where = "".join(piece + gap for piece, gap in pieces)
    found = normal_form(where, PARAMS)
    assert _tree(*found) == _tree(where, PARAMS), found
    assert normal_form(*found) == found


def test_the_compiler_sees_no_difference() -> None:
    random = Random(7)
    expressions = Expressions(random)
    compiled = 0
    for _ in range(500):
        text = expressions.condition(3)
        spelled = text.replace(" AND ", random.choice(("\nand ", " /* ' */AnD\t", " AND ")))
        try:
            expected = compile_where(text, {}, COLUMNS)
        except InvalidWhere:
            continue
        compiled += 1
        where, params = normal_form(spelled, ())
        assert not params
        assert compile_where(where, {}, COLUMNS).canonical == expected.canonical
    assert compiled > 150

"""Clauses compiled without their literals, against the same clauses compiled with them."""

from __future__ import annotations

import contextlib
from random import Random

import pytest

from shapeworker import where
from shapeworker.where import Columns, Filter, InvalidWhere, compile_where
from shapeworker.where.literals import lift
from tests.unit.shapeworker.routing.test_router import indexable
from tests.unit.shapeworker.where.expressions import Expressions
from tests.unit.shapeworker.where.oracle import COLUMNS

TABLE = Columns(COLUMNS)


def without_literals(text: str, params: dict[int, str]) -> Filter | None:
    """The filter of a clause whose literals were taken out; None if they must stay."""
    lifted = lift(text)
    template = None if lifted is None else where._lifted_template(lifted.text, TABLE)
    if lifted is None or template is None:
        return None
    return template.bound({**params, **lifted.literals})


@pytest.mark.parametrize(
    "text",
    [
        "t = 'a'",
        "t = 'it''s' AND i4 = 5",
        "t LIKE 'a%' OR t ~ '^b' OR i4 IN (1, 2, 3)",
        "i8 = 5 AND n > 5 AND f8 < 7",
        "ts BETWEEN '2024-01-01' AND '2024-02-01'",
        "lower(t) = 'a' AND i4 % $1 = 1 AND NOT i2 >= 5",
        "ai @> ARRAY[1, 2] AND ai && '{3}' AND 4 = i4",
        "\"t\" = 'a' AND mo > 'ok'",
        "i4 + i2 = 5",
        "i4 = -5",
        "i4 = - 5 AND i8 > -17",
        "i4 IN ( -1, - 2, 3) OR (i4 <> -5)",
        # The grammar of the parser library has a place for a parameter here.
        "d = date '2024-01-01' AND tz = timestamp with time zone '2024-01-01'",
    ],
)
def test_literals_that_are_lifted(text: str) -> None:
    params = {1: "7"} if "$1" in text else {}
    found = without_literals(text, params)
    assert found is not None
    plain = where._template(text, TABLE).bound(params)
    assert (found.canonical, found.columns) == (plain.canonical, plain.columns)
    assert found.template is not plain.template
    # All of them share one template with the same clause for other values.
    assert len(found.template.parameters) > len(params)


@pytest.mark.parametrize(
    "text",
    [
        # No literal, or none that can be told from what is around it.
        "i4 = $1",
        "i4 = +5",
        "i4 = - 5::int4",
        "i4 =-5",
        "i4 = - -5",
        "n = 5.5",
        "n = 5e3",
        "i8 = 12345678901",
        "t = E'a'",
        "t = U&'a'",
        "t = x'1F'",
        "t = $$a$$",
        "t = 'a' -- 'b'",
        "t = 'a' /* 'b' */",
        "i4 = $100000 AND t = 'a'",
        "t = 'a\0'",
        "t = 'a\ud800'",
        "é5 = 5",
        # No longer the same clause, or not known to be.
        "t = 'a'\n'b'",
        "t = 'a' 'b'",
        "t LIKE 'a!%' ESCAPE '!'",
        "t = CASE WHEN i4 = 5 THEN 'a' ELSE 'b' END",
        "i4 = 5 OR 1 = 1",
        "i4 = 5 OR NULLIF('a', 'a') = 'b'",
        "i4 = -(5)",
        "i4 BETWEEN SYMMETRIC 5 AND 7",
        "t IS NOT DISTINCT FROM 'a'",
        "COALESCE(t, 'a') = 'b'",
        "substring(t from 2 for 3) = 'abc'",
        "t = 'a'::varchar(2)",
        "i4 * 5 = 7",
        "ai[1] = 5",
    ],
)
def test_literals_that_stay(text: str) -> None:
    assert without_literals(text, {}) is None


@pytest.mark.parametrize("text", ["t = ×'a'", "t = ×5 AND t = 'a'", "t = a$'b'", "t = 'a'b", "t = 5a", "t = a.5"])
def test_names_are_not_taken_for_literals(text: str) -> None:
    """Every byte that is not ASCII belongs to a name."""
    lifted = lift(text)
    assert lifted is None or "×$" not in lifted.text


def test_long_texts_keep_their_limits() -> None:
    long = "a" * 70_000
    assert lift(f"t = '{long}'") is None
    with pytest.raises(InvalidWhere, match=r"65536|too long|bytes"):
        compile_where(f"t = '{long}'", {}, TABLE)


@pytest.mark.parametrize(
    "text",
    [
        *("iv = interval '1' day", "iv = interval(3) '1 day'", "bp = char(2) 'abc'", "n = numeric(3,1) '5.55'"),
        *("f4 = float(3) '5'", "ts = timestamp(0) '2024-01-01 00:00:00.7'", "i4 = pg_catalog.int4 '5'", "t = n'abc'"),
        *("i4 = 5 LIMIT 5", "t = 'a' ORDER BY 1", "t = 'a';", "t = 'a' COLLATE \"C\"", "(i4, t) = (5, 'a')"),
        *("i4 = ANY ('{1,2}')", "i4 = ANY (ARRAY[1, 2])", "position('a' in t) = 1", "i4 IN (5)", "i4 IN ('5', 6)"),
        *(
            "i4 @>-5",
            "i4 <-5",
            "i4 = - 5 [1]",
            "i4 = - 5 . 5",
            "i4 = -5 ::int8",
            "i4 = --5",
            "abs( -5) = i4",
            "i4 = -5 5",
        ),
        *("i8 = - 5 ^ 2", "i4 = -5::text::int4", "t = '= -5' AND i4 = i2 - 5", "i4 = ( - 5 )", "i4 BETWEEN - 5 AND -3"),
        *("i4 = 5[1]", "t = 'a'[1]", "t = ('a')[1]", "i4 = 5 5", "t = 'a'i4", "i4 = 5AND b", "i4=5", "mo = mood 'ok'"),
    ],
)
def test_unusual_places_of_literals(text: str) -> None:
    found = plain = None
    with contextlib.suppress(InvalidWhere):
        plain = where._template(text, TABLE).bound({})
    with contextlib.suppress(InvalidWhere):
        found = without_literals(text, {})
    assert found is None or (plain is not None and found.canonical == plain.canonical)


@pytest.mark.parametrize("text", ["i4 = 'x'", "i4 IN (1, 'x')", "ts > 'soon'", "t ~ '('", "i4 = $2 AND t = 'a'"])
def test_errors_are_about_what_was_written(text: str) -> None:
    with pytest.raises(InvalidWhere) as with_lifting:
        compile_where(text, {}, TABLE)
    with pytest.raises(InvalidWhere) as without:
        where._template(text, TABLE).bound({})
    assert str(with_lifting.value) == str(without.value)
    assert "100000" not in str(with_lifting.value)


def test_lifted_clauses_are_the_clauses() -> None:
    random = Random(5)
    expressions = Expressions(random)
    lifted = refused = 0
    for _ in range(1500):
        text = indexable(random, expressions) if random.random() < 0.6 else expressions.condition(2)
        try:
            plain = where._template(text, TABLE).bound({})
        except InvalidWhere:
            plain = None
        try:
            found = without_literals(text, {})
        except InvalidWhere:
            found = None
        if plain is None:
            # What is not valid does not become valid.
            assert found is None, text
            refused += 1
        elif found is not None:
            assert found.canonical == plain.canonical, text
            assert found.columns == plain.columns, text
            lifted += 1
    assert lifted > 300
    assert refused > 10


def test_other_values_share_the_template() -> None:
    first, second = (compile_where(f"t = '{value}' AND i4 = {value}", {}, TABLE) for value in (1, 2))
    assert first.template is second.template
    assert first.canonical != second.canonical

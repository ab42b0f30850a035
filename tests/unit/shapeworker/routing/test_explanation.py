"""An explanation says what the router does; its advice is sound."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from shapeworker.routing.access import MAX_PATHS, cover
from shapeworker.routing.explanation import SHOWN, Access, explain
from shapeworker.routing.paths import Between, Bound, Contains, Equal, Infix, Prefix
from shapeworker.routing.plans import access_of
from shapeworker.routing.router import Router
from shapeworker.where import Filter, compile_where
from tests.unit.shapeworker.routing.test_router import _CASES, filters
from tests.unit.shapeworker.where.oracle import COLUMNS

ORDER = ("nothing", "constant", "logarithmic", "elements", "pattern", "scan")
KINDS: dict[Any, str] = {
    Equal: "hash",
    Bound: "sorted bounds",
    Between: "range cells",
    Contains: "array elements",
    Prefix: "prefix",
    Infix: "substring",
}


def filter_of(text: str) -> Filter:
    return compile_where(text, {}, COLUMNS)


def explained(text: str) -> Access:
    return explain(filter_of(text))


def agrees(filter_: Filter) -> Access:
    """The explanation of a filter, after comparing it with what a router did with the filter."""
    access, router = explain(filter_), Router[int]()
    router.add(1, filter_)
    clause = router._clauses[1]
    assert (access.cost == "scan") is (clause in router._scanned)
    assert len(access.lookups) == router.index_count
    paths, exact = access_of(filter_)
    assert access.exact is exact
    assert sum(lookup.entries for lookup in access.lookups) == len(paths or ())
    assert {lookup.index for lookup in access.lookups} == {KINDS[type(path)] for path in paths or ()}
    return access


def test_golden_clauses_are_explained_as_they_are_routed() -> None:
    many = f"i4 IN ({', '.join(map(str, range(300)))}) OR t LIKE 'a%'"
    costs = {agrees(filter_of(text)).cost for text in (many, *[text for text, _, _ in _CASES])}
    assert costs == set(ORDER)


def test_random_clauses_are_explained_as_they_are_routed() -> None:
    for filter_ in filters(Random(11), 600):
        access = agrees(filter_)
        for lookup in access.lookups:
            assert len(lookup.conditions) == min(lookup.entries, SHOWN)
            for condition in lookup.conditions:
                assert " at 0x" not in condition
                assert all(column in condition for column in lookup.columns)
        if access.cost == "scan":
            assert access.advice


@pytest.mark.parametrize(
    ("text", "cost", "conditions"),
    [
        ("i4 = 5 AND t = 'it''s'", "constant", ["i4 = '5' AND t = 'it''s'"]),
        ("b IS NOT TRUE", "constant", ["b = 'f'", "b IS NULL"]),
        ("i4 IN (3, 1, NULL)", "constant", ["i4 = '3'", "i4 = '1'"]),
        ("mo = 'ok' OR n = 1.50", "constant", ["mo = 'ok'", "n = '1.50'"]),
        ("iv = '1 day'", "constant", ["iv = 'P1D'"]),
        ("js = '{\"a\":1}'", "constant", ["js = '{\"a\": 1}'"]),
        ("d >= '2024-01-31'", "logarithmic", ["d >= '2024-01-31'"]),
        (
            "ts BETWEEN '2024-01-01' AND '2024-02-01 12:30'",
            "logarithmic",
            ["ts from '2024-01-01 00:00:00' to '2024-02-01 12:30:00'"],
        ),
        ("n BETWEEN 0.1 AND 0.30", "logarithmic", ["n from '0.1' to '0.30'"]),
        ("i4 = 1 OR n > 2", "logarithmic", ["i4 = '1'", "n > '2'"]),
        ("ai @> '{2,1}'", "elements", ["ai has '1', '2'"]),
        ("t LIKE 'ab%'", "pattern", ["t begins with 'ab'"]),
        ("i4 = 5 AND t LIKE 'ab%'", "constant", ["i4 = '5' AND t begins with 'ab'"]),
        ("b AND n > 3 AND n < 7", "logarithmic", ["b = 't' AND n from '3' to '7'"]),
        ("b AND t LIKE '%ab%'", "pattern", ["b = 't' AND t has in it 'ab'"]),
        ("t ILIKE '%AbC%'", "pattern", ["t has in it 'abc'"]),
        ("n > 3 AND n < 1", "nothing", []),
        ("i4 + 1 = 2", "scan", []),
        (f"t = '{'x' * 500}'", "constant", [f"t = '{'x' * 100}…'"]),
    ],
)
def test_words(text: str, cost: str, conditions: list[str]) -> None:
    access = explained(text)
    assert access.cost == cost
    assert [condition for lookup in access.lookups for condition in lookup.conditions] == conditions


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("true", "true for every row"),
        ("i4 + 1 = 2", """(("i4" + '1'::int4) = '2'::int4): it is calculated for each row; keep the result"""),
        ("lower(t) = 'x'", "ILIKE with the column itself"),
        ("i4 = 5.5", "i4 is converted to numeric for each row; give the constant the column's type, int4"),
        ("i4 > n", "compares values of one row with each other"),
        ("t ~ 'abc'", "LIKE with a text of it"),
        ("t LIKE '%'", "no text to look for"),
        ("i4 <> 5", "most rows meet it"),
        ("i4 NOT IN (1, 2)", "most rows meet it"),
        ("d IS NOT NULL", 'No index helps with "d" IS NOT NULL: most rows meet it'),
        ("NOT (i4 = 5 AND t = 'a')", """NOT ("i4" = '5'::int4): most rows meet it"""),
        ("i4 = 1 OR t = 'a' OR js ->> 'a' = 'x'", """(("js" ->> 'a'::text) = 'x'::text): it is calculated"""),
        ("mo > 'ok'", "not every one"),
        ("NOT (i4 <> 5 AND t = 'a')", """NOT ("t" = 'a'::text): most rows meet it"""),
        ("(t ~ 'x' AND i4 = 1) OR i4 + 1 = 2", """(("i4" + '1'::int4) = '2'::int4): it is calculated"""),
        ("t LIKE '%abc%'", "LIKE 'x%'"),
        ("b AND i4 % 2 = 0", "by a truth or by NULL"),
        ("t > 'a' AND t < 'b'", "by one bound"),
        ("i4 = 1 AND i4 + 1 = 2", None),
        ("t LIKE 'abc%'", None),
        ("n > 3", None),
        ("false", None),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else None,
)
def test_advice(text: str, advice: str | None) -> None:
    found = explained(text).advice
    assert found is None if advice is None else advice in (found or "")


def test_too_many_values_are_named_as_the_reason() -> None:
    values = "{" + ",".join(map(str, range(MAX_PATHS + 1))) + "}"
    access = explain(compile_where("i4 = ANY ($1)", {"1": values}, COLUMNS))
    assert access.cost == "scan"
    assert access.advice
    assert f"more than {MAX_PATHS} values" in access.advice


@pytest.mark.parametrize(
    ("dear", "cheap"),
    [
        ("lower(t) = 'bob'", "t ILIKE 'bob'"),
        ("i8 = 5.0", "i8 = 5"),
        ("t ~ 'abc'", "t ~ 'abc' AND t LIKE '%abc%'"),
        ("t LIKE '%abc%'", "t LIKE '%abc%' AND i4 = 1"),
        ("i4 <> 5", "i4 <> 5 AND n BETWEEN 1 AND 2"),
        ("js ->> 'a' = 'x'", "js ->> 'a' = 'x' AND t LIKE 'x%'"),
    ],
)
def test_what_is_advised_is_cheaper(dear: str, cheap: str) -> None:
    assert ORDER.index(explained(cheap).cost) < ORDER.index(explained(dear).cost)
    assert explained(dear).advice


def test_a_clause_made_to_hurt_is_walked_once() -> None:
    text = " OR ".join(f"i4 + {number} = 1" for number in range(1500))
    for level in range(50):
        text = f"({text}) {'AND' if level % 2 else 'OR'} i8 <> {level}"
    access = explained(text)
    assert access.cost == "scan"
    assert access.advice
    assert len(access.advice) < 500


def test_looking_at_a_clause_changes_nothing_for_others() -> None:
    """Fields are equal, whoever made them: shapes share their indexes."""
    one = cover(filter_of("iv = '1 day'").tree)
    explained("iv = '2 days'")
    other = cover(filter_of("iv = '3 days'").tree)
    assert one
    assert other
    assert isinstance(one.paths[0], Equal)
    assert isinstance(other.paths[0], Equal)
    assert one.paths[0].fields == other.paths[0].fields

"""Covers that templates share, against those of each clause with its values."""

from __future__ import annotations

from random import Random

import pytest

from shapeworker.routing import plans
from shapeworker.routing.access import cover
from shapeworker.routing.paths import Undecided
from shapeworker.routing.plans import access_of
from shapeworker.routing.router import Router
from shapeworker.where import EvaluationError, Filter, compile_where
from tests.unit.shapeworker.routing.test_router import by_evaluation, stream_row
from tests.unit.shapeworker.where.oracle import COLUMNS

# A clause, values of its parameters, and whether its template has a plan that suits them.
_CASES: list[tuple[str, tuple[str, ...], bool]] = [
    ("i4 = $1", ("5",), True),
    ("$1 = i4", ("5",), True),
    ("i4 = $1 AND t = $2", ("5", "a"), True),
    ("i4 = $1 AND i4 = $2", ("5", "6"), True),
    ("i4 = $1 OR i4 = $2", ("5", "5"), True),
    ("i4 IN ($1, $2, 7)", ("5", "5"), True),
    ("i4 = ANY ($1)", ("{1,2}",), False),
    ("i4 = ANY ($1)", ("{}",), False),
    ("i4 = $1 + 1", ("5",), False),
    ("n = $1", ("1.50",), True),
    ("n = $1", ("NaN",), True),
    ("bp = $1", ("a  ",), True),
    ("mo = $1", ("ok",), True),
    ("b = $1", ("t",), True),
    ("n > $1", ("1",), True),
    ("n BETWEEN $1 AND $2", ("1", "3"), True),
    ("n BETWEEN $1 AND $2", ("3", "1"), False),
    ("n BETWEEN $1 AND $2", ("1", "NaN"), False),
    ("n BETWEEN $1 AND 7", ("1",), True),
    ("n = 7 OR f8 > 7 OR i8 < $1", ("1",), True),
    ("t = $1::int4::text", ("05",), True),
    ("ts BETWEEN $1 AND $2", ("2024-01-01", "infinity"), True),
    ("t BETWEEN $1 AND $2", ("a", "b"), True),
    ("d >= $1 AND d < $2", ("2024-01-01", "2024-02-01"), True),
    ("t LIKE $1", ("a%",), True),
    ("t LIKE $1", ("%a%",), True),
    ("t LIKE $1", ("%abcdefghijklmnop%",), True),
    ("t LIKE $1", ("%",), False),
    ("t LIKE $1", ("a\\",), False),
    ("t ILIKE $1", ("%É%",), True),
    ("t ILIKE $1 OR t LIKE $2", ("%lo%", "a%"), True),
    ("t ILIKE $1 OR t LIKE $2", ("%lo%", "%"), False),
    ("starts_with(t, $1)", ("ab",), True),
    ("i4 > $1 AND t LIKE $2", ("1", "%l%"), True),
    ("i4 = $1 AND n > $2", ("1", "5"), True),
    ("i4 = $1 AND n > 5", ("1",), True),
    ("i4 IN ($1, 7) AND n > $2", ("1", "5"), True),
    ("i4 = $1 AND n BETWEEN $2 AND $3", ("1", "5", "6"), True),
    ("i4 = $1 AND n BETWEEN $2 AND $3", ("1", "6", "5"), False),
    ("i4 = $1 AND t LIKE $2", ("1", "a%"), True),
    ("i4 = $1 AND t LIKE $2", ("1", "%l%"), True),
    ("i4 = $1 AND t LIKE $2", ("1", "%"), False),
    ("b AND ai @> $1", ("{1}",), True),
    ("(b AND n > $1) OR (b AND n > $2)", ("1", "0"), True),
    ("ai @> $1", ("{1,2}",), True),
    ("ai @> $1", ("{}",), False),
    ("ai @> $1", ("{1,NULL}",), False),
    ("ai @> ARRAY[$1, $2]::int4[]", ("1", "1"), True),
    ("$1 = ANY (ai)", ("1",), True),
    ("NOT (i4 <> $1 OR t <> $2)", ("5", "a"), True),
    ("i4 IS NOT DISTINCT FROM $1", ("5",), True),
    ("i4 % $1 = 1", ("2",), True),
    ("i4 = $1 OR b", ("5",), True),
    ("$1 OR i4 = 5", ("t",), False),
    ("$1 AND i4 = 5", ("t",), False),
]
_IDS = [f"{text} {values}" for text, values, _ in _CASES]


def bound(text: str, values: tuple[str, ...]) -> Filter:
    return compile_where(text, {str(number): value for number, value in enumerate(values, 1)}, COLUMNS)


@pytest.mark.parametrize(("text", "values", "planned"), _CASES, ids=_IDS)
def test_a_plan_gives_what_the_values_give(text: str, values: tuple[str, ...], planned: bool) -> None:
    filter_ = bound(text, values)
    own = plans._own(cover(filter_.tree))
    assert access_of(filter_) == access_of(filter_) == own
    # Otherwise this would compare one thing with itself.
    plan = plans._plans[filter_.template]
    try:
        suits = plan is not None and plan.access(filter_.value) == own
    except Undecided:
        suits = False
    assert suits is planned


def test_planned_clauses_route_as_they_evaluate() -> None:
    random = Random(1)
    router: Router[int] = Router()
    shapes = {}
    for number, (text, values, _) in enumerate(_CASES):
        filter_ = bound(text, values)
        router.add(number, filter_)
        shapes[number] = filter_.predicate
    routed_in_all = 0
    for _ in range(1000):
        cells = stream_row(random)
        failed: dict[int, EvaluationError] = {}
        routed = router.route(cells, failed)
        members, failing = by_evaluation(shapes, cells)
        assert set(routed) == members
        assert set(failed) <= failing
        routed_in_all += len(routed)
    assert routed_in_all > 1000
    for number in shapes:
        router.remove(number)
    assert (len(router), router.index_count) == (0, 0)

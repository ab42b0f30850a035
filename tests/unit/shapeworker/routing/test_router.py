"""The router against evaluating every clause, while shapes come and go."""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shapeworker.routing.access import cover
from shapeworker.routing.equality import FEW
from shapeworker.routing.paths import Between, Bound, Contains, Equal, Infix, Prefix
from shapeworker.routing.router import Router
from shapeworker.where import EvaluationError, Filter, InvalidWhere, compile_where
from shapeworker.where.program import Predicate
from shapeworker.where.types import Type, type_of
from tests.unit.shapeworker.where.expressions import Expressions, quoted, row
from tests.unit.shapeworker.where.oracle import COLUMNS

_CASES = [
    ("i4 = 5", (Equal,), True),
    ("i4 = 5 AND t = 'a'", (Equal,), True),
    ("i4 = 5 AND t = 'a' AND n > 1", (Equal,), True),
    ("i4 = 5 AND t = 'a' AND n > 1 AND n < 7", (Equal,), False),
    ("i4 = 5 AND t LIKE 'a%'", (Equal,), True),
    ("i4 = 5 AND t LIKE 'a%b'", (Equal,), False),
    ("i4 = 5 AND t LIKE 'a%' AND n > 1", (Equal,), False),
    ("i4 IN (5, 6) AND n > 1", (Equal, Equal), True),
    ("b AND n > 1", (Equal,), True),
    ("b AND (i4 = 5 AND n > 1)", (Equal,), True),
    ("(i4 = 5 OR n > 1) AND t = 'a'", (Equal,), False),
    ("(i4 = 5 AND n > 1) OR t = 'a'", (Equal, Equal), True),
    ("i4 = 5 AND i4 = 6", (Equal,), False),
    ("i4 IN (1, 2, 3)", (Equal, Equal, Equal), True),
    ("i4 IN (1, 2, NULL)", (Equal, Equal), True),
    ("i4 = 1 OR t = 'a'", (Equal, Equal), True),
    ("i4 = 1 OR n > 2", (Equal, Bound), True),
    ("i4 = 1 OR i4 + 1 = 2", None, False),
    ("i4 = 1 AND i4 + 1 = 2", (Equal,), False),
    ("b", (Equal,), True),
    ("NOT b", (Equal,), True),
    ("b IS NOT TRUE", (Equal, Equal), True),
    ("d IS NULL", (Equal,), True),
    ("d IS NOT NULL", None, False),
    ("NOT (i4 <> 4 OR b)", (Equal,), True),
    ("i4 IS NOT DISTINCT FROM 4", (Equal,), True),
    ("n = 1.5", (Equal,), True),
    ("bp = 'a'", (Equal,), True),
    ("mo = 'ok'", (Equal,), True),
    ("mo > 'ok'", None, False),
    ("n > 1", (Bound,), True),
    ("ip = '10.0.0.1' OR ip > '10.0.0.0/8'", (Equal, Bound), True),
    ("ri = '[1,4]' OR rn = '[1,4]'", (Equal, Equal), True),
    ("ri @> 5", None, False),
    ("5 > n", (Bound,), True),
    ("NOT (d < '2024-01-01')", (Bound,), True),
    ("ts BETWEEN '2024-01-01' AND '2024-02-01'", (Between,), False),
    ("n > 3 AND n < 1", (), True),
    ("t > 'a' AND t < 'b'", (Bound,), False),
    ("i4 > 5 AND t LIKE 'a%'", (Prefix,), False),
    ("t LIKE 'a%'", (Prefix,), True),
    ("t LIKE 'a_'", (Prefix,), False),
    ("t LIKE 'a\\%b%'", (Prefix,), True),
    ("t ILIKE 'A%'", (Prefix,), True),
    ("starts_with(t, 'ab')", (Prefix,), True),
    ("t ILIKE '%abc%'", (Infix,), True),
    ("t ILIKE '%abc_%'", (Infix,), False),
    ("t LIKE '%_abc%'", (Infix,), False),
    ("t LIKE '%abc'", (Infix,), False),
    ("t LIKE '%abcdefghijkl%'", (Infix,), True),
    ("t LIKE '%abcdefghijklm%'", (Infix,), False),
    ("i4 > 5 AND t LIKE '%a%'", (Infix,), False),
    ("t LIKE '%'", None, False),
    ("t LIKE '%a%' OR t LIKE '%b%'", (Infix, Infix), True),
    ("ai @> '{1,2}'", (Contains,), True),
    ("'{1}' <@ ai", (Contains,), True),
    ("3 = ANY (ai)", (Contains,), True),
    ("ai @> '{}'", None, False),
    ("ai @> '{NULL}'", (), True),
    ("false", (), True),
    ("true", None, False),
    ("i4 = ANY ('{}')", (), True),
]


@pytest.mark.parametrize(("text", "kinds", "exact"), _CASES, ids=[text for text, _, _ in _CASES])
def test_access_paths(text: str, kinds: tuple[type, ...] | None, exact: bool) -> None:
    found = cover(compile_where(text, {}, COLUMNS).tree)
    assert (None if found is None else tuple(map(type, found.paths))) == kinds
    assert (found is not None and found.exact) is exact


def stream_row(random: Random) -> list[bytes | None]:
    """A row as the stream carries it."""
    cells: list[bytes | None] = [None] * len(COLUMNS)
    literals = row(random)
    for column in COLUMNS:
        text, type_ = literals.get(column.name), type_of(column.type)
        if text is None or type_.input is None:
            continue
        try:
            printed = type_.printed(type_.input(text))
        except ValueError:
            continue
        cells[column.position] = printed.ljust(6 if type_.name == "bpchar" else 0).encode()
    return cells


def indexable(random: Random, expressions: Expressions) -> str:
    """A clause of the forms that are common, which are those with indexes."""
    column = random.choice([column for column in COLUMNS if column.name not in ("jn", "pt", "ao")])
    name, type_ = f'"{column.name}"', type_of(column.type)
    literal = expressions.bare
    match random.randrange(13):
        case 0 | 1 | 2:
            return f"{name} = {literal(type_)}"
        case 3:
            return f"{name} IN ({', '.join(literal(type_) for _ in range(random.randrange(1, 4)))})"
        case 4:
            return f"{name} IS {random.choice(('', 'NOT '))}NULL"
        case 5:
            return random.choice(("b", "NOT c", "b IS NOT TRUE", "c IS UNKNOWN", "b IS FALSE"))
        case 6:
            return f"{name} {random.choice(('<', '<=', '>', '>='))} {literal(type_)}" if type_.ordered else "b"
        case 7:
            return f"{name} BETWEEN {literal(type_)} AND {literal(type_)}" if type_.ordered else "c"
        case 8:
            pattern = random.choice(("a%", "%l%", "%ell%", "h_l%", "%É%", "abc", "%b", "σα%", "%%", "%LO"))
            text = random.choice(("t", "s", "vc", "bp", "nm"))
            return f"{text} {random.choice(('LIKE', 'ILIKE', 'NOT LIKE'))} {quoted(pattern)}"
        case 9:
            array = random.choice(
                [column for column in COLUMNS if type_of(column.type).is_array and column.name != "ao"]
            )
            return f'"{array.name}" @> {literal(type_of(array.type))}'
        case 10:
            array = random.choice(
                [column for column in COLUMNS if type_of(column.type).is_array and column.name != "ao"]
            )
            element: Type | None = type_of(array.type).element
            assert element is not None
            return f'{literal(element)} = ANY ("{array.name}")'
        case 11:
            connective = random.choice((" AND ", " OR "))
            return "(" + connective.join(indexable(random, expressions) for _ in range(random.randrange(2, 4))) + ")"
    return f"NOT ({indexable(random, expressions)})"


def filters(random: Random, count: int) -> list[Filter]:
    """Filters that are accepted, most of indexable forms."""
    expressions = Expressions(random)
    found: list[Filter] = []
    while len(found) < count:
        text = indexable(random, expressions) if random.random() < 0.85 else expressions.condition(2)
        try:
            found.append(compile_where(text, {}, COLUMNS))
        except InvalidWhere:
            continue
    return found


def by_evaluation(shapes: dict[int, Predicate], cells: list[bytes | None]) -> tuple[set[int], set[int]]:
    """The shapes whose clause is true for a row, and those whose clause fails."""
    members: set[int] = set()
    failed: set[int] = set()
    for shape, predicate in shapes.items():
        try:
            if predicate(cells):
                members.add(shape)
        except EvaluationError:
            failed.add(shape)
    return members, failed


def check(random: Random, pool: list[Filter], rounds: int) -> Counter[str]:
    """Adds, removes and routes at random; at the end nothing may be left."""
    router, shapes, number = Router[int](), dict[int, Predicate](), 0
    counts: Counter[str] = Counter()
    for _ in range(rounds):
        for _ in range(random.randrange(8)):
            number += 1
            filter_ = random.choice(pool)
            shapes[number] = filter_.predicate
            router.add(number, filter_)
        for shape in random.sample(sorted(shapes), min(len(shapes), random.randrange(6))):
            router.remove(shape)
            del shapes[shape]
        cells = stream_row(random)
        failed: dict[int, EvaluationError] = {}
        routed = router.route(cells, failed)
        members, failing = by_evaluation(shapes, cells)
        assert len(routed) == len(set(routed))
        assert set(routed) == members
        assert set(failed) <= failing
        counts.update(routed=len(routed), shapes=len(shapes))
    for shape in shapes:
        router.remove(shape)
    assert (len(router), router.index_count) == (0, 0)
    return counts


def test_routed_is_what_evaluation_finds() -> None:
    totals: Counter[str] = Counter()

    @given(random=st.randoms(use_true_random=True))
    @settings(max_examples=15, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    def run(random: Random) -> None:
        totals.update(check(random, filters(random, 60), 60))

    run()
    assert totals["routed"] > 1000


def test_null_is_no_value() -> None:
    """Neither JSON's null nor an empty text is what a column without a value has."""
    router: Router[str] = Router()
    for text in ("js = 'null'", "t = ''", "js IS NULL", "n = 'NaN'", "js IN ('null', '1')"):
        router.add(text, compile_where(text, {}, COLUMNS))
    assert router.route([None] * len(COLUMNS), {}) == ["js IS NULL"]


def test_one_failing_shape_hurts_nobody() -> None:
    router: Router[str] = Router()
    router.add("fails", compile_where("1 / i4 = 1", {}, COLUMNS))
    router.add("fine", compile_where("t = 'a'", {}, COLUMNS))
    cells = stream_row(Random(1))
    for column in COLUMNS:
        if column.name in ("i4", "t"):
            cells[column.position] = {"i4": b"0", "t": b"a"}[column.name]
    failed: dict[str, EvaluationError] = {}
    assert router.route(cells, failed) == ["fine"]
    assert str(failed["fails"]) == "division by zero"


def test_many_clauses_under_one_key() -> None:
    """What they have in common finds none of them by itself: few clauses are evaluated for a row."""
    asked = 0

    class Counted(Filter):
        @property
        def predicate(self) -> Predicate:
            predicate = Filter.predicate.fget(self)  # type: ignore[attr-defined]

            def counting(cells: Any) -> Any:
                nonlocal asked
                asked += 1
                return predicate(cells)

            return counting

    router: Router[int] = Router()
    shapes: dict[int, Predicate] = {}
    for number in range(300):
        first = compile_where(f"t = 'open' AND n > {number}", {}, COLUMNS)
        filter_ = Counted(first.template, tuple(first.value(place) for place in first.template.parameters))
        shapes[number] = first.predicate
        router.add(number, filter_)
    places = {column.name: column.position for column in COLUMNS}
    for state, n in (("open", "3"), ("closed", "3"), ("open", "-1"), ("open", "299")):
        cells: list[bytes | None] = [None] * len(COLUMNS)
        cells[places["t"]], cells[places["n"]] = state.encode(), n.encode()
        asked = 0
        members = by_evaluation(shapes, cells)[0]
        assert set(router.route(cells, {})) == members
        assert asked == len(members)
    for number in range(300):
        router.remove(number)
    assert (len(router), router.index_count) == (0, 0)


@pytest.mark.parametrize(
    "clause",
    [
        "(i4 = 1 AND n > 100) OR (i4 = 1 AND n > {0})",
        "(i4 = 1 AND n > 100) OR (i4 = 2 AND n > {0})",
        "(i4 = 1 AND ai @> '{{1,2}}') OR (i4 = 1 AND ai @> '{{3,{0}}}')",
        "(i4 = 1 AND t LIKE '%{0}%') OR (i4 = 1 AND t LIKE '%x{0}%')",
        "i4 IN (1, 2) AND n > {0}",
    ],
)
@pytest.mark.parametrize("count", [1, FEW - 1, FEW, FEW + 1, 3 * FEW])
def test_several_paths_of_a_clause_under_one_key(clause: str, count: int) -> None:
    """The key's clauses move into an index when they become many, each with all of its paths, and all leave it."""
    random = Random(count)
    router: Router[int] = Router()
    shapes: dict[int, Predicate] = {}
    places = {column.name: column.position for column in COLUMNS}
    for number in range(count):
        filter_ = compile_where(clause.format(number), {}, COLUMNS)
        router.add(number, filter_)
        shapes[number] = filter_.predicate
    for _ in range(30):
        cells: list[bytes | None] = [None] * len(COLUMNS)
        cells[places["i4"]] = random.choice([b"1", b"2", b"3"])
        cells[places["n"]] = b"%d" % random.randrange(-1, 3 * FEW)
        cells[places["ai"]] = b"{1,2,%d,3,%d}" % (random.randrange(9), random.randrange(3 * FEW))
        cells[places["t"]] = b"x%d" % random.randrange(3 * FEW)
        assert set(router.route(cells, {})) == by_evaluation(shapes, cells)[0]
        if random.random() < 0.2 and shapes:
            gone = random.choice(sorted(shapes))
            router.remove(gone)
            del shapes[gone]
    for number in shapes:
        router.remove(number)
    assert (len(router), router.index_count) == (0, 0)

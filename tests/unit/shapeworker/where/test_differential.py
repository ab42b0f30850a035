"""Generated expressions over generated rows: what we say is what Postgres says, and so is what our SQL says.

Postgres is asked twice: the client's text as it is, and the SQL that we made of it. `make test` compares 3 000 pairs of
expression and row, `make test-where` 100 000.
"""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shapeworker.where import EvaluationError, Filter, InvalidWhere, compile_where
from shapeworker.where.compile import constant_value, value_program
from shapeworker.where.functions import FUNCTIONS, OPERATORS
from tests.unit.shapeworker.where.expressions import Expressions, row
from tests.unit.shapeworker.where.oracle import COLUMNS, Oracle, shown

ROWS = 5
EXPRESSIONS = 20
PAIRS = ROWS * EXPRESSIONS
LOOSE = {
    f"invalid input syntax for type {name}"
    for name in ("date", "time", "timetz", "timestamp", "timestamptz", "interval")
}
"""Postgres reads nearly anything as a time, such as the text of a range; here that is an error (docs/where.md)."""


def compiled(text: str) -> Filter | None:
    try:
        return compile_where(text, {}, COLUMNS)
    except InvalidWhere:
        return None


def agree(filter_: Filter, row_: list[bytes | None], client: str, snapshot: str) -> bool:
    """Whether our verdicts for one row fit Postgres' for the client's text and for our SQL."""
    try:
        member: bool | None = filter_.predicate(row_)
    except EvaluationError:
        member = None
    if "public.amount[]" in client:
        # Postgres has no operators between an array of a domain and one of its base type; here they are one type.
        client = snapshot
    if client.startswith("error"):
        # AND ends at the first operand that is not true, Postgres at the first that is false: so where it fails over
        # the next one, the row may be out of the shape here, or in below NOT. What is calculated in full must fail.
        if member is True:
            try:
                value_program(filter_.tree).bound(constant_value)(row_)
            except EvaluationError:
                return snapshot.startswith("error")
            return False
        return snapshot.startswith("error") or snapshot != "=true"
    try:
        value = shown(value_program(filter_.tree).bound(constant_value)(row_))
    except EvaluationError as error:
        if str(error) in LOOSE:
            return member is None or member is (client == "=true")
        value = "error"
    return value == client == snapshot and member is (client == "=true")


def compare(oracle: Oracle, random: Random, depth: int) -> Counter[str]:
    """One round of PAIRS comparisons. Returns what Postgres said how often."""
    oracle.fill([row(random) for _ in range(ROWS)])
    texts = [Expressions(random).condition(depth) for _ in range(EXPRESSIONS)]
    accepted = [(text, filter_) for text in texts if (filter_ := compiled(text))]
    snapshots = [filter_.sql.as_string(None) for _, filter_ in accepted]
    verdicts = oracle.verdicts([text for text, _ in accepted] + snapshots)
    counts: Counter[str] = Counter(refused=(len(texts) - len(accepted)) * ROWS)
    for number, (text, filter_) in enumerate(accepted):
        for place, row_ in enumerate(oracle.rows):
            client, snapshot = verdicts[number][place], verdicts[len(accepted) + number][place]
            counts[client.partition(":")[0]] += 1
            # Where constants fail, Postgres has no verdict on any row, even if others have decided here already.
            if not agree(filter_, row_, client, snapshot) and oracle.plans(text):
                values = {column.name: row_[column.position] for column in COLUMNS if column.name in filter_.columns}
                pytest.fail(f"{text}\nof {values}: Postgres says {client}, and {snapshot} to {filter_.canonical}")
    return counts


def generated(oracle: Oracle, rounds: int, depth: int) -> Counter[str]:
    """Rounds of comparisons, found by hypothesis so that it can shrink a failure."""
    counts: Counter[str] = Counter()

    @given(random=st.randoms(use_true_random=True))
    @settings(max_examples=rounds, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    def run(random: Random) -> None:
        counts.update(compare(oracle, random, depth))

    run()
    return counts


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_expressions(oracle: Oracle, depth: int) -> None:
    counts = generated(oracle, 1_000 // PAIRS, depth)
    # Proof that the comparison compares something.
    assert counts["=true"] > 100
    assert counts["=false"] > 100
    assert counts["refused"] < 200


@pytest.mark.where
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_many_expressions(oracle: Oracle, depth: int) -> None:
    counts = generated(oracle, 25_000 // PAIRS, depth)
    assert counts["=true"] > 5_000
    assert counts["error"] > 5
    assert counts["refused"] < 2_500


def test_our_sql_means_the_same_in_any_locale(foreign_oracle: Oracle) -> None:
    """Order, case and classes of characters do not depend on the database."""
    random = Random(20)
    foreign_oracle.fill([row(random) for _ in range(40)])
    texts = [
        *(
            "t < s",
            "t BETWEEN 'A' AND 'b'",
            "lower(t) = lower(s)",
            "upper(t) = s",
            "t ILIKE 'İ%'",
            "t ILIKE s",
            "t ~* 'i'",
        ),
        *(
            "lower(t) < upper(s)",
            "GREATEST(t, s) = t",
            "at < '{b}'",
            "t ILIKE ANY (ARRAY['i%', '%É%'])",
            "vc > t",
            "bp < t",
        ),
        *(
            "bp ILIKE '% '",
            "nm < t",
            "t IN ('a', 'A', 'ı')",
            "t LIKE '_'",
            "t ~ '[[:alpha:]]'",
            "t ILIKE '%ς'",
            "s >= ANY (at)",
        ),
        *("t ILIKE 'i%' OR upper(s) LIKE '%I%'", "concat(t, s) ILIKE '%é%'", "CASE WHEN b THEN t ELSE s END > 'a'"),
    ]
    filters = [compile_where(text, {}, COLUMNS) for text in texts]
    verdicts = foreign_oracle.verdicts([filter_.sql.as_string(None) for filter_ in filters])
    for text, filter_, found in zip(texts, filters, verdicts, strict=True):
        for row_, expected in zip(foreign_oracle.rows, found, strict=True):
            try:
                member = filter_.predicate(row_)
            except EvaluationError:
                assert expected.startswith("error"), text
                continue
            assert member == (expected == "=true"), (text, row_[:12], expected)


def test_every_function_alone(oracle: Oracle) -> None:
    """Each overload over plain columns and constants: the value as text, or an error, as Postgres has it."""
    random = Random(7)
    oracle.fill([row(random) for _ in range(8)])
    calls = []
    expressions = Expressions(random)
    for is_operator, registry in ((True, OPERATORS), (False, FUNCTIONS)):
        for key, overloads in registry.items():
            name = key[0] if isinstance(key, tuple) else key
            if name in ("~", "!~", "~*", "!~*", "^", "ilike", "position"):
                continue
            for overload in overloads:
                calls += [expressions.called(name, is_operator, overload, 1) for _ in range(2)]
    # As a text, so that values of all types can be compared; what has no cast to text has its NULL test.
    accepted = []
    for call in calls:
        filter_ = compiled(f"({call})::text IS NOT DISTINCT FROM 'x'") or compiled(f"({call}) IS NULL")
        if filter_ is not None:
            accepted.append((call, filter_))
    assert len(accepted) > 0.9 * len(calls)
    clients = oracle.verdicts([f"({call})" for call, _ in accepted])
    snapshots = oracle.verdicts([filter_.sql.as_string(None) for _, filter_ in accepted])
    for (call, filter_), client, snapshot in zip(accepted, clients, snapshots, strict=True):
        for row_, expected, ours in zip(oracle.rows, client, snapshot, strict=True):
            try:
                verdict = shown(value_program(filter_.tree).bound(constant_value)(row_))
            except EvaluationError:
                verdict = "error"
            assert verdict == ours.partition(":")[0], (call, row_, ours)
            assert (verdict == "error") == expected.startswith("error"), (call, row_, expected)

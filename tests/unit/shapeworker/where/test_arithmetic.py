"""Numbers and intervals, calculated and printed: the text of every result is Postgres'."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import psycopg
import pytest

from shapeworker.where import intervals
from shapeworker.where.casts import find
from shapeworker.where.errors import EvaluationError
from shapeworker.where.numbers import float_arithmetic
from shapeworker.where.numeric import numeric_arithmetic, rescaled
from shapeworker.where.types import FLOAT4, FLOAT8, INT2, INT4, INT8, INTERVAL, NUMERIC, TIMESTAMP, Type
from tests.unit.shapeworker.where.oracle import Oracle

COUNT = 300


def postgres(oracle: Oracle, sql: str, pairs: list[tuple[str, str]]) -> list[str | None]:
    """The texts of an expression over ``a`` and ``b`` for each pair; None where it fails."""
    query = f"""
    CREATE OR REPLACE FUNCTION public.calculated(a text, b text) RETURNS text LANGUAGE plpgsql AS $$
    BEGIN RETURN ({sql})::text; EXCEPTION WHEN OTHERS THEN RETURN NULL; END $$"""
    oracle.connection.execute(query.encode())
    cursor: psycopg.Cursor[Any] = oracle.connection.execute(
        "SELECT public.calculated(a, b) FROM unnest(%s::text[], %s::text[]) WITH ORDINALITY AS x(a, b, n) ORDER BY n",
        [[a for a, _ in pairs], [b for _, b in pairs]],
    )
    return [row[0] for row in cursor]


def ours(type_: Type, calculate: Callable[[], Any]) -> str | None:
    """Ours; None where it fails."""
    try:
        return type_.output(calculate())
    except EvaluationError:
        return None


def value(type_: Type, text: str) -> Any:
    assert type_.input is not None
    return type_.input(text)


def decimals(random: Random) -> str:
    """A numeric of any size; now and then the result of a division by it is a tie."""
    digits = str(random.randrange(10 ** random.choice((1, 1, 2, 5, 9, 20, 40))))
    point = random.randrange(len(digits) + 3)
    text = digits.rjust(point + 1, "0")
    text = text[: len(text) - point] + "." + text[len(text) - point :] if point else text
    return random.choice(("", "", "-")) + text


def floats(random: Random) -> str:
    """A float8 of any size, often a short one or a power of two."""
    return repr(
        random.choice(
            (
                random.uniform(-10, 10),
                float(random.randrange(-1000, 1000)),
                random.random() * 10.0 ** random.randrange(-320, 308),
                2.0 ** random.randrange(-149, 127),
                random.randrange(1 << 24, 1 << 26) / 2.0 ** random.randrange(0, 60),
            )
        )
    )


@pytest.mark.parametrize("operation", ["+", "-", "*", "/", "%"])
def test_numeric(oracle: Oracle, operation: str) -> None:
    random = Random(1)
    pairs = [(decimals(random), decimals(random)) for _ in range(COUNT)]
    # Quotients whose last digit is decided by a tie.
    pairs += [(f"{odd}", f"{2**power}") for odd in (1, 3, 7, 12345, -5) for power in range(1, 60)]
    calculate = numeric_arithmetic(operation)
    expected = postgres(oracle, f"a::numeric {operation} b::numeric", pairs)
    for (a, b), theirs in zip(pairs, expected, strict=True):
        assert ours(NUMERIC, lambda a=a, b=b: calculate(value(NUMERIC, a), value(NUMERIC, b))) == theirs, (a, b)  # type: ignore[misc]


def test_rounding(oracle: Oracle) -> None:
    random = Random(2)
    pairs = [(decimals(random), str(random.randrange(-5, 12))) for _ in range(COUNT)]
    pairs += [(text, "0") for text in ("0.5", "1.5", "2.5", "-0.5", "-2.5", "0.49")]
    expected = postgres(oracle, "round(a::numeric, b::int4)", pairs)
    for (a, b), theirs in zip(pairs, expected, strict=True):
        result = rescaled(rescaled(value(NUMERIC, a), int(b)), max(int(b), 0))
        assert NUMERIC.output(result) == theirs, (a, b)


@pytest.mark.parametrize("operation", ["+", "-", "*", "/"])
@pytest.mark.parametrize("type_", [FLOAT4, FLOAT8], ids=str)
def test_floats(oracle: Oracle, type_: Type, operation: str) -> None:
    random = Random(3)
    pairs = [(floats(random), floats(random)) for _ in range(COUNT)]
    if type_ is FLOAT4:
        kept = [text for pair in pairs for text in pair if 1e-30 < abs(float(text)) < 1e30 or float(text) == 0]
        pairs = list(zip(kept[::2], kept[1::2], strict=False))
    calculate = float_arithmetic(operation, type_ is FLOAT4)
    expected = postgres(oracle, f"a::{type_} {operation} b::{type_}", pairs)
    for (a, b), theirs in zip(pairs, expected, strict=True):
        assert ours(type_, lambda a=a, b=b: calculate(value(type_, a), value(type_, b))) == theirs, (a, b)  # type: ignore[misc]


@pytest.mark.parametrize("target", [INT2, INT4, INT8, NUMERIC, FLOAT4, FLOAT8], ids=str)
@pytest.mark.parametrize("source", [INT8, NUMERIC, FLOAT4, FLOAT8], ids=str)
def test_casts(oracle: Oracle, source: Type, target: Type) -> None:
    if source is target:
        pytest.skip("no cast")
    random = Random(4)
    make = decimals if source is NUMERIC else floats
    if source is INT8:
        make = lambda random: str(random.randrange(-(1 << 63), 1 << 63) >> random.randrange(60))  # noqa: E731
    texts = [make(random) for _ in range(COUNT)]
    texts += [f"{n}.5" for n in range(-5, 6)] if source is not INT8 else ["32767", "-32769", "16777217", "33554435"]
    if source is NUMERIC:
        # Around the ends of float4, also where the way over float8 would round twice.
        ends = ["1e-50", "1e-46", "7.0064923216240854e-46", "7.0064923216240853e-46", "1.1754943e-38"]
        largest, halfway = 2**128 - 2**104, 2**128 - 2**103
        ends += [f"{number}" for number in (largest - 1, largest, largest + 1, halfway - 1, halfway, halfway + 1)]
        texts += [sign + text for text in ends for sign in ("", "-")]
    texts = [text for text in texts if source is not FLOAT4 or 1e-30 < abs(float(text)) < 1e30]
    cast = find(source, target)
    assert cast is not None
    body = cast.body or (lambda value: value)
    expected = postgres(oracle, f"a::{source}::{target}", [(text, "") for text in texts])
    for text, theirs in zip(texts, expected, strict=True):
        assert ours(target, lambda text=text: body(value(source, text))) == theirs, text  # type: ignore[misc]


def spans(random: Random) -> str:
    """An interval with fields of any signs."""
    return (
        f"{random.randrange(-40, 40)} mons {random.randrange(-400, 400)} days"
        f" {random.choice(('', '-'))}{random.randrange(100)}:{random.randrange(60):02d}:{random.randrange(60):02d}"
        f".{random.randrange(1_000_000):06d}"
    )


_SPANS: dict[str, Callable[[Any, float], Any]] = {
    "a::interval * b::float8": intervals.multiply,
    "a::interval / b::float8": intervals.divide,
    "justify_interval(a::interval)": lambda span, _: intervals.justify_interval(span),
    "justify_days(a::interval)": lambda span, _: intervals.justify_days(span),
    "justify_hours(a::interval)": lambda span, _: intervals.justify_hours(span),
}


@pytest.mark.parametrize("expression", _SPANS)
def test_intervals(oracle: Oracle, expression: str) -> None:
    random = Random(5)
    pairs = [(spans(random), str(round(random.uniform(-20, 20), random.randrange(6)))) for _ in range(COUNT)]
    expected = postgres(oracle, expression, pairs)
    for (a, b), theirs in zip(pairs, expected, strict=True):
        assert ours(INTERVAL, lambda a=a, b=b: _SPANS[expression](value(INTERVAL, a), float(b))) == theirs, (a, b)  # type: ignore[misc]


def test_timestamps_and_intervals(oracle: Oracle) -> None:
    random = Random(6)
    days = ("2024-01-31", "2023-12-31", "2024-02-29", "1999-10-31", "0044-03-31 BC", "0001-01-01", "5000-05-30")
    pairs = [(f"{random.choice(days)}", spans(random)) for _ in range(COUNT)]
    expected = postgres(oracle, "a::timestamp + b::interval", pairs)
    for (a, b), theirs in zip(pairs, expected, strict=True):
        result = intervals.add_to_timestamp(value(TIMESTAMP, a), value(INTERVAL, b))
        assert TIMESTAMP.output(result) == theirs, (a, b)

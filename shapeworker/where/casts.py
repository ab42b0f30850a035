"""Which type becomes which, by itself or when asked to, as in pg_cast for sessions in UTC.

A cast that keeps the value has no body. Whatever has an output function becomes a text, and whatever has an input
function comes from one, when asked to.
"""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import Any, Final, NamedTuple

from shapeworker.where import datetimes, intervals, networks, numbers, numeric, texts
from shapeworker.where.arrays import Array
from shapeworker.where.errors import EvaluationError
from shapeworker.where.types import (
    BOOL,
    BPCHAR,
    CIDR,
    DATE,
    FLOAT4,
    FLOAT8,
    INET,
    INT2,
    INT4,
    INT8,
    INTERVAL,
    NAME,
    NUMERIC,
    STRINGS,
    TEXT,
    TIME,
    TIMESTAMP,
    TIMESTAMPTZ,
    TIMETZ,
    VARCHAR,
    Type,
)

Body = Callable[[Any], Any]


class Cast(NamedTuple):
    """A cast that exists. ``implicit`` says that it is applied unasked."""

    body: Body | None
    implicit: bool


_BOUNDS: Final = {INT2: numbers.INT2, INT4: numbers.INT4, INT8: numbers.INT8}
_CASTS: Final[dict[tuple[Type, Type], Cast]] = {}


def _add(source: Type, target: Type, body: Body | None, *, implicit: bool = False) -> None:
    _CASTS[source, target] = Cast(body, implicit)


def _integers() -> None:
    for source, bound in _BOUNDS.items():
        for target, other in _BOUNDS.items():
            if bound < other:
                _add(source, target, None, implicit=True)
            elif bound > other:
                _add(source, target, numbers.in_range(other))
        _add(source, NUMERIC, Decimal, implicit=True)
        _add(source, FLOAT8, float, implicit=True)
        _add(source, FLOAT4, numbers.nearest_float4, implicit=True)
        _add(NUMERIC, source, numeric.numeric_to_integer(bound))
        _add(FLOAT8, source, numbers.rounded(bound))
        _add(FLOAT4, source, numbers.rounded(bound))


_integers()
_add(NUMERIC, FLOAT8, numeric.numeric_to_float8, implicit=True)
_add(NUMERIC, FLOAT4, numeric.numeric_to_float4, implicit=True)
_add(FLOAT8, NUMERIC, numeric.float_to_numeric(15))
_add(FLOAT4, NUMERIC, numeric.float_to_numeric(6))
_add(FLOAT4, FLOAT8, None, implicit=True)
_add(FLOAT8, FLOAT4, numbers.to_float4)
_add(BOOL, INT4, int)
_add(INT4, BOOL, bool)
_add(TEXT, VARCHAR, None, implicit=True)
_add(VARCHAR, TEXT, None, implicit=True)
_add(TEXT, BPCHAR, None, implicit=True)
_add(VARCHAR, BPCHAR, None, implicit=True)
_add(BPCHAR, TEXT, texts.stripped, implicit=True)
_add(BPCHAR, VARCHAR, texts.stripped, implicit=True)
_add(TEXT, NAME, texts.name_input, implicit=True)
_add(VARCHAR, NAME, texts.name_input, implicit=True)
_add(BPCHAR, NAME, lambda text: texts.name_input(texts.stripped(text)), implicit=True)
_add(NAME, TEXT, None, implicit=True)
_add(NAME, VARCHAR, None)
_add(NAME, BPCHAR, None)
_add(DATE, TIMESTAMP, datetimes.date_to_timestamp, implicit=True)
_add(DATE, TIMESTAMPTZ, datetimes.date_to_timestamp, implicit=True)
_add(TIMESTAMP, TIMESTAMPTZ, None, implicit=True)
_add(TIMESTAMPTZ, TIMESTAMP, None)
_add(TIMESTAMP, DATE, datetimes.timestamp_to_date)
_add(TIMESTAMPTZ, DATE, datetimes.timestamp_to_date)
_add(TIMESTAMP, TIME, datetimes.timestamp_to_time)
_add(TIMESTAMPTZ, TIME, datetimes.timestamp_to_time)
_add(TIMESTAMPTZ, TIMETZ, lambda stamp: _with_zone(datetimes.timestamp_to_time(stamp)))
_add(TIME, INTERVAL, lambda time: (0, 0, time), implicit=True)
_add(TIME, TIMETZ, lambda time: (time, 0), implicit=True)
_add(TIMETZ, TIME, lambda value: value[0])
_add(INTERVAL, TIME, intervals.to_time)
_add(CIDR, INET, None, implicit=True)
_add(INET, CIDR, networks.to_cidr)


def _with_zone(time: int | None) -> datetimes.TimeTz | None:
    return None if time is None else (time, 0)


def _from_text(target: Type) -> Body:
    def read(text: str) -> Any:
        assert target.input is not None
        try:
            return target.input(text)
        except ValueError:
            # Also for a form that Postgres reads and this module's types do not: an error is never a wrong verdict.
            raise EvaluationError(f"invalid input syntax for type {target.name}") from None

    return read


def find(source: Type, target: Type) -> Cast | None:
    """The cast between two different types, or None if there is none."""
    if cast := _CASTS.get((source, target)):
        return cast
    if source.element is not None and target.element is not None:
        cast = find(source.element, target.element)
        return cast and Cast(_each(cast.body), cast.implicit)
    if target in STRINGS and source not in STRINGS and (source.comparable or source.name == "json"):
        if target is NAME:
            # No type but texts has a cast to name of its own, so it is the output function that Postgres takes.
            printed = source.printed
            return Cast(lambda value: texts.name_input(printed(value)), False)
        return Cast(source.output, False)
    if source in STRINGS and target.input is not None and target not in STRINGS:
        read = _from_text(target)
        return Cast((lambda text: read(texts.stripped(text))) if source is BPCHAR else read, False)
    return None


def _each(body: Body | None) -> Body | None:
    if body is None:
        return None

    def cast(value: Array) -> Array:
        elements = tuple(None if item is None else body(item) for item in value.elements)
        return Array(elements, value.sizes, value.lowers)

    return cast


def is_implicit(source: Type, target: Type) -> bool:
    """Whether a value of one type may stand where the other is wanted."""
    if source is target:
        return True
    cast = find(source, target)
    return cast is not None and cast.implicit

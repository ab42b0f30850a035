"""Comparison: ``= <> < <= > >=`` of all types that have an order or at least an equality."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, Final

from shapeworker.where import datetimes
from shapeworker.where.overloads import Parameter
from shapeworker.where.registry import Body, op, same
from shapeworker.where.types import (
    BOOL,
    CIDR,
    DATE,
    FLOAT4,
    FLOAT8,
    INTEGERS,
    JSONB,
    NAME,
    SCALARS,
    TEXT,
    TIMESTAMP,
    TIMESTAMPTZ,
    VARCHAR,
    Type,
)

COMPARISONS: Final[dict[str, Callable[[Any, Any], Any]]] = {
    "=": operator.eq,
    "<>": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def _compare(compare: Body) -> Callable[..., Body]:
    def make(left: Type, right: Type) -> Body:
        if left is not right and {left, right} & {DATE}:
            # A date against a timestamp is its midnight.
            left_cast, right_cast = (_to_timestamp if type_ is DATE else same for type_ in (left, right))
            return lambda a, b: compare(left_cast(a), right_cast(b))
        left_key, right_key = left.key, right.key
        if left_key is None or right_key is None:
            return compare
        return lambda a, b: compare(left_key(a), right_key(b))

    return make


def _to_timestamp(days: int) -> int:
    # Dates reach further than timestamps; here that is no error.
    ends = {datetimes.DATE_PLUS: datetimes.STAMP_PLUS, datetimes.DATE_MINUS: datetimes.STAMP_MINUS}
    return ends.get(days, days * datetimes.DAY)


def _comparisons() -> None:
    pairs: list[tuple[Parameter, Parameter]] = [(type_, type_) for type_ in SCALARS if type_.comparable]
    pairs.remove((JSONB, JSONB))
    # varchar and cidr have no operators of their own.
    pairs = [pair for pair in pairs if pair[0] not in (VARCHAR, CIDR)]
    for group in (INTEGERS, (FLOAT4, FLOAT8), (DATE, TIMESTAMP, TIMESTAMPTZ), (NAME, TEXT)):
        pairs += [(left, right) for left in group for right in group if left is not right]
    pairs += [("anyenum", "anyenum"), ("anyarray", "anyarray")]
    for name, compare in COMPARISONS.items():
        for pair in pairs:
            op(name, pair, BOOL, None, make=_compare(compare))
        if name in ("=", "<>"):
            op(name, (JSONB, JSONB), BOOL, None, make=_compare(compare))


_comparisons()

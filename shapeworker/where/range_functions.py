"""Functions of ranges, and of inet and cidr."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from shapeworker.where import networks, ranges
from shapeworker.where.errors import EvaluationError
from shapeworker.where.overloads import Parameter
from shapeworker.where.registry import Body, func, op
from shapeworker.where.types import BOOL, CIDR, INET, INT4, RANGES, TEXT, Type


def _swapped(body: Body) -> Body:
    return lambda left, right: body(right, left)


def _range_functions() -> None:
    both: tuple[Parameter, ...] = ("anyrange", "anyrange")
    tests: dict[str, Callable[[ranges.Range, ranges.Range], bool]] = {
        "@>": ranges.contains,
        "<@": _swapped(ranges.contains),
        "&&": ranges.overlap,
        "<<": ranges.before,
        ">>": _swapped(ranges.before),
        "&<": ranges.not_beyond,
        "&>": ranges.not_below,
        "-|-": ranges.adjacent,
    }
    for name, test in tests.items():
        op(name, both, BOOL, test)
    holds, held = ranges.contains_value, _swapped(ranges.contains_value)
    op("@>", ("anyrange", "anyelement"), BOOL, holds, prepare=_containing, prepared_place=0)
    op("<@", ("anyelement", "anyrange"), BOOL, held, prepare=_containing)
    func("lower", ("anyrange",), "anyelement", ranges.low_value)
    func("upper", ("anyrange",), "anyelement", ranges.high_value)
    for function, body in (
        *(("isempty", ranges.is_empty), ("lower_inc", ranges.includes_low), ("upper_inc", ranges.includes_high)),
        *(("lower_inf", ranges.has_no_low), ("upper_inf", ranges.has_no_high)),
    ):
        func(function, ("anyrange",), BOOL, body)
    for type_ in RANGES:
        assert type_.subtype is not None
        ends = (type_.subtype, type_.subtype)
        func(type_.name, ends, type_, _constructor(type_), strict=False)
        func(type_.name, (*ends, TEXT), type_, _constructor(type_), strict=False)


def _containing(range_: ranges.Range) -> Body:
    """``@>`` of a constant range. Of one that holds nothing or all, the planner of Postgres 17 decides without looking
    at the value, so that a NULL is in or out; before, the answer was NULL. Raises EvaluationError."""
    if range_ in (ranges.EMPTY, (ranges.BELOW, ranges.ABOVE)):
        text = "whether a constant range without values or without ends holds NULL depends on the version of Postgres"
        raise EvaluationError(f"{text}: test with IS NULL instead")
    return partial(ranges.contains_value, range_)


def _constructor(type_: Type) -> Body:
    successor = type_.successor

    def construct(low: Any, high: Any, brackets: str | None = "[)") -> ranges.Range:
        if brackets not in ("[)", "[]", "(]", "()"):
            raise EvaluationError("invalid range bound flags")
        return ranges.make_range(low, high, brackets, successor)

    return construct


def _network_functions() -> None:
    both = (INET, INET)
    op("<<", both, BOOL, networks.inside)
    op("<<=", both, BOOL, networks.inside_or_equal)
    op(">>", both, BOOL, _swapped(networks.inside))
    op(">>=", both, BOOL, _swapped(networks.inside_or_equal))
    op("&&", both, BOOL, networks.overlap)
    func("family", (INET,), INT4, networks.family)
    func("masklen", (INET,), INT4, networks.mask_length)
    func("host", (INET,), TEXT, networks.host)
    func("network", (INET,), CIDR, networks.to_cidr)


_range_functions()
_network_functions()

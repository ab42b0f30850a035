"""Functions of ranges, and of inet and cidr."""

from __future__ import annotations

from collections.abc import Callable
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
    op("@>", ("anyrange", "anyelement"), BOOL, ranges.contains_value)
    op("<@", ("anyelement", "anyrange"), BOOL, _swapped(ranges.contains_value))
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

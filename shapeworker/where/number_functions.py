"""Arithmetic."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal

from shapeworker.where import numbers, numeric
from shapeworker.where.errors import EvaluationError
from shapeworker.where.numbers import NAN
from shapeworker.where.numeric import NUMERIC_NAN
from shapeworker.where.registry import Body, func, op, same
from shapeworker.where.types import (
    FLOAT4,
    FLOAT8,
    INT2,
    INT4,
    INT8,
    NUMERIC,
)


def _ranged(bound: int, calculate: Callable[[int, int], int]) -> Body:
    check = numbers.in_range(bound)
    return lambda left, right: check(calculate(left, right))


def _integer_operators() -> None:
    bounds = {INT2: numbers.INT2, INT4: numbers.INT4, INT8: numbers.INT8}
    basic: dict[str, Callable[[int, int], int]] = {
        "+": operator.add,
        "-": operator.sub,
        "*": operator.mul,
        "/": numbers.truncated,
    }
    for left, left_bound in bounds.items():
        for right, right_bound in bounds.items():
            wider = left if left_bound >= right_bound else right
            for name, calculate in basic.items():
                op(name, (left, right), wider, _ranged(bounds[wider], calculate))
    bitwise: dict[str, Body] = {"&": operator.and_, "|": operator.or_, "#": operator.xor, "%": numbers.remainder}
    for type_, bound in bounds.items():
        check = numbers.in_range(bound)
        for name, body in bitwise.items():
            op(name, (type_, type_), type_, body)
        func("mod", (type_, type_), type_, numbers.remainder)
        op("~", (type_,), type_, operator.invert)
        op("-", (type_,), type_, lambda value, check=check: check(-value))
        op("+", (type_,), type_, same)
        op("@", (type_,), type_, lambda value, check=check: check(abs(value)))
        func("abs", (type_,), type_, lambda value, check=check: check(abs(value)))


def _fractional_operators() -> None:
    for name in ("+", "-", "*", "/"):
        op(name, (NUMERIC, NUMERIC), NUMERIC, numeric.numeric_arithmetic(name))
        op(name, (FLOAT4, FLOAT4), FLOAT4, numbers.float_arithmetic(name, single=True))
        for pair in ((FLOAT8, FLOAT8), (FLOAT4, FLOAT8), (FLOAT8, FLOAT4)):
            op(name, pair, FLOAT8, numbers.float_arithmetic(name, single=False))
    op("%", (NUMERIC, NUMERIC), NUMERIC, numeric.numeric_arithmetic("%"))
    func("mod", (NUMERIC, NUMERIC), NUMERIC, numeric.numeric_arithmetic("%"))
    for type_, minus, absolute in (
        (NUMERIC, _numeric_minus, _numeric_abs),
        (FLOAT4, _float_minus, _float_abs),
        (FLOAT8, _float_minus, _float_abs),
    ):
        op("-", (type_,), type_, minus)
        op("+", (type_,), type_, same)
        op("@", (type_,), type_, absolute)
        func("abs", (type_,), type_, absolute)
    op("^", (FLOAT8, FLOAT8), FLOAT8, _power)
    op("^", (NUMERIC, NUMERIC), NUMERIC, None)
    op("|/", (FLOAT8,), FLOAT8, numbers.square_root)
    func("round", (NUMERIC,), NUMERIC, lambda value: numeric.rescaled(value, 0))
    func("round", (NUMERIC, INT4), NUMERIC, _round)
    func("round", (FLOAT8,), FLOAT8, lambda value: _whole_float(value, round))
    for name in ("ceil", "ceiling"):
        func(name, (NUMERIC,), NUMERIC, lambda value: _whole_numeric(value, ROUND_CEILING))
        func(name, (FLOAT8,), FLOAT8, lambda value: _whole_float(value, math.ceil))
    func("floor", (NUMERIC,), NUMERIC, lambda value: _whole_numeric(value, ROUND_FLOOR))
    func("floor", (FLOAT8,), FLOAT8, lambda value: _whole_float(value, math.floor))


def _numeric_minus(value: Decimal) -> Decimal:
    return value if value is NUMERIC_NAN or not value else value.copy_negate()


def _numeric_abs(value: Decimal) -> Decimal:
    return value if value is NUMERIC_NAN else value.copy_abs()


def _float_minus(value: float) -> float:
    return NAN if value is NAN else -value


def _float_abs(value: float) -> float:
    return NAN if value is NAN else abs(value)


def _round(value: Decimal, digits: int) -> Decimal:
    if value is NUMERIC_NAN or not value.is_finite():
        return value
    digits = max(min(digits, 16_383), -131_072)
    return numeric.rescaled(numeric.rescaled(value, digits), max(digits, 0))


def _whole_numeric(value: Decimal, rounding: str) -> Decimal:
    if value is NUMERIC_NAN or not value.is_finite():
        return value
    return numeric.rescaled(value.to_integral_value(rounding=rounding), 0)


def _whole_float(value: float, rounded: Callable[[float], int]) -> float:
    if value is NAN or math.isinf(value):
        return value
    return math.copysign(float(rounded(value)), value)


def _power(base: float, exponent: float) -> float:
    if base == 0 and exponent < 0:
        raise EvaluationError("zero raised to a negative power is undefined")
    if base < 0 and exponent is not NAN and not math.isinf(exponent) and exponent != math.floor(exponent):
        raise EvaluationError("a negative number raised to a non-integer power yields a complex result")
    if base is NAN or exponent is NAN:
        return 1.0 if exponent == 0 or base == 1 else NAN
    try:
        result = math.pow(base, exponent)
    except OverflowError:
        raise EvaluationError("value out of range: overflow") from None
    if result == 0 and base != 0 and not math.isinf(base) and not math.isinf(exponent):
        raise EvaluationError("value out of range: underflow")
    return result


_integer_operators()
_fractional_operators()

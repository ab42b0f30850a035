"""numeric as Postgres reads, rounds, calculates and prints it: exactly, with the scale of its results.

A value is a ``Decimal`` whose exponent is minus its display scale. NaN is an object of its own, as for floats.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from decimal import ROUND_HALF_UP, Context, Decimal
from fractions import Fraction
from typing import Final

from shapeworker.where.errors import EvaluationError
from shapeworker.where.numbers import (
    DIGITS,
    NAN,
    SPACE,
    SPECIAL,
    AboveAll,
    exponent_of,
    integer_input,
    nearest_float4,
    remainder,
    special_value,
)


class _NumericNaN(AboveAll, Decimal):
    pass


NUMERIC_NAN: Final = _NumericNaN("NaN")

_EXACT: Final = Context(prec=400_000, rounding=ROUND_HALF_UP, Emax=999_999, Emin=-999_999)
_MAX_SCALE: Final = 16_383
_MAX_DISPLAY_SCALE: Final = 1000
_MAX_WHOLE_DIGITS: Final = 131_072
_MIN_SIGNIFICANT: Final = 16
_NUMERIC: Final = re.compile(rf"[+-]?(?:{DIGITS}(?:\.(?:{DIGITS})?)?|\.{DIGITS})(?:[eE][+-]?{DIGITS})?\Z", re.ASCII)


def read_numeric(text: bytes) -> Decimal:
    """A numeric as Postgres prints it."""
    return NUMERIC_NAN if text == b"NaN" else Decimal(text.decode())


def numeric_input(text: str) -> Decimal:
    """The input function of numeric. Raises ValueError."""
    text = text.strip(SPACE)
    if special := SPECIAL.match(text):
        value: Decimal = special_value(special, NUMERIC_NAN, Decimal("Infinity"))
        return value
    if not _NUMERIC.match(text) or len(exponent_of(text)) > 8:
        try:
            return Decimal(integer_input(1 << 600)(text))
        except ValueError:
            raise ValueError(text) from None
    # Scales beyond the limit, which Postgres rounds at or refuses, are refused.
    if abs(int(exponent_of(text))) > _MAX_SCALE:
        raise ValueError(text)
    try:
        return _checked(_EXACT.create_decimal(text.replace("_", "")))
    except EvaluationError:
        raise ValueError(text) from None


def _checked(value: Decimal) -> Decimal:
    """Without a positive exponent and a negative zero, which numeric does not have. Raises EvaluationError."""
    exponent = value.as_tuple().exponent
    assert isinstance(exponent, int)
    if not value and exponent > 0:
        return Decimal(0)
    if value.adjusted() >= _MAX_WHOLE_DIGITS or exponent < -_MAX_SCALE:
        raise EvaluationError("value overflows numeric format")
    if exponent > 0:
        value = value.quantize(Decimal(1), context=_EXACT)
    return value if value else abs(value)


def scale(value: Decimal) -> int:
    """The digits after the point that a finite numeric shows."""
    exponent = value.as_tuple().exponent
    assert isinstance(exponent, int)
    return -exponent


def rescaled(value: Decimal, digits: int) -> Decimal:
    """Rounded to so many digits after the point, ties away from zero; before the point if negative."""
    if not value.is_finite():
        return value
    result = value.quantize(Decimal(1).scaleb(-digits), context=_EXACT)
    return _checked(result)


def numeric_output(value: Decimal) -> str:
    """The output function of numeric."""
    if value is NUMERIC_NAN:
        return "NaN"
    return format(value, "f") if value.is_finite() else "Infinity" if value > 0 else "-Infinity"


def numeric_arithmetic(operation: str) -> Callable[[Decimal, Decimal], Decimal]:
    """``+``, ``-``, ``*``, ``/`` or ``%`` of two numerics, with the scale of Postgres' result."""
    calculate = {
        "+": lambda left, right: _EXACT.add(left, right),
        "-": lambda left, right: _EXACT.subtract(left, right),
        "*": lambda left, right: _EXACT.multiply(left, right),
        "/": _divide,
        "%": _modulo,
    }[operation]

    def checked(left: Decimal, right: Decimal) -> Decimal:
        if left is NUMERIC_NAN or right is NUMERIC_NAN:
            return NUMERIC_NAN
        if not left.is_finite() or not right.is_finite():
            return _with_infinity(operation, left, right)
        if operation in "/%" and right == 0:
            raise EvaluationError("division by zero")
        result = calculate(left, right)
        return _checked(result) if scale(result) <= _MAX_SCALE else rescaled(result, _MAX_SCALE)

    return checked


def _with_infinity(operation: str, left: Decimal, right: Decimal) -> Decimal:
    infinite = Decimal("Infinity")
    if operation in "/%" and right == 0:
        raise EvaluationError("division by zero")
    if operation == "%":
        return NUMERIC_NAN if left.is_infinite() else left
    if operation == "/":
        if left.is_infinite() and right.is_infinite():
            return NUMERIC_NAN
        return Decimal(0) if right.is_infinite() else infinite.copy_sign(left) * (1 if right > 0 else -1)
    if operation == "*":
        if left == 0 or right == 0:
            return NUMERIC_NAN
        return infinite if (left > 0) == (right > 0) else -infinite
    right = right if operation == "+" else -right
    if left.is_infinite() and right.is_infinite() and left != right:
        return NUMERIC_NAN
    return left if left.is_infinite() else right


def _leading(value: Decimal) -> tuple[int, int]:
    """Weight and value of the first digit to base 10 000, as numeric stores it."""
    if value == 0:
        return 0, 0
    adjusted = value.adjusted()
    weight = adjusted // 4
    digits = "".join(map(str, value.as_tuple().digits[:4])).ljust(4, "0")
    return weight, int(digits[: adjusted - 4 * weight + 1])


def _divide(left: Decimal, right: Decimal) -> Decimal:
    # The scale that gives at least 16 significant digits, estimated from the first digits to base 10 000.
    (left_weight, left_first), (right_weight, right_first) = _leading(left), _leading(right)
    weight = left_weight - right_weight - (left_first <= right_first)
    digits = max(_MIN_SIGNIFICANT - 4 * weight, scale(left), scale(right), 0)
    digits = min(digits, _MAX_DISPLAY_SCALE)
    exact = digits + scale(right) - scale(left)
    dividend, divisor = _whole(left), _whole(right)
    if exact >= 0:
        dividend *= 10**exact
    else:
        divisor *= 10**-exact
    quotient, rest = divmod(abs(dividend), abs(divisor))
    quotient += 2 * rest >= abs(divisor)
    negative = (dividend < 0) != (divisor < 0)
    return Decimal(-quotient if negative else quotient).scaleb(-digits, context=_EXACT)


def _whole(value: Decimal) -> int:
    return int(value.scaleb(scale(value), context=_EXACT))


def _modulo(left: Decimal, right: Decimal) -> Decimal:
    digits = max(scale(left), scale(right))
    dividend, divisor = _whole(rescaled(left, digits)), _whole(rescaled(right, digits))
    return Decimal(remainder(dividend, divisor)).scaleb(-digits, context=_EXACT)


def numeric_to_integer(bound: int) -> Callable[[Decimal], int]:
    """The cast from numeric to an integer type: to the nearest, ties away from zero. Raises EvaluationError."""

    def cast(value: Decimal) -> int:
        if value is NUMERIC_NAN or not value.is_finite():
            raise EvaluationError("integer out of range")
        result = int(value.to_integral_value(context=_EXACT))
        if not -bound <= result < bound:
            raise EvaluationError("integer out of range")
        return result

    return cast


def numeric_to_float8(value: Decimal) -> float:
    """The cast to float8. Raises EvaluationError for overflow and underflow."""
    if value is NUMERIC_NAN:
        return NAN
    result = float(value)
    if value.is_finite() and (result in (float("inf"), float("-inf")) or (result == 0 and value != 0)):
        raise EvaluationError("value out of range")
    return result


def numeric_to_float4(value: Decimal) -> float:
    """The cast to float4. Raises EvaluationError for overflow and underflow."""
    if value is NUMERIC_NAN:
        return NAN
    if not value.is_finite():
        return float(value)
    if value.adjusted() > 50 or (value.adjusted() < -60 and value != 0):
        raise EvaluationError("value out of range")
    result = nearest_float4(Fraction(value))
    if result == 0 and value != 0:
        raise EvaluationError("value out of range: underflow")
    return result


def float_to_numeric(digits: int) -> Callable[[float], Decimal]:
    """The cast from float8 (15 digits) or float4 (6) to numeric."""

    def cast(value: float) -> Decimal:
        if math.isnan(value):
            return NUMERIC_NAN
        if value in (float("inf"), float("-inf")):
            return Decimal(value)
        return _checked(Decimal(f"{value:.{digits}g}"))

    return cast


def limited(precision: int, digits: int) -> Callable[[Decimal], Decimal]:
    """The cast to ``numeric(precision, digits)``. Raises EvaluationError."""

    def cast(value: Decimal) -> Decimal:
        if value is NUMERIC_NAN:
            return value
        if not value.is_finite():
            raise EvaluationError("numeric field overflow")
        result = rescaled(value, digits)
        if result != 0 and result.adjusted() >= precision - digits:
            raise EvaluationError("numeric field overflow")
        return result

    return cast

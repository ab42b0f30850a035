"""Integers and floats as Postgres reads, rounds, calculates and prints them.

int2, int4 and int8 are ``int``, float4 and float8 are ``float``. NaN is always the one object below: it compares as in
Postgres (equal to itself and above all else), so that Python's operators, sets and sorted lists are right for all.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any, Final

from shapeworker.where.errors import EvaluationError


class AboveAll:
    """For NaN as Postgres has it: it equals itself and is above all other numbers. Stands before the number's type."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return other is self

    def __ne__(self, other: object) -> bool:
        return other is not self

    def __lt__(self, other: object) -> bool:
        return False

    def __le__(self, other: object) -> bool:
        return other is self

    def __gt__(self, other: object) -> bool:
        return other is not self

    def __ge__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return 1


class _FloatNaN(AboveAll, float):
    pass


NAN: Final = _FloatNaN("nan")

SPACE: Final = " \t\n\v\f\r"
"""What C's isspace() skips."""


_INTEGER: Final = re.compile(
    r"([+-]?)(?:(\d+(?:_\d+)*)|0[xX]((?:_?[0-9a-fA-F])+)|0[oO]((?:_?[0-7])+)|0[bB]((?:_?[01])+))\Z"
)
DIGITS: Final = r"\d+(?:_\d+)*"
_FLOAT: Final = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?\Z", re.ASCII)
SPECIAL: Final = re.compile(r"([+-]?)(nan|inf|infinity)\Z", re.IGNORECASE | re.ASCII)

INT2: Final = 1 << 15
INT4: Final = 1 << 31
INT8: Final = 1 << 63


def integer_input(bound: int) -> Callable[[str], int]:
    """The input function of the integer type with values in [-bound, bound). Raises ValueError."""

    def read(text: str) -> int:
        if len(text) < 20 and text.isdecimal() and text.isascii() and (value := int(text)) < bound:
            return value
        match = _INTEGER.match(text.strip(SPACE)) if text.isascii() else None
        if match is None or len(text) > 200:
            raise ValueError(text)
        sign, decimal, hexadecimal, octal, binary = match.groups()
        if decimal:
            value = int(decimal.replace("_", ""))
        else:
            digits, base = (hexadecimal, 16) if hexadecimal else (octal, 8) if octal else (binary, 2)
            value = int(digits.replace("_", ""), base)
        value = -value if sign == "-" else value
        if not -bound <= value < bound:
            raise ValueError(text)
        return value

    return read


def in_range(bound: int) -> Callable[[int], int]:
    """A check that an integer result fits its type. Raises EvaluationError."""

    def check(value: int) -> int:
        if -bound <= value < bound:
            return value
        raise EvaluationError("integer out of range")

    return check


def successor(bound: int) -> Callable[[int], int]:
    """The next integer of a type. Raises EvaluationError if it has none."""
    check = in_range(bound)
    return lambda value: check(value + 1)


def truncated(dividend: int, divisor: int) -> int:
    """Integer division, towards zero. Raises EvaluationError."""
    if divisor == 0:
        raise EvaluationError("division by zero")
    quotient = abs(dividend) // abs(divisor)
    return quotient if (dividend < 0) == (divisor < 0) else -quotient


def remainder(dividend: int, divisor: int) -> int:
    """The remainder of that division, with the sign of the dividend. Raises EvaluationError."""
    return dividend - divisor * truncated(dividend, divisor)


# --------------------------------------------------------------------------------------------------------------------
# float4 and float8


def read_float(text: bytes) -> float:
    """A float4 or float8 as Postgres prints it."""
    value = float(text)
    return NAN if math.isnan(value) else value


def float8_input(text: str) -> float:
    """The input function of float8. Raises ValueError."""
    text = text.strip(SPACE)
    if special := SPECIAL.match(text):
        value: float = special_value(special, NAN, float("inf"))
        return value
    # Postgres takes what strtod takes; its hexadecimal form is left out.
    if not _FLOAT.match(text):
        raise ValueError(text)
    value = float(text)
    if value in (float("inf"), float("-inf")) or (value == 0 and Decimal(_mantissa(text)) != 0):
        raise ValueError(text)
    return value


def float4_input(text: str) -> float:
    """The input function of float4, which rounds once, from the decimal text. Raises ValueError."""
    text = text.strip(SPACE)
    if special := SPECIAL.match(text):
        value: float = special_value(special, NAN, float("inf"))
        return value
    if not _FLOAT.match(text) or abs(int(exponent_of(text))) > 1000:
        raise ValueError(text)
    try:
        value = nearest_float4(Fraction(text))
    except EvaluationError:
        raise ValueError(text) from None
    if value == 0:
        if Decimal(_mantissa(text)) != 0:
            raise ValueError(text)
        return -0.0 if text[0] == "-" else 0.0
    return value


def _mantissa(text: str) -> str:
    return text.lower().partition("e")[0]


def exponent_of(text: str) -> str:
    """What follows the ``e`` of a number."""
    return text.lower().partition("e")[2] or "0"


def special_value(match: re.Match[str], nan: Any, infinity: Any) -> Any:
    """The value that SPECIAL matched. Raises ValueError for a NaN with a sign."""
    sign, word = match.groups()
    if word.lower() == "nan":
        if sign:
            raise ValueError(match.string)
        return nan
    return -infinity if sign == "-" else infinity


_FLOAT4_MAX: Final = 2.0**128 - 2.0**104
_FLOAT4_MAX_BITS: Final = 0x7F7F_FFFF
_FLOAT4_OVERFLOW: Final = 2**128 - 2**103
"""From halfway to what the next float4 would be, a number is too large."""


def nearest_float4(exact: Fraction | int) -> float:
    """The float4 nearest to a number, ties to even. Raises EvaluationError if there is none."""
    if not -_FLOAT4_OVERFLOW < exact < _FLOAT4_OVERFLOW:
        raise EvaluationError("value out of range: overflow")
    value = float(exact)
    if abs(value) > _FLOAT4_MAX:
        return math.copysign(_FLOAT4_MAX, value)
    result = float(struct.unpack("<f", struct.pack("<f", value))[0])
    if value == result or Fraction(value) == exact:
        return result
    # The way over float8 rounded twice, which matters only if the first result is halfway between two float4.
    (bits,) = struct.unpack("<I", struct.pack("<f", abs(result)))
    wanted = abs(Fraction(exact))
    for neighbour_bits in (bits - 1, bits + 1):
        if 0 <= neighbour_bits <= _FLOAT4_MAX_BITS:
            (neighbour,) = struct.unpack("<f", struct.pack("<I", neighbour_bits))
            if abs(Fraction(neighbour) - wanted) < abs(Fraction(abs(result)) - wanted):
                return math.copysign(neighbour, value)
    return result


def to_float4(value: float) -> float:
    """The cast from float8. Raises EvaluationError for overflow and underflow."""
    if math.isnan(value) or value in (float("inf"), float("-inf")):
        return value
    try:
        result = float(struct.unpack("<f", struct.pack("<f", value))[0])
    except OverflowError:
        raise EvaluationError("value out of range: overflow") from None
    if result == 0 and value != 0:
        raise EvaluationError("value out of range: underflow")
    return result


def float_output(digits: int) -> Callable[[float], str]:
    """The output function of float8 (15 digits before the exponent is shown) or float4 (6)."""

    def write(value: float) -> str:
        if math.isnan(value):
            return "NaN"
        if value in (float("inf"), float("-inf")):
            return "Infinity" if value > 0 else "-Infinity"
        if value == 0:
            return "-0" if str(value)[0] == "-" else "0"
        shortest = _shortest(value, digits != 15)
        sign, figures, exponent = Decimal(shortest).normalize().as_tuple()
        assert isinstance(exponent, int)
        point = len(figures) + exponent - 1
        text = "".join(map(str, figures))
        if -4 <= point < digits:
            return format(Decimal(shortest).normalize(), "f")
        fraction = "." + text[1:] if len(text) > 1 else ""
        return f"{'-' if sign else ''}{text[0]}{fraction}e{'-' if point < 0 else '+'}{abs(point):02d}"

    return write


def _shortest(value: float, single: bool) -> str:
    """The shortest decimal that is nearer to a float than to its neighbours; of several, the nearest."""
    exact = Fraction(value)
    low, high = ((exact + Fraction(neighbour)) / 2 for neighbour in _neighbours(value, single))
    for precision in range(17):
        rounded = Decimal(f"{value:.{precision}e}")
        last = Decimal(1).scaleb(rounded.adjusted() - precision)
        # Below a power of two floats lie closer, so that the nearest decimal may be too far and another one not.
        near = [decimal for decimal in (rounded, rounded - last, rounded + last) if low < Fraction(decimal) < high]
        if near:
            return str(min(near, key=lambda decimal: abs(Fraction(decimal) - exact)))
    return repr(value)


def _neighbours(value: float, single: bool) -> list[float]:
    if not single:
        near = [math.nextafter(value, -math.inf), math.nextafter(value, math.inf)]
    else:
        (bits,) = struct.unpack("<i", struct.pack("<f", value))
        near = sorted(struct.unpack("<f", struct.pack("<i", bits + step))[0] for step in (-1, 1))
    # The largest float is as far from the next one, if there were one, as from the one before.
    low, high = near
    return [low if math.isfinite(low) else 2 * value - high, high if math.isfinite(high) else 2 * value - low]


def float_arithmetic(operation: str, single: bool) -> Callable[[float, float], float]:
    """``+``, ``-``, ``*`` or ``/`` of two float8, or float4 if ``single``, with Postgres' checks."""
    infinities = (float("inf"), float("-inf"))

    def calculate(left: float, right: float) -> float:
        if math.isnan(left) or math.isnan(right):
            return NAN
        if operation == "+":
            result = left + right
        elif operation == "-":
            result = left - right
        elif operation == "*":
            result = left * right
        elif right == 0:
            raise EvaluationError("division by zero")
        else:
            result = left / right
        if math.isnan(result):
            return NAN
        if single and result not in infinities:
            try:
                result = float(struct.unpack("<f", struct.pack("<f", result))[0])
            except OverflowError:
                raise EvaluationError("value out of range: overflow") from None
        if result in infinities and left not in infinities and right not in infinities:
            raise EvaluationError("value out of range: overflow")
        if result == 0 and (
            (operation == "*" and left != 0 and right != 0)
            or (operation == "/" and left != 0 and right not in infinities)
        ):
            raise EvaluationError("value out of range: underflow")
        return result

    return calculate


def square_root(value: float) -> float:
    """``|/``. Raises EvaluationError for negative values."""
    if value < 0:
        raise EvaluationError("cannot take square root of a negative number")
    return NAN if math.isnan(value) else math.sqrt(value)


def rounded(bound: int) -> Callable[[float], int]:
    """The cast from float to an integer type: to the nearest, ties to even. Raises EvaluationError."""

    def cast(value: float) -> int:
        if math.isnan(value) or value in (float("inf"), float("-inf")):
            raise EvaluationError("integer out of range")
        result = round(value)
        if not -bound <= result < bound:
            raise EvaluationError("integer out of range")
        return result

    return cast

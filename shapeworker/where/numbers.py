"""Numbers as Postgres reads, rounds, calculates and prints them.

int2, int4 and int8 are ``int``, float4 and float8 are ``float``, numeric is ``Decimal`` whose exponent is minus its
display scale. NaN is always one of the two objects below: they compare as in Postgres (equal to itself and above all
else), so that Python's operators, sets and sorted lists are right for every value.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable
from decimal import ROUND_HALF_UP, Context, Decimal
from fractions import Fraction
from typing import Any, Final

from shapeworker.where.errors import EvaluationError


class _FloatNaN(float):
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


class _NumericNaN(Decimal):
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


NAN: Final = _FloatNaN("nan")
NUMERIC_NAN: Final = _NumericNaN("NaN")

SPACE: Final = " \t\n\v\f\r"
"""What C's isspace() skips."""

_EXACT: Final = Context(prec=400_000, rounding=ROUND_HALF_UP, Emax=999_999, Emin=-999_999)
_MAX_SCALE: Final = 16_383
_MAX_DISPLAY_SCALE: Final = 1000
_MAX_WHOLE_DIGITS: Final = 131_072
_MIN_SIGNIFICANT: Final = 16

_INTEGER: Final = re.compile(
    r"([+-]?)(?:(\d+(?:_\d+)*)|0[xX]((?:_?[0-9a-fA-F])+)|0[oO]((?:_?[0-7])+)|0[bB]((?:_?[01])+))\Z"
)
_DIGITS: Final = r"\d+(?:_\d+)*"
_NUMERIC: Final = re.compile(rf"[+-]?(?:{_DIGITS}(?:\.(?:{_DIGITS})?)?|\.{_DIGITS})(?:[eE][+-]?{_DIGITS})?\Z", re.ASCII)
_FLOAT: Final = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?\Z", re.ASCII)
_SPECIAL: Final = re.compile(r"([+-]?)(nan|inf|infinity)\Z", re.IGNORECASE | re.ASCII)

INT2: Final = 1 << 15
INT4: Final = 1 << 31
INT8: Final = 1 << 63


def integer_input(bound: int) -> Callable[[str], int]:
    """The input function of the integer type with values in [-bound, bound). Raises ValueError."""

    def read(text: str) -> int:
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
    if special := _SPECIAL.match(text):
        value: float = _special(special, NAN, float("inf"))
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
    if special := _SPECIAL.match(text):
        value: float = _special(special, NAN, float("inf"))
        return value
    if not _FLOAT.match(text) or abs(int(_exponent(text))) > 1000:
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


def _exponent(text: str) -> str:
    return text.lower().partition("e")[2] or "0"


def _special(match: re.Match[str], nan: Any, infinity: Any) -> Any:
    sign, word = match.groups()
    if word.lower() == "nan":
        if sign:
            raise ValueError(match.string)
        return nan
    return -infinity if sign == "-" else infinity


def nearest_float4(exact: Fraction | int) -> float:
    """The float4 nearest to a number, ties to even. Raises EvaluationError if there is none."""
    try:
        value = float(exact)
        result = float(struct.unpack("<f", struct.pack("<f", value))[0])
    except OverflowError:
        raise EvaluationError("value out of range: overflow") from None
    if value == result or Fraction(value) == exact:
        return result
    # The way over float8 rounded twice, which matters only if the first result is halfway between two float4.
    (bits,) = struct.unpack("<i", struct.pack("<f", result))
    for neighbour_bits in (bits - 1, bits + 1):
        (neighbour,) = struct.unpack("<f", struct.pack("<i", neighbour_bits))
        if abs(Fraction(neighbour) - exact) < abs(Fraction(result) - exact):
            return float(neighbour)
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
        shortest = repr(value) if digits == 15 else _shortest_float4(value)
        sign, figures, exponent = Decimal(shortest).normalize().as_tuple()
        assert isinstance(exponent, int)
        point = len(figures) + exponent - 1
        text = "".join(map(str, figures))
        if -4 <= point < digits:
            return format(Decimal(shortest).normalize(), "f")
        fraction = "." + text[1:] if len(text) > 1 else ""
        return f"{'-' if sign else ''}{text[0]}{fraction}e{'-' if point < 0 else '+'}{abs(point):02d}"

    return write


def _shortest_float4(value: float) -> str:
    for precision in range(1, 9):
        text = f"{value:.{precision - 1}e}"
        if struct.unpack("<f", struct.pack("<f", float(text)))[0] == value:
            return text
    return f"{value:.8e}"


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


# --------------------------------------------------------------------------------------------------------------------
# numeric


def read_numeric(text: bytes) -> Decimal:
    """A numeric as Postgres prints it."""
    return NUMERIC_NAN if text == b"NaN" else Decimal(text.decode())


def numeric_input(text: str) -> Decimal:
    """The input function of numeric. Raises ValueError."""
    text = text.strip(SPACE)
    if special := _SPECIAL.match(text):
        value: Decimal = _special(special, NUMERIC_NAN, Decimal("Infinity"))
        return value
    if not _NUMERIC.match(text) or len(_exponent(text)) > 8:
        try:
            return Decimal(integer_input(1 << 600)(text))
        except ValueError:
            raise ValueError(text) from None
    # Scales beyond the limit, which Postgres rounds at or refuses, are refused.
    if abs(int(_exponent(text))) > _MAX_SCALE:
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
        if operation == "*" and scale(left) + scale(right) > _MAX_SCALE:
            raise EvaluationError("the scale of a product is beyond what is calculated exactly")
        return _checked(calculate(left, right))

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

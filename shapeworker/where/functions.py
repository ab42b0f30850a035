"""The functions and operators of the filter language, with the meaning that Postgres gives them.

What is registered is exact. What Postgres has under the same name and cannot be exact here is registered as refused, so
that a call is not taken for another one.
"""

from __future__ import annotations

import math
import operator
from collections import defaultdict
from collections.abc import Callable
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from functools import partial
from typing import Any, Final

from shapeworker.where import arrays, datetimes, intervals, jsonb, numbers, regex, texts
from shapeworker.where.casts import find
from shapeworker.where.errors import EvaluationError
from shapeworker.where.numbers import NAN, NUMERIC_NAN
from shapeworker.where.overloads import Overload, Parameter
from shapeworker.where.types import (
    BOOL,
    BPCHAR,
    BYTEA,
    DATE,
    FLOAT4,
    FLOAT8,
    INT2,
    INT4,
    INT8,
    INTEGERS,
    INTERVAL,
    JSONB,
    NAME,
    NUMERIC,
    SCALARS,
    TEXT,
    TIME,
    TIMESTAMP,
    TIMESTAMPTZ,
    TIMETZ,
    Type,
    array_of,
)

_operators: Final[dict[tuple[str, int], list[Overload]]] = defaultdict(list)
_functions: Final[dict[str, list[Overload]]] = defaultdict(list)

REFUSED: Final[dict[tuple[str, tuple[Type, ...]], str]] = {
    ("^", (NUMERIC, NUMERIC)): "powers of numeric are not exact here; cast to float8",
}
"""Why an operator is not offered."""

TEXTS: Final = array_of(TEXT)
COMPARISONS: Final[dict[str, Callable[[Any, Any], Any]]] = {
    "=": operator.eq,
    "<>": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
Body = Callable[..., Any]


def _operator_sql(name: str) -> Callable[..., str]:
    def sql(*operands: str) -> str:
        return f"({name} {operands[0]})" if len(operands) == 1 else f"({operands[0]} {name} {operands[1]})"

    return sql


def _function_sql(name: str) -> Callable[..., str]:
    return lambda *arguments: (
        f'"{name}"({", ".join(arguments)})'
        if name == "left" or name == "right"
        else (f"{name}({', '.join(arguments)})")
    )


def _constantly(body: Body, *types: Type) -> Body:
    return body


def _op(name: str, parameters: tuple[Parameter, ...], result: Parameter, body: Any, **more: Any) -> None:
    make: Callable[..., Body] = more.pop("make", None) or partial(_constantly, body)
    sql = more.pop("sql", None) or _operator_sql(name)
    more.setdefault("role", name if len(parameters) == 2 else None)
    _operators[name, len(parameters)].append(Overload(name, parameters, result, make, sql, **more))


def _func(name: str, parameters: tuple[Parameter, ...], result: Parameter, body: Any, **more: Any) -> None:
    make: Callable[..., Body] = more.pop("make", None) or partial(_constantly, body)
    sql = more.pop("sql", None) or _function_sql(name)
    _functions[name].append(Overload(name, parameters, result, make, sql, **more))


# --------------------------------------------------------------------------------------------------------------------
# comparison


def _compare(compare: Body) -> Callable[..., Body]:
    def make(left: Type, right: Type) -> Body:
        if left is not right and {left, right} & {DATE}:
            # A date against a timestamp is its midnight.
            left_cast, right_cast = (_to_timestamp if type_ is DATE else _same for type_ in (left, right))
            return lambda a, b: compare(left_cast(a), right_cast(b))
        left_key, right_key = left.key, right.key
        if left_key is None or right_key is None:
            return compare
        return lambda a, b: compare(left_key(a), right_key(b))

    return make


def _same(value: Any) -> Any:
    return value


def _to_timestamp(days: int) -> int:
    # Dates reach further than timestamps; here that is no error.
    ends = {datetimes.DATE_PLUS: datetimes.STAMP_PLUS, datetimes.DATE_MINUS: datetimes.STAMP_MINUS}
    return ends.get(days, days * datetimes.DAY)


def _comparisons() -> None:
    pairs: list[tuple[Parameter, Parameter]] = [(type_, type_) for type_ in SCALARS if type_.comparable]
    pairs.remove((JSONB, JSONB))
    # varchar has no operators of its own.
    pairs = [pair for pair in pairs if pair[0] is not SCALARS[8]]
    for group in (INTEGERS, (FLOAT4, FLOAT8), (DATE, TIMESTAMP, TIMESTAMPTZ), (NAME, TEXT)):
        pairs += [(left, right) for left in group for right in group if left is not right]
    pairs += [("anyenum", "anyenum"), ("anyarray", "anyarray")]
    for name, compare in COMPARISONS.items():
        for pair in pairs:
            _op(name, pair, BOOL, None, make=_compare(compare))
        if name in ("=", "<>"):
            _op(name, (JSONB, JSONB), BOOL, None, make=_compare(compare))


_comparisons()

# --------------------------------------------------------------------------------------------------------------------
# numbers


def _ranged(bound: int, calculate: Callable[[int, int], int]) -> Body:
    check = numbers.in_range(bound)
    return lambda left, right: check(calculate(left, right))


def _shift(bound: int, left: bool) -> Body:
    bits = bound.bit_length()

    def shift(value: int, by: int) -> int:
        by &= 31 if bits <= 32 else 63
        if not left:
            return value >> by
        moved = value << by & (1 << bits) - 1
        return moved - (1 << bits) if moved & bound else moved

    return shift


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
                _op(name, (left, right), wider, _ranged(bounds[wider], calculate))
    bitwise: dict[str, Body] = {"&": operator.and_, "|": operator.or_, "#": operator.xor, "%": numbers.remainder}
    for type_, bound in bounds.items():
        check = numbers.in_range(bound)
        for name, body in bitwise.items():
            _op(name, (type_, type_), type_, body)
        _func("mod", (type_, type_), type_, numbers.remainder)
        _op("~", (type_,), type_, operator.invert)
        _op("-", (type_,), type_, lambda value, check=check: check(-value))
        _op("+", (type_,), type_, _same)
        _op("@", (type_,), type_, lambda value, check=check: check(abs(value)))
        _func("abs", (type_,), type_, lambda value, check=check: check(abs(value)))


def _fractional_operators() -> None:
    for name in ("+", "-", "*", "/"):
        _op(name, (NUMERIC, NUMERIC), NUMERIC, numbers.numeric_arithmetic(name))
        _op(name, (FLOAT4, FLOAT4), FLOAT4, numbers.float_arithmetic(name, single=True))
        for pair in ((FLOAT8, FLOAT8), (FLOAT4, FLOAT8), (FLOAT8, FLOAT4)):
            _op(name, pair, FLOAT8, numbers.float_arithmetic(name, single=False))
    _op("%", (NUMERIC, NUMERIC), NUMERIC, numbers.numeric_arithmetic("%"))
    _func("mod", (NUMERIC, NUMERIC), NUMERIC, numbers.numeric_arithmetic("%"))
    for type_, minus, absolute in (
        (NUMERIC, _numeric_minus, _numeric_abs),
        (FLOAT4, _float_minus, _float_abs),
        (FLOAT8, _float_minus, _float_abs),
    ):
        _op("-", (type_,), type_, minus)
        _op("+", (type_,), type_, _same)
        _op("@", (type_,), type_, absolute)
        _func("abs", (type_,), type_, absolute)
    _op("^", (FLOAT8, FLOAT8), FLOAT8, _power)
    _op("^", (NUMERIC, NUMERIC), NUMERIC, None)
    _op("|/", (FLOAT8,), FLOAT8, numbers.square_root)
    _func("round", (NUMERIC,), NUMERIC, lambda value: numbers.rescaled(value, 0))
    _func("round", (NUMERIC, INT4), NUMERIC, _round)
    _func("round", (FLOAT8,), FLOAT8, lambda value: _whole_float(value, round))
    for name in ("ceil", "ceiling"):
        _func(name, (NUMERIC,), NUMERIC, lambda value: _whole_numeric(value, ROUND_CEILING))
        _func(name, (FLOAT8,), FLOAT8, lambda value: _whole_float(value, math.ceil))
    _func("floor", (NUMERIC,), NUMERIC, lambda value: _whole_numeric(value, ROUND_FLOOR))
    _func("floor", (FLOAT8,), FLOAT8, lambda value: _whole_float(value, math.floor))


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
    return numbers.rescaled(numbers.rescaled(value, digits), max(digits, 0))


def _whole_numeric(value: Decimal, rounding: str) -> Decimal:
    if value is NUMERIC_NAN or not value.is_finite():
        return value
    return numbers.rescaled(value.to_integral_value(rounding=rounding), 0)


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

# --------------------------------------------------------------------------------------------------------------------
# texts


def _matching(prepare: Callable[[str], texts.Matcher], negated: bool = False) -> Body:
    if negated:
        return lambda text, pattern: not prepare(pattern)(text)
    return lambda text, pattern: prepare(pattern)(text)


def _negating(prepare: Callable[[str], texts.Matcher]) -> Callable[[str], texts.Matcher]:
    def negated(pattern: str) -> texts.Matcher:
        matcher = prepare(pattern)
        return lambda text: not matcher(text)

    return negated


def _substring(text: str, start: int, length: int | None = None) -> str:
    if length is not None and length < 0:
        raise EvaluationError("negative substring length not allowed")
    end = None if length is None else max(start - 1 + length, 0)
    return text[max(start - 1, 0) : end]


def _right(text: str, count: int) -> str:
    if count >= 0:
        return text[max(len(text) - count, 0) :]
    # Postgres cannot negate the last one, and cuts nothing then.
    return text if count == -numbers.INT4 else text[-count:]


def _trimmed(side: Callable[[str, str], str]) -> Body:
    # Python strips all blanks for no characters; Postgres strips nothing.
    return lambda text, characters=" ": side(text, characters) if characters else text


def _split_part(text: str, separator: str, number: int) -> str:
    if number == 0:
        raise EvaluationError("field position must not be zero")
    if not text:
        return ""
    parts = text.split(separator) if separator else [text]
    place = number - 1 if number > 0 else number
    return parts[place] if -len(parts) <= place < len(parts) else ""


def _replaced(text: str, old: str, new: str) -> str:
    if not old:
        return text
    if text.count(old) * len(new) > 1_000_000:
        raise EvaluationError("the result of replace() is larger than what is calculated here")
    return text.replace(old, new)


def _concatenated(*types: Type) -> Body:
    outputs = [type_.printed for type_ in types]
    return lambda *values: "".join(
        output(value) for output, value in zip(outputs, values, strict=True) if value is not None
    )


def _text_functions() -> None:
    for subject in (TEXT, BPCHAR, NAME):
        for name, prepare in (
            *(("~~", texts.like_matcher), ("~~*", texts.ilike_matcher)),
            *(("~", regex.matcher), ("~*", regex.caseless_matcher)),
        ):
            more = {"needs_constant": "~~" not in name}
            _op(name, (subject, TEXT), BOOL, _matching(prepare), prepare=prepare, **more)
            _op("!" + name, (subject, TEXT), BOOL, _matching(prepare, True), prepare=_negating(prepare), **more)
    like: dict[str, Any] = {"prepare": texts.like_matcher, "role": "~~", "sql": _operator_sql("~~")}
    ilike: dict[str, Any] = {"prepare": texts.ilike_matcher, "role": "~~*", "sql": _operator_sql("~~*")}
    _func("like", (TEXT, TEXT), BOOL, _matching(texts.like_matcher), **like)
    _func("ilike", (TEXT, TEXT), BOOL, _matching(texts.ilike_matcher), **ilike)
    _func("like_escape", (TEXT, TEXT), TEXT, texts.like_escape)
    _func("starts_with", (TEXT, TEXT), BOOL, str.startswith, role="^@")
    _op("^@", (TEXT, TEXT), BOOL, str.startswith)
    _op("||", (TEXT, TEXT), TEXT, operator.add)
    _op("||", (BYTEA, BYTEA), BYTEA, operator.add)
    _op("||", (TEXT, "anynonarray"), TEXT, None, make=_text_first, sql=_concatenation_sql("{} || {}::text"))
    _op("||", ("anynonarray", TEXT), TEXT, None, make=_text_last, sql=_concatenation_sql("{}::text || {}"))
    _func("concat", ("any",), TEXT, None, make=_concatenated, strict=False, variadic=True)
    _func("lower", (TEXT,), TEXT, texts.lower, role="lower")
    _func("upper", (TEXT,), TEXT, texts.upper, role="upper")
    for name in ("length", "char_length", "character_length"):
        _func(name, (TEXT,), INT4, len)
        _func(name, (BPCHAR,), INT4, lambda text: len(texts.stripped(text)))
    _func("length", (BYTEA,), INT4, len)
    for type_ in (TEXT, BPCHAR):
        _func("octet_length", (type_,), INT4, lambda text: len(text.encode()))
    _func("octet_length", (BYTEA,), INT4, len)
    for name in ("substr", "substring"):
        _func(name, (TEXT, INT4), TEXT, _substring)
        _func(name, (TEXT, INT4, INT4), TEXT, _substring)
    _func("left", (TEXT, INT4), TEXT, lambda text, count: text[:count])
    _func("right", (TEXT, INT4), TEXT, _right)
    for name, side in (("btrim", str.strip), ("ltrim", str.lstrip), ("rtrim", str.rstrip)):
        _func(name, (TEXT,), TEXT, _trimmed(side))
        _func(name, (TEXT, TEXT), TEXT, _trimmed(side))
    for name in ("strpos", "position"):
        _func(name, (TEXT, TEXT), INT4, lambda text, part: text.find(part) + 1, sql=_function_sql("strpos"))
    _func("replace", (TEXT, TEXT, TEXT), TEXT, _replaced)
    _func("split_part", (TEXT, TEXT, INT4), TEXT, _split_part)
    _func("reverse", (TEXT,), TEXT, lambda text: text[::-1])


def _concatenation_sql(template: str) -> Callable[..., str]:
    return lambda left, right: "(" + template.format(left, right) + ")"


def _to_text(type_: Type) -> Body:
    cast = find(type_, TEXT)
    if type_ is TEXT or (cast is not None and cast.body is None):
        return _same
    if cast is None or cast.body is None:
        raise ValueError(type_.name)
    return cast.body


def _text_first(left: Type, right: Type) -> Body:
    output = _to_text(right)
    return lambda text, value: text + output(value)


def _text_last(left: Type, right: Type) -> Body:
    output = _to_text(left)
    return lambda value, text: output(value) + text


_text_functions()

# --------------------------------------------------------------------------------------------------------------------
# dates and times


def _applied(prepare: Callable[[Any], Body]) -> Body:
    return lambda fixed, value: prepare(fixed)(value)


def _first(prepare: Callable[[Any], Body]) -> dict[str, Any]:
    return {"prepare": prepare, "prepared_place": 0, "needs_constant": True}


def _time_functions() -> None:
    add, subtract = intervals.add_to_timestamp, intervals.subtract_from_timestamp
    _op("+", (DATE, INT4), DATE, datetimes.add_days)
    _op("+", (INT4, DATE), DATE, lambda more, days: datetimes.add_days(days, more))
    _op("-", (DATE, INT4), DATE, lambda days, less: datetimes.add_days(days, -less))
    _op("-", (DATE, DATE), INT4, lambda a, b: numbers.in_range(numbers.INT4)(datetimes.days_between(a, b)))
    _op("+", (DATE, TIME), TIMESTAMP, datetimes.date_and_time)
    _op("+", (TIME, DATE), TIMESTAMP, lambda time, days: datetimes.date_and_time(days, time))
    _op("+", (DATE, INTERVAL), TIMESTAMP, lambda days, span: add(datetimes.date_to_timestamp(days), span))
    _op("+", (INTERVAL, DATE), TIMESTAMP, lambda span, days: add(datetimes.date_to_timestamp(days), span))
    _op("-", (DATE, INTERVAL), TIMESTAMP, lambda days, span: subtract(datetimes.date_to_timestamp(days), span))
    for type_ in (TIMESTAMP, TIMESTAMPTZ):
        _op("+", (type_, INTERVAL), type_, add)
        _op("+", (INTERVAL, type_), type_, lambda span, stamp: add(stamp, span))
        _op("-", (type_, INTERVAL), type_, subtract)
        _op("-", (type_, type_), INTERVAL, intervals.between_timestamps)
        _func("date_trunc", (TEXT, type_), type_, _applied(datetimes.truncation), **_first(datetimes.truncation))
    _op("+", (TIME, INTERVAL), TIME, intervals.add_to_time)
    _op("+", (INTERVAL, TIME), TIME, lambda span, time: intervals.add_to_time(time, span))
    _op("-", (TIME, INTERVAL), TIME, intervals.subtract_from_time)
    _op("-", (TIME, TIME), INTERVAL, lambda a, b: (0, 0, a - b))
    _op("+", (TIMETZ, INTERVAL), TIMETZ, lambda value, span: (intervals.add_to_time(value[0], span), value[1]))
    _op("+", (INTERVAL, TIMETZ), TIMETZ, lambda span, value: (intervals.add_to_time(value[0], span), value[1]))
    _op("-", (TIMETZ, INTERVAL), TIMETZ, lambda value, span: (intervals.subtract_from_time(value[0], span), value[1]))
    _op("-", (INTERVAL,), INTERVAL, intervals.negated)
    _op("+", (INTERVAL, INTERVAL), INTERVAL, intervals.add)
    _op("-", (INTERVAL, INTERVAL), INTERVAL, intervals.subtract)
    _op("*", (INTERVAL, FLOAT8), INTERVAL, intervals.multiply)
    _op("*", (FLOAT8, INTERVAL), INTERVAL, lambda factor, span: intervals.multiply(span, factor))
    _op("/", (INTERVAL, FLOAT8), INTERVAL, intervals.divide)
    _func("justify_days", (INTERVAL,), INTERVAL, intervals.justify_days)
    _func("justify_hours", (INTERVAL,), INTERVAL, intervals.justify_hours)
    _func("justify_interval", (INTERVAL,), INTERVAL, intervals.justify_interval)
    to_utc, to_local = datetimes.to_utc, datetimes.to_local
    _func("timezone", (TEXT, TIMESTAMP), TIMESTAMPTZ, _applied(to_utc), **_first(to_utc))
    _func("timezone", (TEXT, TIMESTAMPTZ), TIMESTAMP, _applied(to_local), **_first(to_local))


_time_functions()

# --------------------------------------------------------------------------------------------------------------------
# arrays and jsonb


def _array_functions() -> None:
    both: tuple[Parameter, ...] = ("anyarray", "anyarray")
    element_last: tuple[Parameter, ...] = ("anycompatiblearray", "anycompatible")
    element_first: tuple[Parameter, ...] = ("anycompatible", "anycompatiblearray")
    two: tuple[Parameter, ...] = ("anycompatiblearray", "anycompatiblearray")
    lax: dict[str, Any] = {"strict": False}
    _op("@>", both, BOOL, None, make=lambda left, right: _by_key(arrays.contains, left))
    _op("<@", both, BOOL, None, make=lambda left, right: _swapped(_by_key(arrays.contains, left)))
    _op("&&", both, BOOL, None, make=lambda left, right: _by_key(arrays.overlaps, left))
    _op("||", two, "anycompatiblearray", arrays.concatenate, **lax)
    _op("||", element_last, "anycompatiblearray", arrays.append, **lax)
    _op("||", element_first, "anycompatiblearray", arrays.prepend, **lax)
    _func("array_cat", two, "anycompatiblearray", arrays.concatenate, **lax)
    _func("array_append", element_last, "anycompatiblearray", arrays.append, **lax)
    _func("array_prepend", element_first, "anycompatiblearray", arrays.prepend, **lax)
    _func("array_ndims", ("anyarray",), INT4, arrays.dimensions)
    _func("array_length", ("anyarray", INT4), INT4, arrays.length)
    _func("cardinality", ("anyarray",), INT4, arrays.cardinality)


def _by_key(test: Callable[..., bool], type_: Type) -> Body:
    assert type_.element is not None
    same = type_.element.same
    return lambda left, right: test(same, left, right)


def _swapped(body: Body) -> Body:
    return lambda left, right: body(right, left)


def _jsonb_functions() -> None:
    _op("->", (JSONB, TEXT), JSONB, jsonb.field)
    _op("->", (JSONB, INT4), JSONB, jsonb.element)
    _op("->>", (JSONB, TEXT), TEXT, lambda value, name: jsonb.as_text(jsonb.field(value, name)))
    _op("->>", (JSONB, INT4), TEXT, lambda value, index: jsonb.as_text(jsonb.element(value, index)))
    _op("#>", (JSONB, TEXTS), JSONB, jsonb.at_path)
    _op("#>>", (JSONB, TEXTS), TEXT, lambda value, path: jsonb.as_text(jsonb.at_path(value, path)))
    _op("@>", (JSONB, JSONB), BOOL, jsonb.contains)
    _op("<@", (JSONB, JSONB), BOOL, _swapped(jsonb.contains))
    _op("?", (JSONB, TEXT), BOOL, jsonb.has_key)
    _op("?|", (JSONB, TEXTS), BOOL, jsonb.has_any)
    _op("?&", (JSONB, TEXTS), BOOL, jsonb.has_all)
    _func("jsonb_typeof", (JSONB,), TEXT, jsonb.type_of)
    _func("jsonb_array_length", (JSONB,), INT4, jsonb.array_length)


_array_functions()
_jsonb_functions()

OPERATORS: Final = {key: tuple(overloads) for key, overloads in _operators.items()}
"""By name and number of operands."""

FUNCTIONS: Final = {name: tuple(overloads) for name, overloads in _functions.items()}
"""By name."""

"""Ranges as Postgres reads, compares and prints them.

A value is a pair of bounds, or ``()`` for the empty range. A bound is ``(0, value, step)``, with a step of 0 if the
value belongs to the range, else 1 at the lower and -1 at the upper end; that without end is ``BELOW`` or ``ABOVE``. So
bounds compare by their places, and ranges as Postgres compares them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final

from shapeworker.where import datetimes
from shapeworker.where.errors import EvaluationError
from shapeworker.where.numbers import SPACE

Bound = tuple[Any, ...]
Range = tuple[Bound, ...]

BELOW: Final[Bound] = (-1,)
ABOVE: Final[Bound] = (1,)
EMPTY: Final[Range] = ()

Successor = Callable[[Any], Any]
"""The next value of a discrete type; that of one without a next is itself. Raises EvaluationError beyond the last."""

_BOUND: Final = r'((?:[^"\\,)\]]|\\.|"(?:[^"\\]|\\.|"")*")*)'
_RANGE: Final = re.compile(rf"([\[(]){_BOUND},{_BOUND}([\])])\Z", re.DOTALL)
_PIECE: Final = re.compile(r'"((?:[^"\\]|\\.|"")*)"|\\(.)|([^"\\]+)', re.DOTALL)
_QUOTED: Final = re.compile(r'""|\\(.)', re.DOTALL)
_SPECIAL: Final = frozenset('"\\()[],' + SPACE)


def read_range(element: Callable[[bytes], Any], text: bytes) -> Range:
    """A range of a built-in type as Postgres prints it, in its canonical form. ``element`` reads a bound."""
    if text == b"empty":
        return EMPTY
    low, _, high = text[1:-1].partition(b",")
    return (
        (0, element(low.strip(b'"')), 0 if text[:1] == b"[" else 1) if low else BELOW,
        (0, element(high.strip(b'"')), 0 if text[-1:] == b"]" else -1) if high else ABOVE,
    )


def parse_range(text: str, element: Callable[[str], Any], successor: Successor | None) -> Range:
    """A range in its text form. ``element`` reads the value of a bound. Raises ValueError."""
    stripped = text.strip(SPACE)
    if stripped.lower() == "empty" and stripped.isascii():
        return EMPTY
    match = _RANGE.match(stripped)
    if match is None:
        raise ValueError(text)
    opening, first, last, closing = match.groups()
    low = element(_unquoted(first)) if first else None
    high = element(_unquoted(last)) if last else None
    try:
        return make_range(low, high, opening + closing, successor)
    except EvaluationError:
        raise ValueError(text) from None


def _unquoted(text: str) -> str:
    if '"' not in text and "\\" not in text:
        return text
    return "".join(
        (escaped or plain) if quoted is None else _QUOTED.sub(lambda found: found[1] or '"', quoted)
        for quoted, escaped, plain in (match.groups() for match in _PIECE.finditer(text))
    )


def make_range(low: Any, high: Any, brackets: str, successor: Successor | None) -> Range:
    """The range between two values, None for no end, in its canonical form. Raises EvaluationError."""
    includes_low, includes_high = brackets[0] == "[", brackets[1] == "]"
    if low is not None and high is not None:
        if low > high:
            raise EvaluationError("range lower bound must be less than or equal to range upper bound")
        if low == high and not (includes_low and includes_high):
            return EMPTY
    if successor is not None:
        if low is not None and not includes_low and (following := successor(low)) != low:
            low, includes_low = following, True
        if high is not None and includes_high and (following := successor(high)) != high:
            high, includes_high = following, False
        if low is not None and low == high and not (includes_low and includes_high):
            return EMPTY
    return (
        BELOW if low is None else (0, low, 0 if includes_low else 1),
        ABOVE if high is None else (0, high, 0 if includes_high else -1),
    )


def next_date(days: int) -> int:
    """The day after; infinity has none. Raises EvaluationError."""
    return days if days in (datetimes.DATE_PLUS, datetimes.DATE_MINUS) else datetimes.checked_date(days + 1)


def write_range(value: Range, element: Callable[[Any], str]) -> str:
    """The output function of ranges."""
    if not value:
        return "empty"
    low, high = value
    first = _quoted(element(low[1])) if low != BELOW else ""
    last = _quoted(element(high[1])) if high != ABOVE else ""
    return ("[" if includes_low(value) else "(") + f"{first},{last}" + ("]" if includes_high(value) else ")")


def _quoted(text: str) -> str:
    if text and _SPECIAL.isdisjoint(text):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '""') + '"'


# --------------------------------------------------------------------------------------------------------------------
# functions


def low_value(value: Range) -> Any:
    """``lower()``: NULL without a lower end."""
    return value[0][1] if value and value[0] != BELOW else None


def high_value(value: Range) -> Any:
    """``upper()``: NULL without an upper end."""
    return value[1][1] if value and value[1] != ABOVE else None


def is_empty(value: Range) -> bool:
    """``isempty()``."""
    return not value


def includes_low(value: Range) -> bool:
    """``lower_inc()``."""
    return bool(value) and value[0] != BELOW and value[0][2] == 0


def includes_high(value: Range) -> bool:
    """``upper_inc()``."""
    return bool(value) and value[1] != ABOVE and value[1][2] == 0


def has_no_low(value: Range) -> bool:
    """``lower_inf()``."""
    return bool(value) and value[0] == BELOW


def has_no_high(value: Range) -> bool:
    """``upper_inf()``."""
    return bool(value) and value[1] == ABOVE


def contains(outer: Range, inner: Range) -> bool:
    """``@>`` of two ranges."""
    return not inner or (bool(outer) and outer[0] <= inner[0] and inner[1] <= outer[1])


def contains_value(outer: Range, value: Any) -> bool:
    """``@>`` of a range and a value."""
    return bool(outer) and outer[0] <= (0, value, 0) <= outer[1]


def overlap(left: Range, right: Range) -> bool:
    """``&&``."""
    return bool(left) and bool(right) and left[0] <= right[1] and right[0] <= left[1]


def before(left: Range, right: Range) -> bool:
    """``<<``: all of it is below the other."""
    return bool(left) and bool(right) and left[1] < right[0]


def not_beyond(left: Range, right: Range) -> bool:
    """``&<``: nothing of it is above the other."""
    return bool(left) and bool(right) and left[1] <= right[1]


def not_below(left: Range, right: Range) -> bool:
    """``&>``: nothing of it is below the other."""
    return bool(left) and bool(right) and left[0] >= right[0]


def adjacent(left: Range, right: Range) -> bool:
    """``-|-``: one begins where the other ends."""
    return bool(left) and bool(right) and (_meet(left[1], right[0]) or _meet(right[1], left[0]))


def _meet(high: Bound, low: Bound) -> bool:
    if high == ABOVE or low == BELOW or high[1] != low[1]:
        return False
    # The value that they share belongs to one of them.
    return bool((high[2] == 0) != (low[2] == 0))

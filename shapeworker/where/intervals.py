"""Intervals as Postgres reads, calculates and prints them, for sessions with ``IntervalStyle=iso_8601``.

A value is its months, days and microseconds, each of its own sign. Since Postgres 17 an interval may be infinite, which
the ends of the three ranges stand for.
"""

from __future__ import annotations

import math
import re
from typing import Final

from shapeworker.where.datetimes import (
    DAY,
    HOUR,
    MINUTE,
    SECOND,
    STAMP_MINUS,
    STAMP_PLUS,
    checked_stamp,
    civil,
    days_of,
    month_length,
)
from shapeworker.where.errors import EvaluationError

Interval = tuple[int, int, int]

PLUS: Final[Interval] = ((1 << 31) - 1, (1 << 31) - 1, (1 << 63) - 1)
MINUS: Final[Interval] = (-(1 << 31), -(1 << 31), -(1 << 63))

_ROW: Final = re.compile(
    r"P(?:(-?\d+)Y)?(?:(-?\d+)M)?(?:(-?\d+)D)?(?:T(?:(-?\d+)H)?(?:(-?\d+)M)?(?:(-?)(\d+)(?:\.(\d+))?S)?)?\Z"
)


def read_interval(text: bytes) -> Interval:
    """An interval as Postgres prints it."""
    match = _ROW.match(text.decode())
    if match is None:
        return MINUS if text[:1] == b"-" else PLUS
    years, months, days, hours, minutes = (int(part or 0) for part in match.groups()[:5])
    sign, seconds, fraction = match.groups()[5:]
    micros = int(seconds or 0) * SECOND + int((fraction or "").ljust(6, "0"))
    time = hours * HOUR + minutes * MINUTE + (-micros if sign else micros)
    return years * 12 + months, days, time


def write_interval(value: Interval) -> str:
    """The output function of interval."""
    if value in (PLUS, MINUS):
        return "infinity" if value == PLUS else "-infinity"
    months, days, time = value
    size = abs(time)
    sign = "-" if time < 0 else ""
    month_sign = "-" if months < 0 else ""
    text = "P"
    for number, unit, mark in (
        (abs(months) // 12, "Y", month_sign),
        (abs(months) % 12, "M", month_sign),
        (abs(days), "D", "-" if days < 0 else ""),
    ):
        text += f"{mark}{number}{unit}" if number else ""
    if time:
        text += "T"
        for number, unit in ((size // HOUR, "H"), (size // MINUTE % 60, "M")):
            text += f"{sign}{number}{unit}" if number else ""
        seconds, fraction = divmod(size % MINUTE, SECOND)
        if seconds or fraction:
            shown = f"{seconds}.{fraction:06d}".rstrip("0") if fraction else str(seconds)
            text += f"{sign}{shown}S"
    return "PT0S" if text == "P" else text


def interval_key(value: Interval) -> int:
    """What compares intervals: their length in microseconds, with months of 30 days."""
    months, days, time = value
    return (months * 30 + days) * DAY + time


def _result(months: int, days: int, time: int) -> Interval:
    for number, bound in ((months, 1 << 31), (days, 1 << 31), (time, 1 << 63)):
        if not -bound <= number < bound:
            raise EvaluationError("interval out of range")
    value = months, days, time
    if value in (PLUS, MINUS):
        raise EvaluationError("interval out of range")
    return value


def negated(value: Interval) -> Interval:
    """``-interval``. Raises EvaluationError."""
    if value in (PLUS, MINUS):
        return PLUS if value == MINUS else MINUS
    return _result(-value[0], -value[1], -value[2])


def add(left: Interval, right: Interval) -> Interval:
    """``interval + interval``, field by field. Raises EvaluationError."""
    infinite = {left, right} & {PLUS, MINUS}
    if infinite:
        if len(infinite) == 2:
            raise EvaluationError("interval out of range")
        return infinite.pop()
    return _result(left[0] + right[0], left[1] + right[1], left[2] + right[2])


def subtract(left: Interval, right: Interval) -> Interval:
    """``interval - interval``, field by field. Raises EvaluationError."""
    if right in (PLUS, MINUS):
        return add(left, negated(right))
    if left in (PLUS, MINUS):
        return left
    return _result(left[0] - right[0], left[1] - right[1], left[2] - right[2])


def _whole(number: float, bound: int) -> int:
    if math.isnan(number) or not -bound <= number < bound:
        raise EvaluationError("interval out of range")
    return int(number)


def multiply(value: Interval, factor: float) -> Interval:
    """``interval * float8``: what is left of months spills into days, what is left of days into the time."""
    return _scaled(value, factor, factor)


def divide(value: Interval, divisor: float) -> Interval:
    """``interval / float8``. Raises EvaluationError."""
    if divisor == 0:
        raise EvaluationError("division by zero")
    return _scaled(value, divisor, None)


def _scaled(value: Interval, number: float, factor: float | None) -> Interval:
    if math.isnan(number):
        raise EvaluationError("interval out of range")
    if value in (PLUS, MINUS):
        if factor == 0 or (factor is None and math.isinf(number)):
            raise EvaluationError("interval out of range")
        return value if number > 0 else negated(value)
    if math.isinf(number):
        if factor is None:
            return 0, 0, 0
        sign = interval_key(value)
        if sign == 0:
            raise EvaluationError("interval out of range")
        return PLUS if (sign > 0) == (number > 0) else MINUS

    def scaled(part: int) -> float:
        return part * number if factor is not None else part / number

    try:
        months, days = _whole(scaled(value[0]), 1 << 31), _whole(scaled(value[1]), 1 << 31)
        spilled = _micro_rounded((scaled(value[0]) - months) * 30)
        seconds = _micro_rounded((scaled(value[1]) - days + spilled - int(spilled)) * 86_400)
        if abs(seconds) >= 86_400:
            days += int(seconds / 86_400)
            seconds -= int(seconds / 86_400) * 86_400
        days += int(spilled)
        time = _whole(float(round(scaled(value[2]) + seconds * 1_000_000)), 1 << 63)
    except OverflowError:
        raise EvaluationError("interval out of range") from None
    return _result(months, days, time)


def _micro_rounded(number: float) -> float:
    return round(number * 1_000_000) / 1_000_000


def add_to_timestamp(stamp: int, span: Interval) -> int:
    """``timestamp + interval``: first the months, with the day clamped, then the days, then the time."""
    if span in (PLUS, MINUS):
        end = STAMP_PLUS if span == PLUS else STAMP_MINUS
        if stamp in (STAMP_PLUS, STAMP_MINUS) and stamp != end:
            raise EvaluationError("timestamp out of range")
        return end
    if stamp in (STAMP_PLUS, STAMP_MINUS):
        return stamp
    months, days, time = span
    if months:
        date, clock = divmod(stamp, DAY)
        year, month, day = civil(date)
        more, month = divmod(month - 1 + months, 12)
        year, month = year + more, month + 1
        stamp = checked_stamp(days_of(year, month, min(day, month_length(year, month))) * DAY + clock)
    if days:
        stamp = checked_stamp(stamp + days * DAY)
    return checked_stamp(stamp + time)


def subtract_from_timestamp(stamp: int, span: Interval) -> int:
    """``timestamp - interval``. Raises EvaluationError."""
    return add_to_timestamp(stamp, negated(span))


def between_timestamps(later: int, earlier: int) -> Interval:
    """``timestamp - timestamp``: whole days and the rest. Raises EvaluationError."""
    ends = (STAMP_PLUS, STAMP_MINUS)
    if later in ends or earlier in ends:
        if later == earlier:
            raise EvaluationError("interval out of range")
        return PLUS if later == STAMP_PLUS or earlier == STAMP_MINUS else MINUS
    return justify_hours(_result(0, 0, later - earlier))


def add_to_time(time: int, span: Interval) -> int:
    """``time + interval``, around the clock; months and days do not count."""
    if span in (PLUS, MINUS):
        raise EvaluationError("cannot add infinite interval to time")
    return (time + span[2]) % DAY


def subtract_from_time(time: int, span: Interval) -> int:
    """``time - interval``, around the clock."""
    if span in (PLUS, MINUS):
        raise EvaluationError("cannot subtract infinite interval from time")
    return (time - span[2]) % DAY


def to_time(span: Interval) -> int:
    """The cast to time. Raises EvaluationError."""
    if span in (PLUS, MINUS):
        raise EvaluationError("cannot convert infinite interval to time")
    return span[2] % DAY


def _truncated(number: int, unit: int) -> int:
    return number // unit if number >= 0 else -(-number // unit)


def justify_hours(span: Interval) -> Interval:
    """24 hours become a day."""
    if span in (PLUS, MINUS):
        return span
    months, days, time = span
    whole = _truncated(time, DAY)
    days, time = days + whole, time - whole * DAY
    if days > 0 and time < 0:
        days, time = days - 1, time + DAY
    elif days < 0 and time > 0:
        days, time = days + 1, time - DAY
    return _result(months, days, time)


def justify_days(span: Interval) -> Interval:
    """30 days become a month."""
    if span in (PLUS, MINUS):
        return span
    months, days, time = span
    whole = _truncated(days, 30)
    months, days = months + whole, days - whole * 30
    if months > 0 and days < 0:
        months, days = months - 1, days + 30
    elif months < 0 and days > 0:
        months, days = months + 1, days - 30
    return _result(months, days, time)


def justify_interval(span: Interval) -> Interval:
    """Both, with all fields of one sign."""
    if span in (PLUS, MINUS):
        return span
    months, days, time = span
    if (days > 0 and time > 0) or (days < 0 and time < 0):
        whole = _truncated(days, 30)
        months, days = months + whole, days - whole * 30
    whole = _truncated(time, DAY)
    days, time = days + whole, time - whole * DAY
    whole = _truncated(days, 30)
    months, days = months + whole, days - whole * 30
    if months > 0 and (days < 0 or (days == 0 and time < 0)):
        months, days = months - 1, days + 30
    elif months < 0 and (days > 0 or (days == 0 and time > 0)):
        months, days = months + 1, days - 30
    if days > 0 and time < 0:
        days, time = days - 1, time + DAY
    elif days < 0 and time > 0:
        days, time = days + 1, time - DAY
    return _result(months, days, time)

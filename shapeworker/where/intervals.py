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
from shapeworker.where.numbers import SPACE

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


# --------------------------------------------------------------------------------------------------------------------
# literals

_NAMES: Final = {
    "microseconds": "us usec usecs microsecond microseconds useconds usecond",
    "milliseconds": "ms msec msecs millisecond milliseconds msecond mseconds",
    "seconds": "s sec secs second seconds",
    "minutes": "m min mins minute minutes",
    "hours": "h hr hrs hour hours",
    "days": "d day days",
    "weeks": "w week weeks",
    "months": "mon mons month months",
    "years": "y yr yrs year years",
    "decades": "dec decs decade decades",
    "centuries": "c cent century centuries",
    "millennia": "mil mils millennium millennia",
}
_UNITS: Final = {name: unit for unit, names in _NAMES.items() for name in names.split()}
_MICROS: Final = {"microseconds": 1, "milliseconds": 1000, "seconds": SECOND, "minutes": MINUTE, "hours": HOUR}
_MONTHS: Final = {"months": 1, "years": 12, "decades": 120, "centuries": 1200, "millennia": 12_000}
_NUMBER: Final = r"(?P<sign>[+-]?)(?P<whole>\d{1,18})(?:\.(?P<fraction>\d{1,6}))?"
_TOKEN: Final = re.compile(
    rf"\s*(?:(?P<clock>(?P<csign>[+-]?)(?P<h>\d{{1,9}}):(?P<mi>\d\d)(?::(?P<s>\d\d)(?:\.(?P<f>\d{{1,6}}))?)?)(?![\d:.])"
    rf"|{_NUMBER}\s*(?P<unit>[a-z]+)(?![a-z]))",
    re.ASCII,
)
_BARE: Final = re.compile(rf"{_NUMBER}\Z", re.ASCII)
_YEAR_MONTH: Final = re.compile(r"(?P<sign>[+-]?)(?P<y>\d{1,9})-(?P<m>\d{1,2})\Z", re.ASCII)
_DAYS_THEN_CLOCK: Final = re.compile(r"([+-]?\d{1,9})\s+([+-]?\d{1,9}:\d\d(?::\d\d(?:\.\d{1,6})?)?)\Z", re.ASCII)
_ISO: Final = re.compile(
    r"P(?=[\d+-]|T)(?:([+-]?\d{1,9})Y)?(?:([+-]?\d{1,9})M)?(?:([+-]?\d{1,9})W)?(?:([+-]?\d{1,9})D)?"
    r"(?:T(?=[\d+-])(?:([+-]?\d{1,9}(?:\.\d{1,6})?)H)?(?:([+-]?\d{1,9}(?:\.\d{1,6})?)M)?"
    r"(?:([+-]?\d{1,12}(?:\.\d{1,6})?)S)?)?\Z",
    re.ASCII,
)


def interval_input(text: str) -> Interval:
    """The input function of interval: ISO 8601, numbers with units, a clock, years-months. Raises ValueError."""
    text = text.strip(SPACE)
    if not text.isascii() or len(text) > 200:
        raise ValueError(text)
    if match := _ISO.match(text):
        years, months, weeks, days = (int(part or 0) for part in match.groups()[:4])
        time = sum(
            _millionths(part) * unit
            for part, unit in zip(match.groups()[4:], (HOUR // SECOND, MINUTE // SECOND, 1), strict=True)
            if part
        )
        return _in_range(years * 12 + months, weeks * 7 + days, time)
    lowered = text.lower().removeprefix("@").strip(SPACE)
    body = lowered.removesuffix("ago").rstrip(SPACE)
    if body != lowered and body[-1:].isdigit():
        raise ValueError(text)
    months, days, time = _verbose(body)
    if body != lowered:
        months, days, time = -months, -days, -time
    return _in_range(months, days, time)


def _millionths(text: str) -> int:
    whole, _, fraction = text.partition(".")
    size = int(whole.lstrip("+-")) * 1_000_000 + int(fraction.ljust(6, "0") or 0)
    return -size if whole.startswith("-") else size


def _in_range(months: int, days: int, time: int) -> Interval:
    if abs(months) >= 1 << 31 or abs(days) >= 1 << 31 or abs(time) >= 1 << 63:
        raise ValueError("interval out of range")
    return months, days, time


def _verbose(text: str) -> Interval:
    if match := _BARE.match(text):
        return 0, 0, _millionths(text)
    if match := _YEAR_MONTH.match(text):
        if int(match["m"]) > 11:
            raise ValueError(text)
        months = int(match["y"]) * 12 + int(match["m"])
        return (-months if match["sign"] == "-" else months), 0, 0
    if match := _DAYS_THEN_CLOCK.match(text):
        clock = _TOKEN.match(match[2])
        assert clock is not None
        return 0, int(match[1]), _clock(clock)
    months = days = time = 0
    seen: set[str] = set()
    at = 0
    while at < len(text):
        token = _TOKEN.match(text, at)
        if token is None or (at and token["clock"] and not text[at].isspace()):
            raise ValueError(text)
        at = token.end()
        if token["clock"]:
            units = {"hours", "minutes", "seconds"}
            time += _clock(token)
        else:
            unit = _UNITS.get(token["unit"], "")
            units = {unit}
            whole = int(token["whole"])
            fraction = int((token["fraction"] or "").ljust(6, "0"))
            negative = token["sign"] == "-"
            more = _amount(unit, -whole if negative else whole, -fraction if negative else fraction)
            months, days, time = months + more[0], days + more[1], time + more[2]
        if units & seen:
            raise ValueError(text)
        seen |= units
    if not seen:
        raise ValueError(text)
    return months, days, time


def _clock(token: re.Match[str]) -> int:
    minutes, seconds = int(token["mi"]), int(token["s"] or 0)
    if minutes > 59 or seconds > 59:
        raise ValueError(token[0])
    time = int(token["h"]) * HOUR + minutes * MINUTE + seconds * SECOND + int((token["f"] or "").ljust(6, "0"))
    return -time if token["csign"] == "-" else time


def _amount(unit: str, whole: int, millionths: int) -> Interval:
    if unit in _MICROS:
        # Fractions finer than a microsecond are left out.
        if millionths * _MICROS[unit] % 1_000_000:
            raise ValueError(unit)
        return 0, 0, whole * _MICROS[unit] + millionths * _MICROS[unit] // 1_000_000
    if unit == "days":
        return 0, whole, millionths * DAY // 1_000_000
    if unit == "weeks":
        days, rest = _split(millionths * 7)
        return 0, whole * 7 + days, rest * DAY // 1_000_000
    if unit == "months":
        days, rest = _split(millionths * 30)
        return whole, days, rest * DAY // 1_000_000
    if unit in _MONTHS:
        if millionths * _MONTHS[unit] % 1_000_000:
            raise ValueError(unit)
        return whole * _MONTHS[unit] + millionths * _MONTHS[unit] // 1_000_000, 0, 0
    raise ValueError(unit)


def _split(millionths: int) -> tuple[int, int]:
    whole = abs(millionths) // 1_000_000
    rest = abs(millionths) % 1_000_000
    return (whole, rest) if millionths >= 0 else (-whole, -rest)


# --------------------------------------------------------------------------------------------------------------------
# arithmetic


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

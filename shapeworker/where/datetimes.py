"""Dates and times as Postgres reads, calculates and prints them, for sessions with ``TimeZone=UTC``.

A date is the number of days since 2000-01-01, a timestamp that of microseconds, with or without time zone; the ends of
int4 and int8 stand for infinity, as in Postgres. A time is microseconds since midnight, a timetz that and the seconds
*west* of Greenwich.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import date
from typing import Final

from shapeworker.where.errors import EvaluationError

SECOND: Final = 1_000_000
MINUTE: Final = 60 * SECOND
HOUR: Final = 60 * MINUTE
DAY: Final = 24 * HOUR

DATE_MINUS: Final = -(1 << 31)
DATE_PLUS: Final = (1 << 31) - 1
STAMP_MINUS: Final = -(1 << 63)
STAMP_PLUS: Final = (1 << 63) - 1

_EPOCH: Final = date(2000, 1, 1).toordinal()

TimeTz = tuple[int, int]


def days_of(year: int, month: int, day: int) -> int:
    """Days since 2000-01-01 in the Gregorian calendar without end, year 0 being 1 BC."""
    shifted = year - (month <= 2)
    era, of_era = divmod(shifted, 400)
    of_year = (153 * (month + (-3 if month > 2 else 9)) + 2) // 5 + day - 1
    return era * 146_097 + of_era * 365 + of_era // 4 - of_era // 100 + of_year - 730_425


def civil(days: int) -> tuple[int, int, int]:
    """Year, month and day of a number of days since 2000-01-01."""
    era, of_era = divmod(days + 730_425, 146_097)
    year = (of_era - of_era // 1460 + of_era // 36_524 - of_era // 146_096) // 365
    of_year = of_era - (365 * year + year // 4 - year // 100)
    shifted = (5 * of_year + 2) // 153
    month = shifted + (3 if shifted < 10 else -9)
    return era * 400 + year + (month <= 2), month, of_year - (153 * shifted + 2) // 5 + 1


def month_length(year: int, month: int) -> int:
    """Days in a month."""
    leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
    return 29 if month == 2 and leap else (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)[month - 1]


_FIRST_DAY: Final = days_of(-4713, 11, 24)
_LAST_DAY: Final = days_of(5_874_897, 12, 31)
_FIRST_STAMP: Final = _FIRST_DAY * DAY
_END_STAMP: Final = days_of(294_277, 1, 1) * DAY


def checked_date(days: int) -> int:
    """The same if it is a finite date. Raises EvaluationError."""
    if _FIRST_DAY <= days <= _LAST_DAY:
        return days
    raise EvaluationError("date out of range")


def checked_stamp(stamp: int) -> int:
    """The same if it is a finite timestamp. Raises EvaluationError."""
    if _FIRST_STAMP <= stamp < _END_STAMP:
        return stamp
    raise EvaluationError("timestamp out of range")


# --------------------------------------------------------------------------------------------------------------------
# what Postgres prints

_ROW_DATE: Final = re.compile(r"(\d{4,})-(\d\d)-(\d\d)( BC)?\Z")


def read_date(text: bytes) -> int:
    """A date as Postgres prints it."""
    if len(text) == 10:
        return date.fromisoformat(text.decode()).toordinal() - _EPOCH
    if text in (b"infinity", b"-infinity"):
        return DATE_PLUS if text == b"infinity" else DATE_MINUS
    match = _ROW_DATE.match(text.decode())
    assert match is not None, text
    year, month, day = int(match[1]), int(match[2]), int(match[3])
    return days_of(1 - year if match[4] else year, month, day)


def read_time(text: bytes) -> int:
    """A time as Postgres prints it."""
    whole = int(text[:2]) * HOUR + int(text[3:5]) * MINUTE + int(text[6:8]) * SECOND
    return whole + int(text[9:].ljust(6, b"0")) if len(text) > 8 else whole


def read_timetz(text: bytes) -> TimeTz:
    """A timetz as Postgres prints it."""
    at = max(text.rfind(b"+"), text.rfind(b"-"))
    fields = text[at + 1 :].split(b":")
    seconds = sum(int(field) * unit for field, unit in zip(fields, (3600, 60, 1), strict=False))
    return read_time(text[:at]), seconds if text[at] == ord("-") else -seconds


def read_timestamp(text: bytes) -> int:
    """A timestamp, or a timestamptz in UTC, as Postgres prints it."""
    if text[-1:] == b"y":
        return STAMP_PLUS if text == b"infinity" else STAMP_MINUS
    era = b""
    if text[-1:] == b"C":
        text, era = text[:-3], b" BC"
    if text[-3:] == b"+00":
        text = text[:-3]
    at = text.index(b" ")
    return read_date(text[:at] + era) * DAY + read_time(text[at + 1 :])


def write_date(days: int) -> str:
    """The output function of date."""
    if days in (DATE_MINUS, DATE_PLUS):
        return "infinity" if days > 0 else "-infinity"
    year, month, day = civil(days)
    return f"{year:04d}-{month:02d}-{day:02d}" if year > 0 else f"{1 - year:04d}-{month:02d}-{day:02d} BC"


def write_time(time: int) -> str:
    """The output function of time."""
    seconds, fraction = divmod(time, SECOND)
    text = f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
    return f"{text}.{fraction:06d}".rstrip("0") if fraction else text


def write_timetz(value: TimeTz) -> str:
    """The output function of timetz."""
    time, west = value
    seconds = abs(west)
    text = f"{write_time(time)}{'-' if west > 0 else '+'}{seconds // 3600:02d}"
    if seconds % 3600:
        text += f":{seconds // 60 % 60:02d}"
    return text + f":{seconds % 60:02d}" if seconds % 60 else text


def write_timestamp(stamp: int) -> str:
    """The output function of timestamp."""
    return _write_stamp(stamp, "")


def write_timestamptz(stamp: int) -> str:
    """The output function of timestamptz in UTC."""
    return _write_stamp(stamp, "+00")


def _write_stamp(stamp: int, zone: str) -> str:
    if stamp in (STAMP_MINUS, STAMP_PLUS):
        return "infinity" if stamp > 0 else "-infinity"
    days, time = divmod(stamp, DAY)
    day, _, era = write_date(days).partition(" ")
    return f"{day} {write_time(time)}{zone}" + (" " + era if era else "")


def timetz_key(value: TimeTz) -> tuple[int, int]:
    """What orders two timetz: the moment, then the zone."""
    time, west = value
    return time + west * SECOND, west


# --------------------------------------------------------------------------------------------------------------------
# casts and arithmetic


def date_to_timestamp(days: int) -> int:
    """Midnight of a date. Raises EvaluationError."""
    if days in (DATE_MINUS, DATE_PLUS):
        return STAMP_PLUS if days > 0 else STAMP_MINUS
    return checked_stamp(days * DAY)


def timestamp_to_date(stamp: int) -> int:
    """The day of a timestamp."""
    if stamp in (STAMP_MINUS, STAMP_PLUS):
        return DATE_PLUS if stamp > 0 else DATE_MINUS
    return stamp // DAY


def timestamp_to_time(stamp: int) -> int | None:
    """The time of day of a timestamp; NULL for infinity."""
    return None if stamp in (STAMP_MINUS, STAMP_PLUS) else stamp % DAY


def add_days(days: int, more: int) -> int:
    """A date some days later. Raises EvaluationError."""
    return days if days in (DATE_MINUS, DATE_PLUS) else checked_date(days + more)


def days_between(later: int, earlier: int) -> int:
    """``date - date``. Raises EvaluationError."""
    if {later, earlier} & {DATE_MINUS, DATE_PLUS}:
        raise EvaluationError("cannot subtract infinite dates")
    return later - earlier


def date_and_time(days: int, time: int) -> int:
    """``date + time``. Raises EvaluationError."""
    stamp = date_to_timestamp(days)
    return stamp if stamp in (STAMP_MINUS, STAMP_PLUS) else checked_stamp(stamp + time)


_UNITS: Final = {
    "microseconds": 1,
    "milliseconds": 1000,
    "second": SECOND,
    "minute": MINUTE,
    "hour": HOUR,
    "day": DAY,
}
_YEARS: Final = {"year": 1, "decade": 10, "century": 100, "millennium": 1000}


def truncation(unit: str) -> Callable[[int], int]:
    """``date_trunc`` to a unit, in UTC. Raises EvaluationError for units that are not known by their full names."""
    unit = unit.lower()
    if unit not in _UNITS and unit not in _YEARS and unit not in ("week", "month", "quarter"):
        raise EvaluationError(f'unit "{unit}" not recognized')
    return lambda stamp: stamp if stamp in (STAMP_MINUS, STAMP_PLUS) else checked_stamp(_truncated(unit, stamp))


def _truncated(unit: str, stamp: int) -> int:
    if unit in _UNITS:
        return stamp - stamp % _UNITS[unit]
    days = stamp // DAY
    if unit == "week":
        # 2000-01-03 was a Monday.
        return (days - (days - 2) % 7) * DAY
    year, month, _ = civil(days)
    if unit == "month":
        return days_of(year, month, 1) * DAY
    if unit == "quarter":
        return days_of(year, month - (month - 1) % 3, 1) * DAY
    span = _YEARS[unit]
    if unit in ("year", "decade"):
        # A decade begins with a year that ends in 0; of the years BC, 1 BC is year 0.
        return days_of(year - year % span, 1, 1) * DAY
    return days_of((year - 1) // span * span + 1, 1, 1) * DAY

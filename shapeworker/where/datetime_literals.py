"""Literals of dates and times: the ISO forms, and those that name the month.

What depends on the session (``now``, the order of 01/02/03, abbreviations of zones) and two-digit years are refused:
they would be other moments for other readers.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from shapeworker.where.datetimes import (
    DATE_MINUS,
    DATE_PLUS,
    DAY,
    HOUR,
    MINUTE,
    SECOND,
    STAMP_MINUS,
    STAMP_PLUS,
    TimeTz,
    checked_date,
    checked_stamp,
    days_of,
    month_length,
)
from shapeworker.where.errors import EvaluationError
from shapeworker.where.numbers import SPACE
from shapeworker.where.zones import to_utc, zone_info

_MONTHS: Final = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
_LONG_MONTHS: Final = [
    "january",
    "february",
    "march",
    "april",
    "may",
    "june",
    "july",
    "august",
    "september",
    "october",
    "november",
    "december",
]
_DATES: Final = (
    re.compile(r"(?P<y>\d{4,7})-(?P<m>\d{1,2})-(?P<d>\d{1,2})(?![\d.])"),
    re.compile(r"(?P<y>\d{4})/(?P<m>\d{1,2})/(?P<d>\d{1,2})(?![\d.])"),
    re.compile(r"(?P<y>\d{4})(?P<m>\d\d)(?P<d>\d\d)(?![\d.])"),
    re.compile(r"(?P<n>[a-z]+) +(?P<d>\d{1,2})(?:, *| +)(?P<y>\d{4})(?![\d.:])"),
    re.compile(r"(?P<d>\d{1,2})(?:-| +)(?P<n>[a-z]+)(?:-| +)(?P<y>\d{4})(?![\d.:])"),
    re.compile(r"(?P<y>\d{4})(?:-| +)(?P<n>[a-z]+)(?:-| +)(?P<d>\d{1,2})(?![\d.:])"),
)
_CLOCK: Final = re.compile(
    r"(?P<h>\d{1,2}):(?P<mi>\d{1,2})(?::(?P<s>\d{1,2})(?:\.(?P<f>\d{1,20}))?)?(?: *(?P<half>am|pm)\b)?", re.ASCII
)
_ZONE: Final = re.compile(
    r"(?P<sign>[+-])(?:(?P<h>\d{1,2})(?::(?P<m>\d\d)(?::(?P<s>\d\d))?)?|(?P<hm>\d{3,4}))\Z", re.ASCII
)


def _clock(match: re.Match[str]) -> int:
    hour, minute, second = int(match["h"]), int(match["mi"]), int(match["s"] or 0)
    fraction = round(float("0." + (match["f"] or "0")) * SECOND)
    if match["half"]:
        if not 1 <= hour <= 12:
            raise ValueError
        hour = hour % 12 + (12 if match["half"] == "pm" else 0)
    time = hour * HOUR + minute * MINUTE + second * SECOND + fraction
    if hour > 24 or minute > 59 or second > 60 or time > DAY or (second == 60 and fraction):
        raise ValueError
    return time


def _zone(text: str) -> str | int:
    """Seconds east of Greenwich, or the name of a zone. Raises ValueError."""
    if text in ("z", "utc", "gmt", "zulu", "ut"):
        return 0
    if match := _ZONE.match(text):
        if match["hm"]:
            hours, minutes, seconds = int(match["hm"]) // 100, int(match["hm"]) % 100, 0
        else:
            hours, minutes, seconds = int(match["h"]), int(match["m"] or 0), int(match["s"] or 0)
        if hours > 15 or minutes > 59 or seconds > 59:
            raise ValueError
        east = hours * 3600 + minutes * 60 + seconds
        return -east if match["sign"] == "-" else east
    if "/" in text:
        zone_info(text)
        return text
    raise ValueError


def _moment(text: str) -> tuple[int, int, str | int | None]:
    """Days, time of day and zone of a literal. Raises ValueError."""
    text = text.strip(SPACE)
    if not text.isascii() or len(text) > 100:
        raise ValueError
    rest = text.lower()
    for pattern in _DATES:
        if match := pattern.match(rest):
            break
    else:
        raise ValueError
    rest = rest[match.end() :]
    fields = match.groupdict()
    name = fields.get("n")
    if name is None:
        month = int(fields["m"])
    elif name in _MONTHS or name in _LONG_MONTHS:
        month = (_MONTHS if name in _MONTHS else _LONG_MONTHS).index(name) + 1
    elif name == "sept":
        month = 9
    else:
        raise ValueError
    year, day = int(fields["y"]), int(fields["d"])
    bare = rest.strip(SPACE)
    era = re.search(r"(?<![a-z/])(ad|bc)\Z", bare)
    if era:
        bare = bare[: -len(era[1])].rstrip(SPACE)
        if era[1] == "bc":
            year = 1 - year
            if year > 0:
                raise ValueError
    if not (year or era) or not 1 <= month <= 12 or not 1 <= day <= month_length(year, month):
        raise ValueError
    if int(fields["y"]) == 0:
        raise ValueError
    days = days_of(year, month, day)
    if not bare:
        return days, 0, None
    if rest[0] == "t":
        bare = bare[1:]
    elif rest[0] not in SPACE:
        raise ValueError
    clock = _CLOCK.match(bare)
    if clock is None:
        raise ValueError
    time = _clock(clock)
    tail = bare[clock.end() :]
    if tail[:1].isdigit() or tail[:1] == "." or (rest[0] == "t" and clock["half"]):
        raise ValueError
    zone = tail.strip(SPACE)
    return days, time, _zone(zone) if zone else None


def _special(text: str, minus: int, plus: int, epoch: int) -> int | None:
    return {"infinity": plus, "-infinity": minus, "epoch": epoch}.get(text.strip(SPACE).lower())


def date_input(text: str) -> int:
    """The input function of date. Raises ValueError."""
    special = _special(text, DATE_MINUS, DATE_PLUS, days_of(1970, 1, 1))
    if special is not None:
        return special
    days, _, _ = _moment(text)
    return _valid(checked_date, days)


def timestamp_input(text: str) -> int:
    """The input function of timestamp, which ignores a zone. Raises ValueError."""
    special = _special(text, STAMP_MINUS, STAMP_PLUS, days_of(1970, 1, 1) * DAY)
    if special is not None:
        return special
    days, time, _ = _moment(text)
    return _valid(checked_stamp, days * DAY + time)


def timestamptz_input(text: str) -> int:
    """The input function of timestamptz; without a zone it is UTC. Raises ValueError."""
    special = _special(text, STAMP_MINUS, STAMP_PLUS, days_of(1970, 1, 1) * DAY)
    if special is not None:
        return special
    days, time, zone = _moment(text)
    local = days * DAY + time
    if isinstance(zone, str):
        return _valid(to_utc(zone), local)
    return _valid(checked_stamp, local - (zone or 0) * SECOND)


def _valid(check: Callable[[int], int], value: int) -> int:
    try:
        return check(value)
    except EvaluationError:
        raise ValueError from None


def time_input(text: str) -> int:
    """The input function of time, without a date or a zone. Raises ValueError."""
    match = _CLOCK.fullmatch(text.strip(SPACE).lower())
    if match is None:
        raise ValueError
    return _clock(match)


def timetz_input(text: str) -> TimeTz:
    """The input function of timetz, without a date; without a zone it is UTC. Raises ValueError."""
    text = text.strip(SPACE).lower()
    match = _CLOCK.match(text)
    if match is None:
        raise ValueError
    tail = text[match.end() :]
    if tail[:1].isdigit() or tail[:1] == ".":
        raise ValueError
    tail = tail.strip(SPACE)
    zone = _zone(tail) if tail else 0
    if isinstance(zone, str):
        raise ValueError
    return _clock(match), -zone

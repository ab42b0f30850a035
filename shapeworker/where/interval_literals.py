"""Literals of intervals: ISO 8601, numbers with units, a clock, years and months."""

from __future__ import annotations

import re
from typing import Final

from shapeworker.where.datetimes import DAY, HOUR, MINUTE, SECOND
from shapeworker.where.intervals import Interval
from shapeworker.where.numbers import SPACE

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

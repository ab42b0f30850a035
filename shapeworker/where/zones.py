"""Time zones by their IANA names, from the zoneinfo database of this machine."""

from __future__ import annotations

import zoneinfo
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Final

from shapeworker.where.datetimes import DAY, SECOND, STAMP_MINUS, STAMP_PLUS, checked_stamp, days_of
from shapeworker.where.errors import EvaluationError
from shapeworker.where.numbers import SPACE


@lru_cache(maxsize=256)
def zone_info(name: str) -> zoneinfo.ZoneInfo:
    """The zone of this IANA name, in any case. Raises ValueError."""
    known = _zone_names().get(name.lower())
    if known is None:
        raise ValueError(name)
    return zoneinfo.ZoneInfo(known)


@lru_cache(maxsize=1)
def _zone_names() -> dict[str, str]:
    return {name.lower(): name for name in zoneinfo.available_timezones()}


def _zone_of(name: str) -> str | int:
    text = name.strip(SPACE).lower()
    if text in ("utc", "gmt", "z", "zulu"):
        return 0
    if "/" in text:
        try:
            zone_info(text)
        except ValueError:
            raise EvaluationError(f'time zone "{name}" not recognized') from None
        return text
    # Abbreviations and POSIX zones depend on the server's settings, or mean the opposite of what they say.
    raise EvaluationError(f'time zone "{name}" not recognized')


def to_utc(name: str) -> Callable[[int], int]:
    """``timezone(name, timestamp)``: the moment at which clocks in a zone show a time. Raises EvaluationError."""
    zone = _zone_of(name)

    def convert(local: int) -> int:
        if local in (STAMP_MINUS, STAMP_PLUS):
            return local
        if isinstance(zone, int):
            return checked_stamp(local - zone * SECOND)
        info, moment = zone_info(zone), _datetime(local)
        # A time that clocks skip is read with the offset before, one that they show twice with standard time.
        return checked_stamp(local - min(_offset(info, moment.replace(fold=fold)) for fold in (0, 1)))

    return convert


def to_local(name: str) -> Callable[[int], int]:
    """``timezone(name, timestamptz)``: what clocks in a zone show at a moment. Raises EvaluationError."""
    zone = _zone_of(name)

    def convert(stamp: int) -> int:
        if stamp in (STAMP_MINUS, STAMP_PLUS):
            return stamp
        if isinstance(zone, int):
            return checked_stamp(stamp + zone * SECOND)
        offset = _datetime(stamp).replace(tzinfo=UTC).astimezone(zone_info(zone)).utcoffset()
        assert offset is not None
        return checked_stamp(stamp + offset // timedelta(microseconds=1))

    return convert


_CYCLE: Final = 146_097
_FIRST_ZONED: Final = days_of(100, 1, 1)
_LAST_ZONED: Final = days_of(9000, 1, 1)


def _datetime(stamp: int) -> datetime:
    # Python's calendar ends; the rules of zones repeat after 400 years, and there are none before their first change.
    days, time = divmod(stamp, DAY)
    days = max(days, _FIRST_ZONED)
    if days > _LAST_ZONED:
        days -= -(-(days - _LAST_ZONED) // _CYCLE) * _CYCLE
    return datetime(2000, 1, 1) + timedelta(days=days, microseconds=time)


def _offset(info: zoneinfo.ZoneInfo, moment: datetime) -> int:
    offset = moment.replace(tzinfo=info).utcoffset()
    assert offset is not None
    return offset // timedelta(microseconds=1)

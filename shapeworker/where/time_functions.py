"""Arithmetic of dates, times and intervals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from shapeworker.where import datetimes, intervals, numbers, zones
from shapeworker.where.registry import Body, func, op
from shapeworker.where.types import (
    DATE,
    FLOAT8,
    INT4,
    INTERVAL,
    TEXT,
    TIME,
    TIMESTAMP,
    TIMESTAMPTZ,
    TIMETZ,
)


def _applied(prepare: Callable[[Any], Body]) -> Body:
    return lambda fixed, value: prepare(fixed)(value)


def _first(prepare: Callable[[Any], Body]) -> dict[str, Any]:
    return {"prepare": prepare, "prepared_place": 0, "needs_constant": True}


def _time_functions() -> None:
    add, subtract = intervals.add_to_timestamp, intervals.subtract_from_timestamp
    op("+", (DATE, INT4), DATE, datetimes.add_days)
    op("+", (INT4, DATE), DATE, lambda more, days: datetimes.add_days(days, more))
    op("-", (DATE, INT4), DATE, lambda days, less: datetimes.add_days(days, -less))
    op("-", (DATE, DATE), INT4, lambda a, b: numbers.in_range(numbers.INT4)(datetimes.days_between(a, b)))
    op("+", (DATE, TIME), TIMESTAMP, datetimes.date_and_time)
    op("+", (TIME, DATE), TIMESTAMP, lambda time, days: datetimes.date_and_time(days, time))
    op("+", (DATE, INTERVAL), TIMESTAMP, lambda days, span: add(datetimes.date_to_timestamp(days), span))
    op("+", (INTERVAL, DATE), TIMESTAMP, lambda span, days: add(datetimes.date_to_timestamp(days), span))
    op("-", (DATE, INTERVAL), TIMESTAMP, lambda days, span: subtract(datetimes.date_to_timestamp(days), span))
    for type_ in (TIMESTAMP, TIMESTAMPTZ):
        op("+", (type_, INTERVAL), type_, add)
        op("+", (INTERVAL, type_), type_, lambda span, stamp: add(stamp, span))
        op("-", (type_, INTERVAL), type_, subtract)
        op("-", (type_, type_), INTERVAL, intervals.between_timestamps)
        func("date_trunc", (TEXT, type_), type_, _applied(datetimes.truncation), **_first(datetimes.truncation))
    op("+", (TIME, INTERVAL), TIME, intervals.add_to_time)
    op("+", (INTERVAL, TIME), TIME, lambda span, time: intervals.add_to_time(time, span))
    op("-", (TIME, INTERVAL), TIME, intervals.subtract_from_time)
    op("-", (TIME, TIME), INTERVAL, lambda a, b: (0, 0, a - b))
    op("+", (TIMETZ, INTERVAL), TIMETZ, lambda value, span: (intervals.add_to_time(value[0], span), value[1]))
    op("+", (INTERVAL, TIMETZ), TIMETZ, lambda span, value: (intervals.add_to_time(value[0], span), value[1]))
    op("-", (TIMETZ, INTERVAL), TIMETZ, lambda value, span: (intervals.subtract_from_time(value[0], span), value[1]))
    op("-", (INTERVAL,), INTERVAL, intervals.negated)
    op("+", (INTERVAL, INTERVAL), INTERVAL, intervals.add)
    op("-", (INTERVAL, INTERVAL), INTERVAL, intervals.subtract)
    op("*", (INTERVAL, FLOAT8), INTERVAL, intervals.multiply)
    op("*", (FLOAT8, INTERVAL), INTERVAL, lambda factor, span: intervals.multiply(span, factor))
    op("/", (INTERVAL, FLOAT8), INTERVAL, intervals.divide)
    func("justify_days", (INTERVAL,), INTERVAL, intervals.justify_days)
    func("justify_hours", (INTERVAL,), INTERVAL, intervals.justify_hours)
    func("justify_interval", (INTERVAL,), INTERVAL, intervals.justify_interval)
    to_utc, to_local = zones.to_utc, zones.to_local
    func("timezone", (TEXT, TIMESTAMP), TIMESTAMPTZ, _applied(to_utc), **_first(to_utc))
    func("timezone", (TEXT, TIMESTAMPTZ), TIMESTAMP, _applied(to_local), **_first(to_local))


_time_functions()

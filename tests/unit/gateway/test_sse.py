"""How long streams of events last, and when they say that they live (http-api.md 16)."""

from __future__ import annotations

import pytest

from common.lsn import SNAPSHOT_END, Offset
from common.shapelog.reader import LogRange
from gateway import sse
from gateway.response import EVENTS_MAX_AGE
from gateway.sse import Timetable, lifetime


def backlog(end: Offset, size: int = 100) -> LogRange:
    return LogRange(50, 50 + size, end)


@pytest.mark.parametrize(
    ("offset", "found", "seconds"),
    [
        (SNAPSHOT_END, LogRange(0, 0, SNAPSHOT_END), sse.STREAM_SECONDS),
        (Offset(9, 4), backlog(Offset(9, 4), 0), sse.STREAM_SECONDS),
        (SNAPSHOT_END, backlog(Offset(9, 4)), sse.BACKLOG_SECONDS),
        (Offset(7, 0), backlog(Offset(9, 4)), sse.BACKLOG_SECONDS),
        # Where a client comes back to that resumes from an up-to-date.
        (Offset(10, 0), backlog(Offset(10, 0), 0), sse.STREAM_SECONDS),
        (Offset(9, 6), backlog(Offset(9, 4), 0), 10),
        (Offset(10, 0), backlog(Offset(9, 4), 0), 10),
        (Offset(10, 0), LogRange(0, 0, SNAPSHOT_END), 10),
    ],
)
def test_what_a_stream_begins_with_tells_how_long_it_lasts(offset: Offset, found: LogRange, seconds: float) -> None:
    assert lifetime(offset, found, long_poll_seconds=20) == seconds


def test_caches_keep_a_stream_for_a_second_less_than_it_lasts() -> None:
    assert sse.STREAM_SECONDS - 1 == EVENTS_MAX_AGE


def test_a_silent_stream_speaks_twice_and_ends() -> None:
    now = 1000.0
    timetable = Timetable(now, 60)
    heard = []
    while not timetable.is_over(now):
        wait = timetable.patience(now)
        assert wait > 0
        now += wait
        if timetable.is_silent(now) and not timetable.is_over(now):
            timetable.wrote(now)
            heard.append(now - 1000)
    assert heard == [21, 42]
    assert now == 1060


def test_every_batch_starts_the_silence_anew() -> None:
    timetable = Timetable(1000, 60)
    timetable.wrote(1015)
    assert not timetable.is_silent(1035.9)
    assert timetable.patience(1030) == 6
    assert timetable.is_silent(1036)
    assert timetable.patience(1050) < 0
    timetable.wrote(1050)
    assert timetable.patience(1050) == 10

"""Latencies in a histogram of high dynamic range: every value is kept to three digits, however long its tail."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Self

from hdrh.histogram import HdrHistogram

_MOST_MICROSECONDS: Final = 3_600_000_000
_TOLD: Final = (0, 25, 50, 75, 90, 95, 99, 99.9, 100)


class Latencies:
    """Durations from 1 µs to an hour."""

    def __init__(self, seconds: Iterable[float] = ()) -> None:
        self._histogram = HdrHistogram(1, _MOST_MICROSECONDS, 3)
        for value in seconds:
            self.record(value)

    def record(self, seconds: float) -> None:
        """One more."""
        self._histogram.record_value(min(_MOST_MICROSECONDS, max(1, round(seconds * 1e6))))

    def add(self, other: Self) -> None:
        """All that ``other`` has."""
        self._histogram.add(other._histogram)

    def ms(self, percentile: float) -> float:
        """So many percent took no longer than this, in ms."""
        return float(self._histogram.get_value_at_percentile(percentile)) / 1000

    def told(self) -> dict[str, float]:
        """Percentiles in ms, as the results keep them."""
        return {"count": self._histogram.get_total_count()} | {f"p{at:g}": self.ms(at) for at in _TOLD}

"""What a gateway tells of itself: its metrics, and the facts that operators see first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from common.metrics import Histogram, Sample, one
from gateway.admission import BUDGETS, Admission
from gateway.live import Live


class Traffic:
    """The answers to ``/v1/shape``."""

    def __init__(self) -> None:
        self._answers: Counter[int] = Counter()
        self._durations = Histogram("electric_plug_serve_shape_duration")
        self._not_live = 0

    def add(self, status: int, live: bool, seconds: float) -> None:
        """One more; only those that were not to wait say how long answers take."""
        self._answers[status] += 1
        if not live:
            self._not_live += 1
            self._durations.add(seconds * 1000)

    @property
    def answers(self) -> int:
        """How many there were."""
        return self._answers.total()

    def samples(self) -> list[Sample]:
        """Their metrics."""
        return [
            *(
                one("electric_plug_serve_shape_requests_count", count, str(status))
                for status, count in self._answers.items()
            ),
            one("electric_plug_serve_shape_count", self._not_live),
            self._durations.sample(),
        ]


class Measures:
    """A ``common.instruments.Measured``."""

    def __init__(self, traffic: Traffic, admission: Admission, live: Live[Any], connections: Callable[[], int]) -> None:
        """``connections``: how many are open."""
        self._traffic = traffic
        self._admission = admission
        self._live = live
        self._connections = connections

    def samples(self) -> list[Sample]:
        """Its metrics."""
        found = self._traffic.samples()
        for budget in BUDGETS:
            found.append(one("electric_admission_control_acquire_current", self._admission.in_flight(budget), budget))
            found.append(one("electric_admission_control_acquire_limit", self._admission.limit(budget), budget))
            found.append(one("electric_admission_control_reject_count", self._admission.refused(budget), budget))
        found.append(one("galvanic_waiting_requests", self._live.waiting))
        found.append(one("galvanic_connections", self._connections()))
        return found

    def facts(self) -> dict[str, str]:
        """What operators want to see first."""
        return {
            "connections": str(self._connections()),
            "waiting": str(self._live.waiting),
            "in flight": str(sum(self._admission.in_flight(budget) for budget in BUDGETS)),
            "answers": str(self._traffic.answers),
        }

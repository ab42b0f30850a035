"""What a worker tells of itself: its metrics, and the facts that operators see first."""

from __future__ import annotations

import time
from typing import Final

from common.metrics import Histogram, Sample, one
from shapeworker.creation import Creator
from shapeworker.endings import Endings
from shapeworker.holdings import Holdings
from shapeworker.logs import OpenLogs
from shapeworker.subsets import Subsets
from shapeworker.sync import Syncer

_POSTGRES_EPOCH: Final = 946_684_800
"""2000-01-01 as Unix time."""


class Measures:
    """A ``common.instruments.Measured``; the worker counts here what is nobody else's."""

    def __init__(
        self,
        holdings: Holdings,
        logs: OpenLogs,
        syncer: Syncer,
        endings: Endings,
        creator: Creator,
        subsets: Subsets,
    ) -> None:
        self._holdings = holdings
        self._logs = logs
        self._syncer = syncer
        self._endings = endings
        self._creator = creator
        self._subsets = subsets
        self._lag = Histogram("electric_storage_transaction_stored_replication_lag")
        self.stored = 0
        """Appends of a transaction to a log."""

    def committed(self, committed_us: int) -> None:
        """All shapes have a transaction; when Postgres committed it, in microseconds since 2000-01-01."""
        self._lag.add((time.time() - _POSTGRES_EPOCH) * 1000 - committed_us / 1000)

    def samples(self) -> list[Sample]:
        """Its metrics."""
        return [
            one("electric_shapes_total_shapes_count", len(self._holdings)),
            one("electric_shapes_active_shapes_count", len(self._logs)),
            one("electric_storage_transaction_stored_count", self.stored),
            self._lag.sample(),
            *self._creator.samples(),
            one("electric_subqueries_subset_result_count", self._subsets.results),
            one("electric_subqueries_subset_result_bytes", self._subsets.result_bytes),
            one("galvanic_shapes_ended_total", self._endings.ended),
            self._syncer.durations.sample(),
        ]

    def facts(self) -> dict[str, str]:
        """What operators want to see first."""
        return {
            "shapes": str(len(self._holdings)),
            "open logs": str(len(self._logs)),
            "partitions": str(len(self._holdings.partitions)),
        }

"""What the ingester tells of itself: its metrics, and the facts that operators see first."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from importlib import metadata

from common.config import Settings
from common.lsn import format_lsn
from common.metrics import Sample, one
from ingester.feed import Feed
from ingester.group import Group
from ingester.inspection import Inspection


class Measures:
    """A ``common.instruments.Measured``."""

    def __init__(
        self, settings: Settings, group: Group, feed: Feed, inspection: Inspection, epochs: Callable[[], int]
    ) -> None:
        """``epochs``: how many have been started by this process."""
        self._settings = settings
        self._group = group
        self._feed = feed
        self._inspection = inspection
        self._epochs = epochs

    def samples(self) -> list[Sample]:
        """Its metrics."""
        group = self._group
        delaying = sum(obstacle.delays for obstacle in group.obstacles)
        others = len(group.obstacles) - delaying
        coordinator = group.coordinator
        unowned = 0 if coordinator is None else len(coordinator.unowned())
        workers = 0 if coordinator is None else len(coordinator.members)
        active = group.state == "active" and coordinator is not None and not unowned and not delaying
        found = [
            one("galvanic_info", 1, metadata.version("galvanic"), self._settings.stack_id),
            one("galvanic_active", active),
            one("galvanic_obstacles", delaying, "true"),
            one("galvanic_obstacles", others, "false"),
            one("galvanic_workers", workers),
            one("galvanic_partitions_without_worker", unowned),
            one("galvanic_epochs_total", self._epochs()),
            one("galvanic_generation", group.generation),
            one("galvanic_storage_free_bytes", shutil.disk_usage(self._settings.storage_dir).free),
            *self._feed.samples(),
            *(one("galvanic_in_flight_bytes", size, worker) for worker, size in group.fanout.in_flight.items()),
        ]
        if slot := self._inspection.slot:
            prefix = "electric_postgres_replication_slot"
            found.append(one(f"{prefix}_retained_wal_size", max(0, slot.retained)))
            found.append(one(f"{prefix}_confirmed_flush_lsn_lag", max(0, slot.unacknowledged)))
        return found

    def facts(self) -> dict[str, str]:
        """What operators want to see first."""
        group = self._group
        facts = {"state": group.state, "epoch": str(group.fanout.epoch), "acknowledged": format_lsn(group.flushed)}
        if group.state != "active":
            facts["reason"] = group.reason
        if slot := self._inspection.slot:
            facts["slot keeps"] = f"{slot.retained / (1 << 20):.0f} MiB"
        for number, obstacle in enumerate(group.obstacles, 1):
            facts[f"obstacle {number}"] = obstacle.text
        return facts

"""What the ingester last said about the service: is it active, and who owns a partition (http-api.md 25, 27).

Pure: whoever receives the messages passes the time in, in seconds of a monotonic clock.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import orjson

from common.messages import Status

STALE_AFTER: Final = 3.0
"""Seconds without a status after which the ingester counts as gone; it sends one each second."""

_UNREADY: Final = {
    "waiting": "Timeout waiting for Postgres lock acquisition",
    "starting": (
        "Timeout waiting for replication client to be ready. Check that you don't have pending transactions in the"
        " database. Electric has to wait for all pending transactions to commit or rollback before it can create the"
        " replication slot."
    ),
}


class Service:
    """The last status and when it came. Unknown until the first one."""

    def __init__(self) -> None:
        self.status: Status | None = None
        self._received = 0.0
        self._last_owners: dict[int, str] = {}

    def update(self, status: Status, now: float) -> None:
        """Take a status in. A new number of partitions (another storage directory) forgets who owned them."""
        if self.status is not None and self.status.partitions != status.partitions:
            self._last_owners.clear()
        self.status = status
        self._received = now
        self._last_owners.update(status.owners)

    @property
    def partitions(self) -> int | None:
        """How many partitions there are, once that is known."""
        return None if self.status is None else self.status.partitions or None

    def is_active(self, now: float) -> bool:
        """Whether the ingester streams changes."""
        return self._status_of_ingester(now)[0] == "active"

    def can_create(self, partition: int, now: float) -> bool:
        """Whether shapes of this partition can be created: the service is active and feeds the partition's owner."""
        return self.is_active(now) and self.status is not None and partition in self.status.owners

    def owner(self, partition: int) -> str | None:
        """The worker to ask about a partition: its owner, else the last one it had, if that worker is still there.

        A partition whose changes are not fed at present has no owner, but whoever held it can still find its shapes.
        """
        if self.status is None:
            return None
        worker = self.status.owners.get(partition) or self._last_owners.get(partition)
        return worker if worker in self.status.workers else None

    def workers(self) -> tuple[str, ...]:
        """The workers that are there."""
        return () if self.status is None else tuple(self.status.workers)

    def health(self, now: float, notes: Iterable[str] = ()) -> tuple[int, bytes]:
        """Status code and body of ``/v1/health``. Never active while a change cannot reach its clients (INV-37); active
        with a ``reason`` while something else is held back, as ``notes`` say of this gateway. Clients look at
        ``status`` alone (http-api.md 27)."""
        state, reason = self._state(now)
        reason = "; ".join([*([reason] if reason else []), *notes])
        if state == "active":
            return 200, orjson.dumps({"status": "active"} | ({"reason": reason} if reason else {}))
        body = {"status": "waiting" if state == "waiting" else "starting"}
        if reason:
            body["reason"] = reason
        return 202, orjson.dumps(body)

    def unready(self, now: float) -> str:
        """The message of a 503 for want of an active service or an owner (http-api.md 25)."""
        state, reason = self._state(now)
        message = _UNREADY.get(state, "Timeout waiting for stack restart")
        return f"{message}: {reason}" if reason else message

    def _state(self, now: float) -> tuple[str, str]:
        """State and reason of the whole service, workers included."""
        state, reason = self._status_of_ingester(now)
        if state != "active" or self.status is None:
            return state, reason
        details = "; ".join(self.status.details)
        unowned = self.status.partitions - len(self.status.owners)
        if unowned > 0 or self.status.partitions == 0:
            missing = f"{unowned} of {self.status.partitions} partitions have no worker at present"
            return "restarting", f"{missing}; {details}" if details else missing
        return "delayed" if self.status.delayed else state, details

    def _status_of_ingester(self, now: float) -> tuple[str, str]:
        status = self.status
        if status is None:
            return "restarting", "no word from the ingester yet"
        age = now - self._received
        if age > STALE_AFTER:
            return "restarting", f"no word from the ingester for {age:.0f} s"
        return status.state, "" if status.state == "active" else status.reason

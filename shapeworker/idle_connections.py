"""Connections for reading rows that are kept from one transaction to the next."""

from __future__ import annotations

import time
from threading import Event, Lock

from shapeworker.snapshot_connection import SnapshotConnection


class IdleConnections:
    """Connections that nobody uses at the moment, for any thread."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = Lock()
        self._idle: list[tuple[float, SnapshotConnection]] = []

    def __len__(self) -> int:
        return len(self._idle)

    def take(self, stop: Event) -> SnapshotConnection | None:
        """The one used last, if it still serves."""
        while True:
            with self._lock:
                if not self._idle:
                    return None
                _, connection = self._idle.pop()
            if connection.lend(stop):
                return connection
            connection.close()

    def give(self, connection: SnapshotConnection) -> None:
        """Its transaction is over."""
        with self._lock:
            if len(self._idle) < self._most:
                self._idle.append((time.monotonic(), connection))
                return
        connection.close()

    def close(self, older_than: float = 0.0) -> None:
        """Close those that have been idle for so many seconds."""
        until = time.monotonic() - older_than
        with self._lock:
            old = [connection for since, connection in self._idle if since <= until]
            self._idle = [(since, connection) for since, connection in self._idle if since > until]
        for connection in old:
            connection.close()

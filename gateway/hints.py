"""Which worker is asked for the events of which handle. Partitions move, and the subscriptions with them."""

from __future__ import annotations

from typing import Protocol


class Events(Protocol):
    """Where events are subscribed to (:class:`gateway.workers.Workers`)."""

    def subscribe(self, worker: str, handle: str) -> None:
        """Ask for a handle's events."""

    def unsubscribe(self, worker: str, handle: str) -> None:
        """Stop them."""


class Owners(Protocol):
    """Who owns a partition (:class:`gateway.service.Service`)."""

    def owner(self, partition: int) -> str | None:
        """The worker, if there is one."""


class Hints:
    """The handles somebody waits on, each with its partition and the worker it is subscribed at."""

    def __init__(self, owners: Owners, events: Events) -> None:
        self._owners = owners
        self._events = events
        self._wanted: dict[str, tuple[int, str | None]] = {}

    def want(self, handle: str, partition: int) -> None:
        """Subscribe. The owner answers with the present tail, or with the end."""
        worker = self._owners.owner(partition)
        self._wanted[handle] = (partition, worker)
        if worker is not None:
            self._events.subscribe(worker, handle)

    def drop(self, handle: str) -> None:
        """Unsubscribe."""
        _, worker = self._wanted.pop(handle, (0, None))
        if worker is not None:
            self._events.unsubscribe(worker, handle)

    def reassign(self) -> None:
        """After owners or links changed: subscribe each handle at its present owner. Repeating it costs nothing."""
        for handle, (partition, before) in self._wanted.items():
            worker = self._owners.owner(partition)
            if worker != before and before is not None:
                self._events.unsubscribe(before, handle)
            if worker is not None:
                self._events.subscribe(worker, handle)
            self._wanted[handle] = (partition, worker)

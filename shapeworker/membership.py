"""A worker as a member of its ingester's group: what either knows of the other (architecture.md 2.1, 3).

The ingester knows a worker by what that says of itself, and forgets it all when it starts anew; so the worker repeats
itself until it is understood. Messages are sent by a callable; there is no other I/O.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import structlog

from common.messages import Assign, FromWorker, Hello, Status, Subscribe, Unsubscribe, WorkerPlace
from shapeworker.feed import Feed
from shapeworker.holdings import Holdings
from shapeworker.lease import Lease
from shapeworker.ownership import Ownership

log = structlog.get_logger()


class Membership:
    """Who the ingester is, which of its assignments is carried out, and which tables it sends changes of."""

    def __init__(
        self,
        worker: str,
        boot: str,
        place: WorkerPlace,
        holdings: Holdings,
        ownership: Ownership,
        feed: Feed,
        send: Callable[[FromWorker], None],
    ) -> None:
        """``boot`` is this process', ``place`` where it listens."""
        self._worker = worker
        self._boot = boot
        self._place = place
        self._holdings = holdings
        self._ownership = ownership
        self._feed = feed
        self._send = send
        self._lease = Lease(time.monotonic())
        self._ingester = ""
        self.version = 0
        """Of the assignment that was carried out last; 0 if there is none of the present ingester's."""
        self._tables: set[int] = set()

    def hello(self) -> None:
        """Say what is held, and whether a rewind is needed."""
        version = self.version
        self._send(
            Hello(
                worker=self._worker,
                boot=self._boot,
                version=version,
                held=tuple(sorted(self._holdings.partitions)) if version else (),
                tables=tuple(self._holdings.tables()) if version else (),
                requests=self._place.requests,
                events=self._place.events,
                lost=self._feed.broken,
                epoch=self._feed.epoch,
            )
        )

    def beat(self) -> None:
        """Each second: let go of what may be another's, repeat what may have been lost."""
        if reason := self._lease.lost(time.monotonic()):
            self._let_go(reason)
        if not self._ingester:
            self.version = 0
            self.hello()
        elif self._feed.lost:
            self.hello()

    def status(self, status: Status) -> None:
        """What an ingester says to all."""
        self._lease.status(time.monotonic(), status.superseded)
        if status.boot != self._ingester and self._ingester:
            # Another ingester: it knows nothing of us, and what the former one had not sent is lost.
            self._ingester = ""
            self.version = 0
            self._feed.forget()
            self.hello()

    def assign(self, assignment: Assign) -> bool:
        """What it wants us to hold. Returns whether it is another ingester than before."""
        other, self._ingester = assignment.boot != self._ingester, assignment.boot
        self._ownership.assign(assignment)
        return other

    def held(self, version: int) -> None:
        """This assignment is carried out."""
        self.version = version
        self._tables = self._holdings.tables()
        self.hello()

    def subscribe(self, subscribe: Subscribe) -> None:
        """Ask for the changes of a table."""
        self._tables.add(subscribe.table)
        self._send(subscribe)

    def subscribed(self, table: int) -> None:
        """They come. If the shape ended meanwhile, they are not needed: the ingester took us at our word."""
        if not self._holdings.needs(table):
            self._unsubscribe(table)

    def drop(self, table: int) -> None:
        """A shape of this table has ended."""
        if table in self._tables and not self._holdings.needs(table):
            self._unsubscribe(table)

    def _unsubscribe(self, table: int) -> None:
        self._tables.discard(table)
        self._send(Unsubscribe(table))

    def _let_go(self, reason: str) -> None:
        """Another stack may need the partitions; until an ingester assigns some, this worker has none."""
        if not self._ownership.let_go():
            return
        log.warning("giving all partitions back", reason=reason)
        self._ingester = ""
        self.version = 0
        self._feed.give_up()

"""Answers to workers that want a table: publish it, then say from where on they get all of it (architecture.md 4.3)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import structlog

from common.frames import Answer, Entered, Refused, Subscribed
from common.messages import Subscribe
from common.postgres import DATABASE_ERRORS, Pool, classify
from ingester.coordinator import Coordinator
from ingester.fanout import Fanout
from ingester.membership import NotPublished
from ingester.moment import current_snapshot
from ingester.publication import Publication

log = structlog.get_logger()


class Subscriptions:
    """Handles subscriptions beside the stream; each is answered in the frames of the worker that asked."""

    def __init__(
        self,
        publication: Publication,
        admin: Pool,
        coordinator: Coordinator,
        fanout: Fanout,
        at_boundary: Callable[[Callable[[], None]], None],
    ) -> None:
        """``at_boundary`` calls back when the stream is between two transactions, before the next one begins."""
        self._publication = publication
        self._admin = admin
        self._coordinator = coordinator
        self._fanout = fanout
        self._at_boundary = at_boundary
        self._tasks: dict[asyncio.Task[None], tuple[Subscribe, float]] = {}

    def subscribe(self, worker: str, peer: bytes, request: Subscribe) -> None:
        """A worker wants a table."""
        task = asyncio.get_running_loop().create_task(self._handle(worker, peer, request))
        self._tasks[task] = request, time.monotonic()
        task.add_done_callback(self._tasks.pop)

    def waiting(self, now: float) -> list[tuple[int, str, float]]:
        """The subscriptions under way: oid and name of the table, and for how many seconds."""
        return [
            (request.table, f"{request.schema}.{request.name}", now - since) for request, since in self._tasks.values()
        ]

    @property
    def tables(self) -> set[int]:
        """The tables that somebody waits for."""
        return {request.table for request, _ in self._tasks.values()}

    async def close(self) -> None:
        """Give up what is under way; the workers ask the next ingester."""
        for task in self._tasks:
            task.cancel()
        await self._publication.close()

    async def _handle(self, worker: str, peer: bytes, request: Subscribe) -> None:
        answer: Answer
        try:
            outcome = await self._publication.ensure_table(request.table, request.schema, request.name)
            if isinstance(outcome, NotPublished):
                answer = Refused(request.id, outcome.reason, outcome.status, outcome.retry_after)
            else:
                answer = await self._enter(worker, peer, request)
        except DATABASE_ERRORS as error:
            log.warning("a table could not be subscribed", table=request.name, error=classify(error).message)
            answer = Refused(request.id, "Database connection not available")
        member = self._coordinator.members.get(worker)
        if member is not None and member.peer == peer:
            self._fanout.answer(worker, answer)

    async def _enter(self, worker: str, peer: bytes, request: Subscribe) -> Subscribed:
        position: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        def enter() -> None:
            member = self._coordinator.members.get(worker)
            if member is not None and member.peer == peer:
                member.tables.add(request.table)
                self._fanout.subscribe(worker, request.table)
                self._fanout.answer(worker, Entered(request.id))
            if not position.done():
                position.set_result(self._fanout.dispatched)

        # Never inside a transaction: the worker would get a part of it and take that for the whole.
        self._at_boundary(enter)
        dispatched = await position
        async with self._admin.connection() as connection:
            snapshot = await current_snapshot(connection)
        ring = self._fanout.ring
        while ring and snapshot.shows(ring[0][0]):
            ring.popleft()  # seen once, seen by every later snapshot
        # Also those that come again in this epoch: gateways know that they were applied, and say so of new shapes, too.
        unseen = tuple(dict.fromkeys(xid for xid, _ in ring if not snapshot.shows(xid)))
        return Subscribed(request.id, dispatched, unseen, request.table)

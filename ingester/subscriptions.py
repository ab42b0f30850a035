"""Answers to workers that want a table: publish it, then say from where on they get all of it (architecture.md 4.3)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import psycopg
import structlog

from common.messages import Answer, Refused, Subscribe, Subscribed
from common.postgres import DatabaseProblem, Pool, classify
from ingester.coordinator import Coordinator
from ingester.fanout import Fanout
from ingester.membership import NotPublished
from ingester.publication import Publication, unseen

log = structlog.get_logger()


class Subscriptions:
    """Handles subscriptions beside the stream; each is answered in the frames of the worker that asked."""

    def __init__(
        self,
        publication: Publication,
        admin: Pool,
        coordinator: Coordinator,
        fanout: Fanout,
        boundary: Callable[[], Awaitable[None]],
    ) -> None:
        """``boundary`` waits until the stream is between two transactions."""
        self._publication = publication
        self._admin = admin
        self._coordinator = coordinator
        self._fanout = fanout
        self._boundary = boundary
        self._tasks: set[asyncio.Task[None]] = set()

    def subscribe(self, worker: str, peer: bytes, request: Subscribe) -> None:
        """A worker wants a table."""
        task = asyncio.get_running_loop().create_task(self._handle(worker, peer, request))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

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
        except (psycopg.Error, DatabaseProblem, OSError) as error:
            log.warning("a table could not be subscribed", table=request.name, error=classify(error).message)
            answer = Refused(request.id, "Database connection not available")
        member = self._coordinator.members.get(worker)
        if member is not None and member.peer == peer:
            self._fanout.answer(worker, answer)

    async def _enter(self, worker: str, peer: bytes, request: Subscribe) -> Subscribed:
        # Never inside a transaction: the worker would get a part of it and take that for the whole.
        await self._boundary()
        member = self._coordinator.members.get(worker)
        if member is not None and member.peer == peer:
            member.tables.add(request.table)
            self._fanout.subscribe(worker, request.table)
        position = self._fanout.dispatched
        ring = self._fanout.ring
        async with self._admin.connection() as connection:
            hidden = await unseen(connection, [xid for xid, lsn in ring if lsn <= position])
        return Subscribed(request.id, position, hidden)

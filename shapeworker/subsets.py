"""Subset snapshots for gateways: a few at a time, each checked, read, kept until it is fetched (http-api.md 18)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from threading import Event
from typing import Final

import psycopg
import structlog

from common.postgres import conninfo, resolve
from common.remedies import Remedies
from common.shortage import describe
from common.subset import SubsetRequest
from common.table import Table, queryable_errors
from common.xid import Snapshot
from shapeworker.delivered import Delivered
from shapeworker.endings import ShapeEnded
from shapeworker.idle_connections import IdleConnections
from shapeworker.requests import CannotCreate, invalid
from shapeworker.shape import Life, Shape
from shapeworker.snapshot_connection import SnapshotConnection
from shapeworker.snapshot_failure import RETRY_AFTER, SnapshotFailed, failure
from shapeworker.spool import Spool, SpoolFolder
from shapeworker.subset_query import InvalidSubset, understand
from shapeworker.subset_reading import Reading, RejectedByData, read_subset

log = structlog.get_logger()

QUEUE_SECONDS: Final = 10.0
"""How long a subset may wait for its turn."""

ANSWER_SECONDS: Final = 50.0
"""From the question to the last row. Proxies give up after a minute, and nothing is sent before."""

IDLE_SECONDS: Final = 60.0
"""How long a connection that nobody needs is kept."""


class Subsets:
    """Reads subsets, at most ``turns`` at a time, first come, first served."""

    def __init__(self, url: str, storage: Path, delivered: Delivered, *, turns: int, prefer_ipv6: bool = False) -> None:
        """``url`` may lead through a transaction-mode pooler."""
        self._conninfo = conninfo(url, "galvanic subset")
        self._prefer_ipv6 = prefer_ipv6
        self.system_identifier: int | None = None
        self._storage = storage
        self._folder = SpoolFolder(storage)
        self._delivered = delivered
        self._count = turns
        self._turns = asyncio.Semaphore(turns)
        self._threads = ThreadPoolExecutor(turns, thread_name_prefix="subset")
        self._idle = IdleConnections(turns)
        self._remedies = Remedies()
        self.results = 0
        """Subsets that were read so far."""
        self.result_bytes = 0

    def system(self, identifier: str) -> None:
        """The database cluster that rows must come from."""
        self.system_identifier = int(identifier) if identifier else None

    async def check(self, table: Table, subset: SubsetRequest) -> None:
        """Raises CannotCreate if the subset is not one of this table."""
        if subset.queryable is not None and (errors := queryable_errors(table, subset.queryable)):
            raise invalid(errors)
        if subset.where is None and subset.order_by is None:
            return
        try:
            await asyncio.to_thread(understand, table, subset)
        except InvalidSubset as error:
            raise invalid({"subset": {error.field: [error.message]}}) from None

    @asynccontextmanager
    async def read(self, shape: Shape, subset: SubsetRequest) -> AsyncIterator[Spool]:
        """The rows, kept while the block runs. Cancel the task to stop the query.

        Raises CannotCreate, ``ShapeEnded``.
        """
        spool = Spool(self._folder)
        try:
            deadline = time.monotonic() + ANSWER_SECONDS
            await self._turn()
            try:
                snapshot = await self._run(shape, subset, spool, deadline)
            finally:
                self._turns.release()
            self._delivered.shown(snapshot)
            if shape.life is Life.ENDED:
                raise ShapeEnded(shape.reason)
            self.results += 1
            self.result_bytes += spool.size
            yield spool
        finally:
            spool.discard()

    def sweep(self) -> None:
        """Close connections that nobody needs any more, remove files that nobody has any more. Blocks on the disk."""
        self._idle.close(IDLE_SECONDS)
        self._folder.sweep(time.time())

    def close(self) -> None:
        """Free threads and connections. Cancel the tasks in :meth:`read` before."""
        self._threads.shutdown(wait=False)
        self._idle.close()

    async def _turn(self) -> None:
        try:
            async with asyncio.timeout(QUEUE_SECONDS):
                await self._turns.acquire()
        except TimeoutError:
            message = (
                f"All {self._count} connections that this worker has for subset snapshots are busy, please retry. "
                "ELECTRIC_DB_POOL_SIZE says how many connections there are."
            )
            log.warning("a subset was refused", reason=message)
            raise CannotCreate(503, {"message": message}, RETRY_AFTER, known=True) from None

    async def _run(self, shape: Shape, subset: SubsetRequest, spool: Spool, deadline: float) -> Snapshot:
        # What a client has seen was in the log, and what is in the log was delivered before.
        reading = Reading(shape, subset, self._delivered.unseen(), shape.last.tx, deadline)
        try:
            target = await resolve(self._conninfo, self._prefer_ipv6)
        except psycopg.Error as error:
            raise self._refusal(failure(error), shape) from error
        stop = Event()

        def connect(stop: Event) -> SnapshotConnection:
            return SnapshotConnection(target, stop)

        running = asyncio.get_running_loop().run_in_executor(
            self._threads, read_subset, reading, spool, stop, self._idle, connect, self.system_identifier
        )
        try:
            return await asyncio.shield(running)
        except InvalidSubset as error:
            raise invalid({"subset": {error.field: [error.message]}}) from None
        except RejectedByData as error:
            # A text and not a list, as the reference has it (http-api.md 18.7).
            raise invalid({"subset": {"where": str(error)}}) from None
        except SnapshotFailed as error:
            raise self._refusal(error, shape) from error
        except OSError as error:
            reason = describe(error, self._storage)
            log.error("a subset cannot be kept for its gateway", reason=reason)
            message = "The result cannot be stored at present. Please try again."
            raise CannotCreate(503, {"message": message}, RETRY_AFTER, known=True) from error
        finally:
            stop.set()
            await asyncio.wait([running])
            # Looked at, so that asyncio does not report it as forgotten when this task was cancelled.
            running.exception()

    def _refusal(self, error: SnapshotFailed, shape: Shape) -> Exception:
        if error.remedy:
            self._remedies.offer(error.message, error.remedy)
        if error.status == 409:
            # The shape ends for it as well, as soon as that is seen.
            return ShapeEnded(error.message)
        if error.status == 500:
            log.error("a subset could not be read", handle=shape.handle, reason=error.message)
            return CannotCreate(500, {"error": "Internal server error"})
        return CannotCreate(error.status, {"message": error.message}, error.retry_after, error.known)

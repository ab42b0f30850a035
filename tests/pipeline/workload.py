"""Writers that make a database's life hard: overlapping, long, rolled-back, partly rolled-back and huge transactions.

Everything random comes from the printed seed. Deadlocks, lock time-outs and collisions of keys are the writers' own
doing and end a transaction like a rollback; any other error is a failure, unless Postgres itself is being restarted.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import Counter
from typing import Final

import psycopg

from tests.pipeline.writer import Writer

SCALE: Final = float(os.environ.get("GALVANIC_TEST_SCALE") or "1")
"""Factor on the durations and sizes of the tests."""

_KINDS = {"short": 10, "rolled back": 2, "savepoints": 3}
_OWN_FAULT = (
    psycopg.errors.DeadlockDetected,
    psycopg.errors.LockNotAvailable,
    psycopg.errors.UniqueViolation,
)


class Workload:
    """Writers over the tables of `create_schema`, from `start` to `stop`.

    `stats` counts what happened. `faults` says that Postgres may vanish under the writers, who then connect again.
    """

    def __init__(
        self, url: str, seed: int, *, writers: int = 4, faults: bool = False, writer: type[Writer] = Writer
    ) -> None:
        """``writer``: what changes rows, if others than those of `create_schema`."""
        self.url = url
        self.seed = seed
        self.faults = faults
        self.stats: Counter[str] = Counter()
        self._writers = [writer(seed, number, self.stats) for number in range(writers)]
        self._stopping = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begins to write."""
        self._tasks = [asyncio.create_task(self._write(writer)) for writer in self._writers]

    async def stop(self) -> None:
        """Lets each writer finish its transaction. Raises what a writer failed with."""
        self._stopping.set()
        await asyncio.gather(*self._tasks)

    def check(self) -> None:
        """Raises what a writer failed with, if one did."""
        for task in self._tasks:
            if task.done():
                task.result()

    async def abandon(self) -> None:
        """Ends the writers wherever they are."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def large(self, rows: int = 100_000, width: int = 0) -> None:
        """Two transactions: `rows` inserts with a savepoint undone and one kept, then deletes of a third of them.

        `width`: bytes more in each row. What many rows cost a test is reading them.
        """
        self.stats["large begun"] += 1
        batch = self.stats["large begun"]
        async with await psycopg.AsyncConnection.connect(self.url) as connection:
            await connection.execute(
                "INSERT INTO bulk SELECT %(base)s + i, %(batch)s, 'v' || i || repeat('x', %(width)s) "
                "FROM generate_series(1, %(rows)s) i",
                {"base": batch * 10_000_000, "batch": batch, "rows": rows, "width": width},
            )
            with contextlib.suppress(psycopg.Rollback):
                async with connection.transaction():
                    await connection.execute("UPDATE bulk SET v = 'undone' WHERE batch = %s", [batch])
                    raise psycopg.Rollback
            async with connection.transaction():
                await connection.execute("UPDATE bulk SET v = v || '!' WHERE batch = %s AND id %% 10 = 0", [batch])
            await connection.commit()
            self.stats["large"] += 1
            await connection.execute("DELETE FROM bulk WHERE batch = %s AND id %% 3 = 0", [batch])

    async def _write(self, writer: Writer) -> None:
        while not self._stopping.is_set():
            try:
                async with await psycopg.AsyncConnection.connect(self.url, autocommit=True) as connection:
                    await connection.execute("SET lock_timeout = '5s'; SET deadlock_timeout = '50ms'")
                    while not self._stopping.is_set():
                        await self._transact(writer, connection)
                        await asyncio.sleep(writer.random.uniform(0, 0.02))
            except (psycopg.OperationalError, psycopg.Rollback):
                # A rollback that was asked for comes out of its block when the connection is lost.
                if not self.faults:
                    raise
                self.stats["reconnected"] += 1
                await asyncio.sleep(0.2)

    async def _transact(self, writer: Writer, connection: psycopg.AsyncConnection) -> None:
        # One writer alone is slow, else all would soon wait for rows that slow ones hold.
        kind = "long" if writer is self._writers[0] else writer.random.choices(list(_KINDS), list(_KINDS.values()))[0]
        try:
            async with connection.transaction():
                for _ in range(writer.random.randint(1, 6)):
                    await writer.statement(connection)
                    if kind == "long":
                        await asyncio.sleep(writer.random.uniform(0.1, 0.6))
                    if kind == "savepoints":
                        await writer.savepoint(connection)
                if kind == "rolled back":
                    raise psycopg.Rollback
        except _OWN_FAULT as error:
            self.stats[type(error).__name__] += 1
        else:
            self.stats[kind] += 1

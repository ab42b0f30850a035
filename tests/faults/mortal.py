"""Readers whose shapes may end, and the waiting for that; a light load that outlives every change of its table."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import Final

import psycopg

from tests.pipeline.client_view import Violation
from tests.pipeline.reader import HANG_SECONDS, Reader
from tests.pipeline.schema import mark

IN_THE_WAY: Final = (
    psycopg.ProgrammingError,
    psycopg.IntegrityError,
    psycopg.DataError,
    psycopg.InternalError,
    psycopg.errors.DeadlockDetected,
)
"""What a statement may meet while others change its table."""


class Mortal(Reader):
    """A reader whose shape may end, and even its table: `gone` says that requests for it are refused for good."""

    gone = False

    @property
    def over(self) -> bool:
        """Whether its first shape has ended."""
        return self.gone or bool(self.view.ended)

    async def _step(self, live: bool) -> None:
        try:
            await super()._step(live)
            self.gone = False
        except Violation as violation:
            if "answer 400" not in str(violation):
                raise
            self.gone = True
            await asyncio.sleep(0.2)

    def _check_may_end(self) -> None:
        pass


@contextlib.asynccontextmanager
async def stopped_at_last(readers: Iterable[Reader]) -> AsyncIterator[None]:
    """Afterwards none of the readers follows anything, however the test ended."""
    try:
        yield
    finally:
        for reader in readers:
            # What it failed with was raised before, or comes after the failure that ends the test.
            with contextlib.suppress(AssertionError):
                await reader.stop()


async def until(condition: Callable[[], bool], readers: Iterable[Reader], what: Callable[[], object]) -> None:
    """Waits for something that must come, while no reader may fail."""
    try:
        async with asyncio.timeout(HANG_SECONDS):
            while not condition():
                for reader in readers:
                    reader.check()
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise AssertionError(f"waited in vain: {what()}") from None


async def compare(database: str, readers: Iterable[Reader]) -> None:
    """At rest every reader holds what Postgres says; stops them. Those whose table is gone hold nothing."""
    lsn = await mark(database)
    for reader in readers:
        if isinstance(reader, Mortal) and reader.gone:
            await reader.stop()
            continue
        await reader.at_rest(lsn)
        await reader.verify(database)
        await reader.stop()


@contextlib.asynccontextmanager
async def written(database: str, statements: Sequence[str], pause: float = 0.02) -> AsyncIterator[None]:
    """Runs the statements over and over, each in a transaction of its own; those that fail now do nothing."""

    async def write() -> None:
        async with await psycopg.AsyncConnection.connect(database, autocommit=True) as connection:
            while True:
                for statement in statements:
                    with contextlib.suppress(*IN_THE_WAY):
                        await connection.execute(statement.encode())
                    await asyncio.sleep(pause)

    task = asyncio.create_task(write())
    try:
        yield
    finally:
        if not task.done():
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

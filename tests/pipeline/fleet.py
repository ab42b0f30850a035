"""Writers and readers over one stack: runs them together, and at the end compares every reader with Postgres."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from tests.pipeline.client_view import Replica
from tests.pipeline.reader import HANG_SECONDS, Reader
from tests.pipeline.schema import mark
from tests.pipeline.stack import Stack
from tests.pipeline.workload import SCALE, Workload


class Fleet:
    """The readers of a test, its workload and its stack. On the way out nothing of it runs any more."""

    def __init__(
        self,
        stack: Stack,
        workload: Workload,
        *,
        protected: bool = False,
        monotone_lsn: bool = True,
        url: str | None = None,
    ) -> None:
        """``url``: where readers go; to the stack itself unless told otherwise."""
        self.stack = stack
        self.url = url or stack.url
        self.workload = workload
        self.readers: list[Reader] = []
        self._protected = protected
        self._monotone_lsn = monotone_lsn

    async def __aenter__(self) -> Self:
        # A shape on the table of `mark` keeps it published: its commits are the milestones of all readers.
        self.add("marker")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.workload.abandon()
        for reader in self.readers:
            # Its failure was raised by `run`, `current` or `rest`, or comes after the one that ends the test.
            with contextlib.suppress(AssertionError):
                await reader.stop()

    def add(
        self,
        table: str,
        columns: Sequence[str] | None = None,
        replica: Replica = "default",
        where: str | None = None,
        params: Sequence[str] = (),
        events: bool | None = None,
    ) -> Reader:
        """A new reader, following from now on; every second one by server-sent events unless told otherwise."""
        reader = Reader(
            self.url,
            table,
            columns=columns,
            where=where,
            params=params,
            replica=replica,
            protected=self._protected,
            monotone_lsn=self._monotone_lsn,
            events=len(self.readers) % 2 == 1 if events is None else events,
            complete=self.stack.is_complete,
        )
        self.readers.append(reader.start())
        return reader

    def add_every_kind(self) -> list[Reader]:
        """Readers of every table but the `late_…` ones, with and without columns and replica=full."""
        return [
            self.add("items"),
            self.add("items", replica="full"),
            self.add("items", columns=["id", "n"]),
            self.add("items", columns=["id", "title", "body"], replica="full"),
            self.add("pairs"),
            self.add("pairs", replica="full"),
            self.add("bare"),
            self.add("Mixed Case", columns=["Id", 'is "it" so']),
            self.add("bulk"),
        ]

    async def established(self) -> None:
        """Starts the workload and readers of every kind, and waits as :meth:`complete` does."""
        self.workload.start()
        self.add_every_kind()
        await self.complete()

    async def complete(self) -> None:
        """Waits until all readers' shapes are in their catalogs; nothing may end one of them from then on."""
        await self.current()
        await self._until(self._are_complete)
        for reader in self.readers:
            reader.protected = True

    async def run(self, seconds: float) -> None:
        """Lets things happen for `seconds` × GALVANIC_TEST_SCALE; raises as soon as anything has failed."""
        end = asyncio.get_running_loop().time() + seconds * SCALE
        while asyncio.get_running_loop().time() < end:
            self.check()
            await asyncio.sleep(0.1)
        self.check()

    def check(self) -> None:
        """Raises what a reader, a writer or a process failed with."""
        self.workload.check()
        for reader in self.readers:
            reader.check()
        self.stack.check()

    async def current(self) -> None:
        """Waits until every reader was up to date once."""
        for reader in self.readers:
            await reader.current()

    async def moved(self) -> None:
        """Waits until every reader of a table that is always written has seen a change more."""
        readers = [reader for reader in self.readers if reader.table not in ("bulk", "marker")]
        await self.see_more(readers)

    async def see_more(self, readers: Sequence[Reader]) -> None:
        """Waits until each of these has seen a change more."""
        before = [len(reader.view.journal.entries) for reader in readers]
        await self._until(
            lambda: all(len(reader.view.journal.entries) > seen for reader, seen in zip(readers, before, strict=True))
        )

    def moves(self) -> dict[str, int]:
        """How many messages of each kind the shapes with a filter had."""
        counts = dict.fromkeys(("insert", "update", "delete"), 0)
        for reader in self.readers:
            for raw in reader.view.journal.entries.values() if reader.where is not None else ():
                for kind in counts:
                    counts[kind] += f'"operation":"{kind}"'.encode() in raw
        return counts

    async def holds(self, reader: Reader, key: str) -> None:
        """Waits until the reader holds the row."""
        await self._until(lambda: key in reader.view.rows)

    async def rest(self) -> None:
        """Stops the writers, waits for the readers, compares rows with Postgres and bytes with those before."""
        async with asyncio.timeout(HANG_SECONDS):
            await self.workload.stop()
        lsn = await mark(self.workload.url)
        for reader in self.readers:
            await reader.at_rest(lsn)
        self.check()
        for reader in self.readers:
            await reader.verify(self.workload.url)
        self.stack.check()
        print(f"writers: {dict(self.workload.stats)}")
        for reader in self.readers:
            journal = reader.view.journal
            print(
                f"{reader.name}: {len(reader.view.rows)} rows, {len(journal.snapshot)} snapshot items, "
                f"{len(journal.entries)} entries, {len(reader.losses)} losses, {len(reader.refusals)} refusals, "
                f"{len(reader.view.ended)} ended, {reader.streams} streams"
            )

    def _are_complete(self) -> bool:
        handles = {reader.view.handle or "" for reader in self.readers}
        return self.stack.are_complete(handles)

    async def _until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(HANG_SECONDS):
            while not condition():
                self.check()
                await asyncio.sleep(0.05)

"""A strict reader: follows one shape over HTTP like the official client, through every fault, and believes nothing."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Final, Self

import aiohttp

from tests.pipeline import oracle
from tests.pipeline.client_view import ClientView, Replica, Violation

HANG_SECONDS: Final = 180.0
"""Waiting this long for anything means that it will not happen; nothing is measured by it."""

SETTLED_SECONDS: Final = 5.0
"""A shape that lives this long after it was complete is no longer being created: no crash may end it (engine.md
14.6)."""

_REQUEST = aiohttp.ClientTimeout(total=60)
_STREAM = aiohttp.ClientTimeout(sock_connect=60, sock_read=60)
_EVENT = b"data: "
_COMMENT = b": keep-alive"
_BACKOFF = (0.05, 0.5)


class Reader:
    """Follows one shape from the moment of `start` until `stop`.

    `protected`: this shape must live, a 409 is a failure at any time; with `may_end` none ever is. What the reader
    survived is counted: `losses` (broken or refused connections), `refusals` (429 and 5xx), `view.ended` (handles that
    got a 409); and `streams` of events that it opened.
    """

    def __init__(
        self,
        url: str,
        table: str,
        *,
        columns: Sequence[str] | None = None,
        where: str | None = None,
        params: Sequence[str] = (),
        replica: Replica = "default",
        protected: bool = False,
        monotone_lsn: bool = True,
        events: bool = False,
        complete: Callable[[str], bool] = lambda handle: True,
    ) -> None:
        """``events``: live by server-sent events instead of long-polls. ``complete``: whether a shape that was up to
        date is on the disk, if that can be known."""
        self.url = url
        self.table = table
        self.columns = columns
        self.where = where
        self.params = params
        self.name = f"{table}{list(columns) if columns is not None else ''}{' full' if replica == 'full' else ''}"
        self.name += f" where {where} {list(params)}" if where is not None else ""
        self.name += " by events" if events else ""
        self.events = events
        self.streams = 0
        self.protected = protected
        self.may_end = False
        self.losses: list[str] = []
        self.refusals: list[str] = []
        quoted = '"' + table.replace('"', '""') + '"'
        self.view = ClientView(
            quoted, columns=columns, where=where, params=params, replica=replica, monotone_lsn=monotone_lsn
        )
        self._session: aiohttp.ClientSession | None = None
        self._task: asyncio.Task[None] | None = None
        self._current = False
        self._complete = complete
        self._complete_since: float | None = None
        # A 409 may come long after the end that it tells of: while no shape can be made, it waits for the next one.
        self._alive_at = 0.0
        self._stepped = asyncio.Event()

    async def __aenter__(self) -> Self:
        return self.start()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    def start(self) -> Self:
        """Begins to follow the shape in the background."""
        self._session = self._session or aiohttp.ClientSession()
        self._task = self._task or asyncio.create_task(self._follow(), name=f"reader {self.name}")
        return self

    async def stop(self) -> None:
        """Ends the background task and closes the connection; raises what the task failed with."""
        try:
            await self.pause()
        finally:
            if self._session is not None:
                await self._session.close()
                self._session = None

    async def pause(self) -> None:
        """Ends the background task; what was read stays. Raises what the task failed with."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    def check(self) -> None:
        """Raises what the background task failed with, if it did."""
        if self._task is not None and self._task.done():
            self._task.result()

    async def current(self) -> None:
        """Waits until the reader has been up to date once since its start."""
        await self._until(lambda: self._current, "the first up-to-date")

    async def seen(self, lsn: int) -> None:
        """Waits, following live, until an up-to-date covers `lsn`."""
        await self._until(lambda: self.view.up_to_date and self.view.lsn >= lsn, f"LSN {lsn}")

    async def at_rest(self, lsn: int) -> None:
        """Stops following and reads on, without live, until an up-to-date covers the commit at `lsn`."""
        await self.pause()
        try:
            async with asyncio.timeout(HANG_SECONDS):
                while not (self.view.up_to_date and self.view.lsn >= lsn):
                    await self._step(live=False)
                    if self.view.up_to_date and self.view.lsn < lsn:
                        await asyncio.sleep(0.05)
        except TimeoutError:
            raise self._hang(f"LSN {lsn} at rest") from None

    async def verify(self, database_url: str) -> None:
        """Compares what is held with Postgres, then reads all again from `-1` and compares byte by byte.

        Call it at rest. Raises Violation.
        """
        expected = await oracle.select(database_url, self.table, self.columns, self.where, self.params)
        different = oracle.difference(expected, self.view.rows)
        if different is not None:
            raise Violation(f"{self.name} (handle {self.view.handle}) is not what Postgres holds:\n{different}")
        await self.audit()

    async def audit(self) -> None:
        """Reads the whole shape again and compares every item with what was served before (INV-21, INV-24)."""
        again = Reader(
            self.url,
            self.table,
            columns=self.columns,
            where=self.where,
            params=self.params,
            replica=self.view.replica,
            protected=True,
            monotone_lsn=False,
        )
        again._session = self._session
        again.view.handle = self.view.handle
        async with asyncio.timeout(HANG_SECONDS):
            while not again.view.up_to_date:
                await again._step(live=False)
        if again.view.handle != self.view.handle:
            raise Violation(f"{self.name}: handle {self.view.handle} became {again.view.handle}")
        different = self.view.journal.difference(again.view.journal, self.view.offset)
        if different is not None:
            raise Violation(f"{self.name} (handle {self.view.handle}) was rewritten: {different}")

    async def _follow(self) -> None:
        while True:
            await self._step(live=True)
            self._stepped.set()

    async def _step(self, live: bool) -> None:
        """One request, and what it does to the view. Losses and refusals are survived as the official client does."""
        assert self._session is not None
        query = self.view.query(live, self.events)
        streams = "live_sse" in query
        try:
            async with self._session.get(
                f"{self.url}/v1/shape", params=query, timeout=_STREAM if streams else _REQUEST
            ) as response:
                if streams and response.status == 200:
                    self.view.open_events(query, response.headers)
                    self.streams += 1
                    await self._take_events(response.content)
                    self._alive()  # streams end with their shape, not after it
                    return
                body = await response.read()
        except (aiohttp.ClientError, TimeoutError, ConnectionError) as error:
            self.losses.append(repr(error))
            await _back_off()
            return
        except Violation as violation:
            raise self._wrong(violation, query) from None
        try:
            if response.status == 200:
                self.view.accept(query, response.headers, body)
                self._current = self._current or self.view.up_to_date
                self._alive()
            elif response.status == 409:
                self._check_may_end()
                self.view.conflict(response.headers, body)
                self._current, self._complete_since = False, None
            elif response.status == 429 or response.status >= 500:
                self.refusals.append(f"{response.status} {body[:200]!r}")
                # The official client takes retry-after as a floor; that only makes a test longer.
                await _back_off()
            else:
                raise Violation(f"answer {response.status} {body[:500]!r}")
        except Violation as violation:
            raise self._wrong(violation, query) from None

    async def _take_events(self, content: aiohttp.StreamReader) -> None:
        """Batch by batch until the stream ends; what comes behind its last up-to-date is dropped."""
        carry = b""
        items: list[bytes] = []
        async for data in content.iter_any():
            *lines, carry = (carry + data).split(b"\n\n")
            self._alive()
            for line in lines:
                if line.startswith(_EVENT):
                    items.append(line.removeprefix(_EVENT))
                    if b'"control":"up-to-date"' in line:
                        self.view.accept_events(items)
                        items = []
                        self._stepped.set()
                elif line != _COMMENT:
                    raise Violation(f"neither an event nor a comment: {line[:500]!r}")

    def _wrong(self, violation: Violation, query: Mapping[str, str]) -> Violation:
        return Violation(f"{self.name} (handle {self.view.handle}): {violation}\nrequest: {query}")

    def _alive(self) -> None:
        self._alive_at = asyncio.get_running_loop().time()
        if self._complete_since is None and self._current and self._complete(self.view.handle or ""):
            self._complete_since = self._alive_at

    def _check_may_end(self) -> None:
        if self.may_end:
            return
        since = self._complete_since
        settled = since is not None and self._alive_at - since > SETTLED_SECONDS
        if self.protected or settled:
            raise Violation(f"409 for a shape that must live (at offset {self.view.offset})")

    async def _until(self, condition: Callable[[], bool], what: str) -> None:
        try:
            async with asyncio.timeout(HANG_SECONDS):
                while not condition():
                    self.check()
                    self._stepped.clear()
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self._stepped.wait(), 1)
        except TimeoutError:
            raise self._hang(what) from None

    def _hang(self, what: str) -> Violation:
        return Violation(
            f"{self.name} (handle {self.view.handle}) waits in vain for {what}: offset {self.view.offset}, "
            f"up to date: {self.view.up_to_date}, LSN {self.view.lsn}, "
            f"last losses {self.losses[-3:]}, refusals {self.refusals[-3:]}"
        )


async def _back_off() -> None:
    await asyncio.sleep(random.uniform(*_BACKOFF))

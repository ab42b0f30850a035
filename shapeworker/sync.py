"""Group sync: what has been applied becomes durable, many logs at a time, off the loop (engine.md 26.1, INV-10).

Nothing on the hot path waits for the disk. A batch takes the logs that are dirty at a commit boundary; when the last of
them is down, everything up to that commit is durable. A shape that is ending holds the durable position back until its
tombstone is (INV-32).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, Protocol

from common.metrics import Histogram
from common.shapelog.files import REAL, Files
from common.shapelog.whole_sync import Coverable, WholeSync

INTERVAL = 0.25
"""Seconds between two batches at least: for so long a commit waits before its sync starts, as a rule. The ingester
acknowledges twice a second, so more often would help nobody."""

SHARE: Final = 1 / 4
"""Of the time that syncing may take: its thread gets in the way of the loop's, which only a rewind repays."""

LONGEST: Final = 1.0
"""Seconds between two batches at most, however long they take: about what a rewind brings again."""


class Log(Coverable, Protocol):
    """What a batch needs of a log. Called from a thread while the loop appends."""

    def sync(self) -> None:
        """Make durable what has been appended. Raises ``OSError``, and ``ValueError`` once it is closed."""


class Syncer:
    """Tracks applied and durable positions of one worker."""

    def __init__(
        self,
        storage: Path,
        on_durable: Callable[[int], None],
        on_failure: Callable[[Log, OSError], None],
        interval: float = INTERVAL,
        files: Files = REAL,
    ) -> None:
        """``on_failure(log, error)`` must end the log's shape and register that ending with :meth:`wait_for`."""
        self.applied = 0
        self.durable = 0
        self.durations = Histogram("galvanic_sync_duration")
        self.whole = WholeSync(storage, "group sync", files)
        self._on_durable = on_durable
        self._on_failure = on_failure
        self._interval = interval
        self._dirty: dict[Log, None] = {}  # a set that keeps the order, so that simulations repeat
        self._obstacles: set[asyncio.Future[None]] = set()
        self._syncing: tuple[Log | None, float] | None = None
        self._run = 0
        self._turn = asyncio.Lock()
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sync")

    def open(self) -> None:
        """Have failures of the disk reported from now on; to be called before any log is opened. Blocks on the disk."""
        self.whole.sync()

    def restart(self, position: int) -> None:
        """A new epoch starts at ``position``: what is applied counts from there again."""
        self._run += 1
        self.applied = self.durable = position - 1

    def commit(self, lsn: int) -> None:
        """Everything up to this commit has been written."""
        self.applied = lsn
        self._wake.set()

    def dirty(self, log: Log) -> None:
        """The log has bytes that count and are not known to be durable."""
        self._dirty[log] = None
        self._wake.set()

    def wait_for(self, obstacle: asyncio.Future[None]) -> None:
        """The durable position must not move before this is done."""
        self._obstacles.add(obstacle)
        obstacle.add_done_callback(self._obstacles.discard)
        self._wake.set()

    def syncing(self, now: float) -> tuple[Log | None, float] | None:
        """Which log the thread waits for (``None``: the whole file system), and for how many seconds."""
        at = self._syncing
        return None if at is None else (at[0], now - at[1])

    async def quiet(self, log: Log) -> None:
        """Wait until no batch touches the log any more; it is not synced again. For closing it."""
        self._dirty.pop(log, None)
        await self._idle.wait()

    async def run(self) -> None:
        """Sync for ever."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            began = time.monotonic()
            await self.flush()
            taken = time.monotonic() - began
            await asyncio.sleep(min(max(self._interval, taken / SHARE - taken), LONGEST))

    async def flush(self) -> None:
        """One batch, unless there is nothing to do."""
        # One at a time: a second one would find no log dirty while the first still waits for the disk.
        async with self._turn:
            await self._flush()

    async def _flush(self) -> None:
        if self._dirty or self._obstacles or self.durable < self.applied:
            run, cut = self._run, self.applied
            batch, self._dirty = self._dirty, {}
            obstacles = list(self._obstacles)
            if batch:
                started = time.monotonic()
                self._idle.clear()
                try:
                    loop = asyncio.get_running_loop()
                    failures = await loop.run_in_executor(self._thread, self._sync, batch)
                except BaseException:
                    # Cancelled: nobody has seen how it ended. The next batch waits for it, since the thread is one.
                    self._dirty |= batch
                    raise
                finally:
                    self._idle.set()
                self.durations.add((time.monotonic() - started) * 1000)
                for log, error in failures:
                    self._on_failure(log, error)
                obstacles = list(self._obstacles) if failures else obstacles
            if obstacles:
                await asyncio.wait(obstacles)
            if run == self._run and cut > self.durable:
                self.durable = cut
                self._on_durable(cut)

    def close(self) -> None:
        """Release the thread."""
        self._thread.shutdown(wait=True)

    def _sync(self, batch: dict[Log, None]) -> list[tuple[Log, OSError]]:
        try:
            return self._sync_all(batch)
        finally:
            self._syncing = None

    def _sync_all(self, batch: dict[Log, None]) -> list[tuple[Log, OSError]]:
        if self.whole.pays(len(batch)):
            self._syncing = None, time.monotonic()
            if self.whole.cover(batch):
                return []
        failures = []
        for log in batch:
            self._syncing = log, time.monotonic()
            try:
                log.sync()
            except OSError as error:
                failures.append((log, error))
            except ValueError:
                # Closed meanwhile: its shape has ended, or its partition has another owner, who syncs it anew.
                continue
        return failures

"""Which logs are open: each when it is first needed, not more at a time than descriptors allow."""

from __future__ import annotations

import contextlib
import itertools
import resource
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Final

from common.shapelog.examination import look
from common.shapelog.files import REAL, Files, write_back
from common.shapelog.layout import DamagedLog
from common.shapelog.writer import LogWriter
from shapeworker.holdings import Holdings
from shapeworker.shape import Life, Shape

LIMIT: Final = 2000
"""Open logs, of two descriptors each; fewer where the system allows fewer descriptors."""

LOOK: Final = 16
"""How many of the logs that were not needed for longest are tried, when one must be closed: some may be in use."""

SHARE: Final = 1 / 4
"""Of the descriptors that the process may have, so many logs are open as a rule: half of the descriptors."""

MOST: Final = 5 / 16
"""And so many at the most; some cannot be closed at once, because they are not on the disk yet."""


class OpenLogs:
    """Opens and recovers logs; closes those that were not needed for longest."""

    def __init__(
        self,
        holdings: Holdings,
        chunk_bytes: int,
        on_unsynced: Callable[[LogWriter], None],
        limit: int | None = None,
        files: Files = REAL,
    ) -> None:
        """``on_unsynced(log)``: recovery kept transactions that are perhaps not on the disk yet; they count."""
        self._holdings = holdings
        self._chunk_bytes = chunk_bytes
        self._files = files
        self._on_unsynced = on_unsynced
        descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._limit = min(LIMIT, int(descriptors * SHARE)) if limit is None else limit
        self._most = int(descriptors * MOST) if limit is None else int(limit * MOST / SHARE)
        self._open: OrderedDict[str, Shape] = OrderedDict()

    def __len__(self) -> int:
        """How many are open."""
        return len(self._open)

    def readable(self, shape: Shape) -> None:
        """Make sure that readers who are sent to the shape find it. Raises as :meth:`open`."""
        if look(shape.directory, self._files).ended:
            # By a worker whose catalog has lost that: no reader would believe that it lives.
            raise DamagedLog("it is marked as ended")
        self.open(shape)

    def open(self, shape: Shape) -> None:
        """Make ``shape.log`` usable. Raises ``DamagedLog``, ``OSError`` when the shape cannot be saved."""
        if shape.log is not None:
            if shape.life is Life.ACTIVE:
                self._keep(shape)
            return
        # All below the acknowledged position is durable (the position itself is exclusive), and what was closed clean.
        acknowledged = max(self._holdings.acknowledged - 1, shape.closed_at)
        shape.log = LogWriter.open(shape.directory, self._chunk_bytes, acknowledged, self._files)
        if shape.log.unsynced:
            self._on_unsynced(shape.log)
        self._keep(shape)

    def _keep(self, shape: Shape) -> None:
        self._open[shape.handle] = shape
        self._open.move_to_end(shape.handle)
        if len(self._open) > self._limit:
            self._close_oldest()

    def _close_oldest(self) -> None:
        # Not the one that is being opened, which is needed from now on.
        for handle, shape in list(itertools.islice(self._open.items(), min(LOOK, len(self._open) - 1))):
            if len(self._open) <= self._limit:
                return
            if shape.log is None or shape.life is Life.ENDED:
                del self._open[handle]
            elif shape.life is Life.ACTIVE and shape.log.idle and not shape.log.dirty:
                # A transaction may be passing through the shape: what it gathers in memory does not need the log yet.
                shape.closed_at = shape.log.last.tx
                shape.log.close()
                shape.log = None
                del self._open[handle]
        if len(self._open) > self._most:
            self._sync_all(shape.directory)

    def _sync_all(self, directory: Path) -> None:
        """One transaction touches more shapes than files may be open: put on the disk what it has written so far, so
        that it can be closed. This stops the loop for as long as the disk takes."""
        if self._files is REAL:
            # At once what the syncs below would do one by one, many times slower.
            write_back(directory)
        for shape in self._open.values():
            # What the sync's thread is at will be clean by itself, and the loop need not wait for it.
            if shape.log is not None and not shape.log.syncing:
                # One that fails is found again, and ended, by the batch that it waits for.
                with contextlib.suppress(OSError):
                    shape.log.sync()

"""Which logs are open: each when it is first needed, not more at a time than descriptors allow."""

from __future__ import annotations

import itertools
import resource
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from common.shapelog.files import REAL, Files
from common.shapelog.writer import LogWriter
from shapeworker.holdings import Holdings
from shapeworker.shape import Life, Shape

LIMIT: Final = 2000
"""Open logs, of two descriptors each; fewer where the system allows fewer descriptors."""

LOOK: Final = 16
"""How many of the logs that were not needed for longest are tried, when one must be closed: some may be in use."""

SHARE: Final = 4
"""One in so many of the descriptors that the process may have is an open log."""


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
        self._limit = min(LIMIT, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // SHARE) if limit is None else limit
        self._open: OrderedDict[str, Shape] = OrderedDict()

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
        # Not the one that is being opened, which is in use only from now on.
        for handle, shape in list(itertools.islice(self._open.items(), min(LOOK, len(self._open) - 1))):
            if len(self._open) <= self._limit:
                return
            if shape.log is None or shape.life is Life.ENDED:
                del self._open[handle]
            elif shape.life is Life.ACTIVE and not shape.busy and not shape.log.dirty:
                shape.closed_at = shape.log.last.tx
                shape.log.close()
                shape.log = None
                del self._open[handle]

"""What an operator can run to help, said in the log: the same at most once a minute, however often clients ask."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

import structlog

log = structlog.get_logger()

PERIOD: Final = 60.0
"""Seconds between two lines with the same reason and SQL."""

_REMEMBERED: Final = 1000


class Remedies:
    """The remedies that were logged lately."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._logged: dict[tuple[str, str], float] = {}

    def offer(self, reason: str, sql: str) -> bool:
        """Logs why something cannot be done and the SQL that would change that. Whether it was not said just now."""
        now = self._clock()
        key = reason, sql
        if now - self._logged.get(key, -PERIOD) < PERIOD:
            return False
        self._logged.pop(key, None)
        self._logged[key] = now
        if len(self._logged) > _REMEMBERED:
            del self._logged[next(iter(self._logged))]
        log.warning("an operator can help", reason=reason, sql=sql)
        return True

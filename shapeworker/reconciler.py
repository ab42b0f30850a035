"""Compares shapes with their tables as they are now, for what no change in the stream tells (engine.md 18.2).

A table that nobody writes to sends no description of itself; nullability and the name of a root above partitions are
in none. So all tables are described again each period, and whenever partitions have been taken over.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import Final

import structlog

from common.postgres import DATABASE_ERRORS, Pool, classify
from common.table import Table, describe_oids, difference, rewritten
from shapeworker.holdings import Holdings
from shapeworker.shape import Life, Shape

log = structlog.get_logger()

SHORTEST: Final = 0.1
"""Seconds between two looks, whatever the setting says."""

TABLES: Final = 200
"""Described by one query."""

AT_ONCE: Final = 1000
"""Shapes that are compared before everything else gets its turn on the loop: about a millisecond."""


def misfits(
    shapes: Iterable[Shape], tables: Mapping[int, Table], former: Mapping[int, Table]
) -> list[tuple[Shape, str]]:
    """The shapes that do not fit their tables any more, and why. Shapes of one view are compared once.

    ``former`` are the tables at the look before, as far as there was one.
    """
    # By the table's id: shapes of a table share its description, which is long.
    reasons: dict[tuple[int, tuple[str, ...], bool, frozenset[str]], str | None] = {}
    found: list[tuple[Shape, str]] = []
    for shape in shapes:
        view = (id(shape.table), shape.selected, shape.request.columns is not None, shape.required)
        if view not in reasons:
            now, last = tables.get(shape.table.oid), former.get(shape.table.oid)
            reason = difference(shape.table, now, *view[1:])
            if reason is None and now is not None:
                names = (*shape.selected, *shape.required)
                # What is harmless by itself, like VACUUM FULL, is forgotten when it has been seen.
                if last is None or rewritten(last, now, names):
                    reason = rewritten(shape.table, now, names)
            reasons[view] = reason
        if reason := reasons[view]:
            found.append((shape, reason))
    return found


class Reconciler:
    """The looks of one worker. Errors of the database only postpone them."""

    def __init__(self, pool: Pool, holdings: Holdings, end: Callable[[Shape, str], None], period: float) -> None:
        """``period``: seconds between two looks."""
        self._pool = pool
        self._holdings = holdings
        self._end = end
        self._period = max(period, SHORTEST)
        self._hurry = asyncio.Event()
        self._seen: dict[int, Table] = {}

    def hurry(self) -> None:
        """Look now: there are shapes whose tables nobody has watched for a while."""
        self._hurry.set()

    async def run(self) -> None:
        """Look for ever."""
        while True:
            try:
                async with asyncio.timeout(self._period):
                    await self._hurry.wait()
            except TimeoutError:
                pass
            self._hurry.clear()
            try:
                await self.look()
            except DATABASE_ERRORS as error:
                log.warning("the tables cannot be looked at now", reason=classify(error).message)

    async def look(self) -> None:
        """One look at all tables. Raises ``DATABASE_ERRORS``."""
        # Those from before the look: a table may have changed again for a shape that is made during it.
        oids = sorted(self._holdings.tables())
        former, self._seen = self._seen, {}
        for start in range(0, len(oids), TABLES):
            some = oids[start : start + TABLES]
            shapes = [shape for oid in some for shape in self._holdings.of_table(oid) if shape.life is Life.ACTIVE]
            if not shapes:
                continue
            async with self._pool.connection() as connection:
                tables = await describe_oids(connection, some)
            self._seen.update(tables)
            for place in range(0, len(shapes), AT_ONCE):
                for shape, reason in misfits(shapes[place : place + AT_ONCE], tables, former):
                    if self._holdings.by_handle(shape.handle) is shape:
                        self._end(shape, reason)
                await asyncio.sleep(0)

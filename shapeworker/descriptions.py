"""The tables that shapes are asked for: looked up once for all who ask at the same time, anew only if altered."""

from __future__ import annotations

import asyncio
from typing import Final, NamedTuple

from common.postgres import Pool
from common.table import Table, describe
from common.table_version import is_told_by_version, version

KEPT: Final = 1000
"""Descriptions remembered."""


PAUSE: Final = 0.003
"""Seconds between two looks at a table, in which others may come who ask for it, too."""


class Described(NamedTuple):
    """A table, ``None`` if there is none of this name. ``version`` is that of :mod:`common.table_version`, empty if it
    does not tell all about this table; ``server_version`` is numeric."""

    table: Table | None
    version: str
    server_version: int


class Descriptions:
    """Looks tables up. Every answer is from a look that began after the question."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._known: dict[tuple[str, str], Described] = {}
        self._running: dict[tuple[str, str], asyncio.Task[Described]] = {}
        self._next: dict[tuple[str, str], asyncio.Task[Described]] = {}

    async def of(self, schema: str, name: str) -> Described:
        """The ordinary or partitioned table of this exact name. Raises as :data:`common.postgres.DATABASE_ERRORS`."""
        key = schema, name
        task = self._next.get(key)
        if task is None:
            task = self._next[key] = asyncio.get_running_loop().create_task(self._look(key))
        return await asyncio.shield(task)

    def forget(self) -> None:
        """The server may have been set back: transactions that wrote to its catalogs may have never been."""
        self._known = {}

    async def _look(self, key: tuple[str, str]) -> Described:
        while (before := self._running.get(key)) is not None:
            await asyncio.wait([before])
            await asyncio.sleep(PAUSE)
        # Who asks from here on needs another look.
        self._running[key] = self._next.pop(key)
        try:
            return await self._described(*key)
        finally:
            del self._running[key]

    async def _described(self, schema: str, name: str) -> Described:
        kept = self._known
        known = kept.get((schema, name))
        async with self._pool.connection() as connection:
            before = await version(connection, schema, name)
            if known is not None and known.version == before:
                return known
            table = await describe(connection, schema, name)
            server_version = connection.info.server_version
            if table is None or not is_told_by_version(table):
                return Described(table, "", server_version)
            after = await version(connection, schema, name)
        if known is not None and table == known.table:
            # One object for all shapes of a table, which is compared with itself for each new one.
            table = known.table
        if after is None or after != before:
            # Altered meanwhile: no knowing whether before the description was made.
            return Described(table, "", server_version)
        if len(kept) >= KEPT:
            kept.clear()
        described = kept[schema, name] = Described(table, after, server_version)
        return described

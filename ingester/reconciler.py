"""Looks at the publication again and again, for what no stream can show (engine.md 4.2, 18).

A publication that is gone sends nothing, and Postgres 18 says nothing about it; a table that was taken out of it falls
silent; one that nobody needs any more still costs. The first ends the session, the next one starts a new generation.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from collections.abc import Set as AbstractSet
from typing import Final

import structlog

from common.postgres import DATABASE_ERRORS, classify
from ingester.membership import Flags, lacks_identity
from ingester.publication import Publication
from ingester.standing import unused

log = structlog.get_logger()

SHORTEST: Final = 0.1
"""Seconds between two looks, whatever the setting says."""


def fault(before: Flags | None, now: Flags | None, version: int) -> str:
    """Why nothing that comes from the slot can be trusted any more; empty if it can.

    ``version`` is the one that may be found unless ``before`` explains another. That stored generated columns are not
    published any more is no such reason: the stream tells it before the next change, and only shapes that select one
    end.
    """
    if now is None:
        return "the publication was dropped"
    if before is not None and before.oid != now.oid:
        return "the publication was dropped and created again by somebody else"
    if not now.operations:
        return "the publication does not publish INSERT, UPDATE, DELETE and TRUNCATE any more"
    if now.via_root:
        return "the publication publishes changes of partitions under the name of their root"
    if now.version != version and (before is None or before.generated == now.generated):
        return "the publication was altered by somebody"
    return ""


class Reconciler:
    """One session's looks at the publication. Errors of the database only postpone them."""

    def __init__(
        self,
        publication: Publication,
        needed: Callable[[], AbstractSet[int] | None],
        on_version: Callable[[int], Awaitable[object]],
        *,
        version: int,
        period: float,
    ) -> None:
        """``needed``: the tables that shapes need or somebody waits for; ``None`` while that is not known.

        ``version`` is the one that the publication had when the session began; ``on_version`` is awaited with each that
        a later session may find. ``period``: seconds between two looks.
        """
        self._publication = publication
        self._needed = needed
        self._version = version
        self._on_version = on_version
        self._period = period
        self._flags: Flags | None = None
        self._unused: AbstractSet[int] = frozenset()

    async def run(self) -> str:
        """Looks until the publication cannot be trusted any more; returns why."""
        while True:
            try:
                if reason := await self.look():
                    return reason
            except DATABASE_ERRORS as error:
                self._unused = frozenset()
                log.warning("the publication cannot be looked at now", reason=classify(error).message)
            await asyncio.sleep(max(self._period, SHORTEST))

    async def look(self) -> str:
        """One look; the reason why the session must end, if it must. Raises ``DATABASE_ERRORS``."""
        before, (flags, looks) = self._flags, await self._publication.check()
        if reason := fault(before, flags, self._version):
            return reason
        if before is not None and flags is not None and before.generated != flags.generated:
            log.warning("somebody switched the publication of generated columns", stored=flags.generated == "s")
            flags = await self._publication.publish_generated()
            if flags is not None:
                self._version = flags.version
                await self._on_version(flags.version)
        self._flags = flags
        needed = self._needed()
        if needed is None:
            self._unused = frozenset()
            return ""
        for table in looks.keys() & needed:
            relations = looks[table].relations
            if looks[table].memberships and lacks_identity(looks[table]):
                # Sets it, or tells an operator how to.
                await self._publication.ensure_table(table, relations[0].schema, relations[0].name)
        # Twice in a row, so that a table is not taken out between two shapes that follow each other.
        idle = unused(self._publication.standings, needed).keys()
        for table in idle & self._unused:
            needed = self._needed()
            if needed is not None and table in unused(self._publication.standings, needed):
                await self._publication.release(table)
        self._unused = set(idle)
        return ""

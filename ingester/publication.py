"""The publication: made at the start, and given each table that a shape is asked for before its snapshot may be taken.

A change is published iff its table is a member at the place of that change in the WAL. How a table becomes one is
:mod:`ingester.enrolment`. Where it was one and is no more, the shapes made before must end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Final, NamedTuple

import structlog
from psycopg import errors, sql

from common.frames import Gap
from common.postgres import DATABASE_ERRORS, Connection, Pool
from ingester.enrolment import Enrolment, Reached, limit_lock_waits, refusal
from ingester.membership import (
    NO_TABLE,
    Family,
    Flags,
    Look,
    NotPublished,
    Relation,
    drop_table,
    family,
    look,
    look_all,
    publish_generated,
    settled,
)
from ingester.moment import insert_position
from ingester.standing import UNCHANGED, Standing, compare, made, renewed

log = structlog.get_logger()

BIRTH_SECONDS: Final = 5.0
"""How long it may take to see whether a new partition came with rows; beyond, it is taken to have some."""


class Published(NamedTuple):
    """Snapshots of the table may be taken: whatever they do not show will come through the slot (INV-4)."""


class Publication:
    """The tables of one publication. The pool must have more connections than ``concurrency``.

    ``standings`` are those of ``Source.tables``; ``on_standings`` is awaited with the new whole when one has changed,
    and only then ``on_gap`` is told which shapes must end. ``on_remedy`` is told the reason and the SQL whenever an
    operator could help. ``patience`` limits the wait for locks, ``barrier_patience`` that for the transactions of
    others; both in seconds.
    """

    def __init__(
        self,
        admin: Pool,
        name: str,
        *,
        manual: bool,
        standings: Mapping[int, Standing],
        on_standings: Callable[[dict[int, Standing]], Awaitable[object]],
        on_gap: Callable[[Gap], object],
        on_remedy: Callable[[str, str], object],
        concurrency: int = 3,
        patience: float = 20.0,
        barrier_patience: float = 15.0,
    ) -> None:
        self._admin, self._name, self._manual = admin, name, manual
        self._standings = dict(standings)
        self._on_standings, self._on_gap, self._on_remedy = on_standings, on_gap, on_remedy
        self._saving = asyncio.Lock()
        self._undisturbed = asyncio.Event()
        self._undisturbed.set()
        self._enrolment = Enrolment(
            admin,
            name,
            manual=manual,
            settled=self._settled,
            before_adding=self._check,
            concurrency=concurrency,
            patience=patience,
            barrier_patience=barrier_patience,
        )
        self._running: dict[tuple[int, str, str], asyncio.Task[Published | NotPublished]] = {}

    @property
    def standings(self) -> Mapping[int, Standing]:
        """The tables that were published for shapes, and since when these miss nothing."""
        return self._standings

    def gaps(self) -> list[Gap]:
        """What every worker has to know, whatever it was told before."""
        return [Gap(table, standing.since, standing.reason) for table, standing in self._standings.items()]

    async def ensure_table(self, oid: int, schema: str, name: str) -> Published | NotPublished:
        """Makes sure the table with this oid, which was found under this name, is published in full, with its
        partitions.

        Callers at the same time for the same table share one attempt. What goes wrong is in the answer; only an error
        of ``on_standings`` is raised.
        """
        key = (oid, schema, name)
        task = self._running.get(key)
        if task is None:
            task = self._running[key] = asyncio.create_task(self._ensure(oid, schema, name))
            task.add_done_callback(lambda _: self._running.pop(key, None))
        # A caller that goes away must not take the others' answer with it.
        return await asyncio.shield(task)

    async def adopt_leaf(self, oid: int) -> Published | NotPublished:
        """Gives a leaf that was attached to a published table its REPLICA IDENTITY FULL, like ``ensure_table``."""
        try:
            found = await self._look(oid)
        except DATABASE_ERRORS as error:
            return refusal(error)
        if not found.relations:
            return NotPublished(f"The partition with oid {oid} was dropped", 409, None)
        return await self.ensure_table(oid, found.relations[0].schema, found.relations[0].name)

    async def announced(self, oid: int) -> Family:
        """The stream announces changes of this relation: how it concerns other tables of its partition tree.

        What shapes of these may have missed is known, and told, before this returns: a partition that was attached
        with rows must not be taken for one that grew in the stream. Raises ``psycopg.Error``, ``PoolBusy``.
        """
        found = await self._look(oid)
        above = [table for table, standing in self._standings.items() if oid in standing.tree]
        await self._check({oid, *found.ancestors, *above})
        return family(found)

    async def check(self) -> tuple[Flags | None, dict[int, Look]]:
        """Compares all tables that were published for shapes with the catalog, and tells which shapes must end.

        Returns what was found. Raises ``psycopg.Error``, ``PoolBusy``.
        """
        flags = (await self._look(NO_TABLE)).publication
        return flags, {} if flags is None else await self._check(set(self._standings))

    async def publish_generated(self) -> Flags | None:
        """Switches stored generated columns on again, if we may. Returns what the publication is afterwards."""
        async with self._admin.connection() as connection:
            flags = (await look(connection, self._name, NO_TABLE)).publication
            if flags is not None and flags.owned and not self._manual:
                await connection.execute(publish_generated(self._name))
            return (await look(connection, self._name, NO_TABLE)).publication

    async def release(self, oid: int) -> None:
        """No shape needs the table any more: forgets it, and takes it out of the publication if it is ours to alter.

        Does nothing while any table is being published. Raises ``psycopg.Error``, ``PoolBusy``.
        """
        standing = self._standings.get(oid)
        if standing is None or self._running or not self._undisturbed.is_set():
            return
        self._undisturbed.clear()
        try:
            await self._take_out(oid, standing)
            # Afterwards: if we die in between, the next look finds a membership that is no more, which is harmless.
            del self._standings[oid]
            await self._save({})
        finally:
            self._undisturbed.set()

    async def _take_out(self, oid: int, standing: Standing) -> None:
        found = await self._look(oid)
        flags = found.publication
        if self._manual or flags is None or not flags.owned or not found.relations:
            return
        table = found.relations[0]
        if table.entry is not None and table.entry == standing.membership:
            async with self._admin.connection() as connection, connection.transaction():
                await limit_lock_waits(connection)
                await connection.execute(drop_table(self._name, table))
            log.info("a table is no longer published", table=table.text, reason="no shape needs it")

    async def close(self) -> None:
        """Gives up what is under way; its callers get ``asyncio.CancelledError``."""
        tasks = list(self._running.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _look(self, oid: int) -> Look:
        async with self._admin.connection() as connection:
            return await look(connection, self._name, oid)

    async def _check(self, tables: Iterable[int]) -> dict[int, Look]:
        before = {table: self._standings[table] for table in tables if table in self._standings}
        if not before:
            return {}
        async with self._admin.connection() as connection:
            looks = await look_all(connection, self._name, before)
        await self._compare(before, looks)
        return looks

    async def _compare(self, before: Mapping[int, Standing], looks: Mapping[int, Look]) -> None:
        """What looks that began just now say of the standings that there were then."""
        reasons = dict.fromkeys(before, "")
        since = 0
        if any(compare(standing, looks[table]) != UNCHANGED for table, standing in before.items()):
            async with self._admin.connection() as connection:
                for table, standing in before.items():
                    reasons[table] = await _reason(connection, standing, looks[table])
                # After the look: shapes with a later snapshot saw at least what the look saw.
                since = await insert_position(connection) if any(reasons.values()) else 0
        changed: dict[int, Standing] = {}
        for table, standing in before.items():
            if self._standings.get(table) is not standing:
                continue  # settled anew, or released, after this look
            now = renewed(standing, looks[table], reasons[table], since)
            if now != standing:
                changed[table] = now
        if changed:
            await self._save(changed)
        for table, standing in changed.items():
            if reasons[table]:
                self._on_gap(Gap(table, standing.since, standing.reason))

    async def _save(self, changed: Mapping[int, Standing]) -> None:
        self._standings.update(changed)
        async with self._saving:
            # Taken inside: a save that began later must not be overtaken.
            await self._on_standings(dict(self._standings))

    async def _ensure(self, oid: int, schema: str, name: str) -> Published | NotPublished:
        await self._undisturbed.wait()
        before = self._standings.get(oid)
        outcome = await self._enrolment.reach(oid, schema, name)
        if isinstance(outcome, NotPublished):
            if outcome.remedy:
                self._on_remedy(outcome.reason, outcome.remedy)
            return outcome
        standing = self._standings.get(oid)
        try:
            if standing is not None and standing.membership == outcome.membership:
                if standing is before:
                    await self._compare({oid: standing}, {oid: outcome.found})
                else:
                    await self._check((oid,))  # somebody has looked later than we
            else:
                await self._settle(oid, standing, outcome)
        except DATABASE_ERRORS as error:
            return refusal(error)
        return Published()

    async def _settle(self, oid: int, former: Standing | None, reached: Reached) -> None:
        async with self._admin.connection() as connection:
            # After the membership was settled: snapshots from here on miss nothing, shapes that are older may.
            since = await insert_position(connection)
        reason = "" if former is None else compare(former, reached.found).reason
        reason = reason or "its table was published anew"
        await self._save({oid: made(reached.found, reached.membership, since, reason)})
        self._on_gap(Gap(oid, since, reason))

    def _settled(self, oid: int, found: Look) -> int | None:
        memberships = {table: standing.membership for table, standing in self._standings.items()}
        return settled(memberships, oid, found)


async def _reason(connection: Connection, standing: Standing, found: Look) -> str:
    """Why older shapes of a table must end; empty if they need not."""
    change = compare(standing, found)
    for leaf in change.newborn:
        if await _came_with_rows(connection, leaf):
            return f"the partition {leaf.text} was attached with rows in it"
    return change.reason


async def _came_with_rows(connection: Connection, leaf: Relation) -> bool:
    """Whether the transaction that made the partition also put rows into it; yes, where that cannot be seen."""
    query = sql.SQL("SELECT EXISTS (SELECT FROM ONLY {} WHERE xmin = {}::text::xid)").format(
        leaf.identifier, sql.Literal(str(leaf.created))
    )
    try:
        async with connection.transaction():
            await connection.execute(f"SET LOCAL statement_timeout TO {int(BIRTH_SECONDS * 1000)}".encode())
            row = await (await connection.execute(query)).fetchone()
            return row is None or bool(row[0])
    except (errors.InsufficientPrivilege, errors.QueryCanceled, errors.UndefinedTable, errors.InvalidSchemaName):
        return True

"""The publication: made at the start, and given each table that a shape is asked for before its snapshot may be taken.

A change is published iff its table is a member at the place of that change in the WAL. So a table is added under a lock
that excludes writers, and where somebody else has added it, all transactions that were open then must have ended
before a snapshot (engine.md 4.8, INV-4). Where that was true and is no more, the shapes made before must end.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Final, NamedTuple

import structlog
from psycopg import errors, sql

from common.frames import Gap
from common.lsn import parse_lsn
from common.postgres import DATABASE_ERRORS, Connection, Pool, PoolBusy, classify, is_unavailable
from common.xid import Snapshot
from ingester.membership import (
    NO_TABLE,
    Family,
    Flags,
    Look,
    Member,
    NotPublished,
    Relation,
    Steps,
    Verdict,
    add_table,
    drop_table,
    examine,
    family,
    lock_tables,
    look,
    look_all,
    publish_generated,
    set_identity,
    settled,
)
from ingester.standing import UNCHANGED, Standing, compare, made, renewed

log = structlog.get_logger()

LOCK_SECONDS: Final = 1.0
"""How long one attempt may wait for each lock: as long as that, all others queue behind it."""

BIRTH_SECONDS: Final = 5.0
"""How long it may take to see whether a new partition came with rows; beyond, it is taken to have some."""

_AGAIN: Final = (
    errors.LockNotAvailable,
    errors.DeadlockDetected,
    errors.SerializationFailure,
    errors.DuplicateObject,
    errors.UniqueViolation,
    errors.UndefinedObject,
    errors.UndefinedTable,
    PoolBusy,
)
"""Somebody else was at the same table or publication: look again."""


class Published(NamedTuple):
    """Snapshots of the table may be taken: whatever they do not show will come through the slot (INV-4)."""


class _Reached(NamedTuple):
    """The table as it was found, published by a membership whose barrier is behind us."""

    found: Look
    membership: int


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
        self._turns = asyncio.Semaphore(concurrency)
        self._patience, self._barrier_patience = patience, barrier_patience
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
                await connection.execute(f"SET LOCAL lock_timeout TO {int(LOCK_SECONDS * 1000)}".encode())
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
                since = await _insert_position(connection) if any(reasons.values()) else 0
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
        outcome = await self._reach_membership(oid, schema, name)
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

    async def _settle(self, oid: int, former: Standing | None, reached: _Reached) -> None:
        async with self._admin.connection() as connection:
            # After the membership was settled: snapshots from here on miss nothing, shapes that are older may.
            since = await _insert_position(connection)
        reason = "" if former is None else compare(former, reached.found).reason
        reason = reason or "its table was published anew"
        await self._save({oid: made(reached.found, reached.membership, since, reason)})
        self._on_gap(Gap(oid, since, reason))

    async def _reach_membership(self, oid: int, schema: str, name: str) -> _Reached | NotPublished:
        """The membership on which shapes may rely, or why there is none."""
        clock = asyncio.get_running_loop().time
        deadline: float | None = None
        attempt = 0
        while True:
            try:
                async with self._turns:
                    if deadline is None:  # waiting for a turn does not count
                        deadline = clock() + self._patience
                    found = await self._look(oid)
                    verdict = examine(found, self._name, schema=schema, name=name, manual=self._manual)
                    if isinstance(verdict, Steps):
                        outcome = await self._establish(found, verdict)
                        if isinstance(outcome, Look):
                            return _Reached(outcome, self._settled(oid, outcome) or next(iter(outcome.memberships)))
                        if outcome is not None:
                            return outcome
                if isinstance(verdict, NotPublished):
                    return verdict
                if isinstance(verdict, Member):
                    known = self._settled(oid, found)
                    return _Reached(found, known) if known is not None else await self._pass_barrier(found)
            except _AGAIN:
                pass
            except DATABASE_ERRORS as error:
                return refusal(error)
            pause = min(2.0, 0.1 * 2**attempt) * random.uniform(0.5, 1.0)
            if clock() + pause > deadline:
                return NotPublished("Snapshot timed out while waiting for a table lock")
            attempt += 1
            await asyncio.sleep(pause)

    def _settled(self, oid: int, found: Look) -> int | None:
        memberships = {table: standing.membership for table, standing in self._standings.items()}
        return settled(memberships, oid, found)

    async def _establish(self, found: Look, steps: Steps) -> Look | NotPublished | None:
        """Alters what is missing while no transaction that wrote to the table is open; ``None``: look again."""
        oid, schema, name = found.relations[0].oid, found.relations[0].schema, found.relations[0].name
        async with self._admin.connection() as connection:
            try:
                async with connection.transaction():
                    await connection.execute(f"SET LOCAL lock_timeout TO {int(LOCK_SECONDS * 1000)}".encode())
                    for statement in lock_tables(found.relations, steps.full):
                        await connection.execute(statement)
                    # The locks were taken by name, and until then everything may have changed.
                    locked = await look(connection, self._name, oid)
                    now = examine(locked, self._name, schema=schema, name=name, manual=self._manual)
                    if not _covered(locked, now, found, steps):
                        return None
                    if isinstance(now, NotPublished):
                        return now
                    if isinstance(now, Member):
                        return locked
                    if now.add:
                        # Whoever has missed something must end before he gets anything again.
                        await self._check({*locked.ancestors, *(relation.oid for relation in locked.relations)})
                        await connection.execute(add_table(self._name, found.relations[0]))
                    for relation in now.full:
                        await connection.execute(set_identity(relation))
                    # The locks are on the table: somebody may have taken it out of the publication meanwhile.
                    reached = await look(connection, self._name, oid)
                    return reached if reached.memberships else None
            except errors.InsufficientPrivilege:
                # What Postgres says is about the lock, if that is where it began; all that is done needs the owner.
                owned = found.relations[0] if steps.add else steps.full[0]
                statements = [add_table(self._name, found.relations[0])] if steps.add else []
                statements += [set_identity(relation) for relation in steps.full]
                return NotPublished(
                    f"Unable to create initial snapshot: must be owner of table {owned.name}",
                    remedy=" ".join(f"{statement.as_string(None)};" for statement in statements),
                )

    async def _pass_barrier(self, found: Look) -> _Reached | NotPublished:
        """Waits for every transaction that may have written before the membership was there (engine.md 4.8)."""
        clock = asyncio.get_running_loop().time
        deadline = clock() + self._barrier_patience
        open_then: frozenset[int] | None = None
        pause = 0.02
        while True:
            async with self._admin.connection() as connection:
                running = (await current_snapshot(connection)).xip
            open_then = running if open_then is None else open_then & running
            if not open_then:
                return _Reached(found, next(iter(found.memberships)))
            if clock() + pause > deadline:
                return NotPublished(
                    "Snapshot timed out while waiting for transactions that were open when the table was published"
                )
            await asyncio.sleep(pause)
            pause = min(0.5, pause * 1.5)


def _covered(now: Look, verdict: Verdict, locked: Look, steps: Steps) -> bool:
    """Whether the locks taken for ``locked`` and ``steps`` are those that what is there ``now`` needs."""
    names = {(relation.oid, relation.text) for relation in locked.relations}
    exclusive = {relation.oid for relation in steps.full}
    full = verdict.full if isinstance(verdict, Steps) else ()
    return {(relation.oid, relation.text) for relation in now.relations} <= names and all(
        relation.oid in exclusive for relation in full
    )


def refusal(error: Exception) -> NotPublished:
    """What an error while publishing a table means to the client that wants a shape of it (http-api.md 25)."""
    if is_unavailable(error):
        return NotPublished("Database connection not available")
    message = classify(error).message
    if isinstance(error, errors.InvalidParameterValue | errors.FeatureNotSupported):
        return NotPublished(message, 400, None)
    return NotPublished(f"Unexpected error while creating snapshot: {message}", 500, None)


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


async def _insert_position(connection: Connection) -> int:
    row = await (await connection.execute("SELECT pg_current_wal_insert_lsn()::text")).fetchone()
    assert row is not None
    return parse_lsn(row[0])


# --------------------------------------------------------------------------------------------------------------------


async def full_xid(admin: Connection) -> int:
    """A 64-bit transaction id of this moment, to widen 32-bit ones by (``common.xid.widen``)."""
    return (await current_snapshot(admin)).xmax


async def current_snapshot(connection: Connection) -> Snapshot:
    """What a snapshot taken now shows."""
    cursor = await connection.execute("SELECT pg_current_snapshot()::text")
    row = await cursor.fetchone()
    assert row is not None
    return Snapshot.parse(row[0])

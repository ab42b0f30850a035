"""The publication: made at the start, and given each table that a shape is asked for before its snapshot may be taken.

A change is published iff its table is a member at the place of that change in the WAL. So a table is added under a lock
that excludes writers, and where somebody else has added it, all transactions that were open then must have ended
before a snapshot (engine.md 4.8, INV-4).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, NamedTuple

from psycopg import errors, sql

from common.postgres import DATABASE_ERRORS, Connection, DatabaseProblem, Kind, Pool, PoolBusy, classify, is_unavailable
from common.xid import Snapshot
from ingester.membership import (
    Family,
    Flags,
    Look,
    Member,
    NotPublished,
    Steps,
    Verdict,
    add_table,
    examine,
    family,
    is_settled,
    lock_tables,
    look,
    set_identity,
    set_operations,
)

LOCK_SECONDS: Final = 1.0
"""How long one attempt may wait for each lock: as long as that, all others queue behind it."""

_NO_TABLE: Final = 0
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


class PublicationState(NamedTuple):
    """``fresh``: what was changed before now may be missing from the WAL as this publication filters it, so the slot
    must be made anew (engine.md 3.4). ``generated_columns``: stored ones are published."""

    oid: int
    fresh: bool
    owned: bool
    generated_columns: bool


async def ensure_publication(
    admin: Connection,
    name: str,
    *,
    manual: bool,
    before_change: Callable[[str], Awaitable[object]] | None = None,
) -> PublicationState:
    """Makes the publication if it is missing, repairs its flags if it may.

    ``before_change`` is awaited with the reason before anything that makes it ``fresh``, so that a crash right after
    cannot hide that. Raises ``DatabaseProblem``, ``psycopg.Error``.
    """
    has_generated = admin.info.server_version >= 180000
    flags = (await look(admin, name, _NO_TABLE)).publication
    fresh = flags is None
    if flags is None:
        if before_change is not None:
            await before_change(f"the publication {name!r} had to be created")
        flags = await _create(admin, name, has_generated)
    if not flags.operations or flags.via_root:
        repair = set_operations(name)
        if manual or not flags.owned:
            wrong = "does not publish INSERT, UPDATE, DELETE and TRUNCATE of each partition under its own name"
            whose = "" if flags.owned else " and is not owned by the provided user"
            script = repair.as_string(admin)
            raise DatabaseProblem(Kind.FATAL, f'Publication "{name}" {wrong}{whose}; run as its owner: {script}')
        if before_change is not None:
            await before_change(f"the publication {name!r} did not publish all changes as it should")
        await admin.execute(repair)
        fresh = True
    if has_generated and flags.generated != "s" and flags.owned and not manual:
        await admin.execute(
            sql.SQL("ALTER PUBLICATION {} SET (publish_generated_columns = stored)").format(sql.Identifier(name))
        )
        return PublicationState(flags.oid, fresh, flags.owned, True)
    return PublicationState(flags.oid, fresh, flags.owned, flags.generated == "s")


async def _create(admin: Connection, name: str, has_generated: bool) -> Flags:
    options = ", publish_generated_columns = stored" if has_generated else ""
    command = sql.SQL("CREATE PUBLICATION {} WITH (publish = 'insert, update, delete, truncate'{})").format(
        sql.Identifier(name), sql.SQL(options)
    )
    try:
        await admin.execute(command)
    except errors.InsufficientPrivilege as error:
        raise DatabaseProblem(
            Kind.FATAL,
            f'Publication "{name}" not found in the database, and the user may not create it '
            f"({error.diag.message_primary}); run as its owner: {command.as_string(admin)}",
        ) from None
    flags = (await look(admin, name, _NO_TABLE)).publication
    if flags is None:
        raise DatabaseProblem(Kind.RETRY, f'Publication "{name}" was dropped as soon as it was created')
    return flags


async def drop_publication(admin: Connection, name: str) -> None:
    """Drops the publication if it belongs to the current role. Raises ``psycopg.Error``."""
    flags = (await look(admin, name, _NO_TABLE)).publication
    if flags is not None and flags.owned:
        await admin.execute(sql.SQL("DROP PUBLICATION IF EXISTS {}").format(sql.Identifier(name)))


# --------------------------------------------------------------------------------------------------------------------


class Published(NamedTuple):
    """Snapshots of the table may be taken: whatever they do not show will come through the slot (INV-4)."""


class Publication:
    """The tables of one publication. The pool must have more connections than ``concurrency``.

    ``settled`` are the memberships of ``Source.published``; ``on_settled`` is awaited with the new whole when one is
    added. ``on_remedy`` is told the reason and the SQL whenever an operator could help. ``patience`` limits the wait
    for locks, ``barrier_patience`` that for the transactions of others; both in seconds.
    """

    def __init__(
        self,
        admin: Pool,
        name: str,
        *,
        manual: bool,
        settled: Mapping[int, int],
        on_settled: Callable[[dict[int, int]], Awaitable[object]],
        on_remedy: Callable[[str, str], object],
        concurrency: int = 3,
        patience: float = 20.0,
        barrier_patience: float = 15.0,
    ) -> None:
        self._admin, self._name, self._manual = admin, name, manual
        self._settled = dict(settled)
        self._on_settled, self._on_remedy = on_settled, on_remedy
        self._turns = asyncio.Semaphore(concurrency)
        self._patience, self._barrier_patience = patience, barrier_patience
        self._running: dict[tuple[int, str, str], asyncio.Task[Published | NotPublished]] = {}

    async def ensure_table(self, oid: int, schema: str, name: str) -> Published | NotPublished:
        """Makes sure the table with this oid, which was found under this name, is published in full, with its
        partitions.

        Callers at the same time for the same table share one attempt. What goes wrong is in the answer; only an error
        of ``on_settled`` is raised.
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

    async def family(self, oid: int) -> Family:
        """The tables above and the leaves below a table of a partition tree. Raises ``psycopg.Error``, ``PoolBusy``."""
        return family(await self._look(oid))

    async def close(self) -> None:
        """Gives up what is under way; its callers get ``asyncio.CancelledError``."""
        tasks = list(self._running.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _look(self, oid: int) -> Look:
        async with self._admin.connection() as connection:
            return await look(connection, self._name, oid)

    async def _ensure(self, oid: int, schema: str, name: str) -> Published | NotPublished:
        outcome = await self._reach_membership(oid, schema, name)
        if isinstance(outcome, NotPublished):
            if outcome.remedy:
                self._on_remedy(outcome.reason, outcome.remedy)
            return outcome
        if outcome:
            self._settled[oid] = outcome[0]
            await self._on_settled(dict(self._settled))
        return Published()

    async def _reach_membership(self, oid: int, schema: str, name: str) -> tuple[int, ...] | NotPublished:
        """The memberships that are newly settled, none if that was known already, or why there are none."""
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
                        if isinstance(outcome, Member):
                            return outcome.memberships
                        if outcome is not None:
                            return outcome
                if isinstance(verdict, NotPublished):
                    return verdict
                if isinstance(verdict, Member):
                    return () if is_settled(self._settled, oid, found) else await self._pass_barrier(verdict)
            except _AGAIN:
                pass
            except DATABASE_ERRORS as error:
                return refusal(error)
            pause = min(2.0, 0.1 * 2**attempt) * random.uniform(0.5, 1.0)
            if clock() + pause > deadline:
                return NotPublished("Snapshot timed out while waiting for a table lock")
            attempt += 1
            await asyncio.sleep(pause)

    async def _establish(self, found: Look, steps: Steps) -> Member | NotPublished | None:
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
                    if not isinstance(now, Steps):
                        return now
                    if now.add:
                        await connection.execute(add_table(self._name, found.relations[0]))
                    for relation in now.full:
                        await connection.execute(set_identity(relation))
                    done = await look(connection, self._name, oid)
                    return Member(done.memberships)
            except errors.InsufficientPrivilege:
                # What Postgres says is about the lock, if that is where it began; all that is done needs the owner.
                owned = found.relations[0] if steps.add else steps.full[0]
                statements = [add_table(self._name, found.relations[0])] if steps.add else []
                statements += [set_identity(relation) for relation in steps.full]
                return NotPublished(
                    f"Unable to create initial snapshot: must be owner of table {owned.name}",
                    remedy=" ".join(f"{statement.as_string(None)};" for statement in statements),
                )

    async def _pass_barrier(self, member: Member) -> tuple[int, ...] | NotPublished:
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
                return member.memberships
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

"""How a table gets into the publication so that nothing of it is missed from then on.

Either it is added under a lock that excludes its writers, or somebody else has added it, and all transactions that were
open then must have ended before a snapshot (engine.md 4.8, INV-4).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple

from psycopg import errors

from common.postgres import DATABASE_ERRORS, Connection, Pool, PoolBusy, classify, is_unavailable
from ingester.membership import (
    Look,
    Member,
    NotPublished,
    Steps,
    Verdict,
    add_table,
    examine,
    lock_tables,
    look,
    set_identity,
)
from ingester.moment import current_snapshot

LOCK_SECONDS: Final = 1.0
"""How long one attempt may wait for each lock: as long as that, all others queue behind it."""

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


class Reached(NamedTuple):
    """The table as it was found, published by a membership whose barrier is behind us."""

    found: Look
    membership: int


class Enrolment:
    """Enrols tables in one publication; the parameters are those of :class:`~ingester.publication.Publication`.

    ``settled(oid, look)`` is the membership on which shapes of the table rely already, ``None`` if there is none.
    ``before_adding`` is awaited with tables that are about to be published: whoever has missed something of them ends.
    """

    def __init__(
        self,
        admin: Pool,
        name: str,
        *,
        manual: bool,
        settled: Callable[[int, Look], int | None],
        before_adding: Callable[[set[int]], Awaitable[object]],
        concurrency: int,
        patience: float,
        barrier_patience: float,
    ) -> None:
        self._admin, self._name, self._manual = admin, name, manual
        self._settled, self._before_adding = settled, before_adding
        self._turns = asyncio.Semaphore(concurrency)
        self._patience, self._barrier_patience = patience, barrier_patience

    async def reach(self, oid: int, schema: str, name: str) -> Reached | NotPublished:
        """The membership on which shapes may rely, or why there is none."""
        clock = asyncio.get_running_loop().time
        deadline: float | None = None
        attempt = 0
        while True:
            try:
                async with self._turns:
                    if deadline is None:  # waiting for a turn does not count
                        deadline = clock() + self._patience
                    async with self._admin.connection() as connection:
                        found = await look(connection, self._name, oid)
                    verdict = examine(found, self._name, schema=schema, name=name, manual=self._manual)
                    if isinstance(verdict, Steps):
                        outcome = await self._establish(found, verdict)
                        if isinstance(outcome, Look):
                            return Reached(outcome, self._settled(oid, outcome) or next(iter(outcome.memberships)))
                        if outcome is not None:
                            return outcome
                if isinstance(verdict, NotPublished):
                    return verdict
                if isinstance(verdict, Member):
                    known = self._settled(oid, found)
                    return Reached(found, known) if known is not None else await self._pass_barrier(found)
            except _AGAIN:
                pass
            except DATABASE_ERRORS as error:
                return refusal(error)
            pause = min(2.0, 0.1 * 2**attempt) * random.uniform(0.5, 1.0)
            if clock() + pause > deadline:
                return NotPublished("Snapshot timed out while waiting for a table lock")
            attempt += 1
            await asyncio.sleep(pause)

    async def _establish(self, found: Look, steps: Steps) -> Look | NotPublished | None:
        """Alters what is missing while no transaction that wrote to the table is open; ``None``: look again."""
        oid, schema, name = found.relations[0].oid, found.relations[0].schema, found.relations[0].name
        async with self._admin.connection() as connection:
            try:
                async with connection.transaction():
                    await limit_lock_waits(connection)
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
                        await self._before_adding({*locked.ancestors, *(relation.oid for relation in locked.relations)})
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

    async def _pass_barrier(self, found: Look) -> Reached | NotPublished:
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
                return Reached(found, next(iter(found.memberships)))
            if clock() + pause > deadline:
                return NotPublished(
                    "Snapshot timed out while waiting for transactions that were open when the table was published"
                )
            await asyncio.sleep(pause)
            pause = min(0.5, pause * 1.5)


async def limit_lock_waits(connection: Connection) -> None:
    """No statement of the open transaction waits for a lock for longer than LOCK_SECONDS."""
    await connection.execute(f"SET LOCAL lock_timeout TO {int(LOCK_SECONDS * 1000)}".encode())


def refusal(error: Exception) -> NotPublished:
    """What an error while publishing a table means to the client that wants a shape of it (http-api.md 25)."""
    if is_unavailable(error):
        return NotPublished("Database connection not available")
    message = classify(error).message
    if isinstance(error, errors.InvalidParameterValue | errors.FeatureNotSupported):
        return NotPublished(message, 400, None)
    return NotPublished(f"Unexpected error while creating snapshot: {message}", 500, None)


def _covered(now: Look, verdict: Verdict, locked: Look, steps: Steps) -> bool:
    """Whether the locks taken for ``locked`` and ``steps`` are those that what is there ``now`` needs."""
    names = {(relation.oid, relation.text) for relation in locked.relations}
    exclusive = {relation.oid for relation in steps.full}
    full = verdict.full if isinstance(verdict, Steps) else ()
    return {(relation.oid, relation.text) for relation in now.relations} <= names and all(
        relation.oid in exclusive for relation in full
    )

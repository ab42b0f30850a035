"""The publication itself: made at the start of a session, repaired, and dropped with its slot (engine.md 3.3, 4.5)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import NamedTuple

from psycopg import errors, sql

from common.postgres import Connection, DatabaseProblem, Kind
from ingester.membership import NO_TABLE, Flags, look, publish_generated, set_operations


class PublicationState(NamedTuple):
    """``fresh``: what was changed before now may be missing from the WAL as this publication filters it, so the slot
    must be made anew (engine.md 3.4). ``generated_columns``: stored ones are published. ``version`` is that of the
    publication now, ``found`` the one it had, as far as that tells of alterations that are not ours."""

    oid: int
    fresh: bool
    owned: bool
    generated_columns: bool
    version: int = 0
    found: int = 0


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
    flags = (await look(admin, name, NO_TABLE)).publication
    fresh = flags is None
    if flags is None:
        if before_change is not None:
            await before_change(f"the publication {name!r} had to be created")
        flags = await _create(admin, name, has_generated)
    if not flags.operations or flags.via_root:
        repair = set_operations(name)
        if before_change is not None:
            # Whoever sets them right: what was not published meanwhile is missing.
            await before_change(f"the publication {name!r} did not publish all changes as it should")
        if manual or not flags.owned:
            wrong = "does not publish INSERT, UPDATE, DELETE and TRUNCATE of each partition under its own name"
            whose = "" if flags.owned else " and is not owned by the provided user"
            script = repair.as_string(admin)
            raise DatabaseProblem(Kind.FATAL, f'Publication "{name}" {wrong}{whose}; run as its owner: {script}')
        await admin.execute(repair)
        fresh = True
    if has_generated and flags.generated != "s" and flags.owned and not manual:
        await admin.execute(publish_generated(name))
    now = (await look(admin, name, NO_TABLE)).publication
    if now is None or now.oid != flags.oid:
        raise DatabaseProblem(Kind.RETRY, f'Publication "{name}" was dropped while it was looked at')
    generated = now.generated == "s"
    # Whoever switched generated columns off did what shows, and so did we.
    found = flags.version if now.generated == flags.generated and not fresh else 0
    return PublicationState(now.oid, fresh, now.owned, generated, now.version, found)


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
    flags = (await look(admin, name, NO_TABLE)).publication
    if flags is None:
        raise DatabaseProblem(Kind.RETRY, f'Publication "{name}" was dropped as soon as it was created')
    return flags


async def drop_publication(admin: Connection, name: str) -> None:
    """Drops the publication if it belongs to the current role. Raises ``psycopg.Error``."""
    flags = (await look(admin, name, NO_TABLE)).publication
    if flags is not None and flags.owned:
        await admin.execute(sql.SQL("DROP PUBLICATION IF EXISTS {}").format(sql.Identifier(name)))

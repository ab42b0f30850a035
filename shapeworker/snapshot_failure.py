"""What goes wrong while rows are read, and what clients and operators are told (http-api.md 25, engine.md 10.5)."""

from __future__ import annotations

from typing import Final

import psycopg
from psycopg import sql

from common.postgres import is_unavailable
from common.table import Table

RETRY_AFTER: Final = 10
"""Seconds that a client is asked to wait."""

_CHANGED: Final = frozenset(("42P01", "42703", "42883", "3F000"))
_NO_PRIVILEGE: Final = "42501"
_LOCK_NOT_AVAILABLE: Final = "55P03"
_CANCELLED: Final = "57014"
OF_VALUES: Final = ("22", "54")
"""Classes of errors that an expression's values or its size are the cause of."""


class SnapshotFailed(Exception):
    """No snapshot, and what to tell the client (http-api.md 25): status 409 means that the table changed, 400 that the
    filter fails for a row.

    ``retry_after`` is in seconds; ``known`` marks causes that are recognised, not faults of ours; ``remedy`` is the
    SQL by which an operator could help. ``reason`` is for logs, if the message may quote a row.
    """

    def __init__(
        self,
        status: int,
        message: str,
        retry_after: int | None = None,
        known: bool = False,
        remedy: str = "",
        reason: str = "",
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.reason = reason or message
        self.retry_after = retry_after
        self.known = known
        self.remedy = remedy


def failure(error: psycopg.Error, attempt: str = "create initial snapshot") -> SnapshotFailed:
    """What a database error means to a client that waits for the ``attempt`` (http-api.md 25, engine.md 10.5)."""
    state = error.sqlstate or ""
    text = " ".join((error.diag.message_primary or str(error)).split())
    if state in _CHANGED:
        return SnapshotFailed(409, f"the table changed: {text}", known=True)
    if state in (_NO_PRIVILEGE, _CANCELLED):
        return SnapshotFailed(503, f"Unable to {attempt}: {text}", RETRY_AFTER, known=True)
    if state == _LOCK_NOT_AVAILABLE:
        return SnapshotFailed(503, "Snapshot timed out while waiting for a table lock", RETRY_AFTER, known=True)
    if is_unavailable(error):
        return SnapshotFailed(503, "Database connection not available", RETRY_AFTER, known=True)
    return SnapshotFailed(500, f"Unexpected error while creating snapshot: {text}")


def grant(table: Table, role: str) -> str:
    """The SQL that lets the role read the table."""
    return (
        sql.SQL("GRANT USAGE ON SCHEMA {} TO {role}; GRANT SELECT ON TABLE {} TO {role};")
        .format(sql.Identifier(table.schema), sql.Identifier(table.schema, table.name), role=sql.Identifier(role))
        .as_string(None)
    )

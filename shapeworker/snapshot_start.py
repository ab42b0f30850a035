"""Beginning a transaction that rows are read in: its lock, its snapshot, its place in the WAL.

The order matters (engine.md 10.4): the table is locked against changes of its definition, then the snapshot is taken,
then the WAL insert position is read. Every transaction that the snapshot shows has its commit record below it.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Sequence
from threading import Event
from typing import Final, NamedTuple

from psycopg import sql

from common.lsn import parse_lsn
from common.postgres import transaction_settings
from common.table import TABLE_BY_OID_QUERY, Table, difference, parse_table
from common.table_version import VERSION_BY_OID
from common.xid import Snapshot
from shapeworker.snapshot_connection import DeadlinePassed, Row, SnapshotConnection, Stopped
from shapeworker.snapshot_failure import RETRY_AFTER, SnapshotFailed

START_SECONDS: Final = 30.0
"""How long lock, snapshot and description of the table may take, with all retries."""

LOCK_SECONDS: Final = 20.0

FLUSH_SECONDS: Final = 60.0
"""How long the server may take to flush the WAL that a snapshot builds on."""

_RETRY_SECONDS = (0.010, 0.050)
FLUSHED: Final = b"SELECT pg_catalog.pg_current_wal_flush_lsn()::pg_catalog.text"
_FLUSH = b"SELECT pg_catalog.pg_logical_emit_message(false, 'galvanic', '', true)"
_FLUSH_POLL = 0.02
_FORCE_FLUSH_SECONDS = 0.3

_FACTS = """
SELECT pg_catalog.pg_current_snapshot()::pg_catalog.text,
       CASE WHEN NOT pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_current_wal_insert_lsn()::pg_catalog.text END,
       (SELECT system_identifier::pg_catalog.text FROM pg_catalog.pg_control_system()),
       ({version})
"""
"""A repeatable-read transaction takes its only snapshot before its first such statement is executed, so the position,
which is read during execution, is never below the commit record of a transaction that the snapshot shows."""


class Start(NamedTuple):
    """What the transaction shows, the WAL insert position after that, and the table as it is in it."""

    snapshot: Snapshot
    position: int
    table: Table


def start(
    connection: SnapshotConnection,
    table: Table,
    *,
    selected: Iterable[str],
    explicit: bool,
    required: Iterable[str],
    unseen: Iterable[int],
    system_identifier: int | None,
    stop: Event,
    seconds: float = START_SECONDS,
    statement_seconds: float = 0.0,
    version: str = "",
) -> Start:
    """Begin the transaction and take its snapshot, as often as it takes until it shows all that is ``unseen``.

    It has ``seconds`` for that; the server gives up each statement after ``statement_seconds``, if that is not 0, also
    when nobody is there any more to cancel it.

    The table must be what ``selected`` (columns the client named if ``explicit``) and ``required`` (columns of the
    filter) were chosen for. If it has the ``version`` (:mod:`common.table_version`) it is. Raises SnapshotFailed,
    Stopped, ``psycopg.Error``.
    """
    unseen = tuple(unseen)
    deadline = time.monotonic() + seconds
    try:
        while True:
            opening = _opening(table, connection.server_version, seconds, statement_seconds)
            ((*facts, present),) = connection.query(opening + b"; " + _facts(table, version), deadline)
            snapshot, position = _read_facts(facts, system_identifier)
            if all(snapshot.shows(xid) for xid in unseen):
                break
            connection.query(b"ROLLBACK", deadline)
            if stop.wait(random.uniform(*_RETRY_SECONDS)):
                raise Stopped
            if time.monotonic() > deadline:
                raise DeadlinePassed
        if version and present == version.encode():
            return Start(snapshot, position, table)
        found = connection.query(TABLE_BY_OID_QUERY.encode(), deadline, [b"%d" % table.oid])
    except DeadlinePassed:
        message = "Snapshot query took too long to start reading from the database"
        raise SnapshotFailed(503, message, RETRY_AFTER, known=True) from None
    now = parse_table(found[0][0] or b"") if found else None
    reason = difference(table, now, selected, explicit, required)
    if now is None or reason is not None:
        raise SnapshotFailed(409, f"the table changed: {reason}", known=True)
    return Start(snapshot, position, now)


def await_flush(connection: SnapshotConnection, position: int, stop: Event) -> None:
    """Until the server's WAL is on its disk up to ``position``. Raises SnapshotFailed, Stopped, ``psycopg.Error``.

    A crash of the server takes back what was not flushed, and then gives the same positions, and the ids of
    transactions that had not finished, to others, which position and snapshot would judge wrongly
    (engine.md H-E). Asked on the snapshot's own connection, which does not survive a crash.
    """
    started = time.monotonic()
    deadline = started + FLUSH_SECONDS
    forced = connection.server_version < 170000
    try:
        while True:
            if is_flushed(connection.query(FLUSHED, deadline), position):
                return
            if not forced and time.monotonic() > started + _FORCE_FLUSH_SECONDS:
                # An idle server may leave the end of its WAL in memory for 15 s.
                connection.query(_FLUSH, deadline)
                forced = True
            if stop.wait(_FLUSH_POLL):
                raise Stopped
    except DeadlinePassed:
        message = "the database does not flush its WAL"
        raise SnapshotFailed(503, message, RETRY_AFTER, known=True) from None


def is_flushed(rows: Sequence[Row], position: int) -> bool:
    """Whether what :data:`FLUSHED` gives says that the WAL is on the server's disk up to there."""
    ((flushed,),) = rows
    return parse_lsn((flushed or b"0/0").decode()) >= position


def _opening(table: Table, server_version: int, seconds: float, statement_seconds: float) -> bytes:
    """None of this takes the snapshot. The lock comes first: rewriting a table is invisible to older snapshots, which
    then see it empty, and the description that follows must be that of the table that the query reads."""
    only = sql.SQL("" if table.kind == "p" else "ONLY ")
    lock = sql.SQL("LOCK TABLE {}{} IN ACCESS SHARE MODE").format(only, sql.Identifier(table.schema, table.name))
    statements = [
        b"BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",
        transaction_settings(server_version).encode(),
        # A line is thousands of cheap operators on a wide table: compiling them costs more than it saves.
        b"SET LOCAL jit TO 'off'",
        # The description joins many catalogs, and is written in the order that suits: to look for another takes longer.
        b"SET LOCAL join_collapse_limit TO '1'",
        b"SET LOCAL lock_timeout TO '%dms'" % (min(LOCK_SECONDS, seconds) * 1000),
        b"SET LOCAL statement_timeout TO '%dms'" % (statement_seconds * 1000),
        lock.as_bytes(None),
    ]
    return b"; ".join(statements)


def _facts(table: Table, version: str) -> bytes:
    return _FACTS.format(version=VERSION_BY_OID.format(oid=table.oid) if version else "NULL").encode()


def _read_facts(facts: list[bytes | None], system_identifier: int | None) -> tuple[Snapshot, int]:
    snapshot, position, system = (None if value is None else value.decode() for value in facts)
    if snapshot is None or position is None or (system_identifier is not None and system != str(system_identifier)):
        # A misdirected pooler (H-F): neither snapshot nor position would mean anything.
        message = "the pooled database connection leads to a standby or to another cluster than DATABASE_URL"
        raise SnapshotFailed(503, f"Database connection not available: {message}", RETRY_AFTER, known=True)
    return Snapshot.parse(snapshot), parse_lsn(position)

"""Reading one subset, in a thread: from the connection to the bytes that a client gets (http-api.md 18.5).

All of it is read before any of it is sent. So a slow client holds no transaction open, and an error that comes late
still has a status of its own.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from threading import Event
from typing import Final, NamedTuple

import orjson
import psycopg

from common.subset import SubsetRequest
from common.xid import Snapshot
from shapeworker.idle_connections import IdleConnections
from shapeworker.shape import Shape
from shapeworker.snapshot_connection import DeadlinePassed, SnapshotConnection
from shapeworker.snapshot_failure import OF_VALUES, RETRY_AFTER, SnapshotFailed, failure, grant
from shapeworker.snapshot_items import SnapshotItems
from shapeworker.snapshot_start import await_flush, start
from shapeworker.snapshot_work import COMMIT_SECONDS
from shapeworker.spool import Spool
from shapeworker.subset_query import InvalidSubset, subset_statement, understand

MAX_MARK: Final = 2**31 - 1

TOO_SLOW: Final = (
    "The subset query took too long. Please ensure that its where and order_by use an index, or ask for fewer rows."
)

_NO_ORDER: Final = "42883"
"""No such operator: all that a statement of ours has to find is how to order a column."""


class RejectedByData(Exception):
    """Postgres could not evaluate the condition: its message is for the client that wrote it."""


class Reading(NamedTuple):
    """What to read. ``unseen`` are the transactions that must show, ``reached`` is a position that the server must have
    passed."""

    shape: Shape
    subset: SubsetRequest
    unseen: tuple[int, ...]
    reached: int
    deadline: float


def read_subset(
    reading: Reading,
    spool: Spool,
    stop: Event,
    idle: IdleConnections,
    connect: Callable[[Event], SnapshotConnection],
    system_identifier: int | None,
) -> Snapshot:
    """Read it into the spool; returns what the transaction showed.

    Raises :class:`InvalidSubset`, :class:`RejectedByData`, SnapshotFailed, Stopped, ``OSError`` of the spool.
    """
    connection = None
    try:
        connection = idle.take(stop) or connect(stop)
        snapshot = _read(reading, spool, stop, connection, system_identifier)
        idle.give(connection)
        connection = None
        return snapshot
    except DeadlinePassed:
        raise SnapshotFailed(503, TOO_SLOW, RETRY_AFTER, known=True) from None
    except psycopg.Error as error:
        raise _meaning(error, reading, connection) from error
    finally:
        if connection is not None:
            connection.close()


def _read(
    reading: Reading, spool: Spool, stop: Event, connection: SnapshotConnection, system_identifier: int | None
) -> Snapshot:
    shape = reading.shape
    left = max(0.1, reading.deadline - time.monotonic())
    begun = start(
        connection,
        shape.table,
        selected=shape.selected,
        explicit=shape.request.columns is not None,
        required=shape.required,
        unseen=reading.unseen,
        system_identifier=system_identifier,
        stop=stop,
        seconds=left,
        statement_seconds=left,
    )
    if begun.position <= reading.reached:
        # It would be older than what the shape's log has: a server that was set back.
        raise SnapshotFailed(503, "Database connection not available", RETRY_AFTER, known=True)
    mark = random.randint(0, MAX_MARK)
    base = None if shape.filter is None else shape.filter.sql
    statement = subset_statement(begun.table, shape.selected, base, understand(begun.table, reading.subset))
    items = SnapshotItems(begun.table, shape.selected, f',"snapshot_mark":{mark}', b",")
    spool.add([_head(begun.snapshot, begun.position, mark)])
    first = True
    for rows, _ in connection.copy(statement, reading.deadline, reading.deadline):
        joined = items.of(rows)[:-1]
        spool.add([joined] if first else [b",", joined])
        first = False
    # A pooler throws away the server's connection when a client leaves it in a transaction.
    connection.query(b"COMMIT", time.monotonic() + COMMIT_SECONDS)
    await_flush(connection, begun.position, stop)
    spool.add([b"]}"])
    spool.finish()
    return begun.snapshot


def _head(snapshot: Snapshot, position: int, mark: int) -> bytes:
    metadata = {
        "snapshot_mark": mark,
        "database_lsn": str(position),
        "xip_list": [str(xid) for xid in sorted(snapshot.xip)],
        "xmax": str(snapshot.xmax),
        "xmin": str(snapshot.xmin),
    }
    return b'{"metadata":' + orjson.dumps(metadata) + b', "data": ['


def _meaning(error: psycopg.Error, reading: Reading, connection: SnapshotConnection | None) -> Exception:
    """What a database error means to the client of a subset (http-api.md 18.7)."""
    state = error.sqlstate or ""
    text = " ".join((error.diag.message_primary or str(error)).split())
    if state[:2] in OF_VALUES:
        return RejectedByData(text)
    if isinstance(error, psycopg.errors.QueryCanceled):
        return SnapshotFailed(503, TOO_SLOW, RETRY_AFTER, known=True)
    if state == _NO_ORDER:
        return InvalidSubset("order_by", text)
    if isinstance(error, psycopg.errors.InsufficientPrivilege) and connection is not None:
        refused = failure(error, "read the subset")
        refused.remedy = grant(reading.shape.table, connection.user)
        return refused
    return failure(error, "read the subset")

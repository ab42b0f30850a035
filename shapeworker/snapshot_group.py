"""Small snapshots of one table, read together: one transaction, one message to the server.

Most of what a small snapshot costs is its transaction, its round trips and its connection. Together they cost that
once. But none must wait for a large or slow one, nor fail with another: then all that were read together are given up,
and each is read by itself. Nobody has seen anything of them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

from shapeworker.snapshot_connection import SnapshotConnection
from shapeworker.snapshot_start import FLUSHED, is_flushed

LARGEST: Final = 32
"""Snapshots in a group."""

GROUPS: Final = 2
"""Groups of one table at a time: the others of it wait, which makes the next ones larger."""

STATEMENT_BYTES: Final = 4096
"""Longer queries are left out of groups: what is wrong with one as a text the server does not say of which."""

GROUP_BYTES: Final = 512 * 1024
"""The rows of a group, which are in memory all at once."""

GROUP_SECONDS: Final = 0.25
"""How long a group may take to read. The server keeps the first of small results back until there is more to send."""

CAUTION_SECONDS: Final = 60.0
"""How long a table's groups are smaller after one was given up."""


class NotSmall(Exception):
    """The rows are too many for a group."""


class GroupSizes:
    """How many snapshots of a table may be read together, by what became of earlier groups."""

    def __init__(self) -> None:
        self._limits: dict[int, tuple[int, float]] = {}

    def limit(self, table: int, now: float) -> int:
        """``now``: monotonic time. 1: each by itself."""
        limit, until = self._limits.get(table, (LARGEST, now))
        if now >= until:
            self._limits.pop(table, None)
            return LARGEST
        return limit

    def given_up(self, table: int, size: int, now: float) -> None:
        """A group of this size was."""
        self._limits[table] = max(1, size // 4), now + CAUTION_SECONDS


def read_group(
    connection: SnapshotConnection, statements: Sequence[bytes], position: int
) -> tuple[list[list[bytes | memoryview]], bool]:
    """The rows of each COPY in the transaction that was begun, which is then over; and whether the server's WAL is on
    its disk up to ``position``.

    Raises :class:`NotSmall`, DeadlinePassed, Stopped, ``psycopg.Error``: then the connection can only be closed.
    """
    deadline = time.monotonic() + GROUP_SECONDS
    connection.send(b"; ".join([*statements, b"COMMIT", FLUSHED]), deadline)
    found: list[list[bytes | memoryview]] = []
    size = 0
    for _ in statements:
        rows: list[bytes | memoryview] = []
        for batch in connection.copied(deadline, deadline):
            rows += batch.rows
            size += sum(map(len, batch.rows))
            if size > GROUP_BYTES:
                raise NotSmall
        found.append(rows)
    return found, is_flushed(connection.rest(deadline), position)

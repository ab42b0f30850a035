"""A live shape in its worker: where it is in its life, and what it does with the transaction that is passing.

The rule that joins snapshot and stream (architecture.md 4.5, engine.md H-A) is here and nowhere else: a transaction
counts iff its commit LSN is at or above ``filter_until`` or its xid is not visible in the snapshot, and its commit is
not in the log already. It needs no memory of what was delivered, so replays are no special case.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import NamedTuple

from common.lsn import SNAPSHOT_END, Offset
from common.shape import ShapeRequest, created_at, shape_directory
from common.shapelog.writer import LogWriter
from common.table import Table, schema_header
from common.xid import Snapshot
from shapeworker.where import Filter


class Life(Enum):
    """The stages of a shape."""

    CREATING = "creating"  # lost with its worker; its changes hold no acknowledgement back
    ACTIVE = "active"
    ENDED = "ended"


class Obstructed(Exception):
    """A transaction that the shape cannot follow is not in its snapshot. Says what it held."""


class HeldBack(NamedTuple):
    """A transaction that came before it was known what the snapshot shows.

    ``obstacle`` is why the shape must end if the snapshot does not show it.
    """

    lsn: int
    xid: int
    ops: list[int]
    lines: list[bytes]
    obstacle: str


class Shape:
    """One shape. Used on the worker's loop only.

    There may be very many: it has slots, and what follows from other attributes is made when it is asked for.
    """

    __slots__ = (
        "_held",
        "_held_size",
        "_lines",
        "_obstacle",
        "_ops",
        "_ordered",
        "_passing",
        "_schema",
        "_size",
        "_storage",
        "_unwritten",
        "_unwritten_size",
        "building",
        "closed_at",
        "filter",
        "filter_failed",
        "filter_until",
        "handle",
        "holds_back",
        "life",
        "log",
        "partition",
        "reason",
        "request",
        "selected",
        "serial",
        "settling",
        "skips",
        "snapshot",
        "started",
        "table",
        "used",
    )

    def __init__(
        self,
        *,
        handle: str,
        request: ShapeRequest,
        table: Table,
        selected: tuple[str, ...],
        partition: int,
        storage: Path,
        filter_: Filter | None = None,
    ) -> None:
        """``filter_`` says which rows are in the shape, if not all are."""
        self.filter = filter_
        self.handle = handle
        self.request = request
        self.table = table
        self.selected = selected
        self.partition = partition
        self._storage = storage
        self.life = Life.CREATING
        self.reason = ""
        self.filter_failed = False
        """Whether its filter failed for a row."""
        self.used = created_at(handle)
        """When a client last asked for it (Unix time); kept up to date only if there may be too many (eviction.py)."""
        self.settling = False
        self.holds_back = True
        """Whether the snapshot that is still to be taken may lack what comes now. If not, nothing of it is kept."""
        self.snapshot: Snapshot | None = None
        self.filter_until = 0
        self.log: LogWriter | None = None
        self.closed_at = 0
        """Up to this LSN its log was on the disk when it was last closed."""
        self.started: asyncio.Future[None] | None = None
        self.building: asyncio.Task[None] | None = None
        self._schema: str | None = None
        # The transaction that is passing.
        self.serial = 0
        self.skips = False
        self._passing: tuple[int, int] | None = None
        self._ops: list[int] = []
        self._lines: list[bytes] = []
        self._ordered = True
        self._size = 0
        self._obstacle = ""
        # Transactions that have passed and are not in the log yet, and the bytes of their lines.
        self._unwritten: list[tuple[int, list[int], list[bytes]]] = []
        self._unwritten_size = 0
        self._held: list[HeldBack] = []
        self._held_size = 0

    @property
    def relative(self) -> str:
        """Its directory, relative to the storage directory."""
        return shape_directory(self.partition, self.handle)

    @property
    def directory(self) -> Path:
        """Where its files are."""
        return self._storage / self.relative

    @property
    def required(self) -> frozenset[str]:
        """The columns that its filter reads."""
        return frozenset() if self.filter is None else self.filter.columns

    @property
    def schema(self) -> str:
        """The electric-schema header."""
        if self._schema is None:
            self._schema = schema_header(self.table, self.selected)
        return self._schema

    @property
    def durable(self) -> bool:
        """Whether its changes count for the durable position."""
        return self.life is Life.ACTIVE or self.settling

    @property
    def held_bytes(self) -> int:
        """The memory of what waits for the snapshot; nothing once that is known."""
        return self._held_size + self._size if self.snapshot is None else 0

    @property
    def unwritten(self) -> int:
        """How many transactions have passed and are not in the log yet."""
        return len(self._unwritten)

    @property
    def last(self) -> Offset:
        """The end of its log."""
        return SNAPSHOT_END if self.log is None else self.log.last

    def enter(self, serial: int, lsn: int, xid: int) -> None:
        """A transaction touches the shape for the first time: decide whether it counts."""
        self.serial = serial
        self._passing = (lsn, xid)
        self._obstacle = ""
        if self._lines:
            self._take()
        if self.snapshot is None:
            self.skips = not self.holds_back or (bool(self._held) and lsn <= self._held[-1].lsn)
        else:
            self.skips = not self.counts(lsn, xid)
        if self.skips:
            self._passing = None

    def counts(self, lsn: int, xid: int) -> bool:
        """The rule. Only once the snapshot is known."""
        assert self.snapshot is not None
        if lsn <= (self._unwritten[-1][0] if self._unwritten else self.last.tx):
            return False
        return lsn >= self.filter_until or not self.snapshot.shows(xid)

    def gather(self, ops: Sequence[int], lines: Sequence[bytes], size: int) -> int:
        """Take the lines at these places, ``size`` bytes together. Returns the bytes that are not in the log yet.

        The places increase, but lines that belong before these may come in a later call, until they are spilt.
        """
        if self._ops and ops[0] < self._ops[-1]:
            self._ordered = False
        self._ops.extend(ops)
        self._lines.extend(lines)
        self._size += size
        return self._size + self._unwritten_size

    def obstruct(self, reason: str) -> bool:
        """The passing transaction holds what the shape cannot follow. Returns whether the shape must end now.

        Before its snapshot is known that is not known either: if the snapshot shows the transaction, all is well.
        """
        if self.snapshot is not None:
            return True
        self._obstacle = self._obstacle or reason
        return False

    def spill(self, lsn: int) -> None:
        """Write what a large transaction has gathered so far; it stays invisible until the commit is written.

        What has passed before has been written.
        """
        if self.snapshot is not None and self.log is not None and self._lines:
            self.log.append(lsn, *self._take())
            self.log.flush()

    def commit(self, lsn: int, xid: int) -> bool:
        """The transaction ends. Returns whether there is something to write."""
        size = self._size
        ops, lines = self._take()
        self._passing = None
        if self.snapshot is None:
            if lines or self._obstacle:
                self._held.append(HeldBack(lsn, xid, ops, lines, self._obstacle))
                self._held_size += sum(map(len, lines))
            return False
        # Of a transaction that was spilt nothing may be left; its commit is still to be written.
        if lines or (self.log is not None and not self.log.idle):
            self._unwritten.append((lsn, ops, lines))
            self._unwritten_size += size
        return bool(self._unwritten)

    def write(self) -> Offset | None:
        """Write the transactions that have passed. Returns the new end of the log, or ``None`` if there were none."""
        passed, self._unwritten, self._unwritten_size = self._unwritten, [], 0
        if not passed:
            return None
        log = self.log
        assert log is not None
        end = None
        if not log.idle:
            # The beginning of the first one was spilt.
            log.append(*passed.pop(0))
            end = log.commit()
        return log.write(passed) or end

    def abort(self) -> None:
        """The transaction will not end: it comes again from its beginning, or the shape ends here."""
        self._take()
        self._unwritten, self._unwritten_size = [], 0
        self.serial = 0
        self._passing = None
        if self.log is not None:
            # It is dropped all the same; the bytes that stay lie behind the end of the log.
            with contextlib.suppress(OSError):
                self.log.abort()

    def snapshot_taken(self, snapshot: Snapshot, filter_until: int) -> Offset | None:
        """Now it is known what the snapshot shows: log what was held back and counts. Returns the log's new end.

        A transaction that is passing stays in hand if it counts, and is dropped otherwise. Raises :class:`Obstructed`
        when one that counts cannot be followed: then the shape must end.
        """
        self.snapshot = snapshot
        self.filter_until = filter_until
        held, self._held, self._held_size = self._held, [], 0
        end = None
        for lsn, xid, ops, lines, obstacle in held:
            if self.counts(lsn, xid):
                if obstacle:
                    raise Obstructed(obstacle)
                assert self.log is not None
                if lines:
                    end = self.log.write([(lsn, ops, lines)])
        if self._passing is not None and not self.skips:
            if not self.counts(*self._passing):
                self.skips = True
                self._take()
            elif self._obstacle:
                raise Obstructed(self._obstacle)
        return end

    def _take(self) -> tuple[list[int], list[bytes]]:
        ops, lines = self._ops, self._lines
        self._ops, self._lines, self._size = [], [], 0
        if not self._ordered:
            self._ordered = True
            places = sorted(range(len(ops)), key=ops.__getitem__)
            return [ops[place] for place in places], [lines[place] for place in places]
        return ops, lines

"""What the files of a shape must hold, from the history of the database alone: a second, naive account of it."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from random import Random
from typing import NamedTuple

import google_crc32c

from common import frames as f
from common.lsn import SNAPSHOT_END, Offset
from common.pgoutput import Relation, RelationColumn, parse_insert
from common.table import Column, Table, TypeFacts
from common.xid import Snapshot
from shapeworker.projection import Projection, transaction_headers
from tests.unit import pgoutput_messages as build

_TEXT = (TypeFacts("pg_catalog", "text", "b"),)
TABLES = tuple(
    Table(
        oid,
        "public",
        f"t{oid}",
        "r",
        "p",
        (
            Column("id", 1, 25, "text", -1, 25, True, 0, "", 0, _TEXT),
            Column("v", 2, 25, "text", -1, 25, False, None, "", 0, _TEXT),
        ),
    )
    for oid in (5, 6)
)
RELATIONS = tuple(
    Relation(
        table.oid, "public", table.name, "f", (RelationColumn("id", 25, -1, True), RelationColumn("v", 25, -1, False))
    )
    for table in TABLES
)
PROJECTIONS = {
    table.oid: Projection(relation, table, ("id", "v"), explicit=False)
    for table, relation in zip(TABLES, RELATIONS, strict=True)
}
RELATION_RECORDS = tuple(f.relation_record((), build.relation(relation)) for relation in RELATIONS)

SNAPSHOT_END_LINE = b'{"headers":{"control":"snapshot-end"}}'

Record = tuple[int, int, bytes]


class Transaction(NamedTuple):
    """A committed transaction: what the stream brings of it, and the log lines it means, per table."""

    lsn: int
    xid: int
    records: list[Record]
    lines: dict[int, list[tuple[int, bytes]]]


def records(*parts: bytes) -> list[Record]:
    """Records as they come out of a frame."""
    return list(f.records(f.frame_head(0, 0) + b"".join(parts)))


def transaction(lsn: int, xid: int, random: Random) -> Transaction:
    """Some inserts, most often few and short ones."""
    count = random.choice((1, 1, 2, 3, 5, 12))
    longest = random.choice((5, 20, 200))
    parts = [f.begin_record(lsn, xid, 0)]
    lines: dict[int, list[tuple[int, bytes]]] = {}
    headers = transaction_headers(lsn, xid)
    tables = random.choice((TABLES[:1], TABLES[1:], TABLES))
    for index in range(count):
        table = random.choice(tables)
        change = build.insert(table.oid, [b"%d" % index, b"x" * random.randint(0, longest)])
        parts.append(f.record(f.CHANGE, index, change))
        line = PROJECTIONS[table.oid].insert(parse_insert(change), headers, 2 * index)
        lines.setdefault(table.oid, []).append((2 * index, line))
    parts.append(f.commit_record(lsn, xid, count))
    return Transaction(lsn, xid, records(*parts), lines)


class Commit(NamedTuple):
    """Where the log ends after a transaction."""

    last: Offset
    entries: int
    log_size: int
    index_size: int


NOTHING = Commit(SNAPSHOT_END, 0, 0, 64)


class ShapeModel:
    """The files of one shape as docs/storage-format.md describes them, written down without any cleverness."""

    def __init__(
        self, handle: str, oid: int, chunk_bytes: int, rows: list[bytes], snapshot: Snapshot, filter_until: int
    ) -> None:
        self.handle = handle
        self.oid = oid
        self.snapshot = snapshot
        self.filter_until = filter_until
        self.chunk_bytes = chunk_bytes
        self.rows = rows
        self.log = bytearray()
        self.index = bytearray(64)
        """The header is left out of all comparisons."""
        self.commits = [NOTHING]
        self._entries: list[tuple[Offset, int]] = []  # with the end of each in the log
        self._chunk_ends: list[int] = []  # how many entries lie before each boundary
        self._running = 0
        self._seen = 0

    def extend(self, history: list[Transaction]) -> None:
        """Take in what the database has committed since the last time."""
        for lsn, xid, _, lines in history[self._seen :]:
            if self.oid in lines and (lsn >= self.filter_until or not self.snapshot.shows(xid)):
                self._add(lsn, lines[self.oid])
        self._seen = len(history)

    def _add(self, lsn: int, lines: list[tuple[int, bytes]]) -> None:
        block = b""
        for op, line in lines:
            final = op == lines[-1][0]
            text = line[:-2] + b',"last":true}}' if final else line
            block += text + b",\n"
            self.log += text + b",\n"
            self._entries.append((Offset(lsn, op), len(self.log)))
            self._running += len(text)
            closes = self._running >= self.chunk_bytes
            if closes:
                self._running = 0
                self._chunk_ends.append(len(self._entries))
            if closes or final:
                flags = final + 2 * closes
                fields = (lsn, op, len(self.log), self._running, len(self._chunk_ends), flags)
                record = struct.pack("<QQQQIII", *fields, google_crc32c.value(block))
                self.index += record + struct.pack("<I", google_crc32c.value(record))
                block = b""
        self.commits.append(Commit(self._entries[-1][0], len(self._entries), len(self.log), len(self.index)))

    def commit_at(self, lsn: int) -> Commit:
        """The state after all transactions up to this LSN."""
        return next(commit for commit in reversed(self.commits) if commit.last.tx <= lsn or commit is NOTHING)

    def commit_ending(self, last: Offset) -> Commit | None:
        """The state whose last entry has this offset."""
        return next((commit for commit in reversed(self.commits) if commit.last == last), None)

    def after(self, offset: Offset, commit: Commit) -> tuple[bytes, Offset]:
        """The answer of http-api.md 12.5 when the log ends with ``commit``."""
        entries = self._entries[: commit.entries]
        first = next((at for at, (place, _) in enumerate(entries) if place > offset), None)
        if first is None:
            return b"", commit.last
        end = next((end for end in self._chunk_ends if first < end <= len(entries)), len(entries))
        start = entries[first - 1][1] if first else 0
        return bytes(self.log[start : entries[end - 1][1]]), entries[end - 1][0]

    def snapshot_chunks(self) -> list[bytes]:
        """The snapshot's files (http-api.md 12.2)."""
        chunks, chunk, total = [], b"", 0
        for row in self.rows:
            chunk += row + b",\n"
            total += len(row) + 1
            if total >= self.chunk_bytes:
                chunks.append(chunk)
                chunk, total = b"", 0
        return [*chunks, chunk + SNAPSHOT_END_LINE + b",\n"]


def rows(random: Random) -> Iterator[bytes]:
    """Rows of a snapshot."""
    for number in range(random.choice((0, 1, 3, 8))):
        yield b'{"key":"%d","value":"%b"}' % (number, b"y" * random.randint(0, 60))

"""A second, naive account of what a log holds, and file systems that fail: for the other shapelog tests."""

from __future__ import annotations

import errno
import json
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import strategies as st

from common.lsn import SNAPSHOT_END, Offset
from common.shapelog import LogRange, LogWriter, ShapeReader
from common.shapelog.files import RealFiles

Transaction = tuple[int, list[tuple[int, bytes]]]
"""A commit LSN, and the op and line of each entry."""


def entry(lsn: int, op: int, filler: int = 0) -> bytes:
    """A change as the worker writes it, with a column and a text made to confuse whoever looks for the op position."""
    value = {"op_position": "77", "text": '"op_position":5,' + "x" * filler}
    headers = {"operation": "insert", "lsn": str(lsn), "op_position": op, "txids": [7]}
    return json.dumps({"key": "k", "value": value, "headers": headers}, separators=(",", ":")).encode()


def marked(line: bytes) -> bytes:
    """The same entry as the last one of its transaction."""
    parsed = json.loads(line)
    parsed["headers"]["last"] = True
    return json.dumps(parsed, separators=(",", ":")).encode()


@dataclass
class Model:
    """The log that some transactions make, entry by entry."""

    chunk_bytes: int
    entries: list[tuple[Offset, bytes]] = field(default_factory=list)
    chunk_ends: list[int] = field(default_factory=list)
    """How many entries lie before each chunk boundary."""
    running: int = 0

    def add(self, transaction: Transaction) -> None:
        lsn, changes = transaction
        for at, (op, line) in enumerate(changes):
            final = marked(line) if at == len(changes) - 1 else line
            self.entries.append((Offset(lsn, op), final))
            self.running += len(final)
            if self.running >= self.chunk_bytes:
                self.chunk_ends.append(len(self.entries))
                self.running = 0

    @property
    def last(self) -> Offset:
        return self.entries[-1][0] if self.entries else SNAPSHOT_END

    def bytes_of(self, start: int, end: int) -> bytes:
        return b"".join(line + b",\n" for _, line in self.entries[start:end])

    def after(self, offset: Offset) -> tuple[bytes, Offset]:
        """The answer of http-api.md 12.5 by walking the whole log."""
        first = next((at for at, (place, _) in enumerate(self.entries) if place > offset), None)
        if first is None:
            return b"", self.last
        end = next((end for end in self.chunk_ends if end > first), len(self.entries))
        return self.bytes_of(first, end), self.entries[end - 1][0]

    def offsets(self) -> list[Offset]:
        """Every offset of the log, and those around them."""
        found = {Offset(-1, 0), Offset(0, 0), SNAPSHOT_END, Offset(1 << 63, 0)}
        for place, _ in self.entries:
            found |= {place, Offset(place.tx, place.op + 1), Offset(place.tx, 1 << 63)}
            found |= {Offset(place.tx, 0), Offset(place.tx - 1, 5), Offset(place.tx + 1, 0)}
        return sorted(found)


def model_of(transactions: list[Transaction], chunk_bytes: int) -> Model:
    model = Model(chunk_bytes)
    for transaction in transactions:
        model.add(transaction)
    return model


def write(writer: LogWriter, transaction: Transaction) -> None:
    """Write a transaction in one call."""
    lsn, changes = transaction
    writer.append(lsn, [op for op, _ in changes], [line for _, line in changes])
    assert writer.commit() == Offset(lsn, changes[-1][0])


def write_whole(writer: LogWriter, *transactions: Transaction) -> Offset | None:
    """As :func:`write`, all at once."""
    return writer.write(
        (lsn, [op for op, _ in changes], [line for _, line in changes]) for lsn, changes in transactions
    )


def read_range(reader: ShapeReader, found: LogRange) -> bytes:
    return reader.read_log(found.start, found.end - found.start)


def files_of(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def check_reader(directory: Path, model: Model) -> None:
    """From every offset a reader gets exactly what the model says."""
    reader = ShapeReader(directory)
    try:
        assert reader.last() == model.last
        for offset in model.offsets():
            found = reader.after(offset)
            data, end_offset = model.after(offset)
            assert found.end_offset == end_offset, offset
            assert found.start <= found.end
            assert (read_range(reader, found) if data else b"") == data, offset
            assert found.end - found.start == len(data)
    finally:
        reader.close()


@st.composite
def transaction_lists(draw: st.DrawFn, longest: int = 8) -> list[Transaction]:
    """Transactions with increasing LSNs and ops, entries of a few sizes."""
    transactions: list[Transaction] = []
    lsn = 0
    for _ in range(draw(st.integers(0, longest))):
        lsn += draw(st.integers(1, 20))
        op = -1
        changes = []
        for _ in range(draw(st.integers(1, 6))):
            op += draw(st.integers(1, 3))
            changes.append((op, entry(lsn, op, draw(st.integers(0, 150)))))
        transactions.append((lsn, changes))
    return transactions


class FailingFiles(RealFiles):
    """A disk with room for some more bytes; the write that exceeds it is partial, as on a real one."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.truncation_fails = False
        self.failures = 0

    def pwrite(self, fd: int, data: bytes, offset: int, /) -> int:  # type: ignore[override]
        taken = min(len(data), self.room)
        if data and not taken:
            self.failures += 1
            raise OSError(errno.ENOSPC, "No space left on device")
        self.room -= taken
        return RealFiles.pwrite(fd, data[:taken], offset)

    def ftruncate(self, fd: int, length: int, /) -> None:
        if self.truncation_fails:
            raise OSError(errno.EIO, "Input/output error")
        RealFiles.ftruncate(fd, length)


class WatchedFiles(RealFiles):
    """Counts reads, notes the order of syncs and truncations, and fails them on demand."""

    def __init__(self) -> None:
        self.names: dict[int, str] = {}
        self.reads = 0
        self.read_bytes = 0
        self.events: list[str] = []
        self.sync_error: OSError | None = None

    def open(self, path: Path, flags: int, /) -> int:
        fd = RealFiles.open(path, flags)
        self.names[fd] = path.name
        return fd

    def pread(self, fd: int, length: int, offset: int, /) -> bytes:
        self.reads += 1
        data = RealFiles.pread(fd, length, offset)
        self.read_bytes += len(data)
        return data

    def fdatasync(self, fd: int, /) -> None:  # type: ignore[override]
        self.events.append(f"sync {self.names[fd]}")
        if self.sync_error is not None:
            raise self.sync_error
        RealFiles.fdatasync(fd)

    def sync_directory(self, path: Path, /) -> None:
        self.events.append(f"sync directory {path.name}")
        RealFiles.sync_directory(path)


def test_model_repeats_the_golden_chunk() -> None:
    """http-api.md 12.3: entries of 344 + 331 × 4 + 332 bytes close a chunk of 2000 exactly at the sixth."""

    def sized(op: int, size: int) -> bytes:
        return entry(9, op, size - len(entry(9, op)))

    model = Model(2000)
    model.add((9, [(op, sized(op, size)) for op, size in enumerate([344, 331, 331, 331, 331, 332 - 12, 400])]))
    assert [len(line) for _, line in model.entries] == [344, 331, 331, 331, 331, 320, 412]
    assert model.chunk_ends == [7]
    model = Model(2000)
    model.add((9, [(op, sized(op, size)) for op, size in enumerate([344, 331, 331, 331, 331, 332 - 12])]))
    assert sum(len(line) for _, line in model.entries) == 2000
    assert model.chunk_ends == [6]

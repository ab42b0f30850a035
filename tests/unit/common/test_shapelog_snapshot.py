"""The snapshot's writer: chunk rule, early visibility, and no COMPLETE before the end."""

from __future__ import annotations

import errno
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.shapelog import Header, LogWriter, ShapeReader, SnapshotState, SnapshotWriter
from common.shapelog.snapshot import BLOCK_BYTES
from tests.unit.common.test_shapelog_model import FailingFiles, WatchedFiles

END = b'{"headers":{"control":"snapshot-end","xmin":"913","xmax":"914","xip_list":[]}}'


def row(number: int, size: int) -> bytes:
    return (b'{"key":"%d","value":{' % number).ljust(size - 2, b" ") + b"}}"


def add(snapshot: SnapshotWriter, *rows: bytes) -> None:
    snapshot.add(b"".join(row + b",\n" for row in rows), len(rows))


def expected_chunks(rows: list[bytes], chunk_bytes: int) -> list[bytes]:
    """http-api.md 12.2, row by row."""
    chunks: list[list[bytes]] = [[]]
    total = 0
    for line in rows:
        chunks[-1].append(line)
        total += len(line) + 1
        if total >= chunk_bytes:
            chunks.append([])
            total = 0
    chunks[-1].append(END)
    return [b"".join(line + b",\n" for line in chunk) for chunk in chunks]


def read_chunks(reader: ShapeReader) -> list[bytes]:
    return [reader.read_snapshot(k, 0, reader.snapshot_size(k)) for k in range(reader.header().chunks)]


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(30, 300), max_size=25),
    chunk_bytes=st.integers(1, 1200),
    data=st.data(),
)
def test_chunks_follow_the_rule(sizes: list[int], chunk_bytes: int, data: st.DataObject) -> None:
    rows = [row(at, size) for at, size in enumerate(sizes)]
    with TemporaryDirectory() as name:
        log = LogWriter.create(Path(name) / "shape", chunk_bytes)
        snapshot = SnapshotWriter(Path(name) / "shape", chunk_bytes, log.header)
        reader = ShapeReader(Path(name) / "shape")
        rest = rows
        while rest:
            count = data.draw(st.integers(0, len(rest)), "rows")
            add(snapshot, *rest[:count])
            rest = rest[count:]
            if data.draw(st.booleans(), "flush"):
                snapshot.flush()
            assert reader.header().snapshot is SnapshotState.RUNNING
            closed = reader.header().chunks
            assert read_chunks(reader) == expected_chunks(rows, chunk_bytes)[:closed]
        snapshot.finish(END)
        assert read_chunks(reader) == expected_chunks(rows, chunk_bytes)
        assert reader.header() == Header(False, SnapshotState.COMPLETE, len(expected_chunks(rows, chunk_bytes)))
        with pytest.raises(FileNotFoundError):
            reader.snapshot_size(reader.header().chunks)
        reader.close()
        log.close()


def test_empty_table_is_one_chunk_with_the_end(tmp_path: Path) -> None:
    log = LogWriter.create(tmp_path / "shape", 1000)
    snapshot = SnapshotWriter(tmp_path / "shape", 1000, log.header)
    add(snapshot)
    snapshot.flush()
    snapshot.finish(END)
    reader = ShapeReader(tmp_path / "shape")
    assert read_chunks(reader) == [END + b",\n"]
    reader.close()
    log.close()


def test_end_is_alone_when_the_last_row_fills_its_chunk(tmp_path: Path) -> None:
    log = LogWriter.create(tmp_path / "shape", 200)
    snapshot = SnapshotWriter(tmp_path / "shape", 200, log.header)
    add(snapshot, row(1, 99), row(2, 99))
    assert log.header.value.chunks == 1
    snapshot.finish(END)
    reader = ShapeReader(tmp_path / "shape")
    assert read_chunks(reader) == [row(1, 99) + b",\n" + row(2, 99) + b",\n", END + b",\n"]
    reader.close()
    log.close()


def test_rows_are_readable_before_their_chunk_closes(tmp_path: Path) -> None:
    log = LogWriter.create(tmp_path / "shape", 10 << 20)
    snapshot = SnapshotWriter(tmp_path / "shape", 10 << 20, log.header)
    reader = ShapeReader(tmp_path / "shape")
    add(snapshot, row(1, 50))
    with pytest.raises(FileNotFoundError):
        reader.snapshot_size(0)
    snapshot.flush()
    assert reader.read_snapshot(0, 0, 1000) == row(1, 50) + b",\n"
    assert reader.read_snapshot(0, 52, 1000) == b""
    assert reader.header() == Header(False, SnapshotState.RUNNING, 0)
    add(snapshot, row(2, 50))
    assert reader.snapshot_size(0) == 52
    add(snapshot, row(3, BLOCK_BYTES))
    assert reader.snapshot_size(0) == 52 + 52 + BLOCK_BYTES + 2
    snapshot.fail()
    assert reader.header() == Header(False, SnapshotState.FAILED, 0)
    reader.close()
    log.close()


def test_log_and_snapshot_share_the_header(tmp_path: Path) -> None:
    log = LogWriter.create(tmp_path / "shape", 100)
    snapshot = SnapshotWriter(tmp_path / "shape", 100, log.header)
    add(snapshot, row(1, 100))
    log.mark_ended()
    add(snapshot, row(2, 100))
    reader = ShapeReader(tmp_path / "shape")
    assert reader.header() == Header(True, SnapshotState.RUNNING, 2)
    log.close()
    with pytest.raises(ValueError, match="closed"):
        add(snapshot, row(3, 100))
    snapshot.fail()
    assert reader.header() == Header(True, SnapshotState.RUNNING, 2)
    reader.close()


def test_sync_leaves_nothing_to_the_page_cache(tmp_path: Path) -> None:
    files = WatchedFiles()
    log = LogWriter.create(tmp_path / "shape", 100, files)
    snapshot = SnapshotWriter(tmp_path / "shape", 100, log.header, files)
    add(snapshot, row(1, 100), row(2, 30))
    snapshot.finish(END)
    snapshot.sync()
    assert files.events == [
        "sync snapshot.0000.json",
        "sync snapshot.0001.json",
        "sync log.index",
        "sync directory shape",
        f"sync directory {tmp_path.name}",
    ]
    log.close()


def test_full_disk_never_looks_complete(tmp_path: Path) -> None:
    rows = [row(at, 60) for at in range(8)]
    total = sum(map(len, expected_chunks(rows, 150)))
    needed = total + 64 * len(expected_chunks(rows, 150))
    outcomes = set()
    for room in [*range(0, needed, 13), needed]:
        files = FailingFiles(1 << 30)
        directory = tmp_path / f"{room}"
        log = LogWriter.create(directory, 150, files)
        snapshot = SnapshotWriter(directory, 150, log.header, files)
        files.room = room
        try:
            add(snapshot, *rows)
            snapshot.finish(END)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            files.room = 1 << 30
            snapshot.fail()
        reader = ShapeReader(directory)
        state = reader.header().snapshot
        outcomes.add(state)
        assert state is (SnapshotState.FAILED if files.failures else SnapshotState.COMPLETE)
        assert read_chunks(reader) == expected_chunks(rows, 150)[: reader.header().chunks]
        reader.close()
        log.close()
    assert outcomes == {SnapshotState.FAILED, SnapshotState.COMPLETE}


def test_bad_threshold(tmp_path: Path) -> None:
    log = LogWriter.create(tmp_path / "shape", 100)
    with pytest.raises(ValueError, match="chunk_bytes"):
        SnapshotWriter(tmp_path / "shape", 0, log.header)
    log.close()

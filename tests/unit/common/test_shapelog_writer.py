"""The log's writer: what is on the disk depends on the transactions alone, whatever happens while they are written."""

from __future__ import annotations

import errno
import threading
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.lsn import SNAPSHOT_END, Offset
from common.shapelog import LogWriter, ShapeReader
from common.shapelog.files import RealFiles
from common.shapelog.writer import BUFFER_BYTES
from tests.unit.common.test_shapelog_model import (
    FailingFiles,
    Transaction,
    WatchedFiles,
    check_reader,
    entry,
    files_of,
    model_of,
    read_range,
    transaction_lists,
    write,
    write_whole,
)


def test_new_shape_is_an_empty_log(tmp_path: Path) -> None:
    writer = LogWriter.create(tmp_path / "shape", 1000)
    assert writer.last == SNAPSHOT_END
    assert not writer.unsynced
    assert writer.commit() is None
    assert [path.name for path in (tmp_path / "shape").iterdir()] == ["log.index"]
    writer.close()
    with pytest.raises(FileExistsError):
        LogWriter.create(tmp_path / "shape", 1000)
    with pytest.raises(ValueError, match="chunk_bytes"):
        LogWriter.create(tmp_path / "other", 0)


@settings(max_examples=60, deadline=None)
@given(transactions=transaction_lists(), chunk_bytes=st.integers(1, 1500), data=st.data())
def test_files_do_not_depend_on_how_entries_came(
    transactions: list[Transaction], chunk_bytes: int, data: st.DataObject
) -> None:
    model = model_of(transactions, chunk_bytes)
    with TemporaryDirectory() as name:
        plain = LogWriter.create(Path(name) / "plain", chunk_bytes)
        whole = LogWriter.create(Path(name) / "whole", chunk_bytes)
        cut = LogWriter.create(Path(name) / "cut", chunk_bytes)
        passed: list[Transaction] = []
        for lsn, changes in transactions:
            write(plain, (lsn, changes))
            passed.append((lsn, changes))
            if data.draw(st.booleans(), "together"):
                assert write_whole(whole, *passed) == whole.last == plain.last
                passed = []
            if data.draw(st.booleans(), "abort"):
                cut.append(lsn, [0, 9], [entry(lsn, 0, 40), entry(lsn, 9, 700)])
                if data.draw(st.booleans(), "flush"):
                    cut.flush()
                cut.abort()
            rest = changes
            while rest:
                count = data.draw(st.integers(0, len(rest)), "lines")
                cut.append(lsn, [op for op, _ in rest[:count]], [line for _, line in rest[:count]])
                rest = rest[count:]
                if data.draw(st.booleans(), "flush"):
                    cut.flush()
            assert cut.commit() == Offset(lsn, changes[-1][0])
            assert cut.last == plain.last
        assert write_whole(whole, *passed) == (plain.last if passed else None)
        for writer in (plain, whole, cut):
            writer.close()
        assert files_of(Path(name) / "plain") == files_of(Path(name) / "cut") == files_of(Path(name) / "whole")
        assert files_of(Path(name) / "plain").get("log.json", b"") == model.bytes_of(0, len(model.entries))
        check_reader(Path(name) / "plain", model)


def test_golden_chunk_closes_at_exactly_six(tmp_path: Path) -> None:
    """http-api.md 12.3: threshold 2000, payloads of 344 + 331 × 4 + 332."""
    writer = LogWriter.create(tmp_path / "shape", 2000)
    for lsn, size in enumerate([344, 331, 331, 331, 331, 332, 331], 1):
        line = entry(lsn, 0, size - len(entry(lsn, 0)) - len(',"last":true'))
        write(writer, (lsn, [(0, line)]))
        reader = ShapeReader(tmp_path / "shape")
        assert reader.after(Offset(0, 0)).end_offset == Offset(min(lsn, 6), 0)
        assert reader.after(Offset(5, 0)).end_offset == Offset(min(lsn, 6), 0)
        reader.close()
    reader = ShapeReader(tmp_path / "shape")
    found = reader.after(SNAPSHOT_END)
    assert (found.start, found.end) == (0, 2000 + 6 * len(",\n"))
    assert reader.after(found.end_offset).end_offset == Offset(7, 0)
    reader.close()
    writer.close()


def test_big_transaction_is_written_early_and_seen_late(tmp_path: Path) -> None:
    directory = tmp_path / "shape"
    writer = LogWriter.create(directory, 10 << 20)
    write(writer, (5, [(0, entry(5, 0))]))
    reader = ShapeReader(directory)
    before = (directory / "log.json").stat().st_size
    lines = [entry(8, op, 1000) for op in range(0, 200, 2)]
    batches = 3 * BUFFER_BYTES // sum(map(len, lines))
    for batch in range(batches):
        first = 200 * batch
        writer.append(8, list(range(first, first + 200, 2)), lines)
        assert reader.last() == Offset(5, 0)
    assert (directory / "log.json").stat().st_size > before + BUFFER_BYTES
    writer.abort()
    assert (directory / "log.json").stat().st_size == before
    write(writer, (9, [(0, entry(9, 0))]))
    assert reader.after(Offset(5, 0)).end_offset == Offset(9, 0)
    assert read_range(reader, reader.after(Offset(5, 0))) == model_of([(9, [(0, entry(9, 0))])], 10 << 20).bytes_of(
        0, 1
    )
    reader.close()
    writer.close()


def test_move_in_continues_the_last_transaction_without_mark(tmp_path: Path) -> None:
    """http-api.md 19.4: move messages take the last position with op + 1 and carry no ``last``."""
    writer = LogWriter.create(tmp_path / "shape", 1000)
    write(writer, (5, [(0, entry(5, 0))]))
    event = b'{"headers":{"event":"move-out","patterns":[],"txids":[7]}}'
    writer.append(5, [1], [event])
    assert writer.commit(mark_last=False) == Offset(5, 1)
    reader = ShapeReader(tmp_path / "shape")
    assert read_range(reader, reader.after(Offset(5, 0))) == event + b",\n"
    reader.close()
    writer.close()


def test_bad_calls_name_the_argument_and_take_nothing(tmp_path: Path) -> None:
    writer = LogWriter.create(tmp_path / "shape", 1000)
    write(writer, (5, [(4, entry(5, 4))]))
    size = (tmp_path / "shape" / "log.json").stat().st_size
    line = entry(6, 0)
    with pytest.raises(ValueError, match="ops: 1 of them for 2 lines"):
        writer.append(6, [0], [line, line])
    with pytest.raises(ValueError, match="lines"):
        writer.append(6, [0], [line[:-1]])
    for lsn, op in ((5, 4), (4, 9), (1 << 64, 0)):
        with pytest.raises(ValueError, match="lsn"):
            writer.append(lsn, [op], [line])
    assert writer.commit() is None
    writer.append(6, [2], [line])
    with pytest.raises(ValueError, match="ops: 2 does not come after 2"):
        writer.append(6, [2], [line])
    with pytest.raises(ValueError, match="lsn: 7 while the transaction 6"):
        writer.append(7, [0], [line])
    writer.append(6, [], [])
    writer.abort()
    assert (tmp_path / "shape" / "log.json").stat().st_size == size
    writer.close()


@pytest.mark.parametrize("retry", [True, False])
def test_full_disk_at_every_byte_costs_nothing(tmp_path: Path, retry: bool) -> None:
    """At ENOSPC readers keep what they had; trying again, or all over again, gives the files of an undisturbed run."""
    first: Transaction = (3, [(0, entry(3, 0))])
    second: Transaction = (8, [(op, entry(8, op, 10 * op)) for op in range(6)])
    third: Transaction = (9, [(0, entry(9, 0))])
    plain = LogWriter.create(tmp_path / "plain", 400)
    for transaction in (first, second, third):
        write(plain, transaction)
    plain.close()
    expected = files_of(tmp_path / "plain")
    failures = 0
    needed = sum(map(len, expected.values())) - len(model_of([first], 400).bytes_of(0, 1))
    for room in range(0, needed, 7):
        directory = tmp_path / f"{room}"
        files = FailingFiles(1 << 30)
        writer = LogWriter.create(directory, 400, files)
        write(writer, first)
        before = files_of(directory)
        files.room = room
        lsn, changes = second
        try:
            for op, line in changes:
                writer.append(lsn, [op], [line])
                writer.flush()
            writer.commit()
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            failures += 1
            reader = ShapeReader(directory)
            assert reader.last() == Offset(3, 0)
            reader.close()
            assert files_of(directory)["log.index"] == before["log.index"]
            assert files_of(directory)["log.json"].startswith(before["log.json"])
            files.room = 1 << 30
            if retry:
                for later, line in changes[op + 1 :]:
                    writer.append(lsn, [later], [line])
                assert writer.commit() == Offset(8, 5)
            else:
                writer.abort()
                assert files_of(directory) == before
                write(writer, second)
        files.room = 1 << 30
        write(writer, third)
        writer.close()
        assert files_of(directory) == expected
    assert failures > 100


@pytest.mark.parametrize("chunk_bytes", [400, 10_000])
def test_transactions_that_are_written_together_are_whole_on_a_full_disk(tmp_path: Path, chunk_bytes: int) -> None:
    first: Transaction = (3, [(0, entry(3, 0))])
    second: Transaction = (8, [(op, entry(8, op, 10 * op)) for op in range(6)])
    third: Transaction = (9, [(0, entry(9, 0))])
    plain = LogWriter.create(tmp_path / "plain", chunk_bytes)
    write(plain, first)
    size = sum(map(len, files_of(tmp_path / "plain").values()))
    write(plain, second)
    middle = files_of(tmp_path / "plain")
    write(plain, third)
    plain.close()
    expected = files_of(tmp_path / "plain")
    for room in range(0, sum(map(len, expected.values())) - size, 11):
        directory = tmp_path / f"{room}"
        files = FailingFiles(1 << 30)
        writer = LogWriter.create(directory, chunk_bytes, files)
        write(writer, first)
        before = files_of(directory)
        files.room = room
        with pytest.raises(OSError, match="No space"):
            write_whole(writer, second, third)
        assert writer.idle
        assert files_of(directory) == (before if writer.last == Offset(3, 0) else middle)
        files.room = 1 << 30
        write_whole(writer, *(item for item in (second, third) if item[0] > writer.last.tx))
        writer.close()
        assert files_of(directory) == expected


def test_a_transaction_that_is_written_at_once_comes_after_all_others(tmp_path: Path) -> None:
    writer = LogWriter.create(tmp_path / "shape", 1000)
    write(writer, (5, [(4, entry(5, 4))]))
    before = files_of(tmp_path / "shape")
    with pytest.raises(ValueError, match="does not come after"):
        write_whole(writer, (5, [(4, entry(5, 4))]))
    with pytest.raises(ValueError, match="headers object"):
        write_whole(writer, (6, [(0, b"{}")]))
    with pytest.raises(ValueError, match="ops: 1 of them for 2 lines"):
        writer.write([(6, [0], [entry(6, 0), entry(6, 2)])])
    with pytest.raises(ValueError, match="6_0 does not come after 6_0"):
        write_whole(writer, (6, [(0, entry(6, 0))]), (6, [(0, entry(6, 0))]))
    assert files_of(tmp_path / "shape") == before
    writer.close()


def test_unknown_tail_stops_the_writer(tmp_path: Path) -> None:
    files = FailingFiles(1 << 30)
    writer = LogWriter.create(tmp_path / "shape", 1000, files)
    write(writer, (3, [(0, entry(3, 0))]))
    writer.append(4, [0], [entry(4, 0)])
    files.room, files.truncation_fails = 10, True
    with pytest.raises(OSError, match="No space"):
        writer.commit()
    files.room, files.truncation_fails = 1 << 30, False
    with pytest.raises(OSError, match="unknown state"):
        writer.commit()
    writer.close()
    reopened = LogWriter.open(tmp_path / "shape", 1000, 0)
    assert reopened.last == Offset(3, 0)
    reopened.close()


def test_failed_creation_of_the_log_keeps_the_transaction(tmp_path: Path) -> None:
    class NoDescriptors(RealFiles):
        exhausted = False

        def open(self, path: Path, flags: int, /) -> int:
            if self.exhausted:
                raise OSError(errno.EMFILE, "Too many open files")
            return RealFiles.open(path, flags)

    files = NoDescriptors()
    writer = LogWriter.create(tmp_path / "shape", 1000, files)
    writer.append(4, [0], [entry(4, 0)])
    files.exhausted = True
    with pytest.raises(OSError, match="Too many"):
        writer.commit()
    files.exhausted = False
    assert writer.commit() == Offset(4, 0)
    writer.close()
    check_reader(tmp_path / "shape", model_of([(4, [(0, entry(4, 0))])], 1000))


def test_sync_takes_bytes_before_records_before_names(tmp_path: Path) -> None:
    files = WatchedFiles()
    writer = LogWriter.create(tmp_path / "shape", 1000, files)
    assert writer.dirty
    writer.sync()
    assert files.events == ["sync log.index", "sync directory shape", f"sync directory {tmp_path.name}"]
    assert not writer.dirty
    files.events.clear()
    writer.sync()
    assert files.events == []
    write(writer, (3, [(0, entry(3, 0))]))
    assert writer.dirty
    writer.sync()
    assert files.events[:3] == ["sync log.json", "sync log.index", "sync directory shape"]
    files.events.clear()
    write(writer, (4, [(0, entry(4, 0))]))
    writer.sync()
    assert files.events == ["sync log.json", "sync log.index"]
    assert not writer.dirty
    files.events.clear()
    writer.mark_ended()
    assert writer.dirty
    writer.sync()
    assert files.events == ["sync log.index"]
    writer.append(5, [0], [entry(5, 0)])
    writer.flush()
    assert not writer.dirty
    writer.close()
    with pytest.raises(ValueError, match="closed"):
        writer.sync()


def test_failed_sync_is_never_taken_back(tmp_path: Path) -> None:
    files = WatchedFiles()
    writer = LogWriter.create(tmp_path / "shape", 1000, files)
    write(writer, (3, [(0, entry(3, 0))]))
    files.sync_error = OSError(errno.EIO, "Input/output error")
    with pytest.raises(OSError, match="Input/output"):
        writer.sync()
    files.sync_error = None
    assert writer.dirty
    with pytest.raises(OSError, match="an earlier sync failed"):
        writer.sync()
    writer.close()


def test_close_while_another_thread_syncs(tmp_path: Path) -> None:
    """The descriptor under a sync stays open until the sync is over, and is closed then."""
    started, go_on = threading.Event(), threading.Event()
    closed: list[int] = []

    class SlowFiles(RealFiles):
        def fdatasync(self, fd: int, /) -> None:  # type: ignore[override]
            started.set()
            assert go_on.wait(120)
            RealFiles.fdatasync(fd)

        def close(self, fd: int, /) -> None:
            closed.append(fd)
            RealFiles.close(fd)

    writer = LogWriter.create(tmp_path / "shape", 1000, SlowFiles())
    index = writer.header.file
    fd = index.fd
    errors: list[BaseException] = []

    def sync() -> None:
        try:
            index.sync()
        except BaseException as error:  # noqa: BLE001 - handed to the test's thread
            errors.append(error)

    thread = threading.Thread(target=sync)
    thread.start()
    assert started.wait(120)
    assert index.pending
    writer.close()
    writer.close()
    assert closed == []
    go_on.set()
    thread.join(120)
    assert not thread.is_alive()
    assert errors == []
    assert closed == [fd]


def test_marks_reach_readers_at_once(tmp_path: Path) -> None:
    writer = LogWriter.create(tmp_path / "shape", 1000)
    reader = ShapeReader(tmp_path / "shape")
    assert not reader.header().ended
    writer.mark_snapshot_failed()
    writer.mark_ended()
    assert reader.header() == writer.header.value
    assert reader.header().ended
    writer.close()
    with pytest.raises(ValueError, match="closed"):
        writer.mark_ended()
    reopened = LogWriter.open(tmp_path / "shape", 1000, 0)
    assert reopened.header.value == reader.header()
    reopened.close()
    reader.close()

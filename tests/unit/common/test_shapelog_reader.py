"""The reader: exactly the entries after an offset, few reads, and no trust in what is being written."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from common.lsn import SNAPSHOT_END, Offset
from common.shapelog import DamagedLog, LogWriter, ShapeReader, SnapshotWriter, retire
from common.shapelog import reader as reader_module
from common.shapelog.files import RealFiles
from common.shapelog.reader import LogRange, find_entry
from tests.unit.common.test_shapelog_model import (
    Transaction,
    WatchedFiles,
    check_reader,
    entry,
    model_of,
    read_range,
    transaction_lists,
    write,
)


@settings(max_examples=60, deadline=None)
@given(transactions=transaction_lists(), chunk_bytes=st.integers(1, 3000), slice_bytes=st.integers(1, 700))
def test_every_offset_gets_the_entries_after_it(
    transactions: list[Transaction], chunk_bytes: int, slice_bytes: int
) -> None:
    with TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(reader_module, "SLICE_BYTES", slice_bytes)
        writer = LogWriter.create(Path(name) / "shape", chunk_bytes)
        for transaction in transactions:
            write(writer, transaction)
        check_reader(Path(name) / "shape", model_of(transactions, chunk_bytes))
        writer.close()


def test_empty_log(tmp_path: Path) -> None:
    writer = LogWriter.create(tmp_path / "shape", 1000)
    check_reader(tmp_path / "shape", model_of([], 1000))
    reader = ShapeReader(tmp_path / "shape")
    assert reader.after(Offset(9, 9)) == LogRange(0, 0, SNAPSHOT_END)
    reader.close()
    reader.close()
    writer.close()


def test_number_of_reads_is_logarithmic(tmp_path: Path) -> None:
    count = 20_000
    writer = LogWriter.create(tmp_path / "shape", 3000)
    for lsn in range(1, count + 1):
        writer.append(lsn, [0], [entry(lsn, 0)])
        writer.commit()
    writer.close()
    files = WatchedFiles()
    reader = ShapeReader(tmp_path / "shape", files)
    bound = 2 * math.ceil(math.log2(count / 64)) + 6
    for lsn in (0, 1, 63, 64, 65, 9_999, 10_000, count - 65, count - 1, count, count + 1):
        files.reads = files.read_bytes = 0
        found = reader.after(Offset(lsn, 0))
        assert found.end_offset.tx > lsn or lsn >= count
        assert files.reads <= bound
        assert files.read_bytes <= bound * 64 * 48
    files.reads = 0
    reader.after(Offset(count - 1, 0))
    assert files.reads <= 4
    reader.close()


SIMPLE = [(lsn, [(0, entry(lsn, 0))]) for lsn in range(1, 9)]
"""One change each."""


@settings(max_examples=60, deadline=None)
@given(
    transactions=transaction_lists(12),
    chunk_bytes=st.sampled_from((60, 200, 1_000, 100_000)),
    at_once=st.lists(st.integers(1, 6), min_size=1),
    cuts=st.dictionaries(st.integers(1, 12), st.integers(1, 4), max_size=3),
)
@example(transactions=SIMPLE, chunk_bytes=9_999, at_once=[1], cuts={5: 3})
@example(transactions=SIMPLE, chunk_bytes=9_999, at_once=[1, 1, 1, 1, 1, 4], cuts={5: 3})
def test_who_follows_a_log_reads_what_a_new_reader_does(
    transactions: list[Transaction], chunk_bytes: int, at_once: list[int], cuts: dict[int, int]
) -> None:
    """Also when several transactions come between two looks, and when a restarted writer takes some back meanwhile."""
    transactions = transactions.copy()
    with TemporaryDirectory() as name:
        directory = Path(name) / "shape"
        writer = LogWriter.create(directory, chunk_bytes)
        reader = ShapeReader(directory)
        steps, number, done = itertools.cycle(at_once), 0, 0
        offsets = [SNAPSHOT_END, *(Offset(lsn, op) for lsn, changes in transactions for op, _ in changes)]
        while done < len(transactions):
            for transaction in transactions[done : done + next(steps)]:
                write(writer, transaction)
                done += 1
            number += 1
            if lost := cuts.get(number):
                # As a power cut may: the index ends before its last records. What comes then is not even the same.
                writer.close()
                size = (directory / "log.index").stat().st_size
                with (directory / "log.index").open("r+b") as index:
                    index.truncate(max(64, size - 48 * lost))
                writer = LogWriter.open(directory, chunk_bytes, 0)
                while done and transactions[done - 1][0] > writer.last.tx:
                    done -= 1
                for at in range(done, len(transactions)):
                    lsn, changes = transactions[at]
                    transactions[at] = lsn, [(op, entry(lsn, op, 151)) for op, _ in changes]
                continue
            fresh = ShapeReader(directory)
            assert reader.end() == fresh.end()
            for offset in offsets:
                assert reader.position(offset) == fresh.position(offset), offset
            fresh.close()
        reader.close()
        writer.close()


def test_who_follows_a_log_needs_one_read_to_see_it_grow(tmp_path: Path) -> None:
    writer = LogWriter.create(tmp_path / "shape", 100_000)
    files = WatchedFiles()
    reader = ShapeReader(tmp_path / "shape", files)
    reader.end()
    for lsn in range(1, 100):
        before = writer.last
        write(writer, (lsn, [(0, entry(lsn, 0))]))
        files.reads = files.read_bytes = 0
        end = reader.end()
        assert end is not None
        assert (end.offset, files.reads) == (writer.last, 1)
        found, last = reader.position(before)
        assert (found.end, last) == (end.end, end)
        assert files.reads == 2
        # And not a block of records.
        assert files.read_bytes < 500
    reader.close()
    writer.close()


def test_offset_inside_a_long_transaction_is_found_in_slices(tmp_path: Path) -> None:
    writer = LogWriter.create(tmp_path / "shape", 10 << 20)
    changes = [(op, entry(7, op, 300_000 if op == 4002 else 500)) for op in range(0, 8000, 2)]
    write(writer, (7, changes))
    writer.close()
    model = model_of([(7, changes)], 10 << 20)
    reader = ShapeReader(tmp_path / "shape")
    for op in (0, 1, 2, 999, 3999, 4000, 4001, 4002, 4003, 7996, 7997):
        assert read_range(reader, reader.after(Offset(7, op))) == model.after(Offset(7, op))[0]
    sizes: list[int] = []

    def read(start: int, size: int) -> bytes:
        sizes.append(size)
        return reader.read_log(start, size)

    find_entry(read, 0, reader.after(SNAPSHOT_END).end, 7990)
    assert max(sizes) <= 256 << 10
    reader.close()


@given(op=st.integers(-1, 12), slice_bytes=st.integers(1, 120), scale=st.sampled_from([1, 10**6, 10**18]))
def test_lines_without_position_belong_to_the_next_numbered_one(op: int, slice_bytes: int, scale: int) -> None:
    event = b'{"headers":{"event":"move-in","patterns":[],"txids":[7]}}'
    lines = [event, entry(7, 3 * scale), event, event, entry(7, 6 * scale), entry(7, 9 * scale), event]
    log = b"".join(line + b",\n" for line in lines)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reader_module, "SLICE_BYTES", slice_bytes)
        found = find_entry(lambda start, size: log[start : start + size], 0, len(log), op * scale)
    first = sum(1 for position, at in ((3, 1), (6, 4), (9, 5)) if position <= op)
    kept = lines[(0, 2, 5, 6)[first] :]
    assert log[found:] == b"".join(line + b",\n" for line in kept)


def test_uncommitted_and_torn_records_are_not_there(tmp_path: Path) -> None:
    directory = tmp_path / "shape"
    writer = LogWriter.create(directory, 100)
    write(writer, (7, [(0, entry(7, 0))]))
    size = (directory / "log.index").stat().st_size
    write(writer, (9, [(op, entry(9, op)) for op in range(300)]))
    writer.close()
    index = (directory / "log.index").read_bytes()
    reader = ShapeReader(directory)
    for cut in [*range(size, size + 100), *range(len(index) - 100, len(index))]:
        (directory / "log.index").write_bytes(index[:cut])
        assert reader.last() == Offset(7, 0)
        assert reader.after(SNAPSHOT_END).end_offset == Offset(7, 0)
    (directory / "log.index").write_bytes(index[:-1] + b"#")
    assert reader.last() == Offset(7, 0)
    (directory / "log.index").write_bytes(index)
    assert reader.last() == Offset(9, 299)
    reader.close()


class TornFiles(RealFiles):
    """Spoils the first so many reads of one kind."""

    def __init__(self, spoiled: int, length: int) -> None:
        self.spoiled = spoiled
        self.length = length

    def pread(self, fd: int, length: int, offset: int, /) -> bytes:
        data = RealFiles.pread(fd, length, offset)
        if length == self.length and self.spoiled:
            self.spoiled -= 1
            return b"#" + data[1:]
        return data


def test_torn_header_is_read_again(tmp_path: Path) -> None:
    writer = LogWriter.create(tmp_path / "shape", 1000)
    reader = ShapeReader(tmp_path / "shape", TornFiles(10, 64))
    assert reader.header() == writer.header.value
    reader.close()
    reader = ShapeReader(tmp_path / "shape", TornFiles(1000, 64))
    with pytest.raises(DamagedLog, match="torn"):
        reader.header()
    reader.close()
    writer.close()


def test_broken_record_below_the_end_is_read_again(tmp_path: Path) -> None:
    writer = LogWriter.create(tmp_path / "shape", 1000)
    for lsn in range(1, 20):
        write(writer, (lsn, [(0, entry(lsn, 0))]))
    writer.close()
    reader = ShapeReader(tmp_path / "shape", TornFiles(5, 64 * 48))
    assert reader.after(SNAPSHOT_END).start == 0
    reader.close()
    reader = ShapeReader(tmp_path / "shape", TornFiles(1000, 64 * 48))
    with pytest.raises(DamagedLog, match="broken records"):
        reader.after(SNAPSHOT_END)
    reader.close()


def test_log_shorter_than_the_index_is_damage(tmp_path: Path) -> None:
    directory = tmp_path / "shape"
    writer = LogWriter.create(directory, 1000)
    write(writer, (7, [(0, entry(7, 0))]))
    writer.close()
    (directory / "log.json").write_bytes(b"{")
    reader = ShapeReader(directory)
    with pytest.raises(DamagedLog, match="shorter"):
        read_range(reader, reader.after(SNAPSHOT_END))
    reader.close()


def test_shape_that_goes_away(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        ShapeReader(tmp_path / "shape")
    writer = LogWriter.create(tmp_path / "shape", 1000)
    snapshot = SnapshotWriter(tmp_path / "shape", 1000, writer.header)
    snapshot.finish(b'{"headers":{}}')
    write(writer, (7, [(0, entry(7, 0))]))
    reader = ShapeReader(tmp_path / "shape")
    found = reader.after(SNAPSHOT_END)
    read = read_range(reader, found)
    assert not reader.header().ended
    writer.mark_ended()
    retire(tmp_path / "shape", tmp_path / "trash")
    assert reader.header().ended
    assert read_range(reader, found) == read
    with pytest.raises(FileNotFoundError):
        reader.snapshot_size(0)
    with pytest.raises(FileNotFoundError):
        ShapeReader(tmp_path / "shape")
    reader.close()
    writer.close()

"""Recovery: a commit prefix with everything acknowledged, whatever the crash left; replay makes the same files."""

from __future__ import annotations

import shutil
from bisect import bisect_left
from pathlib import Path

import google_crc32c
import pytest

from common.lsn import SNAPSHOT_END, Offset
from common.shapelog import DamagedLog, LogWriter
from common.shapelog.layout import BOUNDARY, COMMIT, HEADER_SIZE, RECORD_SIZE, decode_record, encode_record
from tests.unit.common.test_shapelog_model import (
    Transaction,
    WatchedFiles,
    check_reader,
    entry,
    files_of,
    model_of,
    write,
)

CHUNK_BYTES = 700

TRANSACTIONS: list[Transaction] = [
    (10, [(0, entry(10, 0))]),
    (20, [(0, entry(20, 0)), (2, entry(20, 2, 30))]),
    (30, [(op, entry(30, op, 20 * op)) for op in range(8)]),
    (40, [(6, entry(40, 6, 5))]),
    (50, [(0, entry(50, 0, 600)), (1, entry(50, 1, 600))]),
    (60, [(0, entry(60, 0))]),
]


class Sample:
    """A log of all TRANSACTIONS, and copies of it to damage."""

    def __init__(self, base: Path) -> None:
        self._base = base
        self._copies = 0
        writer = LogWriter.create(base / "whole", CHUNK_BYTES)
        self.ends: list[int] = [0]
        """The length of log.json after so many transactions."""
        self.index_ends: list[int] = [HEADER_SIZE]
        for transaction in TRANSACTIONS:
            write(writer, transaction)
            self.ends.append((base / "whole" / "log.json").stat().st_size)
            self.index_ends.append((base / "whole" / "log.index").stat().st_size)
        writer.close()
        self.files = files_of(base / "whole")

    def damaged(self, log: bytes | None, index: bytes) -> Path:
        self._copies += 1
        directory = self._base / f"copy{self._copies}"
        directory.mkdir()
        (directory / "log.index").write_bytes(index)
        if log is not None:
            (directory / "log.json").write_bytes(log)
        return directory

    def whole_up_to(self, log: int, index: int) -> int:
        """How many transactions lie before both of these positions."""
        return min(bisect_left(self.ends, log + 1), bisect_left(self.index_ends, index + 1)) - 1

    def check(self, directory: Path, kept: int, acknowledged: int) -> None:
        """Open: exactly ``kept`` transactions are there. Replay: the files are those of the undisturbed run."""
        writer = LogWriter.open(directory, CHUNK_BYTES, acknowledged)
        expected = Offset(TRANSACTIONS[kept - 1][0], TRANSACTIONS[kept - 1][1][-1][0]) if kept else SNAPSHOT_END
        assert writer.last == expected
        assert writer.unsynced == writer.dirty == (expected.tx > acknowledged)
        assert len(files_of(directory).get("log.json", b"")) == self.ends[kept]
        assert len(files_of(directory)["log.index"]) == self.index_ends[kept]
        for transaction in TRANSACTIONS[kept:]:
            write(writer, transaction)
        writer.close()
        assert files_of(directory) == self.files
        shutil.rmtree(directory)


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    return Sample(tmp_path_factory.mktemp("recovery"))


def test_sample_has_boundaries_everywhere(sample: Sample) -> None:
    data = sample.files["log.index"]
    flags = [
        record.flags
        for at in range(HEADER_SIZE, len(data), RECORD_SIZE)
        if (record := decode_record(data, at)) is not None
    ]
    assert set(flags) == {1, 2, 3}
    assert flags.count(COMMIT) + flags.count(3) == len(TRANSACTIONS)


@pytest.mark.parametrize("acknowledged_count", [0, 2, 3])
def test_log_cut_at_every_byte(sample: Sample, acknowledged_count: int) -> None:
    acknowledged = TRANSACTIONS[acknowledged_count - 1][0] if acknowledged_count else 0
    log, index = sample.files["log.json"], sample.files["log.index"]
    for size in range(sample.ends[acknowledged_count], len(log) + 1):
        sample.check(sample.damaged(log[:size], index), sample.whole_up_to(size, len(index)), acknowledged)


@pytest.mark.parametrize("acknowledged_count", [0, 2, 3])
def test_index_cut_at_every_byte(sample: Sample, acknowledged_count: int) -> None:
    acknowledged = TRANSACTIONS[acknowledged_count - 1][0] if acknowledged_count else 0
    log, index = sample.files["log.json"], sample.files["log.index"]
    for size in range(sample.index_ends[acknowledged_count], len(index) + 1):
        sample.check(sample.damaged(log, index[:size]), sample.whole_up_to(len(log), size), acknowledged)


def test_both_cut(sample: Sample) -> None:
    log, index = sample.files["log.json"], sample.files["log.index"]
    for log_size in range(0, len(log) + 1, 53):
        for index_size in range(HEADER_SIZE, len(index) + 1, 29):
            directory = sample.damaged(log[:log_size], index[:index_size])
            sample.check(directory, sample.whole_up_to(log_size, index_size), 0)


def test_lost_name_of_the_log_is_an_empty_log(sample: Sample) -> None:
    sample.check(sample.damaged(None, sample.files["log.index"]), 0, 0)


def test_every_flipped_byte_of_the_log_is_noticed(sample: Sample) -> None:
    log, index = sample.files["log.json"], sample.files["log.index"]
    for at in range(sample.ends[2], len(log)):
        broken = log[:at] + bytes([log[at] ^ 0x10]) + log[at + 1 :]
        sample.check(sample.damaged(broken, index), sample.whole_up_to(at, len(index)), 20)


def test_every_flipped_byte_of_the_index_is_noticed(sample: Sample) -> None:
    log, index = sample.files["log.json"], sample.files["log.index"]
    for at in range(sample.index_ends[2], len(index)):
        broken = index[:at] + bytes([index[at] ^ 0x10]) + index[at + 1 :]
        sample.check(sample.damaged(log, broken), sample.whole_up_to(len(log), at), 20)


def test_zeros_and_rubbish_behind_the_end_are_cut(sample: Sample) -> None:
    """A file system may extend a file before it has written what belongs there."""
    log, index = sample.files["log.json"], sample.files["log.index"]
    for tail, acknowledged in ((bytes(5000), 60), (b"\xff" * 100, 60), (index[HEADER_SIZE:], 0)):
        sample.check(sample.damaged(log + tail, index + tail), len(TRANSACTIONS), acknowledged)
        sample.check(sample.damaged(log, index[: sample.index_ends[3]] + tail), 3, 0)


def test_records_that_contradict_each_other_are_cut(sample: Sample) -> None:
    """Intact ones too: of an older log, perhaps, in a file that was cut but not on the disk."""
    log, index = sample.files["log.json"], sample.files["log.index"]
    second, third = (
        record for at in (2, 3) if (record := decode_record(index, HEADER_SIZE + at * RECORD_SIZE)) is not None
    )
    assert second.lsn == third.lsn
    assert not second.flags & COMMIT
    block = log[second.end : third.end]
    for wrong in (
        third._replace(closed=third.closed + 1),
        third._replace(flags=third.flags ^ BOUNDARY),
        third._replace(lsn=third.lsn + 1),
        third._replace(op=second.op),
        third._replace(end=second.end, block_crc=0),
        third._replace(end=len(log) + 1),
    ):
        at = HEADER_SIZE + 3 * RECORD_SIZE
        broken = index[:at] + encode_record(*wrong) + index[at + RECORD_SIZE :]
        sample.check(sample.damaged(log, broken), 2, 0)
    assert google_crc32c.value(block) == third.block_crc


def test_bytes_without_records_are_cut(sample: Sample) -> None:
    """A transaction that was being written when the worker died."""
    sample.check(sample.damaged(sample.files["log.json"] + entry(70, 0)[:40], sample.files["log.index"]), 6, 60)


def test_acknowledged_bytes_are_not_read_again(sample: Sample) -> None:
    """They are trusted, so a start with many shapes does not read all logs: here even wrong bytes pass."""
    log, index = sample.files["log.json"], sample.files["log.index"]
    directory = sample.damaged(b"#" * sample.ends[2] + log[sample.ends[2] :], index)
    writer = LogWriter.open(directory, CHUNK_BYTES, 20)
    assert writer.last == Offset(60, 0)
    writer.close()


def test_lost_acknowledged_part_is_refused(sample: Sample) -> None:
    log, index = sample.files["log.json"], sample.files["log.index"]
    in_fifth = HEADER_SIZE + 4 * RECORD_SIZE + 6
    first_boundary = sample.index_ends[2] + RECORD_SIZE
    for broken_log, broken_index in (
        (log[: sample.ends[3] - 1], index),
        (None, index),
        (log, index[:first_boundary]),
        (log, index[:in_fifth] + b"#" + index[in_fifth + 1 :]),
        (log, index[:30] + b"#" + index[31:]),
        (log, index[: HEADER_SIZE - 1]),
        (log, b""),
    ):
        directory = sample.damaged(broken_log, broken_index)
        before = files_of(directory)
        with pytest.raises(DamagedLog):
            LogWriter.open(directory, CHUNK_BYTES, 30)
        assert files_of(directory) == before


def test_missing_shape(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        LogWriter.open(tmp_path / "nothing", CHUNK_BYTES, 0)


def test_recovered_log_becomes_durable_by_a_sync(sample: Sample) -> None:
    directory = sample.damaged(sample.files["log.json"], sample.files["log.index"])
    writer = LogWriter.open(directory, CHUNK_BYTES, 30)
    assert writer.unsynced
    assert writer.dirty
    writer.sync()
    assert not writer.unsynced
    assert not writer.dirty
    writer.close()
    check_reader(directory, model_of(TRANSACTIONS, CHUNK_BYTES))
    clean = LogWriter.open(directory, CHUNK_BYTES, 60)
    assert not clean.unsynced
    assert not clean.dirty
    clean.close()


def test_name_of_a_log_that_a_dead_writer_made_is_synced_before_anything_in_it_counts(tmp_path: Path) -> None:
    dead = LogWriter.create(tmp_path / "shape", CHUNK_BYTES)
    dead.sync()
    dead.append(10, [0, 1], [entry(10, 0), entry(10, 1)])
    dead.flush()
    files = WatchedFiles()
    writer = LogWriter.open(tmp_path / "shape", CHUNK_BYTES, 0, files)
    assert not writer.dirty
    write(writer, TRANSACTIONS[0])
    writer.sync()
    assert files.events == [
        "sync log.json",
        "sync log.index",
        "sync directory shape",
        f"sync directory {tmp_path.name}",
    ]
    write(writer, TRANSACTIONS[1])
    writer.sync()
    assert files.events[4:] == ["sync log.json", "sync log.index"]
    writer.close()
    dead.close()

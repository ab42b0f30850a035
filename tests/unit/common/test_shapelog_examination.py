"""Reading everything of a shape finds what a reader could stumble over, and nothing in a sound one (INV-28)."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from common.lsn import SNAPSHOT_END, Offset
from common.shapelog.examination import examine, look
from common.shapelog.layout import DamagedLog
from common.shapelog.snapshot import SnapshotWriter
from common.shapelog.writer import LogWriter

LAST = Offset(90, 4)


@pytest.fixture
def log(tmp_path: Path) -> LogWriter:
    """A shape with a snapshot of several chunks and a log of nine transactions, two chunks closed in each."""
    log = LogWriter.create(tmp_path / "shape", 100)
    snapshot = SnapshotWriter(tmp_path / "shape", 100, log.header)
    snapshot.add(b"".join(_line(number) + b",\n" for number in range(8)), 8)
    snapshot.finish(_line(9))
    for lsn in range(10, 91, 10):
        log.append(lsn, [0, 2, 4], [_line(lsn), _line(lsn + 1), _line(lsn + 2)])
        log.commit()
    return log


def _line(number: int) -> bytes:
    return b'{"value":{"n":"%d"},"headers":{"pad":"%s"}}' % (number, b"x" * 30)


def test_a_sound_shape(log: LogWriter, tmp_path: Path) -> None:
    assert log.last == LAST
    examine(tmp_path / "shape", LAST)
    # What is being written lies behind the end.
    log.append(100, [0], [_line(100)] * 1)
    log.append(100, [2], [b'{"value":"' + b"y" * (2 << 20) + b'","headers":{}}'])
    log.append(100, [4], [_line(101)])
    with (tmp_path / "shape" / "log.index").open("ab") as index:
        index.write(b"torn")
    examine(tmp_path / "shape", LAST)
    assert look(tmp_path / "shape").chunks > 1


def test_a_shape_without_changes(tmp_path: Path) -> None:
    LogWriter.create(tmp_path / "shape", 100)
    examine(tmp_path / "shape", SNAPSHOT_END)


def _overwrite(name: str, at: int) -> Callable[[Path], None]:
    def damage(shape: Path) -> None:
        with (shape / name).open("r+b") as file:
            file.seek(at)
            file.write(b"\xa5")

    return damage


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "header": (_overwrite("log.index", 20), "header of log.index is torn"),
    "first record": (_overwrite("log.index", 64 + 3), "record 0 is broken"),
    "record in the middle": (_overwrite("log.index", 64 + 48 * 5 + 30), "record 5 is broken"),
    "last record": (lambda shape: os.truncate(shape / "log.index", 64 + 48 * 3), "instead of 90_4"),
    "bytes of the log": (_overwrite("log.json", 500), "log.json is broken between"),
    "end of the log": (lambda shape: os.truncate(shape / "log.json", 600), "log.json is broken between"),
    "no log": (lambda shape: (shape / "log.json").unlink(), "log.json is missing"),
    "no index": (lambda shape: (shape / "log.index").unlink(), "log.index is missing"),
    "no snapshot": (lambda shape: (shape / "snapshot.0001.json").unlink(), "snapshot.0001.json is missing"),
    "part of a snapshot": (
        lambda shape: os.truncate(shape / "snapshot.0000.json", 20),
        "snapshot.0000.json was cut off",
    ),
    "empty snapshot": (lambda shape: os.truncate(shape / "snapshot.0000.json", 0), "snapshot.0000.json was cut off"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_found(log: LogWriter, tmp_path: Path, name: str) -> None:
    damage, words = DAMAGES[name]
    damage(tmp_path / "shape")
    with pytest.raises(DamagedLog, match=words):
        examine(tmp_path / "shape", LAST)


def test_an_ended_shape(log: LogWriter, tmp_path: Path) -> None:
    log.mark_ended()
    assert look(tmp_path / "shape").ended
    with pytest.raises(DamagedLog, match="ended"):
        examine(tmp_path / "shape", LAST)


def test_a_directory_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(DamagedLog, match="missing"):
        look(tmp_path / "nowhere")

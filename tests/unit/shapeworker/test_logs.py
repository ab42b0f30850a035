"""Open logs are bounded, whatever shapes do (engine.md 28: descriptors)."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.shapelog import DamagedLog
from common.shapelog.writer import LogWriter
from common.xid import Snapshot
from shapeworker.holdings import Holdings
from shapeworker.logs import OpenLogs
from shapeworker.shape import Life, Shape
from tests.unit.shapeworker.test_apply import CHUNK, make_shape

LIMIT = 5


@pytest.fixture
def logs() -> OpenLogs:
    return OpenLogs(Holdings(), CHUNK, lambda log: log.sync(), LIMIT)


def complete(root: Path) -> Shape:
    """A shape that was created here and has become active: its log is open and synced."""
    shape = make_shape(root)
    shape.snapshot_taken(Snapshot(1, 1, frozenset()), 0)
    shape.life = Life.ACTIVE
    assert shape.log is not None
    shape.log.sync()
    return shape


def opened(shapes: list[Shape]) -> int:
    return sum(shape.log is not None for shape in shapes)


def test_no_more_than_the_limit_stay_open_and_the_last_used_do(tmp_path: Path, logs: OpenLogs) -> None:
    shapes = [complete(tmp_path) for _ in range(4 * LIMIT)]
    for shape in shapes:
        logs.open(shape)
    assert opened(shapes) == LIMIT
    assert opened(shapes[-LIMIT:]) == LIMIT
    logs.open(shapes[0])
    assert shapes[0].log is not None
    assert opened(shapes) == LIMIT


def test_what_is_in_use_is_not_closed(tmp_path: Path, logs: OpenLogs) -> None:
    creating = make_shape(tmp_path)
    logs.open(creating)
    passing = complete(tmp_path)
    logs.open(passing)
    passing.enter(1, 1000, 7)
    passing.gather([0], [b'{"headers":{}}'], 14)
    passing.spill(1000)
    skipping = complete(tmp_path)
    logs.open(skipping)
    skipping.snapshot = Snapshot(50, 50, frozenset())
    skipping.filter_until = 5000
    skipping.enter(1, 1000, 7)
    assert skipping.skips
    others = [complete(tmp_path) for _ in range(3 * LIMIT)]
    for shape in others:
        logs.open(shape)
    assert creating.log is not None
    assert passing.log is not None
    assert skipping.log is None, "a transaction that it skips does not keep it busy"


def test_a_transaction_may_touch_more_shapes_than_logs_can_be_open(tmp_path: Path, logs: OpenLogs) -> None:
    shapes = [complete(tmp_path) for _ in range(8 * LIMIT)]
    most = 0
    for shape in shapes:
        logs.open(shape)
        shape.enter(1, 1000, 7)
        shape.gather([0], [b'{"headers":{}}'], 14)
        most = max(most, opened(shapes[: shapes.index(shape) + 1]))
    for shape in shapes:
        logs.open(shape)
        assert shape.commit(1000, 7)
        assert shape.write() is not None
    assert most <= LIMIT
    assert opened(shapes) <= LIMIT + LIMIT // 4 + 1
    for shape in shapes:
        logs.open(shape)
        assert shape.last.tx == 1000


def test_recovered_transactions_are_synced_before_they_count(tmp_path: Path) -> None:
    unsynced: list[LogWriter] = []
    shape = complete(tmp_path)
    assert shape.log is not None
    shape.log.append(1000, [0], [b'{"headers":{}}'])
    shape.log.commit()
    shape.log.close()
    shape.log = None
    logs = OpenLogs(Holdings(), CHUNK, unsynced.append, LIMIT)
    logs.open(shape)
    assert unsynced == [shape.log]


def test_a_log_that_cannot_be_saved_is_told(tmp_path: Path, logs: OpenLogs) -> None:
    shape = complete(tmp_path)
    assert shape.log is not None
    shape.log.close()
    shape.log = None
    (shape.directory / "log.index").write_bytes(b"x" * 64)
    with pytest.raises(DamagedLog):
        logs.open(shape)


def test_the_log_that_is_being_opened_stays_open_when_all_others_are_in_use(tmp_path: Path, logs: OpenLogs) -> None:
    for _ in range(LIMIT):
        shape = complete(tmp_path)
        logs.open(shape)
        shape.enter(1, 1000, 7)
    shape = complete(tmp_path)
    assert shape.log is not None
    shape.log.close()
    shape.log = None
    logs.open(shape)
    assert shape.log is not None

"""Opening a partition: what is damaged, unknown or unfinished in it ends; the rest lives (engine.md 9.4, INV-16)."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

import pytest

from common.shape import ShapeRequest
from common.shapelog.examination import look
from common.shapelog.writer import LogWriter
from shapeworker.catalog import Catalog, Complete, set_aside
from shapeworker.partition import open_partition
from tests.unit.shapeworker.test_catalog import REQUEST, SNAPSHOT, TABLE


@pytest.fixture
def handle(tmp_path: Path) -> str:
    """An active shape in partition 3 of generation 1."""
    partition, _ = open_partition(tmp_path, 3, 1)
    handle = partition.catalog.create(REQUEST, TABLE, ("id",))
    LogWriter.create(partition.shape_directory(handle), 1000).close()
    partition.catalog.activate([Complete(handle, SNAPSHOT, 5)])
    partition.close()
    return handle


def test_an_active_shape_is_there_again(tmp_path: Path, handle: str) -> None:
    partition, rows = open_partition(tmp_path, 3, 1)
    assert [row.handle for row in rows] == [handle]
    partition.close()


@pytest.mark.parametrize("damage", ["rubbish", "page", "row", "format"])
def test_a_damaged_catalog_is_put_aside(tmp_path: Path, handle: str, damage: str) -> None:
    directory = tmp_path / "partitions" / "03"
    path = directory / "catalog.sqlite3"
    if damage == "rubbish":
        path.write_bytes(b"this is no database")
    elif damage == "page":
        # All but the first page, with the schema in it.
        size = path.stat().st_size
        assert size > 4096
        path.write_bytes(path.read_bytes()[:4096] + b"\xa5" * (size - 4096))
    else:
        statement = "UPDATE shapes SET request = x'c1'" if damage == "row" else "UPDATE meta SET value = 99"
        with sqlite3.connect(path) as database:
            database.execute(statement)
        database.close()
    damaged = path.read_bytes()
    reader = os.open(directory / "shapes" / handle / "log.index", os.O_RDONLY)
    partition, rows = open_partition(tmp_path, 3, 1)
    try:
        assert rows == []
        assert not partition.shape_directory(handle).exists()
        assert os.pread(reader, 16, 0)[12] == 1, "who has it open is told that it ended"
        (kept,) = directory.glob("catalog.sqlite3.damaged-*")
        assert kept.read_bytes() == damaged
        # The new one works.
        assert partition.catalog.create(REQUEST, TABLE, ("id",)) != handle
    finally:
        os.close(reader)
        partition.close()
    _, rows = open_partition(tmp_path, 3, 1)
    assert rows == []


def test_the_log_of_a_damaged_catalog_goes_with_it(tmp_path: Path, handle: str) -> None:
    path = tmp_path / "partitions" / "03" / "catalog.sqlite3"
    kept = set_aside(path)
    path.write_bytes(kept.read_bytes())
    Path(f"{path}-wal").write_bytes(b"of another file")
    kept = set_aside(path)
    assert Path(f"{kept}-wal").read_bytes() == b"of another file"
    assert not Path(f"{path}-wal").exists()


def test_a_directory_that_the_catalog_does_not_know_is_removed(tmp_path: Path, handle: str) -> None:
    stray = tmp_path / "partitions" / "03" / "shapes" / "1-2"
    LogWriter.create(stray, 1000).close()
    partition, rows = open_partition(tmp_path, 3, 1)
    assert [row.handle for row in rows] == [handle]
    assert not stray.exists()
    assert look(partition.shape_directory(handle)).ended is False
    partition.close()


def test_a_shape_without_its_directory_ends(tmp_path: Path, handle: str) -> None:
    directory = tmp_path / "partitions" / "03" / "shapes" / handle
    directory.rename(tmp_path / "elsewhere")
    partition, rows = open_partition(tmp_path, 3, 1)
    assert rows == []
    assert partition.catalog.rows() == []
    partition.close()


def test_an_unfinished_shape_and_one_of_another_generation_end(tmp_path: Path, handle: str) -> None:
    catalog = Catalog(tmp_path / "partitions" / "03" / "catalog.sqlite3")
    unfinished = catalog.create(ShapeRequest(schema="public", table="u"), TABLE, ("id",))
    catalog.close()
    LogWriter.create(tmp_path / "partitions" / "03" / "shapes" / unfinished, 1000).close()
    partition, rows = open_partition(tmp_path, 3, 1)
    assert [row.handle for row in rows] == [handle]
    partition.close()
    partition, rows = open_partition(tmp_path, 3, 2)
    assert rows == []
    assert list((tmp_path / "partitions" / "03" / "shapes").iterdir()) == []
    partition.close()

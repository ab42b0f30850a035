"""The catalog of a partition: life of a shape, ownership, handles (INV-15, INV-16, INV-27)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from common.shape import ShapeRequest
from common.table import Column, Table
from common.xid import Snapshot
from shapeworker.catalog import ACTIVE, ENDED, RESERVED_US, Catalog, CatalogDamaged, CatalogLocked, Complete

REQUEST = ShapeRequest(schema="public", table="t", columns=("id",), where="id > $1", params=("1",))
TABLE = Table(5, "public", "t", "r", "p", (Column("id", 1, 23, "int4", -1, 23, True, 0, "", 0),))
SNAPSHOT = Snapshot(1 << 40, (1 << 40) + 5, frozenset({(1 << 40) + 1}))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "catalog.sqlite3"


def test_a_shape_survives_reopening_with_all_it_is(path: Path) -> None:
    catalog = Catalog(path)
    handle = catalog.create(REQUEST, TABLE, ("id",))
    assert catalog.activate([Complete(handle, SNAPSHOT, 2**64 - 1)]) == {handle}
    catalog.close()
    (row,) = Catalog(path).rows()
    assert (row.handle, row.state, row.request, row.table, row.selected) == (handle, ACTIVE, REQUEST, TABLE, ("id",))
    assert (row.snapshot, row.filter_until) == (SNAPSHOT, 2**64 - 1)


def test_a_shape_that_is_not_complete_is_not_entered(path: Path) -> None:
    catalog = Catalog(path)
    handle = catalog.create(REQUEST, TABLE, ("id",))
    assert catalog.rows() == []
    catalog.end(handle, "because")
    assert catalog.activate([Complete(handle, SNAPSHOT, 1)]) == set()
    assert catalog.rows() == []


def test_an_ended_shape_never_becomes_active_and_is_forgotten_only_then(path: Path) -> None:
    catalog = Catalog(path)
    handle = catalog.create(REQUEST, TABLE, ("id",))
    catalog.activate([Complete(handle, SNAPSHOT, 1)])
    catalog.forget(handle)
    assert [row.state for row in catalog.rows()] == [ACTIVE]
    catalog.end(handle, "because")
    assert catalog.activate([Complete(handle, SNAPSHOT, 1)]) == set()
    assert [(row.state, row.reason) for row in catalog.rows()] == [(ENDED, "because")]
    catalog.forget(handle)
    assert catalog.rows() == []


def test_two_shapes_never_live_for_one_request(path: Path) -> None:
    """Also when the tombstone of the first is refused by a full disk and the second gets there before."""
    catalog = Catalog(path)
    first = catalog.create(REQUEST, TABLE, ("id",))
    second = catalog.create(REQUEST, TABLE, ("id",))
    catalog.activate([Complete(first, SNAPSHOT, 1), Complete(second, SNAPSHOT, 1)])
    assert {row.handle: row.state for row in catalog.rows()} == {first: ENDED, second: ACTIVE}


def test_handles_are_never_used_twice_even_if_the_clock_goes_back(path: Path) -> None:
    catalog = Catalog(path, clock=lambda: 2_000_000_000)
    handles = [catalog.create(REQUEST, TABLE, ("id",)) for _ in range(3)]
    # None of them was entered: whoever opens the file next knows nothing of them.
    catalog._db.close()
    for clock in (lambda: 2_000_000_000, lambda: 1_000_000_000):
        catalog = Catalog(path, clock=clock)
        handles.append(catalog.create(REQUEST, TABLE, ("id",)))
        catalog._db.close()
    assert len(set(handles)) == 5


def test_handles_are_made_without_the_disk_as_long_as_some_are_reserved(path: Path) -> None:
    now = 2_000_000_000
    catalog = Catalog(path, clock=lambda: now)
    assert not catalog.has_handles
    catalog.reserve()
    assert catalog.has_handles
    statements: list[str] = []
    catalog._db.set_trace_callback(statements.append)
    catalog.create(REQUEST, TABLE, ("id",))
    assert statements == []
    now += 2 * RESERVED_US * 1000
    assert not catalog.has_handles
    catalog.create(REQUEST, TABLE, ("id",))
    assert statements


def test_a_new_generation_ends_every_shape(path: Path) -> None:
    catalog = Catalog(path)
    assert catalog.generation == 0
    other = ShapeRequest(schema="public", table="u")
    active, creating = catalog.create(REQUEST, TABLE, ("id",)), catalog.create(other, TABLE, ("id",))
    catalog.activate([Complete(active, SNAPSHOT, 1)])
    catalog.start_generation(7, "the slot was lost")
    assert catalog.generation == 7
    assert {(row.handle, row.state, row.reason) for row in catalog.rows()} == {
        (active, ENDED, "the slot was lost"),
    }
    assert catalog.activate([Complete(creating, SNAPSHOT, 1)]) == set()


def test_one_process_owns_it_and_its_death_frees_it(path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from shapeworker.catalog import Catalog;"
        "c = Catalog(Path(sys.argv[1])); print('open', flush=True); time.sleep(600)"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, "-c", script, path], stdout=subprocess.PIPE, env=environment) as owner:
        assert owner.stdout is not None
        try:
            assert owner.stdout.readline() == b"open\n"
            with pytest.raises(CatalogLocked):
                Catalog(path)
        finally:
            owner.kill()
            owner.wait()
    Catalog(path).close()


def test_another_format_is_refused(path: Path) -> None:
    catalog = Catalog(path)
    catalog._set_meta("format", "99")
    catalog.close()
    with pytest.raises(CatalogDamaged, match="format 99"):
        Catalog(path)


def test_what_a_dead_owner_left_unsynced_is_on_the_disk_before_it_counts(path: Path) -> None:
    """It is in the WAL, perhaps only in the page cache; opening moves it to the database, which waits for the disk."""
    owner = Catalog(path)
    handle = owner.create(REQUEST, TABLE, ("id",))
    owner.activate([Complete(handle, SNAPSHOT, 1)])
    left = path.with_name("left.sqlite3")
    for suffix in ("", "-wal"):
        shutil.copyfile(f"{path}{suffix}", f"{left}{suffix}")
    assert left.with_name("left.sqlite3-wal").stat().st_size > 0
    catalog = Catalog(left)
    assert [row.handle for row in catalog.rows()] == [handle]
    assert left.with_name("left.sqlite3-wal").stat().st_size == 0
    catalog.close()
    owner.close()

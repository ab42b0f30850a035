"""Which shapes a worker ends: those that do not fit their table, and those that missed changes of it."""

from __future__ import annotations

from pathlib import Path

import msgspec

from common.frames import Gap
from common.shape import ShapeRequest
from common.table import Column, Table, TypeFacts
from common.xid import Snapshot
from shapeworker.filters import make_filter
from shapeworker.holdings import Holdings
from shapeworker.reconciler import misfits
from shapeworker.shape import Shape

ID = Column("id", 1, 23, "int4", -1, 23, True, 0, "", 0)
V = Column("v", 2, 25, "text", -1, 25, False, None, "", 0, (TypeFacts("pg_catalog", "text", "b"),))
TABLE = Table(7, "public", "t", "r", "p", (ID, V))


def shape(handle: str, columns: tuple[str, ...] | None = None, table: Table = TABLE) -> Shape:
    request = ShapeRequest(schema="public", table=table.name, columns=columns)
    return Shape(
        handle=handle, request=request, table=table, selected=columns or ("id", "v"), partition=0, storage=Path("/none")
    )


def test_shapes_that_do_not_fit_their_table_are_found_by_what_they_show() -> None:
    whole, part = shape("1-1"), shape("1-2", ("id",))
    required = msgspec.structs.replace(TABLE, columns=(ID, msgspec.structs.replace(V, not_null=True)))
    assert misfits([whole, part], {7: TABLE}, {}) == []
    assert [found for found, _ in misfits([whole, part], {7: required}, {})] == [whole]
    assert misfits([whole, part], {}, {}) == [(whole, "the table is gone"), (part, "the table is gone")]
    filtered = shape("1-3", ("id",))
    filtered.filter = make_filter(ShapeRequest(schema="public", table="t", where="v = 'a'"), TABLE)
    longer = msgspec.structs.replace(TABLE, columns=(ID, msgspec.structs.replace(V, type_mod=9)))
    assert [found for found, _ in misfits([part, filtered], {7: longer}, {})] == [filtered]
    renamed = msgspec.structs.replace(TABLE, name="u")
    assert misfits([part], {7: renamed}, {}) == [(part, "the table was renamed")]


def test_rows_that_were_written_anew_end_shapes_only_with_a_column_that_was_altered_since_the_last_look() -> None:
    def described(file: int, written: int) -> Table:
        return msgspec.structs.replace(TABLE, file=file, columns=(ID, msgspec.structs.replace(V, written=written)))

    whole, part = shape("1-1", table=described(1, 700)), shape("1-2", ("id",), described(1, 700))
    # VACUUM FULL, then SET STATISTICS, with a look between them; then ALTER … USING.
    assert misfits([whole], {7: described(2, 700)}, {}) == []
    assert misfits([whole], {7: described(2, 701)}, {7: described(2, 700)}) == []
    found = misfits([whole, part], {7: described(3, 702)}, {7: described(2, 701)})
    assert found == [(whole, "column 'v' was altered and the table's rows were written anew")]
    # A shape that was made after the ALTER, between two looks; and a first look.
    late = shape("1-3", table=described(3, 702))
    assert misfits([late], {7: described(3, 702)}, {7: described(2, 701)}) == []
    assert misfits([whole], {7: described(3, 702)}, {}) == found


def test_a_gap_ends_shapes_whose_snapshot_is_older_and_no_others() -> None:
    holdings = Holdings()
    old, new, unborn, other = shape("1-1"), shape("1-2", ("id",)), shape("1-3"), shape("1-4")
    for each, position in ((old, 999), (new, 1000), (other, 5)):
        each.snapshot, each.filter_until = Snapshot(1, 1, frozenset()), position
    other.table = msgspec.structs.replace(TABLE, oid=8)
    holdings.gaps[7] = Gap(7, 1000, "so")
    assert [holdings.missed(each) for each in (old, new, unborn, other)] == ["so", None, None, None]


def test_tables_are_needed_as_long_as_a_shape_lives_on_them() -> None:
    holdings = Holdings()
    first, second = shape("1-1"), shape("1-2", ("id",))
    for each in (first, second):
        holdings.add(each)
    assert holdings.of_table(7) == [first, second]
    holdings.remove(first)
    holdings.remove(first)
    assert holdings.needs(7)
    assert holdings.tables() == {7}
    holdings.remove(second)
    assert not holdings.needs(7)
    assert holdings.tables() == set()

"""pgoutput messages, built here by the documented layout (Postgres docs 55.9) and decoded."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common import pgoutput
from common.pgoutput import IncompleteRow, ProtocolError, RelationColumn, Row
from tests.unit import pgoutput_messages as build

TEXTS = st.one_of(
    st.binary(max_size=20),
    # What could be taken for the head of a value, or is longer than one byte can say.
    st.text("tnuN\x01\x0a", max_size=8).map(str.encode),
    st.integers(0, 70_000).map(lambda length: b"t" * length),
    st.sampled_from([116, 255, 256, 29_696, 0x7400, 0x10074]).map(lambda length: b"n" * length),
).map(lambda text: text.replace(b"\0", b"t"))
VALUES = st.none() | TEXTS
ROWS = st.lists(VALUES, max_size=12)


@given(st.integers(0, 2**64 - 1), st.integers(-(2**63), 2**63 - 1), st.integers(0, 2**32 - 1))
def test_begin(lsn: int, committed: int, xid: int) -> None:
    assert pgoutput.parse_begin(build.begin(lsn, xid, committed)) == (lsn, committed, xid)


NAMES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=20)


@given(
    st.integers(0, 2**32 - 1),
    NAMES,
    NAMES,
    st.lists(st.builds(RelationColumn, NAMES, st.integers(0, 2**32 - 1), st.integers(-1, 2**31 - 1), st.booleans())),
)
def test_relation(oid: int, schema: str, name: str, columns: list[RelationColumn]) -> None:
    relation = pgoutput.Relation(oid, schema, name, "f", tuple(columns))
    message = build.relation(relation)
    assert pgoutput.parse_relation(message) == relation
    assert pgoutput.relation_oid(message) == oid


@given(ROWS)
def test_insert_and_delete(row: Row) -> None:
    assert pgoutput.parse_insert(build.insert(5, row)) == row
    assert pgoutput.parse_delete(build.delete(5, row)) == row
    assert pgoutput.relation_oid(build.insert(5, row)) == 5


@given(st.lists(st.tuples(VALUES, VALUES, st.booleans())))
def test_update_takes_unchanged_toast_from_the_old_row(columns: list[tuple[bytes | None, bytes | None, bool]]) -> None:
    old = [before for before, _, _ in columns]
    new = [build.UNCHANGED if unchanged else after for _, after, unchanged in columns]
    expected = [before if unchanged else after for before, after, unchanged in columns]
    assert pgoutput.parse_update(build.update(5, old, new)) == (old, expected)


@pytest.mark.parametrize("count", [1, 110, 116, 117, 255, 256, 1600])
def test_tables_of_any_width(count: int) -> None:
    row: Row = [b"t"] * (count - 1) + [None]
    assert pgoutput.parse_insert(build.insert(0x74000000, row)) == row
    assert pgoutput.parse_update(build.update(0x74000000, row, row[::-1])) == (row, row[::-1])


@given(st.lists(st.integers(0, 2**32 - 1)))
def test_truncate_of_any_number_of_tables(oids: list[int]) -> None:
    assert pgoutput.parse_truncate(build.truncate(oids)) == tuple(oids)


def test_changes_without_their_full_old_row_are_told_apart() -> None:
    row = build.row([b"1"])
    with pytest.raises(IncompleteRow):
        pgoutput.parse_update(b"U" + struct.pack(">I", 5) + b"N" + row)
    with pytest.raises(IncompleteRow):
        pgoutput.parse_update(b"U" + struct.pack(">I", 5) + b"K" + row + b"N" + row)
    with pytest.raises(IncompleteRow):
        pgoutput.parse_delete(b"D" + struct.pack(">I", 5) + b"K" + row)
    with pytest.raises(IncompleteRow):
        pgoutput.parse_insert(build.insert(5, [build.UNCHANGED]))


@pytest.mark.parametrize("parse", [pgoutput.parse_insert, pgoutput.parse_delete])
def test_unknown_kinds_are_refused(parse: object) -> None:
    with pytest.raises(ProtocolError):
        parse(b"I" + struct.pack(">I", 5) + b"?" + build.row([]))  # type: ignore[operator]


@pytest.mark.parametrize(
    "message",
    [
        build.insert(5, [b"1", b"2"])[:-6],
        build.insert(5, [b"1"]) + build.row([b"1"]),
        build.insert(5, [b"1"])[:-6] + b"b" + struct.pack(">I", 1) + b"1",
        build.insert(5, [b"1"])[:6] + build.row([b"1"]) + b"N" + build.row([b"1"]),
    ],
)
def test_messages_of_another_shape_are_refused(message: bytes) -> None:
    with pytest.raises(ProtocolError):
        pgoutput.parse_insert(message)

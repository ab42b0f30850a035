"""Transactions into logs, through every kind of interruption: the joining rule and idempotence.

The model (INV-17, INV-24): a table changes by transactions that commit in one order and become visible in another; a
shape is created somewhere in between; the stream is cut and rewound at any record. Snapshot and log together must give
the table, each transaction once.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common import frames as f
from common.lsn import SNAPSHOT_END, Offset
from common.pgoutput import Relation, RelationColumn
from common.shape import ShapeRequest
from common.shapelog.writer import LogWriter
from common.table import Column, Table
from common.xid import Snapshot
from shapeworker.apply import Applier
from shapeworker.deferred_keys import RETAKEN
from shapeworker.shape import Life, Obstructed, Shape
from tests.unit import pgoutput_messages as build

OID = 5
TABLE = Table(
    OID,
    "public",
    "t",
    "r",
    "p",
    (Column("id", 1, 25, "text", -1, 25, True, 0, "", 0), Column("v", 2, 25, "text", -1, 25, False, None, "", 0)),
)
RELATION = Relation(OID, "public", "t", "f", (RelationColumn("id", 25, -1, True), RelationColumn("v", 25, -1, False)))
CHUNK = 10_000


class Recorder:
    """What applying leads to."""

    def __init__(self) -> None:
        self.ends: list[Offset] = []
        self.transactions = 0
        self.endings: list[str] = []
        self.commits: list[int] = []

    def written(self, shape: Shape, end: Offset, transactions: int) -> None:
        self.ends.append(end)
        self.transactions += transactions

    def ended(self, shape: Shape, reason: str) -> None:
        shape.life = Life.ENDED
        self.endings.append(reason)

    def committed(self, lsn: int) -> None:
        self.commits.append(lsn)


counter = itertools.count()


def make_shape(root: Path, replica: str = "default", table: Table = TABLE) -> Shape:
    request = ShapeRequest(schema="public", table="t", replica=replica)  # type: ignore[arg-type]
    names = tuple(sorted(column.name for column in table.columns))
    handle = f"1-{next(counter)}"
    shape = Shape(handle=handle, request=request, table=table, selected=names, partition=0, storage=root)
    shape.directory.parent.mkdir(parents=True, exist_ok=True)
    shape.log = LogWriter.create(shape.directory, CHUNK)
    return shape


def reopen(shape: Shape) -> None:
    shape.log = LogWriter.open(shape.directory, CHUNK, 0)


EMPTY = Snapshot(1, 1, frozenset())
"""Shows nothing of what the tests do."""


def active(root: Path, snapshot: Snapshot = EMPTY, filter_until: int = 0) -> Shape:
    shape = make_shape(root)
    shape.snapshot_taken(snapshot, filter_until)
    shape.life = Life.ACTIVE
    return shape


def entries(shape: Shape) -> list[dict[str, Any]]:
    path = shape.directory / "log.json"
    data = path.read_bytes() if path.exists() else b""
    return json.loads(b"[" + data.removesuffix(b",\n") + b"]")  # type: ignore[no-any-return]


Change = tuple[str, str, str]  # operation, id, value


def transaction(lsn: int, xid: int, changes: list[bytes]) -> list[tuple[int, int, bytes]]:
    records = [f.begin_record(lsn, xid, 0)]
    records += [f.record(f.CHANGE, index, change) for index, change in enumerate(changes)]
    records.append(f.commit_record(lsn, xid, len(changes)))
    return list(f.records(f.frame_head(0, 0) + b"".join(records)))


def relation(described: Relation = RELATION, ancestors: tuple[int, ...] = ()) -> list[tuple[int, int, bytes]]:
    return list(f.records(f.frame_head(0, 0) + f.relation_record(ancestors, build.relation(described))))


def feed(applier: Applier, *parts: list[tuple[int, int, bytes]]) -> None:
    for part in parts:
        for record in part:
            applier.record(*record)
        applier.deliver()


# --------------------------------------------------------------------------------------------------------------------


class History:
    """Transactions on one table: xid by start, LSN by commit record, and a later moment of becoming visible."""

    def __init__(self, script: list[tuple[int, int, bool]]) -> None:
        """``script``: per transaction, how many places its visibility lags behind its commit record, which row it
        sets, and whether its xid is older than that of the transaction before it."""
        self.transactions: list[tuple[int, int, str, str]] = []  # lsn, xid, id, value
        self.visible_at: list[int] = []
        xids = list(range(100, 100 + len(script)))
        for place, (_, _, swap) in enumerate(script):
            if swap and place:
                xids[place - 1], xids[place] = xids[place], xids[place - 1]
        for place, (lag, row, _) in enumerate(script):
            self.transactions.append((1000 + 10 * place, xids[place], f"r{row}", f"v{place}"))
            self.visible_at.append(place + lag)

    def snapshot(self, moment: int) -> Snapshot:
        """What a snapshot shows once ``moment`` commit records exist."""
        running = frozenset(
            xid for place, (_, xid, _, _) in enumerate(self.transactions) if self.visible_at[place] >= moment
        )
        top = 100 + len(self.transactions)
        return Snapshot(min(running, default=top), top, running)

    def rows(self, snapshot: Snapshot) -> dict[str, str]:
        """The rows that the snapshot shows; each transaction touches rows of its own, so order does not matter."""
        return {f"{row}/{value}": value for _, xid, row, value in self.transactions if snapshot.shows(xid)}

    def frames(self, place: int) -> list[tuple[int, int, bytes]]:
        lsn, xid, row, value = self.transactions[place]
        return transaction(lsn, xid, [build.insert(OID, [f"{row}/{value}".encode(), value.encode()])])


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    script=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2), st.booleans()), min_size=1, max_size=8),
    data=st.data(),
)
def test_snapshot_and_stream_hold_each_transaction_once(
    tmp_path: Path, script: list[tuple[int, int, bool]], data: st.DataObject
) -> None:
    history = History(script)
    count = len(script)
    # The ingester dispatched `subscribed` transactions before it answered; the snapshot shows them all (H-C).
    subscribed = data.draw(st.integers(0, count), label="dispatched before the subscription")
    earliest = max([subscribed, *(history.visible_at[place] + 1 for place in range(subscribed))])
    moment = data.draw(st.integers(earliest, earliest + count), label="moment of the snapshot")
    snapshot = history.snapshot(moment)
    filter_until = 1000 + 10 * min(moment, count)
    # How much of the stream the shape has seen when the snapshot is taken, and where it is cut and rewound.
    seen = data.draw(st.integers(0, min(moment, count)), label="streamed when the snapshot was taken")
    cuts = data.draw(st.lists(st.tuples(st.integers(0, count), st.integers(0, 2), st.booleans()), max_size=3))

    events = Recorder()
    shape = make_shape(tmp_path)
    applier = Applier(events, reopen, {0})
    applier.add(shape)
    taken = False

    def take() -> None:
        nonlocal taken
        if not taken:
            taken = True
            shape.snapshot_taken(snapshot, filter_until)

    at = data.draw(st.integers(0, subscribed), label="the stream when the shape was added")
    applier.restart()
    feed(applier, relation())
    script_of_cuts = [*cuts, (count, 0, False)]
    for upto, into, crash in script_of_cuts:
        for place in range(at, upto):
            if place >= max(seen, 0):
                take()
            feed(applier, history.frames(place))
        if upto < count:
            # Part of the next transaction arrives, then the stream starts again from somewhere at or before here.
            if upto >= seen:
                take()
            feed(applier, history.frames(upto)[:into])
        if crash and taken:
            # The worker dies once the shape is complete: only the files are left.
            if shape.log is not None:
                shape.log.close()
            survivor = Shape(
                handle=shape.handle,
                request=shape.request,
                table=TABLE,
                selected=shape.selected,
                partition=0,
                storage=tmp_path,
            )
            survivor.snapshot, survivor.filter_until = shape.snapshot, shape.filter_until
            survivor.life = Life.ACTIVE
            shape = survivor
            applier = Applier(events, reopen, {0})
            applier.add(shape)
        at = data.draw(st.integers(0, min(upto, subscribed) if not taken else upto), label="rewound to")
        applier.restart()
        feed(applier, relation())
    take()
    for place in range(at, count):
        feed(applier, history.frames(place))

    rows = history.rows(snapshot)
    for entry in entries(shape):
        value = entry["value"]
        assert isinstance(value, dict)
        assert value["id"] not in rows, "a transaction is there twice"
        rows[value["id"]] = value["v"]
    everything = {f"{row}/{value}": value for _, _, row, value in history.transactions}
    assert rows == everything
    assert events.endings == []
    if shape.log is not None:
        shape.log.close()


# --------------------------------------------------------------------------------------------------------------------


def test_offsets_count_all_changes_and_last_marks_the_end(tmp_path: Path) -> None:
    shape = active(tmp_path)
    events = Recorder()
    applier = Applier(events, reopen, {0})
    applier.add(shape)
    changes = [
        build.insert(OID, [b"1", b"a"]),
        build.insert(99, [b"other table"]),
        build.update(OID, [b"1", b"a"], [b"1", b"a"]),
        build.update(OID, [b"1", b"a"], [b"2", b"a"]),
        build.delete(OID, [b"2", b"a"]),
    ]
    feed(applier, relation(), transaction(1000, 7, changes))
    found = [(e["headers"]["operation"], e["headers"]["op_position"], e["headers"].get("last")) for e in entries(shape)]
    assert found == [("insert", 0, None), ("delete", 6, None), ("insert", 7, None), ("delete", 8, True)]
    assert events.ends == [Offset(1000, 8)]
    assert events.commits == [1000]


def test_shapes_of_one_view_get_the_same_bytes_and_others_their_own(tmp_path: Path) -> None:
    first, second = active(tmp_path), active(tmp_path)
    full = make_shape(tmp_path, replica="full")
    full.snapshot_taken(Snapshot(1, 1, frozenset()), 0)
    applier = Applier(Recorder(), reopen, {0})
    for shape in (first, second, full):
        applier.add(shape)
    feed(applier, relation(), transaction(1000, 7, [build.update(OID, [b"1", b"a"], [b"1", b"b"])]))
    assert (first.directory / "log.json").read_bytes() == (second.directory / "log.json").read_bytes()
    assert "old_value" not in entries(first)[0]
    assert entries(full)[0]["old_value"] == {"v": "a"}


INSERT_1, INSERT_2 = (build.insert(OID, [key, b"new"]) for key in (b"1", b"2"))
DELETE_1 = build.delete(OID, [b"1", b"old"])
MOVE = build.update(OID, [b"1", b"a"], [b"2", b"a"])
MOVE_ON = build.update(OID, [b"2", b"b"], [b"3", b"b"])


@pytest.mark.parametrize(
    ("changes", "ends"),
    [
        ([MOVE, MOVE_ON], True),
        ([MOVE, build.delete(OID, [b"2", b"b"])], True),
        ([INSERT_2, MOVE_ON], True),
        ([MOVE_ON, MOVE], False),
        ([DELETE_1, INSERT_1], False),
        ([build.update(OID, [b"1", b"b"], [b"1", b"a"]), DELETE_1], False),
        ([INSERT_1, INSERT_2], False),
    ],
)
def test_two_rows_under_one_deferrable_key_end_the_shape(tmp_path: Path, changes: list[bytes], ends: bool) -> None:
    """A client that applied the changes one by one would delete the row that has just come."""
    table = msgspec.structs.replace(TABLE, deferrable=True)
    for deferrable in (True, False):
        shape = make_shape(tmp_path, table=table if deferrable else TABLE)
        shape.snapshot_taken(EMPTY, 0)
        shape.life = Life.ACTIVE
        events = Recorder()
        applier = Applier(events, reopen, {0})
        applier.add(shape)
        feed(applier, relation(), transaction(1000, 7, changes))
        assert events.endings == [RETAKEN] * (ends and deferrable)
        if not events.endings:
            # What one transaction has taken is the next one's to give up.
            feed(applier, transaction(2000, 8, [build.delete(OID, [b"2", b"x"]), DELETE_1]))
            assert events.endings == []


def test_a_transaction_with_too_many_deferrable_keys_may_only_insert(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shapeworker.deferred_keys.KEPT", 3)
    shape = make_shape(tmp_path, table=msgspec.structs.replace(TABLE, deferrable=True))
    shape.snapshot_taken(EMPTY, 0)
    shape.life = Life.ACTIVE
    events = Recorder()
    applier = Applier(events, reopen, {0})
    applier.add(shape)
    many = [build.insert(OID, [b"%d" % number, b""]) for number in range(10)]
    feed(applier, relation(), transaction(1000, 7, many))
    assert events.endings == []
    feed(applier, transaction(2000, 8, [*many, build.delete(OID, [b"100", b""])]))
    assert events.endings == [RETAKEN]


def test_truncate_ends_the_shapes_of_the_table_unless_the_snapshot_shows_it(tmp_path: Path) -> None:
    old, new = active(tmp_path), active(tmp_path, Snapshot(50, 50, frozenset()), 5000)
    events = Recorder()
    applier = Applier(events, reopen, {0})
    applier.add(old)
    applier.add(new)
    truncation = f.begin_record(1000, 7, 0) + f.record(f.TRUNCATE, 0, build.truncate([OID]))
    feed(applier, relation(), list(f.records(f.frame_head(0, 0) + truncation + f.commit_record(1000, 7, 1))))
    assert events.endings == ["its table was truncated"]
    feed(applier, transaction(6000, 60, [build.insert(OID, [b"1", b"a"])]))
    assert [len(entries(shape)) for shape in (old, new)] == [0, 1]


WIDER = RELATION._replace(columns=(*RELATION.columns, RelationColumn("new", 25, -1, False)))


@pytest.mark.parametrize("shown", [True, False])
@pytest.mark.parametrize("passing", [True, False])
@pytest.mark.parametrize("what", ["truncate", "schema", "identity"])
def test_what_a_new_shape_cannot_follow_ends_it_only_if_its_snapshot_does_not_show_it(
    tmp_path: Path, shown: bool, passing: bool, what: str
) -> None:
    shape = make_shape(tmp_path)
    events = Recorder()
    applier = Applier(events, reopen, {0})
    applier.add(shape)
    change = {
        "truncate": f.record(f.TRUNCATE, 0, build.truncate([OID])),
        "schema": f.record(f.CHANGE, 0, build.insert(OID, [b"1", b"a", b"n"])),
        "identity": f.record(f.CHANGE, 0, b"U" + OID.to_bytes(4, "big") + b"N" + build.row([b"1", b"a"])),
    }[what]
    parts = [f.begin_record(1000, 7, 0), change, f.commit_record(1000, 7, 1)]
    feed(applier, relation(WIDER if what == "schema" else RELATION))
    feed(applier, list(f.records(f.frame_head(0, 0) + b"".join(parts[: 2 if passing else 3]))))
    snapshot = Snapshot(8, 8, frozenset()) if shown else Snapshot(7, 8, frozenset((7,)))
    if not shown:
        with pytest.raises(Obstructed):
            shape.snapshot_taken(snapshot, 1001)
        return
    assert shape.snapshot_taken(snapshot, 1001) is None
    if passing:
        feed(applier, list(f.records(f.frame_head(0, 0) + parts[2])))
    shape.life = Life.ACTIVE
    feed(applier, relation(), transaction(2000, 9, [build.insert(OID, [b"1", b"a"])]))
    assert events.endings == []
    assert len(entries(shape)) == 1


def test_a_changed_table_ends_its_shapes_at_the_next_change_only(tmp_path: Path) -> None:
    shape = active(tmp_path)
    events = Recorder()
    applier = Applier(events, reopen, {0})
    applier.add(shape)
    feed(applier, relation(WIDER))
    assert events.endings == []
    feed(applier, transaction(1000, 7, [build.insert(OID, [b"1", b"a", b"n"])]))
    assert events.endings == ["a column was added, dropped or renamed"]
    assert shape.last == SNAPSHOT_END


def test_a_change_without_its_old_row_ends_only_the_shapes_that_see_it(tmp_path: Path) -> None:
    shape = active(tmp_path)
    events = Recorder()
    applier = Applier(events, reopen, {0})
    applier.add(shape)
    bare = b"U" + OID.to_bytes(4, "big") + b"N" + build.row([b"1", b"a"])
    feed(applier, relation(), transaction(1000, 7, [bare]))
    assert len(events.endings) == 1
    assert "REPLICA IDENTITY" in events.endings[0]
    assert events.commits == [1000], "the stream goes on"


def test_changes_of_a_partition_reach_the_shape_of_the_root_under_the_roots_name(tmp_path: Path) -> None:
    root = Table(1, "public", "root", "p", "p", TABLE.columns)
    shape = make_shape(tmp_path, table=root)
    shape.snapshot_taken(Snapshot(1, 1, frozenset()), 0)
    applier = Applier(Recorder(), reopen, {0})
    applier.add(shape)
    feed(applier, relation(ancestors=(1,)), transaction(1000, 7, [build.insert(OID, [b"1", b"a"])]))
    (entry,) = entries(shape)
    assert entry["key"] == '"public"."root"/"1"'


@pytest.mark.parametrize("size", [10, 5000])
def test_an_aborted_transaction_comes_again_with_the_same_bytes(tmp_path: Path, size: int) -> None:
    changes = [build.insert(OID, [str(number).encode(), b"x" * 200]) for number in range(size)]
    straight, cut = active(tmp_path), active(tmp_path)
    for shape, upto in ((straight, None), (cut, size // 2)):
        applier = Applier(Recorder(), reopen, {0})
        applier.add(shape)
        records = transaction(1000, 7, changes)
        if upto is not None:
            feed(applier, relation(), records[:upto])
            assert shape.last == SNAPSHOT_END
            applier.restart()
        feed(applier, relation(), records)
    for name in ("log.json", "log.index"):
        assert (straight.directory / name).read_bytes() == (cut.directory / name).read_bytes()


def test_what_a_new_shape_holds_back_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shapeworker.apply.HELD_BYTES", 10_000)
    monkeypatch.setattr("shapeworker.apply.SPILL_BYTES", 1_000)
    change = build.insert(OID, [b"1", b"x" * 900])
    for transactions in ([[change] * 40], [[change]] * 40):
        events = Recorder()
        applier = Applier(events, reopen, {0})
        shape = make_shape(tmp_path)
        applier.add(shape)
        feed(applier, relation())
        for number, changes in enumerate(transactions):
            feed(applier, transaction(1000 + number, 7 + number, changes))
        assert events.endings == ["too many changes came while it waited for its snapshot"]
        assert len(events.commits) == len(transactions), "the stream goes on"


def test_all_new_shapes_together_are_bounded_and_the_greediest_gives_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shapeworker.apply.HELD_BYTES", 10_000)
    events = Recorder()
    applier = Applier(events, reopen, {0})
    first, second = make_shape(tmp_path), make_shape(tmp_path)
    applier.add(first)
    feed(applier, relation(), transaction(1000, 7, [build.insert(OID, [b"1", b"x" * 5000])]))
    applier.add(second)
    feed(applier, transaction(1001, 8, [build.insert(OID, [b"1", b"x" * 3000])]))
    assert events.endings == ["too many changes came while it waited for its snapshot"]
    assert second.held_bytes > 3000
    feed(applier, transaction(1002, 9, [build.insert(OID, [b"1", b"x" * 3000])]))
    assert len(events.endings) == 1, "what the first held counts no more"


def test_a_new_shape_whose_table_is_not_entered_yet_holds_back_nothing(tmp_path: Path) -> None:
    applier = Applier(Recorder(), reopen, {0})
    shape = make_shape(tmp_path)
    shape.holds_back = False
    applier.add(shape)
    feed(applier, relation(), transaction(1000, 7, [build.insert(OID, [b"1", b"x" * 5000])]))
    assert shape.held_bytes == 0
    shape.holds_back = True
    feed(applier, transaction(1001, 8, [build.insert(OID, [b"2", b"x"])]))
    assert shape.snapshot_taken(Snapshot(1, 1, frozenset()), 1000) == Offset(1001, 0)


def test_a_transaction_that_touches_many_shapes_keeps_little_of_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shapeworker.apply.SPILL_TOTAL_BYTES", 40_000)
    monkeypatch.setattr("shapeworker.apply.SPILL_LEAST_BYTES", 1_000)
    applier = Applier(Recorder(), reopen, {0})
    shapes = [active(tmp_path) for _ in range(20)]
    for shape in shapes:
        applier.add(shape)
    records = transaction(1000, 7, [build.insert(OID, [str(number).encode(), b"x" * 900]) for number in range(50)])
    feed(applier, relation(), records[:-1])
    for shape in shapes:
        assert (shape.directory / "log.json").stat().st_size > 40 * 900, "it is in the file"
        assert shape.last == SNAPSHOT_END, "but nobody sees it"
    feed(applier, records[-1:])
    assert {shape.last for shape in shapes} == {Offset(1000, 98)}

"""Transactions into shapes with filters: rows that come and go, errors, and what a change of the table does to them."""

from __future__ import annotations

import errno
import itertools
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest

from common import frames as f
from common.pgoutput import Relation, RelationColumn
from common.shape import ShapeRequest
from common.shapelog.writer import LogWriter
from common.table import Column, Table, TypeFacts
from common.xid import Snapshot
from shapeworker.apply import Applier, StorageFull
from shapeworker.filters import make_filter
from shapeworker.shape import Life, Obstructed, Shape
from tests.unit import pgoutput_messages as build
from tests.unit.shapeworker.test_apply import EMPTY, Recorder, entries, feed, relation, reopen, transaction

OID = 5
TYPES = {"id": ("int4", 23), "n": ("int4", 23), "v": ("text", 25), "w": ("text", 25)}


def column(name: str, number: int) -> Column:
    type_name, oid = TYPES[name]
    key = 0 if name == "id" else None
    types = (TypeFacts("pg_catalog", type_name, "b"),)
    return Column(name, number, oid, type_name, -1, oid, name == "id", key, "", 0, types)


TABLE = Table(OID, "public", "t", "r", "p", tuple(column(name, number) for number, name in enumerate(TYPES, 1)))
RELATION = Relation(
    OID, "public", "t", "f", tuple(RelationColumn(n, oid, -1, n == "id") for n, (_, oid) in TYPES.items())
)
counter = itertools.count()


class World:
    """An applier with shapes that have filters; rows are ``(id, n, v, w)``."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.events = Recorder()
        self.applier = Applier(self.events, reopen, {0})
        self.lsn = 1000

    def shape(
        self, where: str | None, *params: str, columns: tuple[str, ...] | None = None, table: Table = TABLE, **rest: Any
    ) -> Shape:
        """A shape whose snapshot is not known yet."""
        request = ShapeRequest(schema="public", table="t", where=where, params=params, columns=columns, **rest)
        shape = Shape(
            handle=f"1-{next(counter)}",
            request=request,
            table=table,
            selected=columns or tuple(sorted(TYPES)),
            partition=0,
            storage=self.root,
            filter_=make_filter(request, table),
        )
        shape.directory.parent.mkdir(parents=True, exist_ok=True)
        shape.log = LogWriter.create(shape.directory, 10_000)
        self.applier.add(shape)
        return shape

    def active(self, where: str | None, *params: str, **rest: Any) -> Shape:
        """A shape that lives since before the first change."""
        shape = self.shape(where, *params, **rest)
        shape.snapshot_taken(EMPTY, 0)
        shape.life = Life.ACTIVE
        return shape

    def apply(self, *changes: bytes, described: Relation = RELATION, **rest: Any) -> None:
        """A transaction of its own."""
        self.lsn += 10
        feed(self.applier, relation(described, **rest), transaction(self.lsn, 7, list(changes)))


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def row(*values: object) -> list[bytes | None]:
    return [None if value is None else str(value).encode() for value in values]


def shown(shape: Shape) -> list[tuple[str, int, Any]]:
    return [(e["headers"]["operation"], e["headers"]["op_position"], e["value"]) for e in entries(shape)]


def test_an_update_moves_a_row_in_and_out(world: World) -> None:
    """The filter's column is not among those that are shown (http-api.md 14.7)."""
    shape = world.active("n > $1", "10", columns=("id", "v"))
    world.apply(
        build.update(OID, row(1, 5, "a", "x"), row(1, 6, "b", "x")),  # out, out
        build.update(OID, row(1, 6, "b", "x"), row(1, 11, "b", "x")),  # comes in, whole
        build.update(OID, row(1, 11, "b", "x"), row(1, 12, "b", "x")),  # in, in, but nothing that is shown
        build.update(OID, row(1, 12, "b", "x"), row(1, 12, "c", "x")),
        build.update(OID, row(1, 12, "c", "x"), row(1, None, "d", "x")),  # NULL is out
        build.insert(OID, row(2, 10, "e", "x")),
        build.insert(OID, row(3, 11, None, "x")),
        build.delete(OID, row(2, 10, "e", "x")),
        build.delete(OID, row(3, 11, None, "x")),
    )
    assert shown(shape) == [
        ("insert", 2, {"id": "1", "v": "b"}),
        ("update", 6, {"id": "1", "v": "c"}),
        ("delete", 8, {"id": "1"}),
        ("insert", 12, {"id": "3", "v": None}),
        ("delete", 16, {"id": "3"}),
    ]
    assert entries(shape)[-1]["headers"]["last"] is True


def test_a_key_that_changes_while_its_row_moves(world: World) -> None:
    shape = world.active("n = 1")
    world.apply(
        build.update(OID, row(1, 1, "a", "x"), row(2, 1, "a", "x")),
        build.update(OID, row(2, 1, "a", "x"), row(3, 2, "a", "x")),
        build.update(OID, row(3, 2, "a", "x"), row(4, 1, "a", "x")),
    )
    found = [
        (e["headers"]["operation"], e["headers"]["op_position"], e["value"]["id"], "key_change_to" in e["headers"])
        for e in entries(shape)
    ]
    assert found == [
        ("delete", 0, "1", True),
        ("insert", 1, "2", False),
        ("delete", 2, "2", False),
        ("insert", 4, "4", False),
    ]
    assert "key_change_from" not in entries(shape)[3]["headers"]


def test_values_that_were_not_sent_are_those_of_the_old_row(world: World) -> None:
    shape = world.active("v LIKE 'a%'", columns=("id", "n", "w"))
    world.apply(
        build.update(OID, row(1, 1, "abc", "x"), [b"1", b"2", build.UNCHANGED, b"x"]),
        build.update(OID, row(2, 1, "b", "long"), [b"2", b"1", b"a", build.UNCHANGED]),
    )
    assert shown(shape) == [
        ("update", 0, {"id": "1", "n": "2"}),
        ("insert", 2, {"id": "2", "n": "1", "w": "long"}),
    ]


def test_shapes_that_a_change_does_not_concern_are_not_touched(world: World) -> None:
    shapes = [world.active("n = $1", str(number)) for number in range(100)]
    whole = world.active(None)
    world.apply(build.insert(OID, row(1, 42, "a", "x")))
    assert [number for number, shape in enumerate(shapes) if shape.serial] == [42]
    assert (shapes[42].directory / "log.json").read_bytes() == (whole.directory / "log.json").read_bytes()


CLAUSES = (
    "n = 1",
    "n IN (1, 3)",
    "n > 2",
    "n BETWEEN 1 AND 2",
    "v LIKE 'a%'",
    "v ILIKE '%B%'",
    "n IS NULL",
    "n % 2 = 1",
    "n = 1 OR v = 'ab'",
    "n = 1 AND v = 'ab'",
    "NOT (n < 3)",
    "true",
    "v > 'a' AND n <> 2",
    "w IS NOT NULL",
)


@pytest.mark.parametrize("seed", range(5))
def test_a_shape_is_at_each_end_of_a_transaction_what_its_clause_says(world: World, seed: int) -> None:
    """Against evaluating each clause for each row; shapes come and go, leaves have columns in another order."""
    random = Random(seed)
    root = msgspec.structs.replace(TABLE, kind="p", oid=1)
    leaf = RELATION._replace(name="leaf", columns=RELATION.columns[::-1])
    table: dict[int, list[bytes | None]] = {}
    living: list[tuple[Shape, dict[int, list[bytes | None]]]] = []

    def members(shape: Shape) -> dict[int, list[bytes | None]]:
        if shape.filter is None:
            return dict(table)
        return {key: values for key, values in table.items() if shape.filter.predicate(values)}

    for _ in range(60):
        if random.random() < 0.4:
            shape = world.active(
                random.choice(CLAUSES),
                columns=random.choice([None, ("id", "v"), ("id",)]),
                replica=random.choice(["default", "full"]),
                table=root,
            )
            living.append((shape, members(shape)))
        if living and random.random() < 0.2:
            world.applier.remove(living.pop(random.randrange(len(living)))[0])
        changes = []
        for _ in range(random.randrange(1, 5)):
            key = random.randrange(8)
            values = row(
                key if random.random() < 0.8 else random.randrange(8, 16),
                random.choice([None, 0, 1, 2, 3, 4]),
                random.choice([None, "a", "ab", "B", "xby"]),
                random.choice([None, "w"]),
            )
            old = table.pop(key, None)
            if old is None:
                if int(values[0] or 0) not in table:
                    changes.append(build.insert(OID, values[::-1]))
                    table[int(values[0] or 0)] = values
            elif random.random() < 0.2 or int(values[0] or 0) in table:
                changes.append(build.delete(OID, old[::-1]))
            else:
                changes.append(build.update(OID, old[::-1], values[::-1]))
                table[int(values[0] or 0)] = values
        world.apply(*changes, described=leaf, ancestors=(1,))
        for shape, start in living:
            assert replayed(shape, start) == {
                str(key): only(shape.selected, values) for key, values in members(shape).items()
            }
    assert world.events.endings == []
    assert sum(len(entries(shape)) for shape, _ in living) > 100


def only(selected: tuple[str, ...], values: list[bytes | None]) -> dict[str, str | None]:
    named = dict(zip(TYPES, values, strict=True))
    return {name: None if (value := named[name]) is None else value.decode() for name in selected}


def replayed(shape: Shape, start: dict[int, list[bytes | None]]) -> dict[str, dict[str, Any]]:
    """What a strict client holds that began with these rows."""
    rows: dict[str, dict[str, Any]] = {str(key): only(shape.selected, values) for key, values in start.items()}
    for entry in entries(shape):
        key, operation = entry["key"].split('"')[-2], entry["headers"]["operation"]
        if operation == "insert":
            assert key not in rows
            assert set(entry["value"]) == set(shape.selected)
            rows[key] = entry["value"]
        elif operation == "update":
            rows[key].update(entry["value"])
        else:
            del rows[key]
    return rows


def test_a_filter_that_fails_ends_its_shape_only(world: World) -> None:
    failing, fine, whole = world.active("1 / n = 1"), world.active("n = 0"), world.active(None)
    world.apply(build.insert(OID, row(1, 0, "a", "x")))
    assert world.events.endings == ["its where clause fails: division by zero"]
    assert failing.life is Life.ENDED
    assert [len(entries(shape)) for shape in (failing, fine, whole)] == [0, 1, 1]


def test_a_row_that_the_snapshot_shows_cannot_end_a_shape(world: World) -> None:
    settled = world.shape("1 / n = 1")
    settled.snapshot_taken(Snapshot(50, 50, frozenset()), 5000)
    creating, doomed = world.shape("1 / n = 1"), world.shape("1 / n = 1", replica="full")
    world.apply(build.insert(OID, row(1, 0, "a", "x")))
    assert world.events.endings == []
    assert creating.snapshot_taken(Snapshot(8, 8, frozenset()), 2000) is None
    with pytest.raises(Obstructed, match="division by zero"):
        doomed.snapshot_taken(Snapshot(7, 8, frozenset((7,))), 2000)


def without(name: str) -> Relation:
    return RELATION._replace(columns=tuple(column for column in RELATION.columns if column.name != name))


def test_a_column_that_only_the_filter_reads_counts_as_if_it_were_shown(world: World) -> None:
    reading = world.active("n = 1", columns=("id", "v"))
    other, plain = world.active("v = 'a'", columns=("id", "v")), world.active(None, columns=("id", "v"))
    world.apply(build.insert(OID, row(1, "a", "x")), described=without("n"))
    assert world.events.endings == ["column 'n' is gone"]
    assert [len(entries(shape)) for shape in (reading, other, plain)] == [0, 1, 1]
    retyped = RELATION._replace(columns=(RELATION.columns[0], *(c._replace(type_oid=20) for c in RELATION.columns[1:])))
    world.apply(build.insert(OID, row(2, 1, "a", "x")), described=retyped)
    assert len(world.events.endings) == 3


def test_a_new_shape_that_cannot_read_the_rows_any_more_hurts_nobody(world: World) -> None:
    """It stays until its snapshot shows whether it has to end; its filter is given texts that are no numbers."""
    creating = world.shape("n > 1", columns=("id", "v"))
    other = world.active("v = 'a'", columns=("id", "v"))
    columns = tuple(c._replace(type_oid=25) if c.name == "n" else c for c in RELATION.columns)
    world.apply(build.insert(OID, row(1, "zz", "a", "x")), described=RELATION._replace(columns=columns))
    assert world.events.endings == []
    assert len(entries(other)) == 1
    with pytest.raises(Obstructed, match="another type"):
        creating.snapshot_taken(EMPTY, 0)


def test_a_change_without_its_old_row_may_concern_every_filter(world: World) -> None:
    world.active("n = 1")
    world.active("n = 2")
    world.apply(b"U" + OID.to_bytes(4, "big") + b"N" + build.row(row(1, 1, "a", "x")))
    assert len(world.events.endings) == 2
    assert all("REPLICA IDENTITY" in reason for reason in world.events.endings)


def test_truncate_ends_shapes_whatever_their_filters(world: World) -> None:
    world.active("n = 1")
    truncation = f.begin_record(1000, 7, 0) + f.record(f.TRUNCATE, 0, build.truncate([OID]))
    feed(world.applier, relation(RELATION), list(f.records(f.frame_head(0, 0) + truncation)))
    assert world.events.endings == ["its table was truncated"]


def test_a_shape_that_comes_between_two_changes_is_found(world: World) -> None:
    world.active("n = 1", columns=("id", "v"))
    world.apply(build.insert(OID, row(1, 1, "a", "x")))
    late = world.active("w = 'x'", replica="full")
    world.lsn += 10
    feed(world.applier, transaction(world.lsn, 7, [build.insert(OID, row(2, 2, "a", "x"))]))
    assert [operation for operation, _, _ in shown(late)] == ["insert"]


def test_a_transaction_that_is_spilled_is_the_same_as_one_that_is_not(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = [build.insert(OID, row(number, number % 3, "v" * 50, "x")) for number in range(500)]
    monkeypatch.setattr("shapeworker.apply.SPILL_BYTES", 1000)
    shape = world.active("n = 1")
    world.apply(*changes)
    assert [value["id"] for _, _, value in shown(shape)] == [str(number) for number in range(1, 500, 3)]
    assert sum("last" in entry["headers"] for entry in entries(shape)) == 1


@pytest.mark.parametrize("spill", [150, 1000, 1 << 20])
def test_each_shape_has_its_changes_in_order_however_they_overlap(
    world: World, monkeypatch: pytest.MonkeyPatch, spill: int
) -> None:
    """Changes are gathered by the shapes that they concern together: those of one shape are in many such bundles."""
    monkeypatch.setattr("shapeworker.apply.SPILL_BYTES", spill)
    random = Random(spill)
    shapes = {least: world.active(f"n >= {least}") for least in range(6)}
    shapes |= {6 + least: world.active(f"n >= {least}", columns=("id", "v")) for least in range(6)}
    values = [random.randrange(6) for _ in range(80)]
    world.apply(*(build.insert(OID, row(number, n, "a", "x")) for number, n in enumerate(values)))
    for least, shape in shapes.items():
        expected = [2 * number for number, n in enumerate(values) if n >= least % 6]
        assert [position for _, position, _ in shown(shape)] == expected
        assert [number for number, entry in enumerate(entries(shape)) if "last" in entry["headers"]] == [
            len(expected) - 1
        ]


def test_a_shape_that_ends_gets_nothing_of_what_was_gathered_for_it(world: World) -> None:
    """Its partition may have been given away by the time that the changes of a frame are handed out."""
    failing, fine = world.active("10 / n = 1"), world.active("n IS NOT NULL")
    world.apply(*(build.insert(OID, row(number, n, "a", "x")) for number, n in enumerate((10, 0, 10))))
    assert len(world.events.endings) == 1
    assert (entries(failing), len(entries(fine))) == ([], 3)
    assert failing.log is not None
    assert failing.log.idle


@pytest.mark.parametrize(("spill", "unwritten"), [(150, 50_000), (1 << 20, 50_000), (1 << 20, 7)])
def test_transactions_that_come_together_leave_what_single_ones_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spill: int, unwritten: int
) -> None:
    monkeypatch.setattr("shapeworker.apply.SPILL_BYTES", spill)
    monkeypatch.setattr("shapeworker.apply.UNWRITTEN", unwritten)
    random = Random(spill + unwritten)
    single, together = World(tmp_path / "single"), World(tmp_path / "together")
    pairs = [(single.active(where), together.active(where)) for where in ("n >= 0", "n >= 2", "n = 1", "v = 'a'")]
    for applier in (single.applier, together.applier):
        feed(applier, relation(RELATION))
    for number in range(60):
        values = [random.randrange(4) for _ in range(random.choice((0, 1, 1, 3, 12)))]
        changes = [build.insert(OID, row(100 * number + at, n, "a", "x")) for at, n in enumerate(values)]
        records = transaction(1000 + number, 7, changes)
        feed(single.applier, records)
        for record in records:
            together.applier.record(*record)
            if random.random() < 0.02:
                together.applier.deliver()
    together.applier.deliver()
    assert together.events.commits == single.events.commits
    assert together.events.transactions == single.events.transactions == len(single.events.ends)
    assert spill < 1000 or unwritten < 50 or len(together.events.ends) < len(single.events.ends) / 2
    for one, other in pairs:
        assert one.last == other.last
        for name in ("log.json", "log.index"):
            assert (one.directory / name).read_bytes() == (other.directory / name).read_bytes()


def test_what_could_not_be_written_together_comes_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = [world.active("n >= 0", columns=columns) for columns in (None, ("id", "v"), ("id", "n"))]
    written: list[Shape] = []
    write = Shape.write

    def failing(self: Shape) -> Any:
        if written:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(self)
        return write(self)

    frames = [transaction(1000 + number, 7, [build.insert(OID, row(number, 1, "a", "x"))]) for number in range(3)]
    feed(world.applier, relation(RELATION))
    monkeypatch.setattr(Shape, "write", failing)
    with pytest.raises(StorageFull):
        feed(world.applier, [record for frame in frames for record in frame])
    assert world.events.commits == []
    monkeypatch.setattr(Shape, "write", write)
    world.applier.deliver()
    assert [len(entries(shape)) for shape in shapes] == [3 * (shape in written) for shape in shapes]
    world.applier.restart()
    feed(world.applier, relation(RELATION), *frames)
    assert world.events.commits == [1000, 1001, 1002]
    assert [len(entries(shape)) for shape in shapes] == [3, 3, 3]

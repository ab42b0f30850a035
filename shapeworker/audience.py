"""Who is concerned by a change of a table: all shapes without a filter, and those whose filter its rows match.

An :class:`Audience` knows the shapes, whatever relation their rows come from; a :class:`Reading` knows how they read
the rows of one relation, which is their table or a leaf of it. Neither costs anything for a shape that a change does
not concern.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from typing import NamedTuple

import structlog

from common.pgoutput import Relation, Row
from common.shape import Replica
from common.table import Table
from shapeworker.deferred_keys import places_of_key
from shapeworker.projection import Projection, SchemaChanged, check_columns
from shapeworker.routing.router import Router
from shapeworker.shape import Shape
from shapeworker.where import EvaluationError

log = structlog.get_logger()


class Output(NamedTuple):
    """What decides how a row is shown."""

    selected: tuple[str, ...]
    explicit: bool
    replica: Replica


class View:
    """Shapes of an audience that show rows in the same way, and whose filters, if they have any, read these columns."""

    __slots__ = ("filtered", "output", "required", "shapes")

    def __init__(self, output: Output, required: frozenset[str], filtered: bool) -> None:
        self.output = output
        self.required = required
        self.filtered = filtered
        self.shapes: dict[Shape, None] = {}


class Audience:
    """The shapes that were made for one description of a table."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self.router: Router[Shape] = Router()
        self.views: dict[tuple[Output, frozenset[str], bool], View] = {}
        self.changes = 0
        """Counts the views that came or went."""
        self._view: dict[Shape, View] = {}

    def __len__(self) -> int:
        return len(self._view)

    def __contains__(self, shape: Shape) -> bool:
        return shape in self._view

    def __iter__(self) -> Iterator[Shape]:
        return iter(list(self._view))

    def add(self, shape: Shape) -> None:
        """A shape for this table that is not here yet."""
        output = Output(shape.selected, shape.request.columns is not None, shape.request.replica)
        key = output, shape.required, shape.filter is not None
        view = self.views.get(key)
        if view is None:
            view = self.views[key] = View(*key)
            self.changes += 1
        if shape.filter is not None:
            self.router.add(shape, shape.filter)
        view.shapes[shape] = None
        self._view[shape] = view

    def remove(self, shape: Shape) -> None:
        """A shape that is here leaves."""
        view = self._view.pop(shape)
        if shape.filter is not None:
            self.router.remove(shape)
        del view.shapes[shape]
        if not view.shapes:
            del self.views[view.output, view.required, view.filtered]
            self.changes += 1

    def view(self, shape: Shape) -> View:
        """How a shape that is here shows rows."""
        return self._view[shape]

    def matching(self, row: Row, failed: dict[Shape, EvaluationError]) -> list[Shape]:
        """The shapes with a filter that a row belongs to. Those whose filter fails for it go to ``failed``."""
        try:
            return self.router.route(row, failed)
        except Exception:  # noqa: BLE001 - each filter that has one raises it again below
            # A value that is not of its column's type, because the table has changed: then some filters cannot read
            # it, and those of shapes that still wait for their snapshot may stay. Each has to answer for itself.
            return [shape for shape in self if shape.filter is not None and _matches(shape, row, failed)]


class Moves(NamedTuple):
    """The shapes that a change concerns by their filters."""

    inserted: list[Shape]
    updated: list[Shape]
    deleted: list[Shape]
    failed: dict[Shape, EvaluationError]


class Reading:
    """How an audience reads the rows of one relation."""

    def __init__(self, relation: Relation, audience: Audience) -> None:
        self.audience = audience
        self.whole: list[tuple[View, Projection]] = []
        """Views without a filter."""
        self.changed: list[tuple[View, str]] = []
        """Views that the relation does not fit any more, and why."""
        self.deferred_key = places_of_key(relation, audience.table)
        self._relation = relation
        self._projections: dict[Output, Projection | SchemaChanged] = {}
        self._shown: dict[View, Projection] = {}
        # The projection of all shapes with a filter, if there is one that all of them have.
        self._common: Projection | None = None
        self._changes = -1
        self._filter_places: tuple[int, ...] = ()
        places = {column.name: place for place, column in enumerate(relation.columns)}
        # Where the table's columns are in the relation's rows; one that is missing is the NULL behind their end.
        found = [places.get(column.name, len(relation.columns)) for column in audience.table.columns]
        self._places = None if found == list(range(len(found))) and len(found) <= len(places) else found

    def renew(self) -> None:
        """Take notice of views that have come or gone."""
        audience = self.audience
        if self._changes == audience.changes:
            return
        self._changes = audience.changes
        self.whole, self.changed, self._shown = [], [], {}
        for view in audience.views.values():
            try:
                projection = self._project(view.output)
                check_columns(self._relation, audience.table, view.required)
            except SchemaChanged as changed:
                self.changed.append((view, str(changed)))
                continue
            self._shown[view] = projection
            if not view.filtered:
                self.whole.append((view, projection))
        filtered = {self._shown.get(view) for view in audience.views.values() if view.filtered}
        self._common = filtered.pop() if len(filtered) == 1 else None
        required = frozenset[str]().union(*(view.required for view in audience.views.values()))
        names = [column.name for column in self._relation.columns]
        self._filter_places = tuple(place for place, name in enumerate(names) if name in required)

    def by_projection(self, shapes: list[Shape]) -> list[tuple[Projection, tuple[Shape, ...]]]:
        """How rows become lines of shapes with a filter, without those that the relation does not fit any more."""
        if self._common is not None:
            return [(self._common, tuple(shapes))]
        found: dict[Projection, list[Shape]] = {}
        for shape in shapes:
            projection = self._shown.get(self.audience.view(shape))
            if projection is not None:
                found.setdefault(projection, []).append(shape)
        return [(projection, tuple(those)) for projection, those in found.items()]

    def moves(self, old: Row | None, new: Row | None) -> Moves:
        """Whom a change of a row concerns: ``old`` is ``None`` for an insert, ``new`` for a delete."""
        failed: dict[Shape, EvaluationError] = {}
        matching = self.audience.matching
        if old is None or new is None:
            (row,) = [row for row in (old, new) if row is not None]
            found = matching(self._in_order(row), failed)
            return Moves(found, [], [], failed) if old is None else Moves([], [], found, failed)
        # Which rows a shape holds can only change with what its filter reads.
        if all(old[place] == new[place] for place in self._filter_places):
            return Moves([], matching(self._in_order(new), failed), [], failed)
        before = dict.fromkeys(matching(self._in_order(old), failed))
        after = dict.fromkeys(matching(self._in_order(new), failed))
        return Moves(
            [shape for shape in after if shape not in before and shape not in failed],
            [shape for shape in after if shape in before and shape not in failed],
            [shape for shape in before if shape not in after and shape not in failed],
            failed,
        )

    def _project(self, output: Output) -> Projection:
        known = self._projections.get(output)
        if known is None:
            try:
                known = Projection(
                    self._relation,
                    self.audience.table,
                    output.selected,
                    explicit=output.explicit,
                    replica=output.replica,
                )
            except SchemaChanged as changed:
                known = changed
            self._projections[output] = known
        if isinstance(known, SchemaChanged):
            raise known
        return known

    def _in_order(self, row: Row) -> Row:
        if self._places is None:
            return row
        padded = [*row, None]
        return [padded[place] for place in self._places]


def _matches(shape: Shape, row: Row, failed: dict[Shape, EvaluationError]) -> bool:
    assert shape.filter is not None
    try:
        return bool(shape.filter.predicate(row))
    except EvaluationError as error:
        failed[shape] = error
    except Exception as error:  # noqa: BLE001 - it ends this shape, and no other
        # Not its message, which may quote the row.
        kind, place = type(error).__name__, traceback.extract_tb(error.__traceback__)[-1]
        where = f"{place.filename}:{place.lineno}"
        log.error("a filter cannot read a row", handle=shape.handle, table=shape.table.name, error=kind, at=where)
        failed[shape] = EvaluationError(f"internal error: {type(error).__name__}")
    return False

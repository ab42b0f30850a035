"""The shapes of one table, found by their rows. Exact: what is found is what evaluating every clause would give."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Final, Generic, TypeVar

from shapeworker.routing.buckets import Clause, Index
from shapeworker.routing.contains import ContainsIndex
from shapeworker.routing.equality import EqualityIndex, NarrowedIndex
from shapeworker.routing.paths import Between, Bound, Contains, Equal, Field, Infix, Prefix
from shapeworker.routing.patterns import InfixIndex, PrefixIndex
from shapeworker.routing.plans import Kind, access_of
from shapeworker.routing.ranges import BetweenIndex, BoundIndex
from shapeworker.where import EvaluationError, Filter

Row = Sequence[bytes | None]
Shape = TypeVar("Shape", bound=Hashable)


class Router(Generic[Shape]):
    """Clauses by shape. Adding and removing costs what the clause's own keys cost, at any time."""

    def __init__(self) -> None:
        self._clauses: dict[Shape, Clause] = {}
        self._indexes: dict[Kind, Index] = {}
        self._scanned: dict[Clause, None] = {}

    def __len__(self) -> int:
        return len(self._clauses)

    @property
    def index_count(self) -> int:
        """How many indexes there are: what a row that matches nothing costs."""
        return len(self._indexes)

    def add(self, shape: Shape, filter_: Filter) -> None:
        """Files a shape that is not here yet."""
        assert shape not in self._clauses
        paths, exact = access_of(filter_)
        if exact and paths is not None:
            exact = all(kind.then is None for kind in paths.values())
        clause = Clause(shape, filter_, None if exact else filter_.predicate)
        self._clauses[shape] = clause
        if paths is None:
            self._scanned[clause] = None
            return
        for path, kind in paths.items():
            index = self._indexes.get(kind)
            if index is None:
                index = self._indexes[kind] = _made(kind)
            index.add(path, clause)

    def remove(self, shape: Shape) -> None:
        """Forgets a shape."""
        clause = self._clauses.pop(shape)
        # The same as when it was added; to keep them would take more memory than all the rest.
        paths, _ = access_of(clause.filter)
        if paths is None:
            del self._scanned[clause]
            return
        for path, kind in paths.items():
            index = self._indexes.get(kind)
            if index is None:
                # It was the last clause, and went with another of its paths.
                continue
            index.remove(path, clause)
            if not index:
                del self._indexes[kind]

    def route(self, row: Row, failed: dict[Shape, EvaluationError]) -> list[Shape]:
        """The shapes that a row belongs to. Those whose clause fails for it go to ``failed``, with the reason."""
        found: list[Clause] = []
        for index in self._indexes.values():
            index.look_up(row, found)
        if len(found) > 1:
            found = list(dict.fromkeys(found))
        if self._scanned:
            found.extend(self._scanned)
        shapes = [clause.shape for clause in found if clause.predicate is None]
        if len(shapes) < len(found):
            for clause in found:
                try:
                    if clause.predicate is not None and clause.predicate(row):
                        shapes.append(clause.shape)
                except EvaluationError as error:
                    failed[clause.shape] = error
        return shapes


def _made(kind: Kind) -> Index:
    then = kind.then
    if then is not None:
        return NarrowedIndex(kind, lambda: _made(then))
    if kind.type is Equal:
        return EqualityIndex(kind.fields)
    (field,) = kind.fields
    return BoundIndex(field, kind.operator) if kind.type is Bound else _INDEXES[kind.type](field)


_INDEXES: Final[dict[type, Callable[[Field], Index]]] = {
    Contains: ContainsIndex,
    Between: BetweenIndex,
    Prefix: PrefixIndex,
    Infix: InfixIndex,
}

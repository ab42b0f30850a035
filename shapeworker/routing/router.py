"""The shapes of one table, found by their rows. Exact: what is found is what evaluating every clause would give."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, Generic, Protocol, TypeVar

from shapeworker.routing.access import Between, Bound, Contains, Equal, Infix, Path, Prefix, cover
from shapeworker.routing.buckets import Clause
from shapeworker.routing.contains import ContainsIndex
from shapeworker.routing.equality import EqualityIndex
from shapeworker.routing.patterns import InfixIndex, PrefixIndex
from shapeworker.routing.ranges import BetweenIndex, BoundIndex
from shapeworker.where import EvaluationError, Filter

Row = Sequence[bytes | None]
Shape = TypeVar("Shape", bound=Hashable)


class Index(Protocol):
    """Paths of one kind over the same columns."""

    def __len__(self) -> int: ...

    def add(self, path: Any, clause: Clause, /) -> None: ...

    def remove(self, path: Any, clause: Clause, /) -> None: ...

    def look_up(self, row: Row, found: list[Clause], /) -> None: ...


class Router(Generic[Shape]):
    """Clauses by shape. Adding and removing costs what the clause's own keys cost, at any time."""

    def __init__(self) -> None:
        self._clauses: dict[Shape, Clause] = {}
        self._indexes: dict[tuple[Any, ...], Index] = {}
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
        found = cover(filter_.tree)
        exact = found is not None and found.exact
        clause = Clause(shape, None if exact else filter_.predicate, None if found is None else found.paths)
        self._clauses[shape] = clause
        if clause.paths is None:
            self._scanned[clause] = None
            return
        for path in clause.paths:
            kind = _kind(path)
            index = self._indexes.get(kind)
            if index is None:
                index = self._indexes[kind] = _made(path)
            index.add(path, clause)

    def remove(self, shape: Shape) -> None:
        """Forgets a shape."""
        clause = self._clauses.pop(shape)
        if clause.paths is None:
            del self._scanned[clause]
            return
        for path in clause.paths:
            kind = _kind(path)
            index = self._indexes[kind]
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
        shapes = []
        for clause in found:
            predicate = clause.predicate
            if predicate is None:
                shapes.append(clause.shape)
                continue
            try:
                if predicate(row):
                    shapes.append(clause.shape)
            except EvaluationError as error:
                failed[clause.shape] = error
        return shapes


def _kind(path: Path) -> tuple[Any, ...]:
    match path:
        case Equal():
            return Equal, path.fields
        case Bound():
            return Bound, path.field, path.operator
    return type(path), path.field


def _made(path: Path) -> Index:
    match path:
        case Equal():
            return EqualityIndex(path.fields)
        case Contains():
            return ContainsIndex(path.field)
        case Bound():
            return BoundIndex(path.field, path.operator)
        case Between():
            return BetweenIndex(path.field)
        case Prefix():
            return PrefixIndex(path.field)
        case Infix():
            return InfixIndex(path.field)

"""Covers of clauses that differ in the values of parameters alone: derived once, for all of them.

:func:`access.cover` of the clause without values gives paths with :class:`Later` in the place of keys; each clause puts
its values there. Where the values decide what the cover looks like, a clause gets a cover of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple
from weakref import WeakKeyDictionary

from shapeworker.routing.access import cover, pattern_cover
from shapeworker.routing.junctions import between
from shapeworker.routing.paths import (
    Between,
    Bound,
    Contains,
    ContainsAll,
    Cover,
    Equal,
    Later,
    Path,
    Pattern,
    Undecided,
)
from shapeworker.where import Filter, Template

Values = Callable[[int], Any]
"""Gives the value of a parameter."""


class Kind(NamedTuple):
    """What the paths of one index have in common: their type, the columns, the operator of a Bound, what comes then."""

    type: type[Path]
    fields: tuple[Any, ...]
    operator: str = ""
    then: Kind | None = None


class Access(NamedTuple):
    """How a clause is found: its paths with their kinds, or ``None`` if each row must be looked at.

    ``exact`` says that the clause is true for whatever row matches a path.
    """

    paths: dict[Path, Kind] | None
    exact: bool


_SCAN: Final = Access(None, False)
_plans: Final[WeakKeyDictionary[Template, _Plan | None]] = WeakKeyDictionary()


def access_of(filter_: Filter) -> Access:
    """How a filter is found. Always the same for the same filter."""
    template = filter_.template
    try:
        plan = _plans[template]
    except KeyError:
        plan = _plans[template] = _planned(template)
    if plan is not None:
        try:
            return plan.access(filter_.value)
        except Undecided:
            pass
    return _own(cover(filter_.tree))


def _planned(template: Template) -> _Plan | None:
    try:
        return _Plan(cover(template.expression))
    except Undecided:
        return None


def _own(found: Cover | None) -> Access:
    return _SCAN if found is None else Access({path: kind_of(path) for path in found.paths}, found.exact)


def kind_of(path: Path) -> Kind:
    """The kind of a path."""
    match path:
        case Equal():
            return Kind(Equal, path.fields, then=None if path.then is None else kind_of(path.then))
        case Bound():
            return Kind(Bound, (path.field,), path.operator)
        case ContainsAll():
            return Kind(Contains, (path.field,))
    return Kind(type(path), (path.field,))


class _Plan:
    def __init__(self, found: Cover | None) -> None:
        self._scan = found is None
        self._exact = found is not None and found.exact
        # In the order of the clause: paths as they are, what fills in their keys, or what decides what they are.
        self._steps = [_step(path) for path in (found.paths if found else ())]

    def access(self, value: Values) -> Access:
        """Raises Undecided if these values need another cover."""
        if self._scan:
            return _SCAN
        paths: dict[Path, Kind] = {}
        exact = self._exact
        for kind, fill, decide in self._steps:
            if decide is None:
                paths[fill(value)] = kind
                continue
            found = decide(value)
            if found is None or not found.paths:
                raise Undecided
            exact = exact and found.exact
            for path in found.paths:
                paths[path] = kind_of(path)
        return Access(paths, exact)


def _step(path: Path) -> tuple[Kind, Callable[[Values], Path], Callable[[Values], Cover | None] | None]:
    if not _is_later(path):
        return kind_of(path), lambda value: path, None
    if _is_open(path):
        return kind_of(path), lambda value: path, _open(path)
    return kind_of(path), _keyed(path), None


def _is_later(path: Path) -> bool:
    match path:
        case Equal():
            return any(isinstance(key, Later) for key in path.keys) or (path.then is not None and _is_later(path.then))
        case Contains():
            return any(isinstance(key, Later) for key in path.elements)
        case Bound():
            return isinstance(path.key, Later)
        case Between():
            return isinstance(path.low, Later) or isinstance(path.high, Later)
    return isinstance(path, Pattern | ContainsAll)


def _is_open(path: Path) -> bool:
    """Whether the values decide more than the keys."""
    if isinstance(path, Equal):
        return path.then is not None and _is_open(path.then)
    return isinstance(path, Pattern | Between) and _is_later(path)


def _filled(key: Any, value: Values) -> Any:
    if not isinstance(key, Later):
        return key
    found = value(key.number)
    return found if key.prepare is None else key.prepare(found)


def _keyed(path: Path) -> Callable[[Values], Path]:
    match path:
        case Equal(fields, (key,), None):
            return lambda value: Equal(fields, (_filled(key, value),))
        case Equal(fields, keys, then):
            after = None if then is None or not _is_later(then) else _keyed(then)
            return lambda value: Equal(
                fields, tuple([_filled(key, value) for key in keys]), then if after is None else after(value)
            )
        case ContainsAll(field, array):
            return lambda value: Contains(field, _filled(array, value))
        case Contains(field, elements):
            keys = tuple(elements)
            return lambda value: Contains(field, frozenset([_filled(key, value) for key in keys]))
        case Bound(field, operator, key):
            return lambda value: Bound(field, operator, _filled(key, value))
    raise TypeError(type(path).__name__)


def _open(path: Path) -> Callable[[Values], Cover | None]:
    match path:
        case Pattern(field, role, pattern):
            return lambda value: pattern_cover(field, role, _filled(pattern, value))
        case Between(field, low, high):
            return lambda value: between(field, _filled(low, value), _filled(high, value))
        case Equal(fields, keys, then):
            assert then is not None
            decide = _open(then)

            def narrowed(value: Values) -> Cover | None:
                found = decide(value)
                if found is None or len(found.paths) != 1:
                    return None
                return Cover((Equal(fields, tuple([_filled(key, value) for key in keys]), *found.paths),), found.exact)

            return narrowed
    raise TypeError(type(path).__name__)

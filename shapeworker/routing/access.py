"""By what a row finds a clause: the access paths of a typed expression (where-and-subqueries.md 12.2).

A cover of a clause is a list of paths such that each row for which the clause is true matches one of them. It is exact
if the clause is true for no other row; otherwise the clause's predicate decides about the rows that match. A clause
without a cover has to look at every row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

import msgspec

from shapeworker.where import tree
from shapeworker.where.arrays import Array
from shapeworker.where.compile import same_texts, unlabelled
from shapeworker.where.texts import lower
from shapeworker.where.types import STRINGS, Type

MAX_PATHS: Final = 20_000
"""A clause with more of them is not worth its place in the indexes."""


class Field(msgspec.Struct, frozen=True):
    """A column as an index sees it: its place in the row, and what reads its key from a text that is not NULL.

    Without a reader the text itself is the key.
    """

    position: int
    read: Callable[[bytes], Any] | None


class Equal(msgspec.Struct, frozen=True):
    """The columns have these keys; None is NULL."""

    fields: tuple[Field, ...]
    keys: tuple[Any, ...]


class Contains(msgspec.Struct, frozen=True):
    """The array in a column has all these elements, by their keys; there is at least one."""

    field: Field
    elements: frozenset[Any]


class Bound(msgspec.Struct, frozen=True):
    """The column's key compares so with ``key``: ``<``, ``<=``, ``>`` or ``>=``."""

    field: Field
    operator: str
    key: Any


class Between(msgspec.Struct, frozen=True):
    """The column's key is a number from ``low`` to ``high``; only finite ones."""

    field: Field
    low: float
    high: float


class Prefix(msgspec.Struct, frozen=True):
    """The column's text begins with this; both in lower case if its field reads so."""

    field: Field
    text: str


class Infix(msgspec.Struct, frozen=True):
    """The column's text has this in it; both in lower case if its field reads so."""

    field: Field
    text: str


Path = Equal | Contains | Bound | Between | Prefix | Infix


class Cover(msgspec.Struct, frozen=True):
    """Paths of which each row in question matches one, and whether only those rows do."""

    paths: tuple[Path, ...]
    exact: bool


def cover(expression: tree.Expression) -> Cover | None:
    """A cover of a boolean expression; None if there is none."""
    found = _true(expression)
    return None if found is None or len(found.paths) > MAX_PATHS else found


_INVERSE: Final = {"<": ">=", "<=": ">", ">": "<=", ">=": "<", "<>": "="}
_SWAPPED: Final = {"<": ">", "<=": ">=", ">": "<", ">=": "<=", "=": "="}
_NOTHING: Final = Cover((), True)


def _true(node: tree.Expression) -> Cover | None:
    match node:
        case tree.Constant():
            return None if node.value else _NOTHING
        case tree.ColumnRef():
            return _equal(node, b"t")
        case tree.Not():
            return _false(node.item)
        case tree.Junction():
            return _junction(node.connective, [_true(item) for item in node.items])
        case tree.IsNull():
            return _equal(node.item, None) if isinstance(node.item, tree.ColumnRef) else None
        case tree.Is():
            if node.test is None:
                return _equal(node.item, None) if isinstance(node.item, tree.ColumnRef) else None
            return _true(node.item) if node.test else _false(node.item)
        case tree.Quantified():
            return _quantified(node)
        case tree.Apply():
            return _applied(node)
    return None


def _false(node: tree.Expression) -> Cover | None:
    match node:
        case tree.Constant():
            return None if node.value is False else _NOTHING
        case tree.ColumnRef():
            return _equal(node, b"f")
        case tree.Not():
            return _true(node.item)
        case tree.Junction():
            return _junction({"and": "or", "or": "and"}[node.connective], [_false(item) for item in node.items])
        case tree.Is() if node.test is not None and isinstance(node.item, tree.ColumnRef):
            other = _equal(node.item, b"f" if node.test else b"t")
            return _junction("or", [other, _equal(node.item, None)])
        case tree.IsDistinct():
            left, right = unlabelled(node.left), node.right
            if isinstance(left, tree.ColumnRef) and isinstance(right, tree.Constant):
                return _equality(left, right.type, right.value)
        case tree.Apply() if node.function.role in _INVERSE:
            return _comparison(node, _INVERSE[node.function.role or ""])
    return None


def _junction(connective: str, covers: list[Cover | None]) -> Cover | None:
    if connective == "or":
        paths: list[Path] = []
        for found in covers:
            if found is None:
                return None
            paths += found.paths
        return Cover(tuple(dict.fromkeys(paths)), all(found.exact for found in covers if found))
    present = [found for found in covers if found is not None]
    # In AND, each cover is one of the whole; several of one kind can be joined to a narrower one.
    joined = [*_composite(present), *_intervals(present)]
    best = min([*joined, *present], key=_rank, default=None)
    if best is None or not best.paths:
        return best
    exact = best.exact and (len(covers) == 1 or (best in joined and _all_in(best, covers)))
    return Cover(best.paths, exact)


def _composite(covers: list[Cover]) -> Iterator[Cover]:
    keys: dict[Field, Any] = {}
    for found in covers:
        if len(found.paths) == 1 and isinstance(path := found.paths[0], Equal) and len(path.fields) == 1:
            keys.setdefault(path.fields[0], path.keys[0])
    if len(keys) > 1:
        # In a fixed order, so that equal sets of columns share an index.
        fields = sorted(keys, key=lambda field: field.position)
        yield Cover((Equal(tuple(fields), tuple(keys[field] for field in fields)),), True)


def _all_in(best: Cover, covers: list[Cover | None]) -> bool:
    (path,) = best.paths
    if not isinstance(path, Equal):
        return False
    parts = {(field, key) for field, key in zip(path.fields, path.keys, strict=True)}
    for found in covers:
        if found is None or not found.exact or len(found.paths) != 1:
            return False
        single = found.paths[0]
        if not isinstance(single, Equal) or not parts.issuperset(zip(single.fields, single.keys, strict=True)):
            return False
    return True


def _intervals(covers: list[Cover]) -> Iterator[Cover]:
    lows: dict[Field, Any] = {}
    highs: dict[Field, Any] = {}
    for found in covers:
        if len(found.paths) == 1 and isinstance(path := found.paths[0], Bound):
            (lows if path.operator in (">", ">=") else highs).setdefault(path.field, path.key)
    for field in lows.keys() & highs.keys():
        low, high = number(lows[field]), number(highs[field])
        if low is not None and high is not None:
            yield Cover((Between(field, low, high),), False) if low <= high else _NOTHING


def number(key: Any) -> float | None:
    """A key as a finite number, in the keys' order; None if it is none."""
    if isinstance(key, bytes | str | tuple):
        return None
    try:
        value = float(key)
    except OverflowError:
        return None
    return value if abs(value) < float("inf") else None


def _rank(found: Cover) -> tuple[int, int]:
    if not found.paths:
        return 0, 0

    def kind(path: Path) -> int:
        match path:
            case Equal():
                # To be NULL or a truth says little about a row.
                few = all(key in (None, b"t", b"f") for key in path.keys)
                return 7 if few else 1 if len(path.fields) > 1 else 2
            case Contains():
                return 3
            case Prefix():
                return 4
            case Between():
                return 5
            case Bound():
                return 6
        return 8

    return max(map(kind, found.paths)), len(found.paths)


# --------------------------------------------------------------------------------------------------------------------
# single tests


def raw_field(column: tree.ColumnRef) -> Field:
    """A column whose text is its key."""
    return Field(column.position, None)


def _keyed(column: tree.ColumnRef, key: Callable[[Any], Any] | None) -> Field:
    return Field(column.position, _reader(column.type, key))


_readers: Final[dict[tuple[Type, Any], Callable[[bytes], Any]]] = {}


def _reader(type_: Type, key: Callable[[Any], Any] | None) -> Callable[[bytes], Any]:
    # The same for all clauses, so that their fields are equal and share an index.
    found = _readers.get((type_, key))
    if found is None:
        read = type_.read
        # Explanations are made in threads: whoever is first, all have the same.
        found = _readers.setdefault((type_, key), read if key is None else lambda text: key(read(text)))
    return found


def _equal(column: tree.Expression, text: bytes | None) -> Cover:
    assert isinstance(column, tree.ColumnRef)
    return Cover((Equal((raw_field(column),), (text,)),), True)


def _equality(column: tree.ColumnRef, type_: Type, value: Any) -> Cover | None:
    if value is None:
        return _equal(column, None)
    if same_texts(column.type, type_):
        assert type_.raw is not None
        return _equal(column, type_.raw(value))
    if column.type is not type_:
        return None
    return Cover((Equal((_keyed(column, type_.key),), (type_.same(value),)),), True)


def _quantified(node: tree.Quantified) -> Cover | None:
    if node.function.role != "=" or node.all:
        return None
    left, array = unlabelled(node.left), unlabelled(node.array)
    if isinstance(left, tree.ColumnRef) and isinstance(array, tree.Constant):
        element = array.type.element
        assert element is not None
        members = array.value.elements if array.value else ()
        return _junction("or", [_equality(left, element, item) for item in members if item is not None])
    if isinstance(left, tree.Constant) and isinstance(array, tree.ColumnRef) and left.type is array.type.element:
        return _contains(array, [left.value])
    return None


def _contains(column: tree.ColumnRef, elements: list[Any]) -> Cover | None:
    element = column.type.element
    assert element is not None
    if None in elements:
        return _NOTHING
    if not elements or element.is_enum:
        return None
    key = element.same

    def keys(value: Array) -> frozenset[Any]:
        return frozenset(key(item) for item in value.elements if item is not None)

    read = _readers.setdefault((column.type, "elements"), lambda text: keys(column.type.read(text)))
    return Cover((Contains(Field(column.position, read), frozenset(map(key, elements))),), False)


def _applied(node: tree.Apply) -> Cover | None:
    role = node.function.role
    if role in _SWAPPED:
        return _comparison(node, role or "")
    if role in ("@>", "<@") and len(node.arguments) == 2:
        outer, inner = node.arguments if role == "@>" else reversed(node.arguments)
        if isinstance(outer, tree.ColumnRef) and isinstance(inner, tree.Constant) and outer.type is inner.type:
            return _contains(outer, list(inner.value.elements)) if outer.type.is_array and inner.value else None
    if role in ("~~", "~~*", "^@"):
        return _pattern(node, role or "")
    return None


def _comparison(node: tree.Apply, role: str) -> Cover | None:
    left, right = map(unlabelled, node.arguments)
    if isinstance(right, tree.ColumnRef):
        left, right, role = right, left, _SWAPPED[role]
    if not isinstance(left, tree.ColumnRef) or not isinstance(right, tree.Constant) or right.value is None:
        return None
    if role == "=":
        return _equality(left, right.type, right.value)
    if same_texts(left.type, right.type) and left.type.raw_order and right.type.raw_order:
        assert right.type.raw is not None
        return Cover((Bound(raw_field(left), role, right.type.raw(right.value)),), True)
    # Labels of an enum that are newer than the shape have no place in its order.
    if left.type is not right.type or left.type.is_enum or left.type.is_array:
        return None
    return Cover((Bound(_keyed(left, left.type.key), role, left.type.same(right.value)),), True)


def _pattern(node: tree.Apply, role: str) -> Cover | None:
    subject, pattern = node.arguments
    if subject.type not in STRINGS or not isinstance(pattern, tree.Constant) or pattern.value is None:
        return None
    # char(n) is matched with its blanks, which is how its text is.
    column = unlabelled(subject)
    if not isinstance(column, tree.ColumnRef) or column.type not in STRINGS:
        return None
    runs = [pattern.value] if role == "^@" else _runs(lower(pattern.value) if role == "~~*" else pattern.value)
    if runs is None:
        return None
    field = _keyed(column, lower) if role == "~~*" else _keyed(column, None)
    if role == "^@" or runs[0]:
        exact = role == "^@" or (len(runs) == 2 and not runs[1])
        return Cover((Prefix(field, runs[0]),), exact)
    longest = max(runs, key=len)
    return Cover((Infix(field, longest),), False) if longest else None


def _runs(pattern: str) -> list[str] | None:
    """The literal texts between the wildcards; the first begins the text. None if there is an escape at the end."""
    runs, current, characters = [], "", iter(pattern)
    for character in characters:
        if character == "\\":
            following = next(characters, None)
            if following is None:
                return None
            current += following
        elif character in "%_":
            runs.append(current)
            current = ""
            if character == "_":
                # So that the first run is never taken for all of a prefix pattern.
                runs.append("")
        else:
            current += character
    return [*runs, current]

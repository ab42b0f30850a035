"""From a typed expression to its cover: by which :mod:`paths` a row finds a clause (where-and-subqueries.md 12.2).

A clause without a cover has to look at every row.

The same rules also work before the values of parameters are known: then a path has :class:`Later` in the place of a
key, and :mod:`plans` puts the values in, clause by clause.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from shapeworker.routing.junctions import junction
from shapeworker.routing.paths import (
    MAX_INFIX,
    NOTHING,
    Bound,
    Contains,
    ContainsAll,
    Cover,
    Equal,
    Field,
    Infix,
    Later,
    Pattern,
    Prefix,
    Undecided,
)
from shapeworker.where import tree
from shapeworker.where.arrays import Array
from shapeworker.where.texts import lower
from shapeworker.where.tree import is_constant, unlabelled
from shapeworker.where.types import STRINGS, Type, same_texts

MAX_PATHS: Final = 20_000
"""A clause with more of them is not worth its place in the indexes."""


def cover(expression: tree.Expression) -> Cover | None:
    """A cover of a boolean expression; None if there is none.

    Raises Undecided if that depends on parameters which the expression still has.
    """
    found = _true(expression)
    return None if found is None or len(found.paths) > MAX_PATHS else found


_INVERSE: Final = {"<": ">=", "<=": ">", ">": "<=", ">=": "<", "<>": "="}
_SWAPPED: Final = {"<": ">", "<=": ">=", ">": "<", ">=": "<=", "=": "="}


def _true(node: tree.Expression) -> Cover | None:
    match node:
        case tree.Constant():
            return None if node.value else NOTHING
        case _ if is_constant(node):
            raise Undecided
        case tree.ColumnRef():
            return _equal(node, b"t")
        case tree.Not():
            return _false(node.item)
        case tree.Junction():
            return junction(node.connective, [_true(item) for item in node.items])
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
            return None if node.value is False else NOTHING
        case _ if is_constant(node):
            raise Undecided
        case tree.ColumnRef():
            return _equal(node, b"f")
        case tree.Not():
            return _true(node.item)
        case tree.Junction():
            return junction({"and": "or", "or": "and"}[node.connective], [_false(item) for item in node.items])
        case tree.Is() if node.test is not None and isinstance(node.item, tree.ColumnRef):
            other = _equal(node.item, b"f" if node.test else b"t")
            return junction("or", [other, _equal(node.item, None)])
        case tree.IsDistinct():
            left, right = unlabelled(node.left), node.right
            if isinstance(left, tree.ColumnRef) and is_constant(right):
                return _equality(left, _decided(right))
        case tree.Apply() if node.function.role in _INVERSE:
            return _comparison(node, _INVERSE[node.function.role or ""])
    return None


def _raw_field(column: tree.ColumnRef) -> Field:
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


def _equal(column: tree.Expression, text: bytes | Later | None) -> Cover:
    assert isinstance(column, tree.ColumnRef)
    return Cover((Equal((_raw_field(column),), (text,)),), True)


def _decided(node: tree.Expression) -> tree.Expression:
    """A constant of which it is known whether it is NULL: a Constant, or a Param with its casts. Raises Undecided."""
    inner = node
    while isinstance(inner, tree.Apply) and inner.function.role in ("cast", "relabel"):
        inner = inner.arguments[0]
    if not isinstance(inner, tree.Constant | tree.Param):
        raise Undecided
    return node


def _key(constant: tree.Expression, prepare: Callable[[Any], Any] | None) -> Any:
    if isinstance(constant, tree.Param):
        return Later(constant.number, prepare)
    if isinstance(constant, tree.Apply):
        cast = constant.function.body
        return _key(constant.arguments[0], cast if prepare is None else lambda value: prepare(cast(value)))
    assert isinstance(constant, tree.Constant)
    return constant.value if prepare is None else prepare(constant.value)


def _is_null(constant: tree.Expression) -> bool:
    return isinstance(constant, tree.Constant) and constant.value is None


def _equality(column: tree.ColumnRef, constant: tree.Expression) -> Cover | None:
    type_ = constant.type
    if _is_null(constant):
        return _equal(column, None)
    if same_texts(column.type, type_):
        return _equal(column, _key(constant, type_.raw))
    if column.type is not type_:
        return None
    return Cover((Equal((_keyed(column, type_.key),), (_key(constant, type_.key),)),), True)


def _quantified(node: tree.Quantified) -> Cover | None:
    if node.function.role != "=" or node.all:
        return None
    left, array = unlabelled(node.left), unlabelled(node.array)
    if isinstance(left, tree.ColumnRef) and is_constant(array):
        if _is_null(array):
            return NOTHING
        return junction("or", [_equality(left, item) for item in _elements(array) if not _is_null(item)])
    if is_constant(left) and isinstance(array, tree.ColumnRef) and left.type is array.type.element:
        return _contains(array, [_decided(left)])
    return None


def _elements(array: tree.Expression) -> list[tree.Expression]:
    """The elements of an array that is a constant or made of some. Raises Undecided if their number is not known."""
    if isinstance(array, tree.ArrayOf) and not array.nested:
        return list(map(_decided, array.items))
    if not isinstance(array, tree.Constant):
        raise Undecided
    element = array.type.element
    assert element is not None
    return [tree.Constant(element, item) for item in array.value.elements]


def _contains(column: tree.ColumnRef, elements: list[tree.Expression]) -> Cover | None:
    element = column.type.element
    assert element is not None
    if any(map(_is_null, elements)):
        return NOTHING
    if not elements or element.is_enum:
        return None
    wanted = frozenset(_key(item, element.key) for item in elements)
    return Cover((Contains(_elements_field(column), wanted),), True)


def _contains_all(column: tree.ColumnRef, array: tree.Param) -> Cover | None:
    element = column.type.element
    assert element is not None
    if element.is_enum:
        raise Undecided
    key = element.same

    def wanted(value: Array) -> frozenset[Any]:
        if None in value.elements or not value.elements:
            raise Undecided
        return frozenset(map(key, value.elements))

    return Cover((ContainsAll(_elements_field(column), Later(array.number, wanted)),), True)


def _elements_field(column: tree.ColumnRef) -> Field:
    assert column.type.element is not None
    key = column.type.element.same

    def keys(text: bytes) -> frozenset[Any]:
        return frozenset(key(item) for item in column.type.read(text).elements if item is not None)

    return Field(column.position, _readers.setdefault((column.type, "elements"), keys))


def _applied(node: tree.Apply) -> Cover | None:
    role = node.function.role
    if role in _SWAPPED:
        return _comparison(node, role or "")
    if role in ("@>", "<@") and len(node.arguments) == 2:
        outer, inner = node.arguments if role == "@>" else reversed(node.arguments)
        if isinstance(outer, tree.ColumnRef) and outer.type.is_array and outer.type is inner.type:
            if isinstance(inner, tree.Param):
                return _contains_all(outer, inner)
            return _contains(outer, _elements(inner)) if is_constant(inner) and not _is_null(inner) else None
    if role in ("~~", "~~*", "^@"):
        return _pattern(node, role or "")
    return None


def _comparison(node: tree.Apply, role: str) -> Cover | None:
    left, right = map(unlabelled, node.arguments)
    if isinstance(right, tree.ColumnRef):
        left, right, role = right, left, _SWAPPED[role]
    if not isinstance(left, tree.ColumnRef) or not is_constant(right) or _is_null(right):
        return None
    constant = _decided(right)
    if role == "=":
        return _equality(left, constant)
    if same_texts(left.type, right.type) and left.type.raw_order and right.type.raw_order:
        return Cover((Bound(_raw_field(left), role, _key(constant, right.type.raw)),), True)
    # Labels of an enum that are newer than the shape have no place in its order.
    if left.type is not right.type or left.type.is_enum or left.type.is_array:
        return None
    return Cover((Bound(_keyed(left, left.type.key), role, _key(constant, left.type.key)),), True)


def _pattern(node: tree.Apply, role: str) -> Cover | None:
    subject, pattern = node.arguments
    if subject.type not in STRINGS or not is_constant(pattern) or _is_null(pattern):
        return None
    # char(n) is matched with its blanks, which is how its text is.
    column = unlabelled(subject)
    if not isinstance(column, tree.ColumnRef) or column.type not in STRINGS:
        return None
    key = _key(_decided(pattern), None)
    field = Field(column.position, _read_lower if role == "~~*" else _read_text)
    if isinstance(key, Later):
        return Cover((Pattern(field, role, key),), True)
    return pattern_cover(field, role, key)


def _read_text(text: bytes) -> str:
    return text.decode()


def _read_lower(text: bytes) -> str:
    return text.decode().lower() if text.isascii() else lower(text.decode())


def pattern_cover(field: Field, role: str, pattern: str) -> Cover | None:
    """The cover of LIKE (``~~``), ILIKE (``~~*``) or ``^@`` with a pattern."""
    if role == "^@":
        return Cover((Prefix(field, pattern),), True)
    runs = _runs(lower(pattern) if role == "~~*" else pattern)
    if runs is None:
        return None
    if runs[0]:
        return Cover((Prefix(field, runs[0]),), len(runs) == 2 and not runs[1])
    longest = max(runs, key=len)
    if not longest:
        return None
    # The end of a long text tells more than its beginning: many have the latter in common.
    exact = len(runs) == 3 and not runs[2] and len(longest) <= MAX_INFIX
    return Cover((Infix(field, longest[-MAX_INFIX:]),), exact)


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
                # So that a pattern with one is never taken for a mere prefix or infix.
                runs += ("", "")
        else:
            current += character
    return [*runs, current]

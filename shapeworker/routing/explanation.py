"""What the router does with a clause, for people: by which look-ups a row finds it, what that costs, how it would cost
less. All of it is read off the paths that the router itself files the clause under (:mod:`plans`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, Literal

import msgspec

from shapeworker.routing.access import MAX_PATHS, cover
from shapeworker.routing.paths import Between, Bound, Contains, Equal, Infix, Path, Prefix, number
from shapeworker.routing.plans import Kind as IndexKind
from shapeworker.routing.plans import access_of
from shapeworker.where import Filter, canonical, tree
from shapeworker.where.arrays import Array
from shapeworker.where.parser import quoted_if_needed
from shapeworker.where.tree import is_constant, unlabelled
from shapeworker.where.types import Type

Cost = Literal["nothing", "constant", "logarithmic", "elements", "pattern", "scan"]
"""What a change of the table costs because of the clause, from the cheapest on; docs/where.md says what each is."""

Kind = Literal["hash", "sorted bounds", "range cells", "array elements", "prefix", "substring"]

SHOWN: Final = 5
"""How many conditions of a look-up are shown; an IN list may have thousands."""

_LONGEST: Final = 100
"""Characters shown of a value."""

_KINDS: Final[dict[type, tuple[Kind, Cost]]] = {
    Equal: ("hash", "constant"),
    Bound: ("sorted bounds", "logarithmic"),
    Between: ("range cells", "logarithmic"),
    Contains: ("array elements", "elements"),
    Prefix: ("prefix", "pattern"),
    Infix: ("substring", "pattern"),
}
_ORDER: Final[tuple[Cost, ...]] = ("nothing", "constant", "logarithmic", "elements", "pattern", "scan")


class Lookup(msgspec.Struct, frozen=True):
    """An index that a row is looked up in: its kind, the columns it is over, how many entries the clause has there, and
    the first of them as conditions."""

    index: Kind
    columns: tuple[str, ...]
    entries: int
    conditions: tuple[str, ...]


class Access(msgspec.Struct, frozen=True):
    """How rows find a clause. Without look-ups no row is looked for (``nothing``) or each is evaluated (``scan``).

    If it is not ``exact``, the clause is evaluated for each row that was found. ``advice`` says what to change so that
    it costs less, if anything.
    """

    cost: Cost
    lookups: tuple[Lookup, ...]
    exact: bool
    advice: str | None


def explain(filter_: Filter) -> Access:
    """What the router does with a filter."""
    expression = filter_.tree
    found, exact = access_of(filter_)
    if found is None:
        return Access("scan", (), False, _why_scanned(expression))
    names = _Names(expression)
    indexes: dict[IndexKind, list[Path]] = {}
    for path, kind in found.items():
        indexes.setdefault(kind, []).append(path)
    lookups = tuple(
        Lookup(
            _KINDS[kind.type][0],
            tuple(names.column(field.position) for field in _fields(kind)),
            len(paths),
            tuple(map(names.condition, paths[:SHOWN])),
        )
        for kind, paths in indexes.items()
    )
    costs = [_cost(path) for path in found]
    return Access(max(costs, key=_ORDER.index, default="nothing"), lookups, exact, _what_is_dear(found, exact))


def _fields(kind: IndexKind) -> tuple[Any, ...]:
    """The columns that a row is looked up by, each once: also those of the index under a key."""
    then = () if kind.then is None else kind.then.fields
    return tuple({field.position: field for field in (*kind.fields, *then)}.values())


def _cost(path: Path) -> Cost:
    cost = _KINDS[type(path)][1]
    if isinstance(path, Equal) and path.then is not None and _says_little(path):
        return max(cost, _cost(path.then), key=_ORDER.index)
    return cost


def _says_little(path: Equal) -> bool:
    """Whether very many rows are likely to have the keys: a truth, or NULL."""
    return all(key in (None, b"t", b"f") for key in path.keys)


class _Names:
    """The columns and the values of an expression, as people write them."""

    def __init__(self, expression: tree.Expression) -> None:
        self._columns: dict[int, tree.ColumnRef] = {}
        self._values: dict[tuple[Type, Any], str] = {}
        for part in tree.parts(expression):
            if isinstance(part, tree.ColumnRef):
                self._columns[part.position] = part
            elif isinstance(part, tree.Constant) and part.value is not None:
                self._learn(part.type, part.value)

    def _learn(self, type_: Type, value: Any) -> None:
        if isinstance(value, Array):
            assert type_.element is not None
            for element in value.elements:
                if element is not None:
                    self._learn(type_.element, element)
        if not type_.comparable:
            return
        key = type_.same(value)
        # What ranges are filed under is a rounded number.
        for known in (key, number(key) if type_.ordered else None):
            if known is not None:
                self._values.setdefault((type_, known), type_.printed(value))

    def column(self, position: int) -> str:
        return quoted_if_needed(self._columns[position].name)

    def _value(self, position: int, key: Any, *, element: bool = False) -> str:
        if isinstance(key, bytes | str):
            text = key if isinstance(key, str) else key.decode()
        else:
            type_ = self._columns[position].type
            text = self._values.get(((type_.element or type_) if element else type_, key), str(key))
        return canonical.quoted(text if len(text) <= _LONGEST else text[:_LONGEST] + "…")

    def condition(self, path: Path) -> str:
        """What a row must have to be found by a path."""
        match path:
            case Equal():
                conditions = [
                    f"{self.column(field.position)} IS NULL"
                    if key is None
                    else f"{self.column(field.position)} = {self._value(field.position, key)}"
                    for field, key in zip(path.fields, path.keys, strict=True)
                ]
                return " AND ".join(conditions if path.then is None else [*conditions, self.condition(path.then)])
            case Contains():
                at = path.field.position
                elements = [self._value(at, key, element=True) for key in path.elements]
                shown = ", ".join(sorted(elements)[:SHOWN]) + (", …" if len(elements) > SHOWN else "")
                return f"{self.column(at)} has {shown}"
            case Bound():
                at = path.field.position
                return f"{self.column(at)} {path.operator} {self._value(at, path.key)}"
            case Between():
                at = path.field.position
                return f"{self.column(at)} from {self._value(at, path.low)} to {self._value(at, path.high)}"
            case Prefix() | Infix():
                at = path.field.position
                verb = "begins with" if isinstance(path, Prefix) else "has in it"
                return f"{self.column(at)} {verb} {self._value(at, path.text)}"
        raise TypeError(type(path).__name__)


# --------------------------------------------------------------------------------------------------------------------
# advice

_NARROW: Final = "AND with an equality, a range or LIKE 'x%' that few rows meet is looked up instead"


def _what_is_dear(found: Iterable[Path], exact: bool) -> str | None:
    """What makes look-ups find many rows that the clause is then evaluated for."""
    if any(isinstance(path, Infix) for path in found):
        return "Each value is searched for a text inside it: LIKE 'x%', or AND with an equality, costs less."
    if exact:
        return None
    for path in found:
        if isinstance(path, Equal) and path.then is None and _says_little(path):
            return (
                "Rows are found by a truth or by NULL, which many have, and the clause is evaluated for each of them: "
                f"{_NARROW}."
            )
        if isinstance(path, Bound):
            return (
                "Rows are found by one bound, and the clause is evaluated for each on that side of it: a second bound "
                f"of the column, if it is a number or a time, makes it a range; {_NARROW}."
            )
    return None


def _why_scanned(expression: tree.Expression) -> str:
    """What keeps a clause from having a cover, and what has one."""
    if isinstance(expression, tree.Constant):
        return "The clause is true for every row: leave where out, and no row is evaluated."
    blocking = _blocking(expression, True)
    if blocking is None:
        return f"The clause has more than {MAX_PATHS} values to look up; make several shapes of it."
    test, positive = blocking
    return f"No index helps with {_shown(test, positive)}: {_hint(test, positive)}. Or narrow it: {_NARROW}."


def _shown(test: tree.Expression, positive: bool) -> str:
    if isinstance(test, tree.IsNull) and not positive:
        return f"{canonical.identity(test.item)} IS NOT NULL"
    text = canonical.identity(test)
    return ("" if positive else "NOT ") + (text if len(text) <= _LONGEST else text[:_LONGEST] + "…")


def _blocking(node: tree.Expression, positive: bool) -> tuple[tree.Expression, bool] | None:
    """A test because of which a node, or what it denies, has no cover: one of OR, the first of AND. Each is visited
    once, whatever the clause."""
    if isinstance(node, tree.Not):
        return _blocking(node.item, not positive)
    if isinstance(node, tree.Junction):
        found = (_blocking(item, positive) for item in node.items)
        if (node.connective == "or") is positive:
            return next((blocking for blocking in found if blocking), None)
        every = list(found)
        return every[0] if all(every) else None
    asked = node if positive else tree.Not(node.type, node)
    return (node, positive) if cover(asked) is None else None


def _hint(test: tree.Expression, positive: bool) -> str:
    role = test.function.role if isinstance(test, tree.Apply | tree.Quantified) else None
    operands = [unlabelled(operand) for operand in tree.children(test)]
    columns = [operand for operand in operands if not is_constant(operand)]
    if isinstance(test, tree.Constant):
        return "it is true for every row"
    if _denies(test, positive, role):
        return "most rows meet it, so it is evaluated for each"
    if any(isinstance(operand, tree.Constant) and _has_many(operand.value) for operand in operands):
        return f"it has more than {MAX_PATHS} values to look up; make several shapes of it"
    if len(columns) > 1:
        return "it compares values of one row with each other; only a column and a constant can be looked up"
    if role in ("~", "~*"):
        return "a regular expression is evaluated for each row; LIKE with a text of it can be looked up"
    if role in ("~~", "~~*") and isinstance(columns[0], tree.ColumnRef):
        return "the pattern has no text to look for"
    for column in columns:
        if isinstance(column, tree.Apply) and column.function.role in ("cast", "relabel"):
            inner = unlabelled(column.arguments[0])
            if isinstance(inner, tree.ColumnRef):
                return (
                    f"{quoted_if_needed(inner.name)} is converted to {column.type.name} for each row; "
                    f"give the constant the column's type, {inner.type.name}"
                )
        if isinstance(column, tree.Apply) and column.function.role == "lower" and role == "=":
            return "it is calculated for each row; ILIKE with the column itself can be looked up"
        if not isinstance(column, tree.ColumnRef):
            return "it is calculated for each row; keep the result in a column and compare that with a constant"
    return "only a comparison of a column with a constant can be looked up, and not every one"


def _has_many(value: Any) -> bool:
    return isinstance(value, Array) and len(value.elements) > MAX_PATHS


def _denies(test: tree.Expression, positive: bool, role: str | None) -> bool:
    if not positive:
        return role not in ("<>", "<", "<=", ">", ">=")
    all_ = isinstance(test, tree.Quantified) and test.all
    return isinstance(test, tree.IsDistinct) or role in ("<>", "!~~", "!~~*", "!~", "!~*") or all_

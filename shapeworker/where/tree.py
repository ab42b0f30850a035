"""Expressions with types: what the resolver makes of :mod:`syntax`.

Each node knows its type; operands have been cast to what their function takes. ``Param`` stands for a constant whose
value comes with the request; binding a clause replaces it by a ``Constant``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from shapeworker.where.types import BOOL, Type


@dataclass(frozen=True, eq=False)
class Function:
    """A function, operator or cast for given types.

    ``body`` takes Python values, none of which is None if it is ``strict``. ``sql`` gives the SQL from that of the
    arguments. ``role`` (``=``, ``<``, ``@>``…) is what routing and code generation know it by. ``prepare`` makes a
    function of the other argument, from the argument at ``prepared_place`` when that is constant.
    """

    name: str
    arguments: tuple[Type, ...]
    result: Type
    body: Callable[..., Any]
    sql: Callable[..., str]
    strict: bool = True
    role: str | None = None
    prepare: Callable[[Any], Any] | None = None
    prepared_place: int = 1


@dataclass(frozen=True, eq=False)
class Expression:
    """Any expression."""

    type: Type


@dataclass(frozen=True, eq=False)
class Constant(Expression):
    """A value, or NULL if it is None."""

    value: Any


@dataclass(frozen=True, eq=False)
class Param(Expression):
    """``$number``; never NULL. ``at`` is where it first stands, for errors."""

    number: int
    at: int


@dataclass(frozen=True, eq=False)
class ColumnRef(Expression):
    """A column: its name, its place in the row, and whether SQL must cast it to the type below its domain."""

    name: str
    position: int
    is_domain: bool


@dataclass(frozen=True, eq=False)
class Apply(Expression):
    """A function with its arguments. ``at`` is its place in the text, for errors."""

    function: Function
    arguments: tuple[Expression, ...]
    at: int


@dataclass(frozen=True, eq=False)
class Junction(Expression):
    """AND or OR of two or more."""

    connective: str
    items: tuple[Expression, ...]


@dataclass(frozen=True, eq=False)
class Not(Expression):
    """NOT."""

    item: Expression


@dataclass(frozen=True, eq=False)
class IsNull(Expression):
    """IS NULL."""

    item: Expression


@dataclass(frozen=True, eq=False)
class Is(Expression):
    """IS TRUE, IS FALSE or IS UNKNOWN (``test`` True, False or None)."""

    item: Expression
    test: bool | None


@dataclass(frozen=True, eq=False)
class IsDistinct(Expression):
    """IS DISTINCT FROM; ``equal`` is the ``=`` of the operands' types."""

    left: Expression
    right: Expression
    equal: Function


@dataclass(frozen=True, eq=False)
class Quantified(Expression):
    """``left function ANY (array)``, or ALL. IN with a list is one of them."""

    function: Function
    left: Expression
    array: Expression
    all: bool


@dataclass(frozen=True, eq=False)
class ArrayOf(Expression):
    """``ARRAY[…]``; of arrays if ``nested``."""

    items: tuple[Expression, ...]
    nested: bool


@dataclass(frozen=True, eq=False)
class Element(Expression):
    """``item[…]…``; NULL indices give NULL."""

    item: Expression
    indices: tuple[Expression, ...]


@dataclass(frozen=True, eq=False)
class Slice(Expression):
    """``item[…:…]…``; ends that are None were left out."""

    item: Expression
    ends: tuple[tuple[Expression | None, Expression | None], ...]


@dataclass(frozen=True, eq=False)
class Coalesce(Expression):
    """The first that is not NULL."""

    items: tuple[Expression, ...]


@dataclass(frozen=True, eq=False)
class Extreme(Expression):
    """GREATEST or LEAST of what is not NULL."""

    name: str
    items: tuple[Expression, ...]


@dataclass(frozen=True, eq=False)
class Case(Expression):
    """The first result whose condition is true."""

    arms: tuple[tuple[Expression, Expression], ...]
    otherwise: Expression


@dataclass(frozen=True, eq=False)
class NullIf(Expression):
    """``left``, or NULL if ``equal`` says that it equals ``right``."""

    left: Expression
    right: Expression
    equal: Function


@dataclass(frozen=True, eq=False)
class Sublink(Expression):
    """``left IN (SELECT …)``. Its place; nothing makes one yet (where-and-subqueries.md 13)."""

    left: Expression


TRUE = Constant(BOOL, True)
FALSE = Constant(BOOL, False)


def children(node: Expression) -> tuple[Expression, ...]:
    """The operands of a node, in the order in which they are evaluated."""
    match node:
        case Apply():
            return node.arguments
        case Junction() | Coalesce() | Extreme() | ArrayOf():
            return node.items
        case Not() | IsNull() | Is():
            return (node.item,)
        case IsDistinct() | NullIf():
            return (node.left, node.right)
        case Quantified():
            return (node.left, node.array)
        case Element():
            return (node.item, *node.indices)
        case Slice():
            return (node.item, *(end for ends in node.ends for end in ends if end is not None))
        case Case():
            return (*(part for arm in node.arms for part in arm), node.otherwise)
        case Sublink():
            return (node.left,)
    return ()


def columns_of(node: Expression) -> frozenset[str]:
    """The names of the columns that an expression mentions."""
    return frozenset(part.name for part in parts(node) if isinstance(part, ColumnRef))


def parts(node: Expression) -> Iterator[Expression]:
    """All nodes of an expression, each once, in no particular order."""
    seen: set[int] = set()
    pending = [node]
    while pending:
        part = pending.pop()
        if id(part) not in seen:
            seen.add(id(part))
            yield part
            pending.extend(children(part))

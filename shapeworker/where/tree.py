"""Expressions with types: what the resolver makes of :mod:`syntax`.

Each node knows its type; operands have been cast to what their function takes. ``Param`` stands for a constant whose
value comes with the request; binding a clause replaces it by a ``Constant``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from shapeworker.where.types import BOOL, Type, same_texts


class Function(msgspec.Struct, frozen=True, eq=False):
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


class Expression(msgspec.Struct, frozen=True, eq=False):
    """Any expression."""

    type: Type


class Constant(Expression, frozen=True, eq=False):
    """A value, or NULL if it is None."""

    value: Any


class Param(Expression, frozen=True, eq=False):
    """``$number``; never NULL. ``at`` is where it first stands, for errors."""

    number: int
    at: int


class ColumnRef(Expression, frozen=True, eq=False):
    """A column: its name, its place in the row, and whether SQL must cast it to the type below its domain."""

    name: str
    position: int
    is_domain: bool


class Apply(Expression, frozen=True, eq=False):
    """A function with its arguments. ``at`` is its place in the text, for errors."""

    function: Function
    arguments: tuple[Expression, ...]
    at: int


class Junction(Expression, frozen=True, eq=False):
    """AND or OR of two or more."""

    connective: str
    items: tuple[Expression, ...]


class Not(Expression, frozen=True, eq=False):
    """NOT."""

    item: Expression


class IsNull(Expression, frozen=True, eq=False):
    """IS NULL."""

    item: Expression


class Is(Expression, frozen=True, eq=False):
    """IS TRUE, IS FALSE or IS UNKNOWN (``test`` True, False or None)."""

    item: Expression
    test: bool | None


class IsDistinct(Expression, frozen=True, eq=False):
    """IS DISTINCT FROM; ``equal`` is the ``=`` of the operands' types."""

    left: Expression
    right: Expression
    equal: Function


class Quantified(Expression, frozen=True, eq=False):
    """``left function ANY (array)``, or ALL. IN with a list is one of them."""

    function: Function
    left: Expression
    array: Expression
    all: bool


class ArrayOf(Expression, frozen=True, eq=False):
    """``ARRAY[…]``; of arrays if ``nested``."""

    items: tuple[Expression, ...]
    nested: bool


class Element(Expression, frozen=True, eq=False):
    """``item[…]…``; NULL indices give NULL."""

    item: Expression
    indices: tuple[Expression, ...]


class Slice(Expression, frozen=True, eq=False):
    """``item[…:…]…``; ends that are None were left out."""

    item: Expression
    ends: tuple[tuple[Expression | None, Expression | None], ...]


class Coalesce(Expression, frozen=True, eq=False):
    """The first that is not NULL."""

    items: tuple[Expression, ...]


class Extreme(Expression, frozen=True, eq=False):
    """GREATEST or LEAST of what is not NULL."""

    name: str
    items: tuple[Expression, ...]


class Case(Expression, frozen=True, eq=False):
    """The first result whose condition is true."""

    arms: tuple[tuple[Expression, Expression], ...]
    otherwise: Expression


class NullIf(Expression, frozen=True, eq=False):
    """``left``, or NULL if ``equal`` says that it equals ``right``."""

    left: Expression
    right: Expression
    equal: Function


class Sublink(Expression, frozen=True, eq=False):
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


def unlabelled(node: Expression) -> Expression:
    """Without the casts that keep value and text."""
    while isinstance(node, Apply) and node.function.role == "relabel":
        inner = node.arguments[0]
        if not same_texts(inner.type, node.type):
            break
        node = inner
    return node


def is_constant(node: Expression) -> bool:
    """Whether no row has a say in the value: a Constant, a Param, or what folding left because of one."""
    if isinstance(node, Constant | Param):
        return True
    operands = children(node)
    return bool(operands) and all(map(is_constant, operands))


def never_null(node: Expression) -> bool:
    """Whether the value is known not to be NULL."""
    return isinstance(node, Param | ArrayOf) or (isinstance(node, Constant) and node.value is not None)

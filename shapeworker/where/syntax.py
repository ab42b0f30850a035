"""The expressions of a where clause as the client wrote them, before any type is known.

``at`` is the byte offset in the client's text that error messages name: of an operator, the operator's.
"""

from __future__ import annotations

from typing import Literal as OneOf

import msgspec


class Node(msgspec.Struct, frozen=True):
    """Any expression."""

    at: int


class Literal(Node, frozen=True):
    """A constant. ``text`` is that of the number or string; ``t`` or ``f`` for booleans, empty for NULL."""

    kind: OneOf["integer", "decimal", "string", "boolean", "null"]
    text: str


class Parameter(Node, frozen=True):
    """``$number``."""

    number: int


class ColumnName(Node, frozen=True):
    """A column of the shape's table, or a name that is none."""

    name: str


class TypeName(Node, frozen=True):
    """A type as written: its schema if any, its modifiers, and whether it is an array."""

    schema: str | None
    name: str
    modifiers: tuple[int, ...]
    is_array: bool


class Operator(Node, frozen=True):
    """An operator with two operands, or with one if ``left`` is None."""

    name: str
    left: Node | None
    right: Node


class Logical(Node, frozen=True):
    """AND or OR of two or more, none of which is the same connective."""

    connective: OneOf["and", "or"]
    items: tuple[Node, ...]


class Negation(Node, frozen=True):
    """NOT."""

    item: Node


class NullTest(Node, frozen=True):
    """IS [NOT] NULL."""

    item: Node
    negated: bool


class TruthTest(Node, frozen=True):
    """IS [NOT] TRUE, FALSE or UNKNOWN."""

    item: Node
    test: OneOf["TRUE", "FALSE", "UNKNOWN"]
    negated: bool


class Distinct(Node, frozen=True):
    """IS [NOT] DISTINCT FROM."""

    left: Node
    right: Node
    negated: bool


class Between(Node, frozen=True):
    """[NOT] BETWEEN [SYMMETRIC]."""

    item: Node
    low: Node
    high: Node
    symmetric: bool
    negated: bool


class Membership(Node, frozen=True):
    """[NOT] IN with a list."""

    item: Node
    members: tuple[Node, ...]
    negated: bool


class Quantified(Node, frozen=True):
    """``left operator ANY (array)``, or ALL."""

    operator: str
    left: Node
    array: Node
    all: bool


class Cast(Node, frozen=True):
    """``item::type``, however it was spelled."""

    item: Node
    type: TypeName


class Call(Node, frozen=True):
    """A function by its name. ``shown`` is how errors spell it."""

    name: str
    arguments: tuple[Node, ...]


class Array(Node, frozen=True):
    """``ARRAY[…]``."""

    items: tuple[Node, ...]


class Index(msgspec.Struct, frozen=True):
    """``[upper]``, or ``[lower:upper]`` for a slice, whose ends may be left out."""

    lower: Node | None
    upper: Node | None
    is_slice: bool


class Subscript(Node, frozen=True):
    """``item[…]…``."""

    item: Node
    indices: tuple[Index, ...]


class Case(Node, frozen=True):
    """CASE, of the form with an operand if ``item`` is there."""

    item: Node | None
    arms: tuple[tuple[Node, Node], ...]
    otherwise: Node | None


class Coalesce(Node, frozen=True):
    """COALESCE."""

    items: tuple[Node, ...]


class Extreme(Node, frozen=True):
    """GREATEST or LEAST."""

    name: OneOf["greatest", "least"]
    items: tuple[Node, ...]


class NullIf(Node, frozen=True):
    """NULLIF."""

    left: Node
    right: Node


class Row(Node, frozen=True):
    """``ROW(…)`` or ``(a, b)``: only the left side of IN (SELECT …) may be one."""

    items: tuple[Node, ...]


class Sublink(Node, frozen=True):
    """``left [NOT] IN (SELECT …)``. The place of subqueries (where-and-subqueries.md 13); the resolver refuses it."""

    left: Node

"""Paths: the look-ups by which a row finds a clause (where-and-subqueries.md 12.2).

A *cover* of a clause is a list of paths such that each row for which the clause is true matches one of them. It is
exact if the clause is true for no other row; otherwise the clause's predicate decides about the rows that match.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec

MAX_INFIX: Final = 12
"""Characters of a text that a value is searched for. It bounds how many of the texts can end at one place of it, one
being the end of another, and so the time and memory that a value can take whoever chose the texts.
"""


class Field(msgspec.Struct, frozen=True):
    """A column as an index sees it: its place in the row, and what reads its key from a text that is not NULL.

    Without a reader the text itself is the key.
    """

    position: int
    read: Callable[[bytes], Any] | None


class Later(msgspec.Struct, frozen=True):
    """The key that a parameter will give: its value, by ``prepare`` if there is one. A parameter is never NULL."""

    number: int
    prepare: Callable[[Any], Any] | None


class Undecided(Exception):
    """What a cover looks like depends on the values of parameters."""


class Equal(msgspec.Struct, frozen=True):
    """The columns have these keys; None is NULL. And the row matches ``then``, if there is one, which is no Equal."""

    fields: tuple[Field, ...]
    keys: tuple[Any, ...]
    then: Path | None = None


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
    """The column's text has this in it, which is no longer than MAX_INFIX; both in lower case if its field reads so."""

    field: Field
    text: str


class Pattern(msgspec.Struct, frozen=True):
    """A Prefix or an Infix, as soon as the pattern is known. Not in the cover of a clause."""

    field: Field
    role: str
    pattern: Later


class ContainsAll(msgspec.Struct, frozen=True):
    """A Contains, as soon as the array is known. Not in the cover of a clause."""

    field: Field
    elements: Later


Path = Equal | Contains | Bound | Between | Prefix | Infix | Pattern | ContainsAll


class Cover(msgspec.Struct, frozen=True):
    """Paths of which each row in question matches one, and whether only those rows do."""

    paths: tuple[Path, ...]
    exact: bool


NOTHING: Final = Cover((), True)
"""The cover of a clause that is true for no row."""


def number(key: Any) -> float | None:
    """A key as a finite number, in the keys' order; None if it is none."""
    if isinstance(key, bytes | str | tuple):
        return None
    try:
        value = float(key)
    except OverflowError:
        return None
    return value if abs(value) < float("inf") else None

"""Programs: the code of a clause, and the values that make it the predicate of one shape.

The code holds no value of the clause. So clauses that differ in constants alone have the same code, which is compiled
once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Final

from shapeworker.where import tree

Row = Sequence[bytes | None]
Predicate = Callable[[Row], Any]
Prepare = Callable[[Any], Any]

_CACHED_BYTES: Final = 20_000
"""Longer code is not kept for other clauses."""


@dataclass(frozen=True, eq=False)
class Slot:
    """A parameter of the code: a constant expression, as ``prepare`` leaves its value.

    ``fallible``: ``prepare`` may raise EvaluationError.
    """

    expression: tree.Expression
    prepare: Prepare | None
    fallible: bool = False


@dataclass(frozen=True, eq=False)
class Program:
    """Code, and what to call it with: a Slot, or any other object as it is."""

    factory: Callable[..., Predicate]
    slots: tuple[Any, ...]
    source: str

    @cached_property
    def fallible(self) -> bool:
        """Whether it is not certain that ``bound`` succeeds with any values."""
        slots = [slot for slot in self.slots if isinstance(slot, Slot)]
        return any(slot.fallible or not _is_plain(slot.expression) for slot in slots)

    def bound(self, value: Callable[[tree.Expression], Any]) -> Predicate:
        """The function for one shape. ``value`` gives that of a constant expression."""
        return self.factory(*[_prepared(slot, value) if isinstance(slot, Slot) else slot for slot in self.slots])


def _is_plain(node: tree.Expression) -> bool:
    """Whether a constant expression has a value for certain."""
    if isinstance(node, tree.ArrayOf) and not node.nested:
        return all(map(_is_plain, node.items))
    return isinstance(node, tree.Constant | tree.Param)


def _prepared(slot: Slot, value: Callable[[tree.Expression], Any]) -> Any:
    result = value(slot.expression)
    return result if slot.prepare is None or result is None else slot.prepare(result)


def factory_of(source: str) -> Callable[..., Predicate]:
    """The function ``make`` that this code defines."""
    return _cached_factory(source) if len(source) <= _CACHED_BYTES else _factory(source)


@lru_cache(maxsize=4096)
def _cached_factory(source: str) -> Callable[..., Predicate]:
    return _factory(source)


def _factory(source: str) -> Callable[..., Predicate]:
    names: dict[str, Any] = {}
    exec(compile(source, "<where>", "exec"), names)
    factory: Callable[..., Predicate] = names["make"]
    return factory

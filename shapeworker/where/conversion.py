"""Types for constants and casts for operands, by the rules of Postgres' parser (docs 10.3 to 10.5)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from shapeworker.where import casts, numeric, overloads, syntax, texts, tree
from shapeworker.where.errors import InvalidWhere
from shapeworker.where.types import BPCHAR, NUMERIC, UNKNOWN, VARCHAR, Type


class Unknown(tree.Expression, frozen=True, eq=False):
    """A string literal, NULL (``text`` is None), or the first use of a parameter, before its type is known."""

    text: str | None
    number: int
    at: int


class Conversion:
    """Gives the operands of one clause the types that they need. ``parameters``: what those are taken for so far."""

    def __init__(self) -> None:
        self.parameters: dict[int, Type] = {}

    def typed(self, item: tree.Expression, target: Type) -> tree.Expression:
        """An unknown constant as one of this type. Raises InvalidWhere for what is no value of the type."""
        assert isinstance(item, Unknown)
        if target.input is None and (item.number or item.text is not None):
            raise InvalidWhere.located(item.at, f"constants of type {target} are not supported")
        if item.number:
            # A later use in the same expression may come too late to see the type that it was given here.
            known = self.parameters.setdefault(item.number, target)
            return self.implicit(tree.Param(known, item.number, item.at), target, item.at)
        return tree.Constant(target, None if item.text is None else input_value(target, item.text, item.at))

    def implicit(self, item: tree.Expression, target: Type, at: int) -> tree.Expression:
        """The same as a value of another type, if that needs no explicit cast. Raises InvalidWhere."""
        if isinstance(item, Unknown):
            return self.typed(item, target)
        if item.type is target:
            return item
        if not casts.is_implicit(item.type, target):
            raise InvalidWhere.located(at, f"type conflict: {item.type} and {target}")
        return _cast(item, target, at)

    def explicit(self, item: tree.Expression, target: Type, at: int) -> tree.Expression:
        """``item::target``. Raises InvalidWhere if there is no such cast."""
        if isinstance(item, Unknown):
            if item.text is None:
                return self.typed(item, target)
            try:
                return self.typed(item, target)
            except InvalidWhere:
                shown = f'"{item.text[:100]}" from text to {target}'
                raise InvalidWhere.located(at, f"could not cast value {shown}") from None
        if item.type is target:
            return item
        if casts.find(item.type, target) is None:
            raise InvalidWhere.located(at, f"unknown cast from type {item.type} to type {target}")
        return _cast(item, target, at)

    def unified(self, items: list[tree.Expression], at: int, what: str) -> tuple[Type, tuple[tree.Expression, ...]]:
        """The type that these have in common, and all of them as values of it. Raises InvalidWhere."""
        common = overloads.common_type([item.type for item in items])
        if common is None:
            first, *others = [item.type for item in items if item.type is not UNKNOWN]
            other = next(type_ for type_ in others if overloads.common_type([first, type_]) is None)
            raise InvalidWhere.located(at, f"{what} types {first} and {other} cannot be matched")
        return common, tuple(self.implicit(item, common, at) for item in items)


def input_value(target: Type, text: str, at: int) -> Any:
    """The value that a literal's or parameter's text has in a type. Raises InvalidWhere."""
    assert target.input is not None
    try:
        return target.input(text)
    except (ValueError, RecursionError):
        raise InvalidWhere.located(at, f"invalid syntax for type {target}: {text[:100]}") from None


def _cast(item: tree.Expression, target: Type, at: int) -> tree.Expression:
    cast = casts.find(item.type, target)
    assert cast is not None
    body, role = (cast.body, "cast") if cast.body else (_same, "relabel")
    function = tree.Function(
        *(target.name, (item.type,), target, body, lambda operand: f"({operand}::{target.sql})"), role=role
    )
    return tree.Apply(target, function, (item,), at)


def _same(value: Any) -> Any:
    return value


def modified(item: tree.Expression, name: syntax.TypeName, at: int) -> tree.Expression:
    """With the length or precision of a cast. Raises InvalidWhere."""
    if not name.modifiers:
        return item
    type_, modifiers = item.type, name.modifiers
    body: Callable[[Any], Any] | None = None
    if type_ in (VARCHAR, BPCHAR) and len(modifiers) == 1 and 1 <= modifiers[0] <= 10_000:
        body = (texts.cut if type_ is VARCHAR else texts.padded)(modifiers[0])
    elif type_ is NUMERIC and len(modifiers) <= 2:
        precision, digits = modifiers[0], modifiers[1] if len(modifiers) > 1 else 0
        if 1 <= precision <= 1000 and 0 <= digits <= precision:
            body = numeric.limited(precision, digits)
    if body is None:
        raise InvalidWhere.located(name.at, f"modifiers of type {type_} are not supported")
    shown = f"{type_.sql}({', '.join(map(str, modifiers))})"
    function = tree.Function(*(type_.name, (type_,), type_, body, lambda operand: f"({operand}::{shown})"), role="cast")
    return tree.Apply(type_, function, (item,), at)

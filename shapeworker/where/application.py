"""Operators and functions and what they are applied to: which overload the operands choose, and their casts for it."""

from __future__ import annotations

from shapeworker.where import overloads, tree
from shapeworker.where.conversion import Conversion
from shapeworker.where.errors import InvalidWhere
from shapeworker.where.functions import FUNCTIONS, OPERATORS, REFUSED
from shapeworker.where.overloads import Match
from shapeworker.where.parser import quoted_if_needed
from shapeworker.where.types import BOOL, BY_NAME, UNKNOWN, array_of


class Application:
    """Applies operators and functions to operands of one clause."""

    def __init__(self, conversion: Conversion) -> None:
        self._conversion = conversion

    def operation(self, name: str, operands: tuple[tree.Expression, ...], at: int) -> tree.Apply:
        """An operator with its operands. Raises InvalidWhere if there is none for their types."""
        name = "<>" if name == "!=" else name
        candidates = OPERATORS.get((name, len(operands)))
        if not candidates:
            arity = "binary" if len(operands) == 2 else "unary"
            raise InvalidWhere.located(at, f'unknown {arity} operator "{name}"')
        match = overloads.select(candidates, tuple(operand.type for operand in operands))
        if match is None:
            raise InvalidWhere.located(at, "Could not select an operator overload")
        if reason := REFUSED.get((name, match.arguments)):
            raise InvalidWhere.located(at, reason)
        return self._applied(match, operands, at, "Could not select an operator overload")

    def quantified(
        self, name: str, left: tree.Expression, array: tree.Expression, all: bool, at: int
    ) -> tree.Expression:
        """``left OPERATOR ANY (array)``, or ALL. Raises InvalidWhere."""
        name = "<>" if name == "!=" else name
        element = array.type.element or UNKNOWN
        if array.type is not UNKNOWN and not array.type.is_array:
            raise InvalidWhere.located(at, f"argument of {'ALL' if all else 'ANY'} must be an array")
        candidates = OPERATORS.get((name, 2))
        if not candidates:
            raise InvalidWhere.located(at, f'unknown binary operator "{name}"')
        match = overloads.select(candidates, (left.type, element))
        if match is None:
            raise InvalidWhere.located(at, "Could not select an operator overload")
        if match.result is not BOOL:
            raise InvalidWhere.located(at, "ANY/ALL requires operator that returns bool")
        if match.overload.needs_constant:
            raise InvalidWhere.located(at, f"ANY/ALL is not supported with {name}")
        if match.arguments[1].is_array:
            raise InvalidWhere.located(at, "ANY/ALL over arrays of arrays is not supported")
        left = self._conversion.implicit(left, match.arguments[0], at)
        array = self._conversion.implicit(array, array_of(match.arguments[1]), at)
        function = _function(match, at, "Could not select an operator overload")
        return tree.Quantified(BOOL, function, left, array, all)

    def call(self, name: str, arguments: tuple[tree.Expression, ...], at: int) -> tree.Expression:
        """A function, or a type that is written like one, with its arguments. Raises InvalidWhere."""
        candidates = FUNCTIONS.get(name)
        if not candidates or all(overload.expanded(len(arguments)) is None for overload in candidates):
            if name in BY_NAME and len(arguments) == 1 and name not in FUNCTIONS:
                return self._conversion.explicit(arguments[0], BY_NAME[name], at)
            shown = f"{quoted_if_needed(name)}/{len(arguments)}"
            raise InvalidWhere.located(at, f"unknown or unsupported function {shown}")
        types = ", ".join(argument.type.name for argument in arguments)
        otherwise = f"Could not select a function overload for {quoted_if_needed(name)}({types})"
        match = overloads.select(candidates, tuple(argument.type for argument in arguments))
        if match is None:
            raise InvalidWhere.located(at, otherwise)
        return self._applied(match, arguments, at, otherwise)

    def _applied(self, match: Match, arguments: tuple[tree.Expression, ...], at: int, otherwise: str) -> tree.Apply:
        function = _function(match, at, otherwise)
        converted = tuple(
            self._conversion.implicit(argument, type_, at)
            for argument, type_ in zip(arguments, match.arguments, strict=True)
        )
        if match.overload.needs_constant and tree.columns_of(converted[function.prepared_place]):
            raise InvalidWhere.located(
                at, f"{function.name} needs a constant as argument {function.prepared_place + 1}"
            )
        return tree.Apply(match.result, function, converted, at)


def _function(match: Match, at: int, otherwise: str) -> tree.Function:
    overload = match.overload
    try:
        body = overload.make(*match.arguments)
    except ValueError:
        raise InvalidWhere.located(at, otherwise) from None
    needs_order = overload.role in ("<", "<=", ">", ">=")
    needs_equality = overload.role in ("=", "<>", "@>", "<@", "&&") and match.arguments[0].is_array
    if any((needs_order and not t.ordered) or (needs_equality and not t.comparable) for t in match.arguments):
        raise InvalidWhere.located(at, otherwise)
    return tree.Function(
        *(overload.name, match.arguments, match.result, body, overload.sql),
        *(overload.strict, overload.role, overload.prepare),
        prepared_place=overload.prepared_place,
    )

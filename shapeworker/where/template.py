"""A clause without the values of its parameters, compiled; and with them, which is the filter of a shape.

Most clauses are another's with other values, and there may be very many of them. So a :class:`Filter` holds the values
and makes from its :class:`Template`, when asked, what follows from both.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from psycopg import sql

from shapeworker.where import canonical
from shapeworker.where.compile import predicate_program
from shapeworker.where.conversion import input_value
from shapeworker.where.errors import EvaluationError, InvalidWhere
from shapeworker.where.fold import FAILED, fold
from shapeworker.where.program import Predicate, Program
from shapeworker.where.resolve import Resolver
from shapeworker.where.tree import Constant, Expression, Param, columns_of
from shapeworker.where.types import Type


class Template:
    """A clause that waits for the values of its parameters.

    ``expression`` is folded as far as that goes without them, ``columns`` are those that it mentions. ``parameters``
    are by number.
    """

    def __init__(self, expression: Expression, resolver: Resolver) -> None:
        self.expression = expression
        self.program: Program = predicate_program(expression)
        self.columns: frozenset[str] = columns_of(expression)
        self.parameters: Mapping[int, Type] = {number: resolver.parameters[number] for number in resolver.locations}
        self._locations = resolver.locations
        self._places = {number: place for place, number in enumerate(self.parameters)}

    def bound(self, texts: Mapping[int, str]) -> Filter:
        """The filter for values that are texts. Raises InvalidWhere."""
        values = []
        for number, type_ in self.parameters.items():
            text = texts.get(number)
            if text is None:
                raise InvalidWhere.located(self._locations[number], f"parameter ${number} was not provided")
            values.append(input_value(type_, text, self._locations[number]))
        return Filter(self, tuple(values))

    def place(self, number: int) -> int:
        """Where a filter of this template has the value of a parameter."""
        return self._places[number]


class Filter:
    """A clause with its parameters, ready for rows."""

    __slots__ = ("_made", "_predicate", "_values", "template")

    def __init__(self, template: Template, values: tuple[Any, ...]) -> None:
        """``values`` are those of the template's parameters, in their order. Raises InvalidWhere."""
        self.template = template
        self._values = values
        self._made: tuple[Expression, sql.Composable] | None = None
        # Only what may fail has to be tried at once; most predicates are the router's, or nobody's.
        self._predicate = self._bound() if template.program.fallible else None

    @property
    def predicate(self) -> Predicate:
        """Takes a row of the stream and says whether the clause is true for it, or raises EvaluationError where
        Postgres would fail. Made anew for each who asks."""
        return self._predicate or self._bound()

    @property
    def columns(self) -> frozenset[str]:
        """The columns that the clause mentions."""
        return self.template.columns

    @property
    def tree(self) -> Expression:
        """The typed expression with all constants evaluated."""
        if self._made is not None:
            return self._made[0]
        return fold(self.template.expression, self._constants()) if self._values else self.template.expression

    @property
    def canonical(self) -> str:
        """The text that identifies the clause: equal for equal filters, however they were written."""
        return canonical.identity(self.tree)

    @property
    def sql(self) -> sql.Composable:
        """The condition for a snapshot. Needs ``search_path = pg_catalog`` and the display settings."""
        return self._made[1] if self._made is not None else sql.SQL(canonical.snapshot_sql(self.tree))

    def value(self, number: int) -> Any:
        """The value of a parameter."""
        return self._values[self.template.place(number)]

    def make_all(self) -> None:
        """Makes ``tree`` and ``sql`` once and for all. For long clauses, which take a while."""
        self._made = self.tree, self.sql

    def _constants(self) -> dict[int, Constant]:
        types = self.template.parameters.items()
        return {number: Constant(type_, value) for (number, type_), value in zip(types, self._values, strict=True)}

    def _bound(self) -> Predicate:
        try:
            return self.template.program.bound(self._value_of)
        except EvaluationError as error:
            # A pattern, zone or unit that is none.
            raise InvalidWhere(f"{FAILED}: {error}") from None

    def _value_of(self, expression: Expression) -> Any:
        if isinstance(expression, Constant):
            return expression.value
        if isinstance(expression, Param):
            return self.value(expression.number)
        folded = fold(expression, self._constants())
        assert isinstance(folded, Constant)
        return folded.value

"""The filter language of shapes: where clauses, exactly as Postgres evaluates them.

``compile_where`` is all that the rest of the program needs. Nothing here does any I/O.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

from psycopg import sql

from shapeworker.where import canonical, tree
from shapeworker.where.columns import Column
from shapeworker.where.compile import Predicate, Program, predicate_program
from shapeworker.where.errors import EvaluationError, InvalidWhere
from shapeworker.where.fold import FAILED, fold
from shapeworker.where.parser import parse
from shapeworker.where.resolve import Resolver, input_value
from shapeworker.where.types import ColumnType, Type

__all__ = ["Column", "ColumnType", "EvaluationError", "Filter", "InvalidWhere", "compile_where"]


@dataclass(frozen=True, eq=False)
class Filter:
    """A clause with its parameters, ready for rows.

    ``predicate`` takes a row of the stream and says whether the clause is true for it; it raises EvaluationError where
    Postgres would fail. ``columns`` are those that the clause mentions.
    """

    predicate: Predicate
    columns: frozenset[str]
    _template: tree.Expression
    _parameters: Mapping[int, tree.Constant]

    @cached_property
    def tree(self) -> tree.Expression:
        """The typed expression with all constants evaluated, for routing."""
        return fold(self._template, self._parameters) if self._parameters else self._template

    @cached_property
    def canonical(self) -> str:
        """The text that identifies the clause: equal for equal filters, however they were written."""
        return canonical.identity(self.tree)

    @cached_property
    def sql(self) -> sql.Composable:
        """The condition for a snapshot. Needs ``search_path = pg_catalog`` and the display settings."""
        return sql.SQL(canonical.snapshot_sql(self.tree))


@dataclass(frozen=True, eq=False)
class _Template:
    """A clause without the values of its parameters."""

    expression: tree.Expression
    program: Program
    columns: frozenset[str]
    parameters: Mapping[int, Type]
    locations: Mapping[int, int]

    def bound(self, values: Mapping[int, str]) -> Filter:
        constants: dict[int, tree.Constant] = {}
        for number, at in self.locations.items():
            text = values.get(number)
            if text is None:
                raise InvalidWhere.located(at, f"parameter ${number} was not provided")
            type_ = self.parameters[number]
            constants[number] = tree.Constant(type_, input_value(type_, text, at))

        def value(expression: tree.Expression) -> Any:
            if isinstance(expression, tree.Constant):
                return expression.value
            if isinstance(expression, tree.Param):
                return constants[expression.number].value
            folded = fold(expression, constants)
            assert isinstance(folded, tree.Constant)
            return folded.value

        try:
            predicate = self.program.bound(value)
        except EvaluationError as error:
            # A pattern, zone or unit that is none.
            raise InvalidWhere(f"{FAILED}: {error}") from None
        return Filter(predicate, self.columns, self.expression, constants)


def compile_where(text: str, params: Mapping[str, str], columns: Sequence[Column]) -> Filter:
    """The filter that a request asks for.

    ``params`` are the values of ``$1``, ``$2`` and so on by number, as texts. ``columns`` are all columns of the table.
    Raises InvalidWhere for what a client has to change.
    """
    values = _numbered(params)
    return _template(text, tuple(columns)).bound(values)


def _numbered(params: Mapping[str, str]) -> dict[int, str]:
    values: dict[int, str] = {}
    for key, value in params.items():
        if not (key.isascii() and key.isdecimal()) or len(key) > 9:
            raise InvalidWhere("Parameters can only use numbers as keys", "params")
        if "\0" in value or not _is_unicode(value):
            raise InvalidWhere(f"parameter ${key} is not a valid text", "params")
        values[int(key)] = value
    if sorted(values) != list(range(1, len(params) + 1)):
        raise InvalidWhere("Parameters must be numbered sequentially, starting from 1", "params")
    return values


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


@lru_cache(maxsize=1024)
def _template(text: str, columns: tuple[Column, ...]) -> _Template:
    resolver = Resolver({column.name: column for column in columns})
    expression = fold(resolver.clause(parse(text)))
    program = predicate_program(expression)
    return _Template(expression, program, tree.columns_of(expression), resolver.parameters, resolver.locations)

"""The filter language of shapes: where clauses, exactly as Postgres evaluates them.

``compile_where`` is all that the rest of the program needs. Nothing here does any I/O.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

from shapeworker.where.columns import Column, Columns
from shapeworker.where.errors import EvaluationError, InvalidWhere
from shapeworker.where.fold import fold
from shapeworker.where.literals import lift, may_be_lifted
from shapeworker.where.parser import parse
from shapeworker.where.resolve import Resolver
from shapeworker.where.template import Filter, Template
from shapeworker.where.texts import is_text
from shapeworker.where.types import ColumnType

__all__ = ["Column", "ColumnType", "Columns", "EvaluationError", "Filter", "InvalidWhere", "Template", "compile_where"]


def compile_where(text: str, params: Mapping[str, str], columns: Columns | Sequence[Column]) -> Filter:
    """The filter that a request asks for.

    ``params`` are the values of ``$1``, ``$2`` and so on by number, as texts. ``columns`` are all columns of the table;
    as Columns, they need not be compared with those of former calls. Raises InvalidWhere for what a client has to
    change.
    """
    values = _numbered(params)
    if not isinstance(columns, Columns):
        columns = _columns(tuple(columns))
    lifted = lift(text)
    if lifted is not None:
        template = _lifted_template(lifted.text, columns)
        if template is not None:
            try:
                return template.bound({**values, **lifted.literals})
            except InvalidWhere:
                # To be told in the words for what the client has written.
                pass
    return _template(text, columns).bound(values)


def _numbered(params: Mapping[str, str]) -> dict[int, str]:
    values: dict[int, str] = {}
    for key, value in params.items():
        if not (key.isascii() and key.isdecimal()) or len(key) > 9:
            raise InvalidWhere("Parameters can only use numbers as keys", "params")
        if not is_text(value):
            raise InvalidWhere(f"parameter ${key} is not a valid text", "params")
        values[int(key)] = value
    if sorted(values) != list(range(1, len(params) + 1)):
        raise InvalidWhere("Parameters must be numbered sequentially, starting from 1", "params")
    return values


@lru_cache(maxsize=256)
def _columns(columns: tuple[Column, ...]) -> Columns:
    return Columns(columns)


@lru_cache(maxsize=1024)
def _template(text: str, columns: Columns) -> Template:
    resolver = Resolver(columns.by_name)
    return Template(fold(resolver.clause(parse(text))), resolver)


@lru_cache(maxsize=1024)
def _lifted_template(text: str, columns: Columns) -> Template | None:
    try:
        template = _template.__wrapped__(text, columns)
    except InvalidWhere:
        return None
    return template if may_be_lifted(template.expression) else None

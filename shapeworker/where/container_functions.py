"""Functions of arrays and of jsonb."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from shapeworker.where import arrays, jsonb
from shapeworker.where.overloads import Parameter
from shapeworker.where.registry import Body, func, op
from shapeworker.where.types import (
    BOOL,
    INT4,
    JSONB,
    TEXT,
    Type,
    array_of,
)

TEXTS: Final = array_of(TEXT)


def _array_functions() -> None:
    both: tuple[Parameter, ...] = ("anyarray", "anyarray")
    element_last: tuple[Parameter, ...] = ("anycompatiblearray", "anycompatible")
    element_first: tuple[Parameter, ...] = ("anycompatible", "anycompatiblearray")
    two: tuple[Parameter, ...] = ("anycompatiblearray", "anycompatiblearray")
    lax: dict[str, Any] = {"strict": False}
    op("@>", both, BOOL, None, make=lambda left, right: _by_key(arrays.contains, left))
    op("<@", both, BOOL, None, make=lambda left, right: _swapped(_by_key(arrays.contains, left)))
    op("&&", both, BOOL, None, make=lambda left, right: _by_key(arrays.overlaps, left))
    op("||", two, "anycompatiblearray", arrays.concatenate, **lax)
    op("||", element_last, "anycompatiblearray", arrays.append, **lax)
    op("||", element_first, "anycompatiblearray", arrays.prepend, **lax)
    func("array_cat", two, "anycompatiblearray", arrays.concatenate, **lax)
    func("array_append", element_last, "anycompatiblearray", arrays.append, **lax)
    func("array_prepend", element_first, "anycompatiblearray", arrays.prepend, **lax)
    func("array_ndims", ("anyarray",), INT4, arrays.dimensions)
    func("array_length", ("anyarray", INT4), INT4, arrays.length)
    func("cardinality", ("anyarray",), INT4, arrays.cardinality)


def _by_key(test: Callable[..., bool], type_: Type) -> Body:
    assert type_.element is not None
    same = type_.element.same
    return lambda left, right: test(same, left, right)


def _swapped(body: Body) -> Body:
    return lambda left, right: body(right, left)


def _jsonb_functions() -> None:
    op("->", (JSONB, TEXT), JSONB, jsonb.field)
    op("->", (JSONB, INT4), JSONB, jsonb.element)
    op("->>", (JSONB, TEXT), TEXT, lambda value, name: jsonb.as_text(jsonb.field(value, name)))
    op("->>", (JSONB, INT4), TEXT, lambda value, index: jsonb.as_text(jsonb.element(value, index)))
    op("#>", (JSONB, TEXTS), JSONB, jsonb.at_path)
    op("#>>", (JSONB, TEXTS), TEXT, lambda value, path: jsonb.as_text(jsonb.at_path(value, path)))
    op("@>", (JSONB, JSONB), BOOL, jsonb.contains)
    op("<@", (JSONB, JSONB), BOOL, _swapped(jsonb.contains))
    op("?", (JSONB, TEXT), BOOL, jsonb.has_key)
    op("?|", (JSONB, TEXTS), BOOL, jsonb.has_any)
    op("?&", (JSONB, TEXTS), BOOL, jsonb.has_all)
    func("jsonb_typeof", (JSONB,), TEXT, jsonb.type_of)
    func("jsonb_array_length", (JSONB,), INT4, jsonb.array_length)


_array_functions()
_jsonb_functions()

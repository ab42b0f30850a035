"""What a filter takes: there may be a hundred thousand of them in a worker."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable

import pytest

from shapeworker.routing.router import Router
from shapeworker.where import Column, Columns, ColumnType, Filter, compile_where

SHAPES = 5_000
TABLE = Columns(
    (
        Column("id", 0, ColumnType("pg_catalog", "int8")),
        Column("org", 1, ColumnType("pg_catalog", "uuid")),
        Column("title", 2, ColumnType("pg_catalog", "text")),
        Column("n", 3, ColumnType("pg_catalog", "int4")),
    )
)


def allocated() -> int:
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


def per_shape(make: Callable[[int], Filter]) -> float:
    """Bytes of a bound filter and its place in a router, by what Python allocates. The shape itself is a small int."""
    make(0)
    shapes = range(SHAPES)
    tracemalloc.start()
    try:
        before = allocated()
        router: Router[int] = Router()
        for shape in shapes:
            router.add(shape, make(shape))
        assert len(router) == SHAPES
        return (allocated() - before) / SHAPES
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("text", "value", "bound"),
    [
        ("id = $1", "{0}", 500),
        ("org = $1", "5f7c1b2a-0000-4000-8000-{0:012}", 500),
        ("title = $1", "title number {0}", 500),
        ("n > $1", "{0}", 500),
        ("id = $1 AND n > 5 AND title LIKE 'a%'", "{0}", 1000),
    ],
)
def test_a_filter_with_a_parameter(text: str, value: str, bound: int) -> None:
    assert per_shape(lambda number: compile_where(text, {"1": value.format(number)}, TABLE)) < bound


@pytest.mark.parametrize("text", ["id = {0}", "title = 'title number {0}'", "org = '5f7c1b2a-0000-4000-8000-{0:012}'"])
def test_a_filter_with_a_literal(text: str) -> None:
    """Each text is another, and nothing of it stays but the value."""
    assert per_shape(lambda number: compile_where(text.format(number), {}, TABLE)) < 500

"""What compiled clauses call for expressions that are more than one Python operator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import EllipsisType
from typing import Any

from shapeworker.where import arrays
from shapeworker.where.arrays import Array

Test = Callable[[Any, Any], bool | None]


def quantified(test: Test, every: bool, left: Any, array: Array | None) -> bool | None:
    """``left test ANY (array)``, or ALL if ``every``: NULL if nothing decides and something is NULL."""
    if array is None:
        return None
    unknown = False
    for item in array.elements:
        result = None if left is None or item is None else test(left, item)
        if result is None:
            unknown = True
        elif result is not every:
            return result
    return None if unknown else every


def distinct(equal: Test, left: Any, right: Any) -> bool:
    """IS DISTINCT FROM."""
    if left is None or right is None:
        return left is not right
    return not equal(left, right)


def null_if(equal: Test, left: Any, right: Any) -> Any:
    """NULLIF."""
    return None if left is not None and right is not None and equal(left, right) else left


def extreme(best: Callable[..., Any], key: Callable[[Any], Any] | None, values: Sequence[Any]) -> Any:
    """GREATEST (``best`` is max) or LEAST of the values that are not NULL. Of equal ones, the first."""
    present = [value for value in values if value is not None]
    return best(present, key=key) if present else None


def slice_of(array: Array, ends: Sequence[tuple[int | EllipsisType | None, int | EllipsisType | None]]) -> Any:
    """``array[…:…]``. An end that is ``...`` was left out; one that is NULL makes the result NULL."""
    plain: list[tuple[int | None, int | None]] = []
    for first, last in ends:
        if first is None or last is None:
            return None
        plain.append((None if first is ... else first, None if last is ... else last))
    return arrays.slice_of(array, tuple(plain))

"""Arrays as Postgres reads, compares, changes and prints them.

The elements are flat, in storage order; ``sizes`` and ``lowers`` have one number per dimension. NULL elements are None.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from itertools import product
from math import prod
from typing import Any, Final, NamedTuple

from shapeworker.where.errors import EvaluationError
from shapeworker.where.numbers import SPACE

MAX_DIMENSIONS: Final = 6
_INT4: Final = 1 << 31


class Array(NamedTuple):
    """An array of any type. That without elements has no dimensions."""

    elements: tuple[Any, ...] = ()
    sizes: tuple[int, ...] = ()
    lowers: tuple[int, ...] = ()


EMPTY: Final = Array()

_BOUNDS: Final = re.compile(r"\s*((?:\[\s*[+-]?\d{1,10}\s*(?::\s*[+-]?\d{1,10}\s*)?\]\s*)+)=\s*", re.ASCII)
_BOUND: Final = re.compile(r"\[\s*([+-]?\d+)\s*(?::\s*([+-]?\d+)\s*)?\]")
_TOKEN: Final = re.compile(
    r'[ \t\n\v\f\r]*(?:([{},])|"((?:[^"\\]|\\.)*)"|((?:[^{},"\\]|\\.)+))[ \t\n\v\f\r]*', re.DOTALL
)
_ESCAPE: Final = re.compile(r"\\(.)", re.DOTALL)
_PLAIN: Final = re.compile(r'[^{}"\\\s,]+(?:,[^{}"\\\s,]+)*\Z')


def parse_array(text: str, element: Callable[[str], Any]) -> Array:
    """An array in its text form. ``element`` reads one that is not NULL. Raises ValueError."""
    if text[:1] == "{" and text[-1:] == "}" and _PLAIN.match(text[1:-1]):
        parts = text[1:-1].split(",")
        return _one_dimension([None if part.lower() == "null" else element(part) for part in parts])
    bounds = _BOUNDS.match(text)
    body = text[bounds.end() :] if bounds else text
    elements, sizes = _parse_body(body.strip(SPACE), element)
    if not bounds:
        return Array(tuple(elements), sizes, (1,) * len(sizes)) if elements else EMPTY
    lowers, wanted = [], []
    for first, second in _BOUND.findall(bounds[1]):
        lower, upper = (int(first), int(second)) if second else (1, int(first))
        if not -_INT4 <= lower <= upper < _INT4 - 1:
            raise ValueError(text)
        lowers.append(lower)
        wanted.append(upper - lower + 1)
    if tuple(wanted) != sizes:
        raise ValueError(text)
    return Array(tuple(elements), sizes, tuple(lowers))


def _one_dimension(elements: list[Any]) -> Array:
    return Array(tuple(elements), (len(elements),), (1,)) if elements else EMPTY


def _parse_body(text: str, element: Callable[[str], Any]) -> tuple[list[Any], tuple[int, ...]]:
    elements: list[Any] = []
    sizes: list[int | None] = []
    counts: list[int] = []
    leaf_depth = 0
    at, expects_item, done = 0, True, False
    while at < len(text):
        token = _TOKEN.match(text, at)
        if token is None or done:
            raise ValueError(text)
        at = token.end()
        mark, quoted, bare = token.groups()
        if mark == "{":
            if not expects_item or len(counts) == MAX_DIMENSIONS or (leaf_depth and len(counts) >= leaf_depth):
                raise ValueError(text)
            counts.append(0)
            if len(sizes) < len(counts):
                sizes.append(None)
        elif mark == "}":
            if not counts or (expects_item and (counts[-1] or len(counts) > 1)):
                raise ValueError(text)
            count, depth = counts.pop(), len(counts)
            if sizes[depth] not in (None, count):
                raise ValueError(text)
            sizes[depth] = count
            if counts:
                counts[-1] += 1
            done, expects_item = not counts, False
        elif mark == ",":
            if expects_item or not counts:
                raise ValueError(text)
            expects_item = True
        else:
            if not expects_item or not counts or leaf_depth not in (0, len(counts)) or len(sizes) > len(counts):
                raise ValueError(text)
            leaf_depth = len(counts)
            counts[-1] += 1
            elements.append(_element(quoted, bare, element))
            expects_item = False
            continue
        if mark == "{":
            expects_item = True
    if not done:
        raise ValueError(text)
    return elements, tuple(size or 0 for size in sizes)


def _element(quoted: str | None, bare: str | None, element: Callable[[str], Any]) -> Any:
    if quoted is not None:
        return element(_ESCAPE.sub(r"\1", quoted))
    assert bare is not None
    # Blanks around what is not quoted do not count, unless they are escaped.
    kept = bare.rstrip(SPACE)
    if len(kept) < len(bare) and (len(kept) - len(kept.rstrip("\\"))) % 2:
        kept = bare[: len(kept) + 1]
    if kept.lower() == "null":
        return None
    if not kept:
        raise ValueError("an element is missing")
    return element(_ESCAPE.sub(r"\1", kept))


def write_array(value: Array, element: Callable[[Any], str]) -> str:
    """The output function of arrays."""
    if not value.elements:
        return "{}"
    prefix = ""
    if any(lower != 1 for lower in value.lowers):
        pairs = zip(value.lowers, value.sizes, strict=True)
        prefix = "".join(f"[{lower}:{lower + size - 1}]" for lower, size in pairs) + "="
    texts = ["NULL" if item is None else _quoted(element(item)) for item in value.elements]
    for size in reversed(value.sizes):
        texts = ["{" + ",".join(texts[at : at + size]) + "}" for at in range(0, len(texts), size)]
    return prefix + texts[0]


def _quoted(text: str) -> str:
    needs = not text or text.lower() == "null" or any(character in '{},"\\' + SPACE for character in text)
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"' if needs else text


# --------------------------------------------------------------------------------------------------------------------
# comparison: `key` is what compares two elements

Key = Callable[[Any], Any]


def array_key(key: Key) -> Key:
    """What compares arrays: their elements with NULL last, then their shape."""

    def of(value: Array) -> Any:
        elements = tuple((1,) if item is None else (0, key(item)) for item in value.elements)
        return elements, len(value.sizes), value.sizes, value.lowers

    return of


def contains(key: Key, outer: Array, inner: Array) -> bool:
    """``@>``: each element of ``inner``, none of which is NULL, is in ``outer``."""
    if None in inner.elements:
        return False
    held = {key(item) for item in outer.elements if item is not None}
    return all(key(item) in held for item in inner.elements)


def overlaps(key: Key, left: Array, right: Array) -> bool:
    """``&&``: they share an element that is not NULL."""
    held = {key(item) for item in left.elements if item is not None}
    return any(item is not None and key(item) in held for item in right.elements)


# --------------------------------------------------------------------------------------------------------------------
# functions


def build(items: Iterable[Any], nested: bool) -> Array:
    """``ARRAY[…]`` of elements, or of arrays if ``nested``. Raises EvaluationError."""
    values = list(items)
    if not nested:
        return _one_dimension(values)
    arrays = [item for item in values if item is not None and item.elements]
    if not arrays:
        return EMPTY
    first = arrays[0]
    if len(arrays) < len(values) or any(item[1:] != first[1:] for item in arrays):
        raise EvaluationError("multidimensional arrays must have sub-arrays with matching dimensions")
    if len(first.sizes) == MAX_DIMENSIONS:
        raise EvaluationError("number of array dimensions exceeds the maximum allowed")
    elements = tuple(element for item in arrays for element in item.elements)
    return Array(elements, (len(arrays), *first.sizes), (1, *first.lowers))


def element_at(value: Array, indices: tuple[int | None, ...]) -> Any:
    """``a[i][j]…``: NULL for a NULL index, outside the bounds and with another number of dimensions."""
    if len(indices) != len(value.sizes):
        return None
    at = 0
    for index, size, lower in zip(indices, value.sizes, value.lowers, strict=True):
        if index is None or not lower <= index < lower + size:
            return None
        at = at * size + index - lower
    return value.elements[at]


def slice_of(value: Array, ends: tuple[tuple[int | None, int | None], ...]) -> Array:
    """``a[i:j]…``. An end that is None is the array's own."""
    if not value.sizes or len(ends) > len(value.sizes):
        return EMPTY
    spans = []
    for number, (size, lower) in enumerate(zip(value.sizes, value.lowers, strict=True)):
        first, last = ends[number] if number < len(ends) else (None, None)
        first = lower if first is None else max(first, lower)
        last = lower + size - 1 if last is None else min(last, lower + size - 1)
        if first > last:
            return EMPTY
        spans.append(range(first - lower, last - lower + 1))
    sizes = tuple(len(span) for span in spans)
    strides = [prod(value.sizes[number + 1 :]) for number in range(len(spans))]
    elements = tuple(
        value.elements[sum(place * stride for place, stride in zip(places, strides, strict=True))]
        for places in product(*spans)
    )
    return Array(elements, sizes, (1,) * len(sizes))


def concatenate(left: Array | None, right: Array | None) -> Array | None:
    """``||`` of two arrays; NULL and empty ones change nothing. Raises EvaluationError."""
    if left is None or right is None:
        return right if left is None else left
    if not left.sizes or not right.sizes:
        return right if not left.sizes else left
    if (
        len(left.sizes) == len(right.sizes)
        and left.sizes[1:] == right.sizes[1:]
        and left.lowers[1:] == right.lowers[1:]
    ):
        sizes, lowers = (left.sizes[0] + right.sizes[0], *left.sizes[1:]), left.lowers
    elif left.sizes[1:] == right.sizes and left.lowers[1:] == right.lowers:
        sizes, lowers = (left.sizes[0] + 1, *left.sizes[1:]), left.lowers
    elif right.sizes[1:] == left.sizes and right.lowers[1:] == left.lowers:
        sizes, lowers = (right.sizes[0] + 1, *right.sizes[1:]), right.lowers
    else:
        raise EvaluationError("cannot concatenate incompatible arrays")
    return Array(left.elements + right.elements, sizes, lowers)


def append(value: Array | None, element: Any) -> Array:
    """``array_append``. Raises EvaluationError."""
    value = value or EMPTY
    if len(value.sizes) > 1:
        raise EvaluationError("argument must be empty or one-dimensional array")
    return Array((*value.elements, element), (len(value.elements) + 1,), value.lowers or (1,))


def prepend(element: Any, value: Array | None) -> Array:
    """``array_prepend``. Raises EvaluationError."""
    value = value or EMPTY
    if len(value.sizes) > 1:
        raise EvaluationError("argument must be empty or one-dimensional array")
    return Array((element, *value.elements), (len(value.elements) + 1,), value.lowers or (1,))


def dimensions(value: Array) -> int | None:
    """``array_ndims``."""
    return len(value.sizes) or None


def length(value: Array, dimension: int) -> int | None:
    """``array_length``."""
    return value.sizes[dimension - 1] if 1 <= dimension <= len(value.sizes) else None


def cardinality(value: Array) -> int:
    """``cardinality``."""
    return len(value.elements)

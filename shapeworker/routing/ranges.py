"""Clauses by bounds of a column: one-sided in sorted order, two-sided in cells of the size of the range."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from typing import Any, cast

from shapeworker.routing.buckets import Bucket, Clause, gather, joined, parted
from shapeworker.routing.paths import Between, Bound, Field, number


class BoundIndex:
    """For paths with the same column and operator: the bounds in order, so that the matches are a slice."""

    def __init__(self, field: Field, operator: str) -> None:
        self._field = field
        self._operator = operator
        self._keys: list[Any] = []
        self._buckets: list[Bucket] = []
        # How many of the buckets hold several clauses.
        self._several = 0

    def __len__(self) -> int:
        return len(self._keys)

    def add(self, path: Bound, clause: Clause) -> None:
        """Files a clause. O(log n), and moving the larger ones."""
        at = bisect_left(self._keys, path.key)
        if at < len(self._keys) and self._keys[at] == path.key:
            self._several += not isinstance(self._buckets[at], dict)
            self._buckets[at] = joined(self._buckets[at], clause)
        else:
            self._keys.insert(at, path.key)
            self._buckets.insert(at, clause)

    def remove(self, path: Bound, clause: Clause) -> None:
        """Forgets a clause. O(log n), and moving the larger ones."""
        at = bisect_left(self._keys, path.key)
        left = parted(self._buckets[at], clause)
        if left is None:
            self._several -= isinstance(self._buckets[at], dict)
            del self._keys[at], self._buckets[at]
        else:
            self._buckets[at] = left

    def look_up(self, row: Sequence[bytes | None], found: list[Clause]) -> None:
        """Appends the clauses that a row matches."""
        text = row[self._field.position]
        if text is None:
            return
        value = text if self._field.read is None else self._field.read(text)
        match self._operator:
            case ">":
                matching = self._buckets[: bisect_left(self._keys, value)]
            case ">=":
                matching = self._buckets[: bisect_right(self._keys, value)]
            case "<":
                matching = self._buckets[bisect_right(self._keys, value) :]
            case _:
                matching = self._buckets[bisect_left(self._keys, value) :]
        if self._several:
            for bucket in matching:
                gather(bucket, found)
        else:
            # Of single clauses, and there may be thousands of them for each row.
            found.extend(cast("list[Clause]", matching))


class BetweenIndex:
    """Ranges of numbers. A range is filed in the one or two cells of its own size, a power of two, that it touches.

    So a value looks into one cell of each size that there is. Numbers are rounded to float, which keeps their order.
    """

    def __init__(self, field: Field) -> None:
        self._field = field
        self._sizes: dict[int, dict[int, Bucket]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._sizes.values()))

    def _cells(self, path: Between) -> Iterator[tuple[int, int]]:
        size = max(math.frexp(path.high - path.low)[1], -1000) if path.high > path.low else 0
        for cell in range(_cell(path.low, size), _cell(path.high, size) + 1):
            yield size, cell

    def add(self, path: Between, clause: Clause) -> None:
        """Files a clause. O(1)."""
        for size, cell in self._cells(path):
            cells = self._sizes.setdefault(size, {})
            cells[cell] = joined(cells.get(cell), clause)

    def remove(self, path: Between, clause: Clause) -> None:
        """Forgets a clause. O(1)."""
        for size, cell in self._cells(path):
            cells = self._sizes[size]
            left = parted(cells[cell], clause)
            if left is not None:
                cells[cell] = left
                continue
            del cells[cell]
            if not cells:
                del self._sizes[size]

    def look_up(self, row: Sequence[bytes | None], found: list[Clause]) -> None:
        """Appends the clauses that a row may match."""
        text = row[self._field.position]
        if text is None:
            return
        value = number(text if self._field.read is None else self._field.read(text))
        if value is None:
            # Infinite, not a number, or beyond all finite bounds.
            return
        for size, cells in self._sizes.items():
            bucket = cells.get(_cell(value, size))
            if bucket is not None:
                gather(bucket, found)


def _cell(value: float, size: int) -> int:
    try:
        return math.floor(math.ldexp(value, -size))
    except OverflowError:
        # In cells so small, a number so large is one by itself.
        return int(value) << -size

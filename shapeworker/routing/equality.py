"""Clauses by the values of some columns, and by what else their rows must match."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from shapeworker.routing.buckets import Bucket, Clause, Index, gather, joined, parted
from shapeworker.routing.paths import Equal, Field
from shapeworker.routing.plans import Kind, access_of

FEW: Final = 8
"""Clauses under one key that are evaluated one by one."""


class _Keys:
    """Reads the key of a row: the text itself for one column whose texts are its keys, which needs no tuple."""

    __slots__ = ("_fields", "_plain")

    def __init__(self, fields: tuple[Field, ...]) -> None:
        self._fields = fields
        self._plain = fields[0].position if len(fields) == 1 and fields[0].read is None else None

    def of_path(self, path: Equal) -> Any:
        return path.keys if len(path.keys) > 1 else path.keys[0]

    def of_row(self, row: Sequence[bytes | None]) -> Any:
        if self._plain is not None:
            return row[self._plain]
        keys = []
        for field in self._fields:
            text = row[field.position]
            keys.append(text if text is None or field.read is None else field.read(text))
        return tuple(keys) if len(keys) > 1 else keys[0]


class EqualityIndex:
    """For paths over the same columns: a dict."""

    def __init__(self, fields: tuple[Field, ...]) -> None:
        self._keys = _Keys(fields)
        self._buckets: dict[Any, Bucket] = {}

    def __len__(self) -> int:
        return len(self._buckets)

    def add(self, path: Equal, clause: Clause) -> None:
        """Files a clause. O(1)."""
        key = self._keys.of_path(path)
        self._buckets[key] = joined(self._buckets.get(key), clause)

    def remove(self, path: Equal, clause: Clause) -> None:
        """Forgets a clause. O(1)."""
        key = self._keys.of_path(path)
        left = parted(self._buckets[key], clause)
        if left is None:
            del self._buckets[key]
        else:
            self._buckets[key] = left

    def look_up(self, row: Sequence[bytes | None], found: list[Clause]) -> None:
        """Appends the clauses that a row matches."""
        bucket = self._buckets.get(self._keys.of_row(row))
        if bucket is not None:
            gather(bucket, found)


class NarrowedIndex:
    """For paths over the same columns that say more: what is under a key has an index of its own if it is much.

    Many clauses may have a key in common, such as a tenant or a state, and a row that has it is still found by few.
    Where they are few, such an index would only take memory: then a row finds all of them, and their predicates decide.
    """

    def __init__(self, kind: Kind, make: Callable[[], Index]) -> None:
        self._kind = kind
        self._keys = _Keys(kind.fields)
        self._make = make
        self._few: dict[Any, Bucket] = {}
        self._many: dict[Any, Index] = {}

    def __len__(self) -> int:
        return len(self._few) + len(self._many)

    def add(self, path: Equal, clause: Clause) -> None:
        """Files a clause. Costs what the index under its key does."""
        key = self._keys.of_path(path)
        index = self._many.get(key)
        if index is None:
            bucket = self._few.get(key)
            if not isinstance(bucket, dict) or len(bucket) < FEW or clause in bucket:
                self._few[key] = joined(bucket, clause)
                return
            index = self._many[key] = self._make()
            del self._few[key]
            for other in bucket:
                for same in self._paths(other, key):
                    index.add(same.then, other)
        index.add(path.then, clause)

    def remove(self, path: Equal, clause: Clause) -> None:
        """Forgets a clause. Costs what the index under its key does."""
        key = self._keys.of_path(path)
        index = self._many.get(key)
        if index is not None:
            index.remove(path.then, clause)
            if not index:
                del self._many[key]
        elif key in self._few:
            left = parted(self._few[key], clause)
            if left is None:
                del self._few[key]
            else:
                self._few[key] = left

    def look_up(self, row: Sequence[bytes | None], found: list[Clause]) -> None:
        """Appends the clauses that a row may match."""
        key = self._keys.of_row(row)
        bucket = self._few.get(key)
        if bucket is not None:
            gather(bucket, found)
        elif (index := self._many.get(key)) is not None:
            index.look_up(row, found)

    def _paths(self, clause: Clause, key: Any) -> list[Equal]:
        paths = access_of(clause.filter).paths or {}
        return [
            path
            for path, kind in paths.items()
            if isinstance(path, Equal) and kind == self._kind and self._keys.of_path(path) == key
        ]

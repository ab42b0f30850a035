"""Clauses by the values of some columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from shapeworker.routing.access import Equal, Field
from shapeworker.routing.buckets import Bucket, Clause, gather, joined, parted


class EqualityIndex:
    """For paths over the same columns: a dict."""

    def __init__(self, fields: tuple[Field, ...]) -> None:
        self._fields = fields
        # A single text needs neither a reader nor a tuple.
        self._plain = fields[0].position if len(fields) == 1 and fields[0].read is None else None
        self._buckets: dict[Any, Bucket] = {}

    def __len__(self) -> int:
        return len(self._buckets)

    def _key(self, path: Equal) -> Any:
        return path.keys if len(path.keys) > 1 else path.keys[0]

    def add(self, path: Equal, clause: Clause) -> None:
        """Files a clause. O(1)."""
        key = self._key(path)
        self._buckets[key] = joined(self._buckets.get(key), clause)

    def remove(self, path: Equal, clause: Clause) -> None:
        """Forgets a clause. O(1)."""
        key = self._key(path)
        left = parted(self._buckets[key], clause)
        if left is None:
            del self._buckets[key]
        else:
            self._buckets[key] = left

    def look_up(self, row: Sequence[bytes | None], found: list[Clause]) -> None:
        """Appends the clauses that a row matches."""
        if self._plain is not None:
            bucket = self._buckets.get(row[self._plain])
        else:
            keys = []
            for field in self._fields:
                text = row[field.position]
                keys.append(text if text is None or field.read is None else field.read(text))
            bucket = self._buckets.get(tuple(keys) if len(keys) > 1 else keys[0])
        if bucket is not None:
            gather(bucket, found)

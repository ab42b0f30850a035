"""Clauses by texts that a column must begin with or have in it."""

from __future__ import annotations

from collections.abc import Sequence

from shapeworker.routing.buckets import Bucket, Clause, gather, joined, parted
from shapeworker.routing.paths import Field, Infix, Prefix
from shapeworker.routing.substrings import Substrings


class PrefixIndex:
    """A dict per length of prefix."""

    def __init__(self, field: Field) -> None:
        self._field = field
        self._lengths: dict[int, dict[str, Bucket]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._lengths.values()))

    def add(self, path: Prefix, clause: Clause) -> None:
        """Files a clause. O(1)."""
        prefixes = self._lengths.setdefault(len(path.text), {})
        prefixes[path.text] = joined(prefixes.get(path.text), clause)

    def remove(self, path: Prefix, clause: Clause) -> None:
        """Forgets a clause. O(1)."""
        prefixes = self._lengths[len(path.text)]
        left = parted(prefixes[path.text], clause)
        if left is not None:
            prefixes[path.text] = left
            return
        del prefixes[path.text]
        if not prefixes:
            del self._lengths[len(path.text)]

    def look_up(self, row: Sequence[bytes | None], found: list[Clause]) -> None:
        """Appends the clauses that a row matches."""
        text = row[self._field.position]
        if text is None:
            return
        assert self._field.read is not None
        value: str = self._field.read(text)
        for length, prefixes in self._lengths.items():
            bucket = prefixes.get(value[:length])
            if bucket is not None:
                gather(bucket, found)


class InfixIndex:
    """A dict, and which of its texts a value has in it."""

    def __init__(self, field: Field) -> None:
        self._field = field
        self._texts = Substrings()
        self._buckets: dict[str, Bucket] = {}

    def __len__(self) -> int:
        return len(self._buckets)

    def add(self, path: Infix, clause: Clause) -> None:
        """Files a clause. O(length of its text), when rows come."""
        bucket = self._buckets.get(path.text)
        if bucket is None:
            self._texts.add(path.text)
        self._buckets[path.text] = joined(bucket, clause)

    def remove(self, path: Infix, clause: Clause) -> None:
        """Forgets a clause. O(length of its text), when rows come."""
        left = parted(self._buckets[path.text], clause)
        if left is not None:
            self._buckets[path.text] = left
            return
        del self._buckets[path.text]
        self._texts.remove(path.text)

    def look_up(self, row: Sequence[bytes | None], found: list[Clause]) -> None:
        """Appends the clauses that a row matches."""
        text = row[self._field.position]
        if text is None:
            return
        assert self._field.read is not None
        for infix in self._texts.within(self._field.read(text)):
            gather(self._buckets[infix], found)

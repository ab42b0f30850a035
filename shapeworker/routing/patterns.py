"""Clauses by texts that a column must begin with or have in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from shapeworker.routing.access import Field, Infix, Prefix
from shapeworker.routing.buckets import Bucket, Clause, gather, joined, parted

_GRAM: Final = 3
"""How many characters of a text it is filed under. More make fewer false hits, fewer suit shorter texts."""


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
    """Each text is filed under one run of three of its characters, the one that fewest others are filed under.

    A value is asked for all of its runs. Unlike an automaton over all texts, this takes and loses clauses at any time.
    """

    def __init__(self, field: Field) -> None:
        self._field = field
        self._grams: dict[int, dict[str, dict[tuple[Clause, str], None]]] = {}
        self._places: dict[tuple[Clause, str], str] = {}

    def __len__(self) -> int:
        return len(self._places)

    def add(self, path: Infix, clause: Clause) -> None:
        """Files a clause. O(length of its text)."""
        size = min(_GRAM, len(path.text))
        lists = self._grams.setdefault(size, {})
        runs = (path.text[at : at + size] for at in range(len(path.text) - size + 1))
        place = min(runs, key=lambda run: len(lists.get(run, ())))
        lists.setdefault(place, {})[clause, path.text] = None
        self._places[clause, path.text] = place

    def remove(self, path: Infix, clause: Clause) -> None:
        """Forgets a clause. O(1)."""
        place = self._places.pop((clause, path.text))
        lists = self._grams[len(place)]
        del lists[place][clause, path.text]
        if not lists[place]:
            del lists[place]
            if not lists:
                del self._grams[len(place)]

    def look_up(self, row: Sequence[bytes | None], found: list[Clause]) -> None:
        """Appends the clauses that a row may match."""
        text = row[self._field.position]
        if text is None:
            return
        assert self._field.read is not None
        value: str = self._field.read(text)
        for size, lists in self._grams.items():
            runs = {value[at : at + size] for at in range(len(value) - size + 1)}
            for run in runs & lists.keys():
                for clause, wanted in lists[run]:
                    if wanted in value:
                        found.append(clause)

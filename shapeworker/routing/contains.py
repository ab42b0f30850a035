"""Clauses by elements that an array must have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from shapeworker.routing.access import Contains, Field
from shapeworker.routing.buckets import Clause


class ContainsIndex:
    """Each clause is filed under one of its elements: the one that fewest others are filed under."""

    def __init__(self, field: Field) -> None:
        self._field = field
        self._lists: dict[Any, dict[tuple[Clause, frozenset[Any]], None]] = {}
        self._places: dict[tuple[Clause, frozenset[Any]], Any] = {}

    def __len__(self) -> int:
        return len(self._places)

    def add(self, path: Contains, clause: Clause) -> None:
        """Files a clause. O(its elements)."""
        entry = clause, path.elements
        place = min(path.elements, key=lambda element: len(self._lists.get(element, ())))
        self._lists.setdefault(place, {})[entry] = None
        self._places[entry] = place

    def remove(self, path: Contains, clause: Clause) -> None:
        """Forgets a clause. O(1)."""
        entry = clause, path.elements
        place = self._places.pop(entry)
        entries = self._lists[place]
        del entries[entry]
        if not entries:
            del self._lists[place]

    def look_up(self, row: Sequence[bytes | None], found: list[Clause]) -> None:
        """Appends the clauses that a row matches."""
        text = row[self._field.position]
        if text is None:
            return
        assert self._field.read is not None
        held = self._field.read(text)
        for element in held:
            for clause, wanted in self._lists.get(element, ()):
                if wanted <= held:
                    found.append(clause)

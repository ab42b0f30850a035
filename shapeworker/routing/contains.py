"""Clauses by elements that an array must have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from shapeworker.routing.buckets import Clause
from shapeworker.routing.paths import Contains, Field


class ContainsIndex:
    """Each clause is filed under two of its elements, those that fewest others are filed under, or under its only one.

    One element alone can be that of very many clauses, of which a row has no more than few in full.
    """

    def __init__(self, field: Field) -> None:
        self._field = field
        self._lists: dict[Any, dict[Any, dict[tuple[Clause, frozenset[Any]], None]]] = {}
        self._places: dict[tuple[Clause, frozenset[Any]], tuple[Any, Any]] = {}

    def __len__(self) -> int:
        return len(self._places)

    def add(self, path: Contains, clause: Clause) -> None:
        """Files a clause. O(its elements)."""
        elements = path.elements
        first = min(elements, key=lambda element: len(self._lists.get(element, ())))
        under = self._lists.setdefault(first, {})
        second = min(elements - {first}, key=lambda element: len(under.get(element, ())), default=first)
        entry = clause, elements
        under.setdefault(second, {})[entry] = None
        self._places[entry] = first, second

    def remove(self, path: Contains, clause: Clause) -> None:
        """Forgets a clause. O(1)."""
        entry = clause, path.elements
        first, second = self._places.pop(entry)
        under = self._lists[first]
        del under[second][entry]
        if not under[second]:
            del under[second]
            if not under:
                del self._lists[first]

    def look_up(self, row: Sequence[bytes | None], found: list[Clause]) -> None:
        """Appends the clauses that a row matches."""
        text = row[self._field.position]
        if text is None:
            return
        assert self._field.read is not None
        held: frozenset[Any] = self._field.read(text)
        for first in held & self._lists.keys():
            under = self._lists[first]
            for second in held & under.keys():
                for clause, wanted in under[second]:
                    if len(wanted) < 3 or wanted <= held:
                        found.append(clause)

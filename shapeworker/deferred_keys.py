"""Primary keys that are DEFERRABLE: for a while within a transaction, two rows may have one key.

Whoever applies changes one by one knows a row by its key: after ``SET id = id + 1`` the row that moved to 2 is deleted
when the one that was there moves on. Such a transaction cannot be told in changes; the shapes of the table have to end.
"""

from __future__ import annotations

from typing import Final

from common.pgoutput import Relation, Row
from common.table import Table, key_columns

KEPT: Final = 100_000
"""Keys that are remembered of a transaction."""

RETAKEN: Final = "a transaction took keys and gave them up again under its DEFERRABLE primary key"


def places_of_key(relation: Relation, table: Table) -> tuple[int, ...]:
    """Where a deferrable key of the table is in the relation's rows; empty if it has none."""
    places = {column.name: place for place, column in enumerate(relation.columns)}
    names = key_columns(table) if table.deferrable else ()
    return tuple(places[name] for name in names) if places.keys() >= set(names) else ()


class TakenKeys:
    """The keys that the passing transaction has given to rows, by table."""

    def __init__(self) -> None:
        self._taken: set[tuple[int, tuple[bytes | None, ...]]] = set()

    def clear(self) -> None:
        """Another transaction begins."""
        self._taken.clear()

    def is_retaken(self, table: int, places: tuple[int, ...], old: Row | None, new: Row | None) -> bool:
        """Whether a change takes a key from a row that may not be the one which this transaction gave it to.

        That is so for any row whose key has been given in this transaction: an older row may have had it, too. With
        more than KEPT keys it may be so for every row.
        """
        left = None if old is None else (table, tuple([old[place] for place in places]))
        entered = None if new is None else (table, tuple([new[place] for place in places]))
        if left == entered:
            return False
        if left is not None and (left in self._taken or len(self._taken) >= KEPT):
            return True
        if entered is not None and len(self._taken) < KEPT:
            self._taken.add(entered)
        return False

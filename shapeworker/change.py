"""A change of a row, on its way to shapes: read once, and written as JSON once for all shapes that show it alike."""

from __future__ import annotations

from common import pgoutput
from common.pgoutput import DELETE, INSERT, Row
from shapeworker.projection import Projection


class Change:
    """``kind`` is INSERT, UPDATE or DELETE, ``op`` its place among the offsets of its transaction."""

    __slots__ = ("kind", "lines", "op", "payload", "rows")

    def __init__(self, index: int, payload: bytes) -> None:
        self.kind = payload[0]
        self.op = 2 * index
        self.payload = payload
        self.rows: tuple[Row | None, Row | None] | None = None
        self.lines: dict[tuple[Projection, int], tuple[bytes, ...]] = {}

    def decoded(self) -> tuple[Row | None, Row | None]:
        """The old and the new row, as far as there are such. Raises IncompleteRow."""
        if self.rows is None:
            if self.kind == INSERT:
                self.rows = None, pgoutput.parse_insert(self.payload)
            elif self.kind == DELETE:
                self.rows = pgoutput.parse_delete(self.payload), None
            else:
                self.rows = pgoutput.parse_update(self.payload)
        return self.rows

    def as_lines(self, projection: Projection, kind: int, headers: bytes) -> tuple[bytes, ...]:
        """What it is for shapes of this projection, to which it is an insert, an update or a delete."""
        known = self.lines.get((projection, kind))
        if known is None:
            old, new = self.decoded()
            if kind == INSERT:
                assert new is not None
                known = (projection.insert(new, headers, self.op),)
            elif kind == DELETE:
                assert old is not None
                known = (projection.delete(old, headers, self.op),)
            else:
                assert old is not None
                assert new is not None
                known = projection.update(old, new, headers, self.op)
            self.lines[projection, kind] = known
        return known

"""What a worker holds: its partitions and the live shapes in them. Plain bookkeeping for the loop."""

from __future__ import annotations

from collections.abc import Iterator, Set

from common.frames import Gap
from common.shape import ShapeRequest
from shapeworker.partition import Partition
from shapeworker.shape import Shape


class Holdings:
    """Partitions by number, shapes by handle and by what was asked for (INV-15: one live shape per request)."""

    def __init__(self) -> None:
        self.total = 0
        self.generation = 0
        self.acknowledged = 0
        self.partitions: dict[int, Partition] = {}
        self.leaving: set[int] = set()
        """Partitions that are being given back: no shape may be made in them any more."""
        self.fed: set[int] = set()
        """Those that the present epoch feeds: only their shapes get anything, and only in them shapes can be made."""
        self.gaps: dict[int, Gap] = {}
        """By table, which shapes may have missed changes (ingester/standing.py)."""
        self._shapes: dict[str, Shape] = {}
        self._of_table: dict[int, dict[str, Shape]] = {}
        self._by_request: dict[ShapeRequest, Shape] = {}

    def may_create(self, number: int) -> bool:
        """Whether new shapes may be made in this partition."""
        return number in self.partitions and number not in self.leaving

    def open_among(self, numbers: Set[int]) -> set[int]:
        """Those of these partitions in which new shapes may be made."""
        return (numbers & self.partitions.keys()) - self.leaving

    def is_fed(self, number: int) -> bool:
        """Whether the shapes of this partition follow the stream, and will."""
        return number in self.fed and self.may_create(number)

    def add(self, shape: Shape) -> None:
        """A shape that lives in a held partition."""
        self._shapes[shape.handle] = shape
        self._of_table.setdefault(shape.table.oid, {})[shape.handle] = shape
        self._by_request[shape.request] = shape

    def remove(self, shape: Shape) -> None:
        """The shape is over, or its partition is given back."""
        self._shapes.pop(shape.handle, None)
        table = self._of_table.get(shape.table.oid)
        if table is not None:
            table.pop(shape.handle, None)
            if not table:
                del self._of_table[shape.table.oid]
        if self._by_request.get(shape.request) is shape:
            del self._by_request[shape.request]

    def by_handle(self, handle: str) -> Shape | None:
        """The live shape with this handle."""
        return self._shapes.get(handle)

    def by_request(self, request: ShapeRequest) -> Shape | None:
        """The live shape for this request."""
        return self._by_request.get(request)

    def of_partition(self, number: int) -> list[Shape]:
        """The live shapes of a partition."""
        return [shape for shape in self._shapes.values() if shape.partition == number]

    def of_table(self, oid: int) -> list[Shape]:
        """The live shapes of a table."""
        return list(self._of_table.get(oid, {}).values())

    def tables(self) -> set[int]:
        """The oids of the tables that the shapes need."""
        return set(self._of_table)

    def needs(self, table: int) -> bool:
        """Whether a live shape is on this table."""
        return table in self._of_table

    def missed(self, shape: Shape) -> str | None:
        """Why a shape whose snapshot is known has to end, if it may have missed changes of its table."""
        gap = self.gaps.get(shape.table.oid)
        return gap.reason if gap is not None and shape.snapshot is not None and shape.filter_until < gap.since else None

    def __iter__(self) -> Iterator[Shape]:
        return iter(list(self._shapes.values()))

    def __len__(self) -> int:
        return len(self._shapes)

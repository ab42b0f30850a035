"""What a where clause has to know about the columns of its table."""

from __future__ import annotations

import msgspec

from shapeworker.where.types import ColumnType


class Column(msgspec.Struct, frozen=True):
    """A column as the catalog has it now. ``position`` is its index in the rows of the stream (``pgoutput.Row``).

    ``deterministic`` is false only for columns with a collation of which pg_collation.collisdeterministic is false.
    ``published`` is false for what the stream does not carry: virtual columns, and stored ones before Postgres 18.
    """

    name: str
    position: int
    type: ColumnType
    deterministic: bool = True
    published: bool = True


class Columns:
    """All columns of a table that a where clause may mention. Clauses are remembered by the object."""

    def __init__(self, columns: tuple[Column, ...]) -> None:
        self.by_name = {column.name: column for column in columns}

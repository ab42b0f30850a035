"""Rows of COPY's text format become items of a snapshot, a batch at a time.

Key and value are what :mod:`shapeworker.projection` makes of the same row from the stream (engine.md INV-13).

No step looks at one row or one value: all rows are split at once, each column is put between its constants by one
assignment to a stride of a list, and all is joined at once. That works because COPY has escaped nearly all that JSON
wants escaped, in the same way, before anything is split: backslash, tab, newline and so on. A raw tab or newline only
ever ends a value, and a backslash before ``N`` is a NULL, since one that belongs to a value comes as two.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

import orjson

from common.shapelog.layout import SEPARATOR
from common.table import Table, key_columns
from shapeworker.projection import table_key
from shapeworker.snapshot_query import read_columns

_NULL: Final = rb"\N"

_CONTROLS: Final = [bytes([code]) for code in range(1, 0x20) if code not in b"\t\n"]
"""Characters that COPY sends as they are, if they are not among those it escapes, and JSON does not allow."""

_VERTICAL_TAB: Final = rb"\v"
"""The only escape of COPY that JSON does not have."""


class _Place(NamedTuple):
    """Where a column's values go: ``piece`` of an item's pieces. ``column`` counts those that are read."""

    piece: int
    column: int
    slashes: bool = False
    """Whether slashes double, as in a key."""
    nullable: bool = False
    """Whether it is part of a key and may be NULL all the same, and so has no quotes around it yet."""


class SnapshotItems:
    """Makes items of rows that were read by :func:`shapeworker.snapshot_query.select`. Immutable."""

    __slots__ = ("_columns", "_places", "_template")

    def __init__(self, table: Table, selected: Iterable[str], headers: str = "", separator: bytes = SEPARATOR) -> None:
        """``headers`` are further members of the headers of each item, as JSON; ``separator`` follows each item."""
        columns = {column.name: column for column in table.columns}
        read = read_columns(table, selected)
        self._columns = len(read)
        # The constants of an item; each value has a place of its own between two of them, which is empty here.
        template: list[bytes] = []
        constant = b'{"key":"' + _dumps(table_key(table.schema, table.name))[1:-1]
        self._places: list[_Place] = []
        for name in key_columns(table):
            column = columns[name]
            nullable = column.key_index is None
            template += [constant + (b"/" if nullable else rb"/\""), b""]
            slashes = not column.plain_text and not column.is_boolean
            self._places.append(_Place(len(template) - 1, read.index(name), slashes, nullable))
            constant = b"" if nullable else rb"\""
        constant += b'","value":{'
        for number, name in enumerate(sorted(selected)):
            template += [constant + b"," * (number > 0) + _dumps(name) + b':"', b""]
            self._places.append(_Place(len(template) - 1, read.index(name)))
            constant = b'"'
        relation = _dumps([table.schema, table.name])
        end = b'},"headers":{"operation":"insert","relation":%b%b}}' % (relation, headers.encode())
        self._template = [*template, constant + end + separator]

    def of(self, rows: Sequence[bytes | memoryview]) -> bytes:
        """The items of these rows, each with its separator behind. A row ends with a newline."""
        text = b"".join(rows)
        # Looked for alone, because a search for one byte is fifty times as fast as one for two.
        backslashes = b"\\" in text
        # One row may be very large: no more than two copies of it are alive at a time.
        text = _escaped(text, backslashes)
        text = text.replace(b"\n", b"\t")
        values = text.split(b"\t")
        del text
        values.pop()
        width = len(self._template)
        pieces = self._template * len(rows)
        for place in self._places:
            column = values[place.column :: self._columns]
            if place.slashes:
                column = [value.replace(b"/", b"//") for value in column]
            if place.nullable:
                column = [b"_" if value == _NULL else rb"\"%b\"" % value for value in column]
            pieces[place.piece :: width] = column
        items = b"".join(pieces)
        # Within an item, a quote that is not escaped, followed by what is no part of a value, can be nothing else.
        return items.replace(rb'"\N"', b"null") if backslashes else items


def _escaped(text: bytes, backslashes: bool) -> bytes:
    """What JSON wants escaped and COPY does not escape, or in another way."""
    if backslashes and _VERTICAL_TAB in text:
        # Two backslashes are one that belongs to a value, and the second of them begins no escape. A NUL is in no text.
        text = text.replace(rb"\\", b"\0").replace(_VERTICAL_TAB, rb"\u000b").replace(b"\0", rb"\\")
    for control in _CONTROLS:
        if control in text:
            text = text.replace(control, rb"\u%04x" % control[0])
    return text.replace(b'"', rb"\"")


def _dumps(value: object) -> bytes:
    return orjson.dumps(value)

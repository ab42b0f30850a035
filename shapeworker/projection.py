"""Changes of one relation as log lines of shapes that select the same columns in the same replica mode.

A :class:`Projection` is compiled from the Relation message that describes the rows and from the table that the shapes
were made for. It is the hot path: no object per column, constants spliced in ready-made, all values of a row escaped by
one call. Each line is a JSON object without separator whose last member is ``headers``, so that it ends with ``}}`` and
the log writer can mark the last line of a transaction. What the lines hold is http-api.md 14.3 to 14.6; the snapshot
query builds the same key and value in SQL (engine.md INV-13).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from operator import itemgetter
from typing import Final

import orjson

from common.pgoutput import Relation, Row
from common.shape import Replica
from common.table import Table, key_columns

_WORDS: Final = {b"t": b"true", b"f": b"false"}

_SPECIAL: Final = bytes(range(0x20)) + b'"\\'
"""What JSON escapes within a string."""
_NULL: Final = b"\0"
"""Stands for NULL while a value is put together: no text of Postgres holds it."""
_QUOTED_NULL: Final = b'"\0"'

_dumps = orjson.dumps
_decode = bytes.decode


class SchemaChanged(Exception):
    """The relation is no longer what the shape was made for: the shape has to end (engine.md 8.3). Says why."""


def table_key(schema: str, name: str) -> str:
    """What every key of the table starts with. Dots and slashes double, quotes stay (http-api.md 14.4)."""
    return f'"{_escape_identifier(schema)}"."{_escape_identifier(name)}"'


def transaction_headers(lsn: int, xid: int) -> bytes:
    """What the headers of all lines of a transaction share: made once per transaction, passed with each change.

    ``lsn`` is the commit LSN, ``xid`` may be widened: clients get the 32 bits that Postgres shows them.
    """
    return b',"lsn":"%d","txids":[%d],"op_position":' % (lsn, xid & 0xFFFFFFFF)


class Projection:
    """Turns rows of one relation into log lines. Immutable; share it among all shapes with equal parameters.

    ``headers`` is always :func:`transaction_headers` of the transaction and ``op`` the change's position in it. Rows
    are in the relation's column order. A value that is not UTF-8 raises ``ValueError`` or ``TypeError``.
    """

    __slots__ = (
        "_booleans",
        "_delete",
        "_full",
        "_insert",
        "_key_places",
        "_key_prefix",
        "_key_set",
        "_names",
        "_pairs",
        "_pick",
        "_places",
        "_quotes",
        "_removed_pairs",
        "_simple_key",
        "_template",
        "_update",
    )

    def __init__(
        self,
        relation: Relation,
        table: Table,
        selected: Iterable[str],
        *,
        explicit: bool,
        replica: Replica = "default",
    ) -> None:
        """Compile. Raises SchemaChanged when the relation does not fit the table any more.

        ``explicit`` says that the client named the columns. A relation with another oid is a leaf of the partitioned
        ``table``: its columns are found by name and its rows carry the root's name.
        """
        names = tuple(sorted(selected))
        keys = key_columns(table)
        if not set(keys) <= set(names):
            raise ValueError(f"selected: lacks key columns of {table.schema}.{table.name}")
        _check(relation, table, names, explicit)
        place = {column.name: number for number, column in enumerate(relation.columns)}
        columns = {column.name: column for column in table.columns}
        has_primary_key = columns[keys[0]].key_index is not None

        self._full = replica == "full"
        self._names = names
        self._pairs = tuple((name, place[name]) for name in names)
        self._places = tuple(place[name] for name in names)
        self._pick = _picker(self._places)
        self._key_places = tuple(place[name] for name in keys)
        self._key_set = frozenset(self._key_places)
        self._booleans = frozenset(place[name] for name in names if columns[name].is_boolean)
        # Plain text needs no escaping, and a primary key no NULL.
        simple = has_primary_key and len(keys) == 1 and columns[keys[0]].plain_text
        self._simple_key = self._key_places[0] if simple else None
        key_only = has_primary_key and not self._full
        self._removed_pairs = tuple(pair for pair in self._pairs if not key_only or pair[1] in self._key_set)

        members = (_dumps(name).replace(b"%", b"%%") + b':"%b"' for name in names)
        self._template = b"{" + b",".join(members) + b"}"
        # How many characters that JSON escapes are there if no value has one: most rows need no escaping at all.
        empty = self._template % ((b"",) * len(names))
        self._quotes = len(empty) - len(empty.translate(None, _SPECIAL))
        # Everything is escaped here once; a key is spliced in as the inside of a JSON string.
        self._key_prefix = _dumps(table_key(table.schema, table.name))[1:-1]
        relation_names = _dumps([table.schema, table.name])
        self._insert, self._update, self._delete = (
            b',"headers":{"operation":"%b","relation":%b' % (operation, relation_names)
            for operation in (b"insert", b"update", b"delete")
        )

    def insert(self, row: Row, headers: bytes, op: int) -> bytes:
        """The line of a new row, or of a row that came into the shape."""
        return b'{"key":"%b","value":%b%b%b%d}}' % (self._key(row), self._value(row), self._insert, headers, op)

    def delete(self, row: Row, headers: bytes, op: int) -> bytes:
        """The line of a row that is gone or left the shape: under its old key, with its old values."""
        return b'{"key":"%b","value":%b%b%b%d}}' % (self._key(row), self._removed(row), self._delete, headers, op)

    def update(self, old: Row, new: Row, headers: bytes, op: int) -> tuple[bytes, ...]:
        """The lines of a row that was and is in the shape.

        None when no selected column changed; one update at ``op``; or, when the key changed, a delete at ``op`` and an
        insert at ``op + 1`` that name each other's keys.
        """
        changed = [place for place in self._places if old[place] != new[place]]
        if not changed:
            return ()
        if not self._key_set.isdisjoint(changed):
            return self._moved(old, new, headers, op)
        key = self._key(new)
        if self._full:
            return (
                b'{"key":"%b","value":%b,"old_value":%b%b%b%d}}'
                % (key, self._value(new), self._part(old, set(changed)), self._update, headers, op),
            )
        value = self._part(new, self._key_set.union(changed))
        return (b'{"key":"%b","value":%b%b%b%d}}' % (key, value, self._update, headers, op),)

    def _moved(self, old: Row, new: Row, headers: bytes, op: int) -> tuple[bytes, bytes]:
        old_key, new_key = self._key(old), self._key(new)
        return (
            b'{"key":"%b","value":%b%b%b%d,"key_change_to":"%b"}}'
            % (old_key, self._removed(old), self._delete, headers, op, new_key),
            b'{"key":"%b","value":%b%b%b%d,"key_change_from":"%b"}}'
            % (new_key, self._value(new), self._insert, headers, op + 1, old_key),
        )

    def _key(self, row: Row) -> bytes:
        if self._simple_key is not None:
            simple = row[self._simple_key]
            assert simple is not None
            return b'%b/\\"%b\\"' % (self._key_prefix, simple)
        sections = [self._key_prefix]
        for place in self._key_places:
            value = row[place]
            if value is None:
                sections.append(b"/_")
            else:
                text = _WORDS[value] if place in self._booleans else value.replace(b"/", b"//")
                sections.append(b'/\\"%b\\"' % _dumps(_decode(text))[1:-1])
        return b"".join(sections)

    def _value(self, row: Row) -> bytes:
        if self._booleans:
            row = self._with_words(row)
        values = self._pick(row)
        nulls = None in values
        if nulls:
            values = tuple([_NULL if value is None else value for value in values])
        text = self._template % values
        special = self._quotes + (values.count(_NULL) if nulls else 0)
        if len(text) - len(text.translate(None, _SPECIAL)) != special:
            return _dumps(dict(zip(self._names, self._pick(row), strict=True)), default=_decode)
        if not text.isascii():
            _decode(text)
        return text.replace(_QUOTED_NULL, b"null") if nulls else text

    def _removed(self, row: Row) -> bytes:
        if self._booleans:
            row = self._with_words(row)
        return _dumps({name: row[place] for name, place in self._removed_pairs}, default=_decode)

    def _part(self, row: Row, chosen: set[int] | frozenset[int]) -> bytes:
        if self._booleans:
            row = self._with_words(row)
        return _dumps({name: row[place] for name, place in self._pairs if place in chosen}, default=_decode)

    def _with_words(self, row: Row) -> Row:
        row = row.copy()
        for place in self._booleans:
            value = row[place]
            if value is not None:
                row[place] = _WORDS[value]
        return row


def _picker(places: tuple[int, ...]) -> Callable[[Row], tuple[bytes | None, ...]]:
    if len(places) > 1:
        return itemgetter(*places)
    (place,) = places
    return lambda row: (row[place],)


def check_columns(relation: Relation, table: Table, names: Iterable[str]) -> None:
    """Raises SchemaChanged if one of these columns is not in the relation what it is in the table."""
    published = {column.name: column for column in relation.columns}
    expected = {column.name: column for column in table.columns}
    for name in names:
        if name not in published:
            raise SchemaChanged(f"column {name!r} is gone")
        if name not in expected or published[name].type_oid != expected[name].type_oid:
            raise SchemaChanged(f"column {name!r} has another type")
        if published[name].type_mod != expected[name].type_mod:
            raise SchemaChanged(f"column {name!r} has another type modifier")


def _check(relation: Relation, table: Table, selected: tuple[str, ...], explicit: bool) -> None:
    if relation.oid == table.oid:
        if (relation.schema, relation.name) != (table.schema, table.name):
            raise SchemaChanged("the table was renamed")
    elif table.kind != "p":
        raise SchemaChanged("the table was replaced by another of the same name")
    check_columns(relation, table, (*selected, *key_columns(table)))
    if not explicit and {column.name for column in relation.columns} != set(selected):
        raise SchemaChanged("a column was added, dropped or renamed")


def _escape_identifier(name: str) -> str:
    return name.replace(".", "..").replace("/", "//")

"""The types of the filter language: how their values are read, compared and printed.

A type that is not listed is opaque: a column of it can be tested for NULL and nothing else. Domains are the type below
them. Which Python value stands for which type is said in the modules that read them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any, Final

import msgspec

from shapeworker.where import (
    arrays,
    datetime_literals,
    datetimes,
    interval_literals,
    intervals,
    jsonb,
    networks,
    numbers,
    numeric,
    ranges,
    texts,
)
from shapeworker.where.arrays import Array
from shapeworker.where.errors import EvaluationError


class ColumnType(msgspec.Struct, frozen=True):
    """What the catalog says about a type.

    ``kind`` is pg_type.typtype: ``b``, ``e`` (enum), ``d`` (domain) and others, or ``a`` for a true array (typelem and
    typarray point at each other). ``labels`` are those of an enum in the order of enumsortorder, ``base`` is the type
    below one domain, ``element`` that of an array.
    """

    schema: str
    name: str
    kind: str = "b"
    element: ColumnType | None = None
    base: ColumnType | None = None
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Type:
    """A type as expressions use it. ``name`` is how errors show it, ``sql`` how our SQL spells it.

    ``category`` and ``preferred`` are those of pg_type. ``read`` takes the text of a row, ``input`` that of a literal
    (ValueError if it is none), ``output`` gives the text of a cast to text, ``printed`` that of the output function,
    which arrays and ``concat`` use. ``key`` gives what ``==`` compares, and ``<`` if the type is ``ordered``; None if
    the values themselves do. ``raw`` gives the text of a row, for types of which two equal values always have the same
    text; ``raw_order`` says that these texts, too, are ordered. ``subtype`` is the type of a range's bounds,
    ``successor`` gives the next of them if they are discrete.
    """

    name: str
    sql: str
    category: str = "U"
    preferred: bool = False
    read: Callable[[bytes], Any] = field(default=bytes.decode)
    input: Callable[[str], Any] | None = None
    output: Callable[[Any], str] = field(default=str)
    printed: Callable[[Any], str] = field(default=str)
    key: Callable[[Any], Any] | None = None
    comparable: bool = True
    ordered: bool = True
    raw: Callable[[Any], bytes] | None = None
    raw_order: bool = False
    element: Type | None = None
    labels: tuple[str, ...] = ()
    subtype: Type | None = None
    successor: ranges.Successor | None = None

    @property
    def is_array(self) -> bool:
        """Whether this is an array type."""
        return self.element is not None

    @property
    def is_enum(self) -> bool:
        """Whether this is an enum type."""
        return self.category == "E"

    @property
    def is_textual(self) -> bool:
        """Whether values are compared by a collation."""
        return self.category == "S" or (self.element is not None and self.element.category == "S")

    def same(self, value: Any) -> Any:
        """What compares as equal exactly if values are equal."""
        return value if self.key is None else self.key(value)

    def __repr__(self) -> str:
        return self.name


def _encoded(output: Callable[[Any], str]) -> Callable[[Any], bytes]:
    return lambda value: output(value).encode()


def _scalar(name: str, category: str, read: Any, input: Any, output: Any = str, **more: Any) -> Type:
    more.setdefault("raw", None)
    more.setdefault("printed", output)
    if more["raw"] is True:
        more["raw"] = _encoded(output)
    return Type(name, name, category, read=read, input=input, output=output, **more)


def _any_text(text: str) -> str:
    return text


def _read_float4(text: bytes) -> float:
    # Nine digits at most, far from the ties that rounding twice could get wrong.
    return numbers.to_float4(numbers.read_float(text))


UNKNOWN: Final = Type("unknown", "unknown", "X", comparable=False, ordered=False)

BOOL: Final = Type(
    "bool",
    "bool",
    "B",
    True,
    read=lambda text: text == b"t",
    input=texts.bool_input,
    output=lambda value: "true" if value else "false",
    printed=lambda value: "t" if value else "f",
    raw=lambda value: b"t" if value else b"f",
    raw_order=True,
)
INT2: Final = _scalar("int2", "N", int, numbers.integer_input(numbers.INT2), raw=True)
INT4: Final = _scalar("int4", "N", int, numbers.integer_input(numbers.INT4), raw=True)
INT8: Final = _scalar("int8", "N", int, numbers.integer_input(numbers.INT8), raw=True)
NUMERIC: Final = _scalar("numeric", "N", numeric.read_numeric, numeric.numeric_input, numeric.numeric_output)
FLOAT4: Final = _scalar("float4", "N", _read_float4, numbers.float4_input, numbers.float_output(6))
FLOAT8: Final = _scalar(
    "float8", "N", numbers.read_float, numbers.float8_input, numbers.float_output(15), preferred=True
)
TEXT: Final = _scalar("text", "S", bytes.decode, _any_text, preferred=True, raw=True, raw_order=True)
VARCHAR: Final = _scalar("varchar", "S", bytes.decode, _any_text, raw=True, raw_order=True)
NAME: Final = _scalar("name", "S", bytes.decode, texts.name_input, raw=True, raw_order=True)
BPCHAR: Final = _scalar("bpchar", "S", bytes.decode, _any_text, texts.stripped, key=texts.stripped, printed=str)
UUID: Final = _scalar("uuid", "U", bytes.decode, texts.uuid_input, raw=True, raw_order=True)
BYTEA: Final = _scalar("bytea", "U", texts.read_bytea, texts.bytea_input, texts.write_bytea, raw=True, raw_order=True)
DATE: Final = _scalar("date", "D", datetimes.read_date, datetime_literals.date_input, datetimes.write_date, raw=True)
TIME: Final = _scalar("time", "D", datetimes.read_time, datetime_literals.time_input, datetimes.write_time, raw=True)
TIMETZ: Final = _scalar(
    "timetz",
    "D",
    datetimes.read_timetz,
    datetime_literals.timetz_input,
    datetimes.write_timetz,
    key=datetimes.timetz_key,
)
TIMESTAMP: Final = _scalar(
    "timestamp", "D", datetimes.read_timestamp, datetime_literals.timestamp_input, datetimes.write_timestamp, raw=True
)
TIMESTAMPTZ: Final = _scalar(
    "timestamptz",
    "D",
    datetimes.read_timestamp,
    datetime_literals.timestamptz_input,
    datetimes.write_timestamptz,
    preferred=True,
    raw=True,
)
INTERVAL: Final = _scalar(
    "interval",
    "T",
    intervals.read_interval,
    interval_literals.interval_input,
    intervals.write_interval,
    key=intervals.interval_key,
    preferred=True,
)
JSONB: Final = _scalar(
    "jsonb", "U", jsonb.read_jsonb, jsonb.jsonb_input, jsonb.write_jsonb, key=jsonb.jsonb_key, ordered=False
)
JSON: Final = _scalar("json", "U", bytes.decode, None, comparable=False, ordered=False)
"""Only its text can be used: its cast to text is the output function. A literal would have to be checked first."""

INET: Final = _scalar(
    "inet",
    "I",
    networks.read_network,
    networks.inet_input,
    networks.write_network,
    printed=networks.write_inet,
    preferred=True,
    raw=_encoded(networks.write_inet),
)
CIDR: Final = _scalar("cidr", "I", networks.read_network, networks.cidr_input, networks.write_network, raw=True)


def _range(name: str, subtype: Type, successor: ranges.Successor | None = None) -> Type:
    assert subtype.input is not None
    return _scalar(
        name,
        "R",
        partial(ranges.read_range, subtype.read),
        partial(ranges.parse_range, element=subtype.input, successor=successor),
        partial(ranges.write_range, element=subtype.printed),
        raw=True if subtype.raw else None,
        subtype=subtype,
        successor=successor,
    )


def _from_text(type_: Type) -> Callable[[str], Any]:
    return lambda text: type_.read(text.encode())


RANGES: Final = (
    _range("int4range", INT4, numbers.successor(numbers.INT4)),
    _range("int8range", INT8, numbers.successor(numbers.INT8)),
    _range("numrange", NUMERIC),
    _range("daterange", DATE, ranges.next_date),
    _range("tsrange", TIMESTAMP),
    _range("tstzrange", TIMESTAMPTZ),
)


SCALARS: Final = (
    *(BOOL, INT2, INT4, INT8, NUMERIC, FLOAT4, FLOAT8, TEXT, VARCHAR, NAME, BPCHAR, UUID, BYTEA, DATE, TIME, TIMETZ),
    *(TIMESTAMP, TIMESTAMPTZ, INTERVAL, JSONB, JSON, INET, CIDR, *RANGES),
)
BY_NAME: Final = {type_.name: type_ for type_ in SCALARS}
INTEGERS: Final = (INT2, INT4, INT8)
STRINGS: Final = (TEXT, VARCHAR, NAME, BPCHAR)


@lru_cache(maxsize=4096)
def array_of(element: Type) -> Type:
    """The array type over an element type."""
    output = partial(arrays.write_array, element=element.printed)
    return Type(
        element.name + "[]",
        element.sql + "[]",
        "A",
        read=partial(_read_array, _from_text(element)),
        input=partial(arrays.parse_array, element=element.input) if element.input else None,
        output=output,
        printed=output,
        key=arrays.array_key(element.same),
        comparable=element.comparable,
        ordered=element.ordered,
        element=element,
    )


def _read_array(element: Callable[[str], Any], text: bytes) -> Array:
    return arrays.parse_array(text.decode(), element)


def _quoted(*names: str) -> str:
    return ".".join('"' + name.replace('"', '""') + '"' for name in names)


def _enum(column_type: ColumnType) -> Type:
    labels = column_type.labels
    places = {label: place for place, label in enumerate(labels)}

    def place(label: str) -> int:
        try:
            return places[label]
        except KeyError:
            raise EvaluationError(f'a label of enum "{column_type.name}" is newer than the shape') from None

    def read_label(text: str) -> str:
        if text not in places:
            raise ValueError(text)
        return text

    return Type(
        f"enum {column_type.name}",
        _quoted(column_type.schema, column_type.name),
        "E",
        input=read_label,
        key=place,
        raw=str.encode,
        labels=labels,
    )


@lru_cache(maxsize=4096)
def type_of(column_type: ColumnType) -> Type:
    """The type of a column for expressions."""
    if column_type.kind == "d":
        assert column_type.base is not None
        return type_of(column_type.base)
    if column_type.kind == "a":
        assert column_type.element is not None
        return array_of(type_of(column_type.element))
    if column_type.kind == "e":
        return _enum(column_type)
    if column_type.schema == "pg_catalog" and column_type.name in BY_NAME:
        return BY_NAME[column_type.name]
    shown = column_type.name if column_type.schema == "pg_catalog" else f"{column_type.schema}.{column_type.name}"
    return Type(shown, _quoted(column_type.schema, column_type.name), comparable=False, ordered=False)


def same_texts(left: Type, right: Type) -> bool:
    """Whether values of two types are equal exactly if their texts in a row are."""
    if left.raw is None or right.raw is None:
        return False
    return left is right or any(left in group and right in group for group in (INTEGERS, STRINGS))

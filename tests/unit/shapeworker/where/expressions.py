"""Random expressions, rows and literals of all types. Choices come from a ``random.Random``."""

from __future__ import annotations

from random import Random
from typing import Final

from shapeworker.where.casts import find
from shapeworker.where.functions import FUNCTIONS, OPERATORS
from shapeworker.where.overloads import Overload
from shapeworker.where.types import (
    BOOL,
    BPCHAR,
    BY_NAME,
    FLOAT8,
    INT4,
    INT8,
    INTERVAL,
    JSON,
    JSONB,
    NAME,
    NUMERIC,
    RANGES,
    SCALARS,
    TEXT,
    TIMESTAMP,
    TIMESTAMPTZ,
    TIMETZ,
    VARCHAR,
    Type,
    array_of,
    type_of,
)
from tests.unit.shapeworker.where.oracle import COLUMNS, MOOD

ENUM: Final = type_of(MOOD)

WORDS: Final = (
    *(
        "",
        "a",
        "A",
        "ab",
        "abc",
        "b%",
        "hello",
        "hell%",
        "HELL_",
        "é",
        "É",
        "straße",
        "STRASSE",
        "ΣΑΣ",
        "σας",
        "İ",
        "x y",
    ),
    *(
        " ",
        "a ",
        " a",
        "\n",
        "a\nb",
        "\\",
        "a\\b",
        "%",
        "_",
        "100",
        "1.5",
        "null",
        "NULL",
        "t",
        "true",
        "日本",
        "😀",
        "ǅ",
    ),
    *("2024-01-02", "1 day", "{1,2}", "a,b", '"', "'", "''", "\t", "foo.bar", "K", "Kelvin"),
)


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_NUMBERS: Final = ("0", "1", "2", "3", "-1", "7", "10", "100", "-3", "5", "42")
VALUES: Final[dict[str, tuple[str, ...]]] = {
    "bool": ("t", "f", "true", "false", "yes", "off", "1", "0"),
    "int2": (*_NUMBERS, "32767", "-32768", "12345"),
    "int4": (*_NUMBERS, "2147483647", "-2147483648", "100000", "65536"),
    "int8": (*_NUMBERS, "9223372036854775807", "-9223372036854775808", "9007199254740993", "2147483648"),
    "numeric": (
        *(*_NUMBERS, "1.5", "1.50", "-0.5", "NaN", "Infinity", "-Infinity", "12345678901234567890.5", "0.0001", "1e10"),
        *("123456.789", "0.00", "99999999999999999999999.99", "3.14159265358979", "2.5", "-2.5", "1e-10"),
    ),
    "float4": (*_NUMBERS, "1.5", "0.1", "NaN", "Infinity", "-Infinity", "-0", "1e20", "3.4e38", "1e-40", "16777217"),
    "float8": (
        *_NUMBERS,
        "1.5",
        "0.1",
        "NaN",
        "Infinity",
        "-Infinity",
        "-0",
        "1e20",
        "1.7e308",
        "5e-324",
        "1e15",
        "2.5",
    ),
    "text": WORDS,
    "varchar": WORDS,
    "name": tuple(word for word in WORDS if len(word) < 60),
    "bpchar": tuple(word[:6] for word in WORDS),
    "uuid": (
        *("a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", "00000000-0000-0000-0000-000000000000"),
        *("{A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11}", "ffffffffffffffffffffffffffffffff"),
    ),
    "bytea": ("\\x", "\\x01", "\\x0102", "\\xDEADBEEF", "abc", "\\\\", "\\001\\377", "\\x00 ff"),
    "date": (
        *("2024-01-01", "2024-02-29", "1999-12-31", "2000-01-01", "0044-03-15 BC", "infinity", "-infinity", "epoch"),
        *("10000-01-01", "20240131", "Jan 8 1999", "2024-1-2", "4713-01-01 BC", "1900-03-01"),
    ),
    "time": ("00:00", "24:00:00", "12:34:56", "23:59:59.999999", "01:02:03.5", "04:05 PM", "23:59:60"),
    "timetz": ("00:00+00", "12:34:56+02", "12:34:56-05:30", "24:00:00+00", "01:02:03.5", "10:34:56Z"),
    "timestamp": (
        *("2024-01-01", "2024-02-29 12:34:56", "1999-12-31 23:59:59.999999", "0044-03-15 10:00 BC", "infinity"),
        *("-infinity", "2024-01-31T00:00:00Z", "epoch", "2024-03-31 02:30:00", "294276-12-31 23:59:59"),
    ),
    "timestamptz": (
        *("2024-01-01", "2024-02-29 12:34:56+02", "1999-12-31 23:59:59.999999Z", "0044-03-15 10:00+00 BC", "infinity"),
        *("-infinity", "2024-01-31T00:00:00-05:30", "epoch", "2024-03-31 02:30:00 Europe/Berlin"),
    ),
    "interval": (
        *("1 day", "24 hours", "1 month", "30 days", "P1Y2M3DT4H5M6S", "-1 day 2 hours", "0", "1.5 days", "1 year"),
        *(
            "-00:00:01",
            "1 mon -1 hour",
            "2 days ago",
            "PT0.000001S",
            "100 years",
            "infinity",
            "-infinity",
            "3 04:05:06",
        ),
    ),
    "jsonb": (
        *('{"a": 1}', '{"a": {"b": [1, 2, "x"]}}', "[1, 2, 3]", '["a", "b"]', '"a"', "1", "1.0", "null", "true", "{}"),
        *("[]", '{"a": null, "b": 2}', '{"a": "x", "long key": [{"a": 1.50}, {}]}', '[[1], ["a"]]', '{"": 1e2}'),
        *('"é\\n"', '{"b": 1, "a": 2, "a": 3}', '["null", null, -0.0]'),
    ),
    "json": ("{}", '{"a" : 1}', "[ 1 ]", "null"),
    "inet": (
        *_words("10.0.0.1 10.0.0.1/8 10.0.0.0/8 10.1.2.3/16 10.1.2.3 10.1.2.3/24 0.0.0.0/0 255.255.255.255 10/8"),
        *_words("10.1/16 192.168.0.0/31 ::1 :: ::/0 ::ffff:10.0.0.1 2001:db8::/32 2001:db8::1 2001:db8:0:1::1/64"),
        *_words("::1.2.3.4/96 2001:DB8:0:0:1:0:0:1/127"),
    ),
    "cidr": (
        *_words("10.0.0.0/8 10.1.0.0/16 10.1.2.3 10.1.2.0/24 10 10.1 192.168 0.0.0.0/0 224 240.1.1"),
        *_words("::1 ::/0 2001:db8::/32 2001:db8:0:1::/64 ::ffff:10.0.0.0/104"),
    ),
    "int4range": (
        *_words("empty [1,5) [1,5] (1,5) (0,6] [5,10) (,) [,1] (7,) [2,2] [2,2) (1,2) [-3,3) [100,2147483647) [3,3]"),
        *("[1,42]", "[ 1 , 10 ]", " EMPTY "),
    ),
    "int8range": _words("empty [1,5) (,100] [5,10) (,) [9007199254740993,9223372036854775807) (0,3) [7,)"),
    "numrange": (
        *_words("empty [1.5,2.5) [1.50,2.5] (1.5,2.50) (,) [0,1.5] (1.5,3] [-Infinity,0) [NaN,NaN] [2.5,Infinity]"),
        *_words('(2.5,Infinity) [1,100) [1.0,100.00) [2.5,) ["1.5","2"]'),
    ),
    "daterange": (
        *_words("empty [2024-01-01,2024-02-01) [2024-01-01,2024-01-31] (1999-12-31,2000-01-01] (,) [2024-01-31,)"),
        *_words("(-infinity,2000-01-01) [-infinity,infinity] (2024-01-31,infinity) [2024-02-29,infinity]"),
        *("[0044-03-15 BC,1900-03-01)", "(2023-12-31,2024-02-01)", "[10000-01-01,)"),
    ),
    "tsrange": (
        *("empty", '["2024-01-01 00:00:00","2024-02-29 12:34:56")', "[2024-01-01,2024-02-29 12:34:56]", "(,)"),
        *("(2024-02-29 12:34:56,2024-03-31]", "[1999-12-31 23:59:59.999999,2024-01-01]", "[2024-01-01,2024-01-01]"),
        *("(2024-01-31T00:00:00,infinity)", "[-infinity,2024-01-01)", "(,2024-02-29 12:34:56)"),
    ),
    "tstzrange": (
        *("empty", '["2024-01-01 00:00:00+00","2024-02-29 12:34:56+02")', "[2024-01-01,2024-02-29 10:34:56]", "(,)"),
        *("(2024-02-29 12:34:56+02,)", "[1999-12-31 23:59:59.999999Z,2024-01-01]"),
        "[2024-01-31T00:00:00-05:30,infinity]",
    ),
    "point": ("(1,2)", "(0,-0.5)"),
    ENUM.name: MOOD.labels,
}
_PATTERNS: Final = (
    "%",
    "a%",
    "%b",
    "%l%",
    "_",
    "__",
    "a_c",
    "hell\\%",
    "%\\_%",
    "É",
    "%É%",
    "%a%b%",
    "_%_",
    "",
    "\\\\",
    "σ%",
)
_REGULAR: Final = ("a", "^a", "b$", "a|b", "^[a-c]+$", "h.l+o", "[^a]", "\\d", "(ab)?c", "[[:space:]]", "l{2}", "A")
_ELEMENTS: Final = (
    *("int4", "int8", "text", "numeric", "float8", "bool", "date", "timestamptz", "interval", "uuid"),
    *("inet", "int4range"),
)


def quoted(text: str) -> str:
    """An SQL string literal."""
    return "'" + text.replace("'", "''") + "'"


def array_text(random: Random, element: str) -> str:
    """The text of an array, now and then with NULLs, dimensions or bounds."""

    def item() -> str:
        if random.random() < 0.15:
            return "NULL"
        return '"' + random.choice(VALUES[element]).replace("\\", "\\\\").replace('"', '\\"') + '"'

    shape = random.randrange(8)
    if shape == 0:
        return "{}"
    if shape == 1:
        return "{{" + item() + "," + item() + "},{" + item() + "," + item() + "}}"
    count = random.randrange(1, 4)
    body = "{" + ",".join(item() for _ in range(count)) + "}"
    return f"[{2}:{count + 1}]={body}" if shape == 2 else body


def row(random: Random) -> dict[str, str | None]:
    """A row of the oracle's table, as literals; about a fifth of it NULL."""
    values: dict[str, str | None] = {}
    for column in COLUMNS:
        type_ = type_of(column.type)
        if random.random() < 0.2:
            continue
        if type_.element is not None:
            values[column.name] = array_text(random, type_.element.name)
        elif column.type.kind == "d":
            values[column.name] = random.choice(("1", "2", "42"))
        else:
            name = "text" if type_.name not in VALUES else type_.name
            values[column.name] = random.choice(VALUES[name])
    return values


class Expressions:
    """Makes SQL expressions of wanted types, whose operands may be anything that gives such a type."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self._columns: dict[Type, list[str]] = {}
        for column in COLUMNS:
            self._columns.setdefault(type_of(column.type), []).append(f'"{column.name}"')
        self._by_result: dict[Type, list[tuple[str, bool, Overload]]] = {}
        for (name, _), overloads in OPERATORS.items():
            for overload in overloads:
                if isinstance(overload.result, Type) and name not in ("^", "~", "!~", "~*", "!~*"):
                    self._by_result.setdefault(overload.result, []).append((name, True, overload))
        for name, overloads in FUNCTIONS.items():
            for overload in overloads:
                if isinstance(overload.result, Type) and name not in (
                    "ilike",
                    "position",
                    "timezone",
                    "date_trunc",
                    "like_escape",
                ):
                    self._by_result.setdefault(overload.result, []).append((name, False, overload))

    def leaf(self, type_: Type) -> str:
        """A column or a constant."""
        random = self._random
        columns = self._columns.get(type_)
        if columns and random.random() < 0.6:
            return random.choice(columns)
        if random.random() < 0.08:
            return f"NULL::{self._sql(type_)}"
        return self.literal(type_)

    def _sql(self, type_: Type) -> str:
        return type_.sql

    def literal(self, type_: Type) -> str:
        """A typed constant."""
        random = self._random
        if type_.element is not None:
            return f"{quoted(array_text(random, type_.element.name))}::{self._sql(type_)}"
        text = random.choice(VALUES[type_.name])
        if (type_ in (INT4, INT8) and abs(int(text)) < 2**31 - 1) or (
            type_ is NUMERIC and text in ("1.5", "1e10", "0.0001")
        ):
            return f"({text})" if type_ is not INT8 else f"({text})::int8"
        if type_ is BOOL:
            return random.choice(("true", "false"))
        return f"{quoted(text)}::{self._sql(type_)}"

    def bare(self, type_: Type) -> str:
        """A constant whose type only its surroundings tell."""
        if type_.element is not None:
            return quoted(array_text(self._random, type_.element.name))
        return quoted(self._random.choice(VALUES[type_.name]))

    def of(self, type_: Type, depth: int) -> str:
        """An expression of this type."""
        random = self._random
        if depth <= 0 or random.random() < 0.15:
            return self.leaf(type_)
        if type_ is BOOL and random.random() < 0.75:
            return self.condition(depth)
        choice = random.randrange(10)
        if choice < 5 and type_ in self._by_result:
            return self.called(*random.choice(self._by_result[type_]), depth)
        if choice == 5:
            return f"COALESCE({self.of(type_, depth - 1)}, {self.of(type_, depth - 2)})"
        if choice == 6:
            return f"CASE WHEN {self.condition(depth - 1)} THEN {self.of(type_, depth - 1)} ELSE {self.leaf(type_)} END"
        if choice == 7 and type_.comparable:
            return f"NULLIF({self.of(type_, depth - 1)}, {self.leaf(type_)})"
        if choice == 8 and type_.ordered and type_ is not JSON:
            name = random.choice(("GREATEST", "LEAST"))
            return f"{name}({self.of(type_, depth - 1)}, {self.of(type_, depth - 1)}, {self.leaf(type_)})"
        if type_.element is not None:
            return self.array(type_, depth)
        if type_.name in _ELEMENTS and random.random() < 0.3:
            array = self.of(array_of(type_), depth - 1)
            index = self.of(INT4, depth - 2)
            return f"({array})[{index}]"
        source = random.choice([source for source in (*SCALARS, ENUM) if source is type_ or find(source, type_)])
        if source in (JSON, BPCHAR, NAME, VARCHAR) or type_ in (JSON, NAME, VARCHAR, JSONB, ENUM):
            return self.leaf(type_)
        return f"({self.of(source, depth - 1)})::{self._sql(type_)}"

    def array(self, type_: Type, depth: int) -> str:
        """An array by one of the ways that make arrays."""
        random = self._random
        assert type_.element is not None
        choice = random.randrange(6)
        inner = self.of(type_, depth - 1)
        if choice == 0:
            items = ", ".join(self.of(type_.element, depth - 2) for _ in range(random.randrange(1, 4)))
            return f"ARRAY[{items}]"
        if choice == 1:
            return f"({inner} || {self.of(type_, depth - 2)})"
        if choice == 2:
            return f"array_append({inner}, {self.of(type_.element, depth - 2)})"
        if choice == 3:
            return f"({self.of(type_.element, depth - 2)} || {inner})"
        if choice == 4:
            return f"({inner})[{random.choice(('1', '2', '', '-1'))}:{random.choice(('1', '2', '', '3'))}]"
        return f"array_cat({inner}, {self.leaf(type_)})"

    def called(self, name: str, is_operator: bool, overload: Overload, depth: int) -> str:
        """A call of this function, with arguments of its types."""
        random = self._random
        element = BY_NAME[random.choice(_ELEMENTS)]
        range_ = random.choice(RANGES)
        types: list[Type] = []
        for parameter in overload.parameters:
            if isinstance(parameter, Type):
                types.append(parameter)
            elif parameter == "anyenum":
                types.append(ENUM)
            elif parameter == "anyrange":
                types.append(range_)
            elif "anyrange" in overload.parameters:
                assert range_.subtype is not None
                types.append(range_.subtype)
            else:
                types.append(array_of(element) if parameter.endswith("array") and "non" not in parameter else element)
        if name in ("~~*", "!~~*") and types[0] is NAME:
            # To Postgres, names have letters of ASCII only; here as many as other texts.
            types[0] = TEXT
        arguments = [self.of(type_, depth - 1) for type_ in types]
        if is_operator and len(types) == 2 and random.random() < 0.3:
            place = random.randrange(2)
            if types[0] is types[1]:
                arguments[place] = self.bare(types[place])
        if name in ("~~", "~~*", "!~~", "!~~*") and random.random() < 0.9:
            arguments[1] = quoted(random.choice(_PATTERNS))
        if not is_operator:
            return f"{name}({', '.join(arguments)})"
        if len(arguments) == 1:
            return f"({name} {arguments[0]})"
        return f"({arguments[0]} {name} {arguments[1]})"

    def condition(self, depth: int) -> str:
        """A boolean expression, more often one with logic in it."""
        random = self._random
        if depth <= 0:
            return self.leaf(BOOL)
        type_ = random.choice([*SCALARS, ENUM, *(array_of(BY_NAME[name]) for name in _ELEMENTS)])
        if type_ in (JSON, NAME):
            type_ = TEXT
        ordered = type_ if type_ is not JSONB else INTERVAL
        match random.randrange(16):
            case 0:
                return f"({self.condition(depth - 1)} AND {self.condition(depth - 1)})"
            case 1:
                return f"({self.condition(depth - 1)} OR {self.condition(depth - 1)})"
            case 2:
                return f"(NOT {self.condition(depth - 1)})"
            case 3:
                return f"({self.of(type_, depth - 1)} IS {random.choice(('', 'NOT '))}NULL)"
            case 4:
                test = random.choice(("TRUE", "FALSE", "UNKNOWN"))
                return f"({self.condition(depth - 1)} IS {random.choice(('', 'NOT '))}{test})"
            case 5:
                negation = random.choice(("", "NOT "))
                return f"({self.of(type_, depth - 1)} IS {negation}DISTINCT FROM {self.of(type_, depth - 1)})"
            case 6:
                ends = [self.leaf(ordered), self.bare(ordered) if random.random() < 0.5 else self.leaf(ordered)]
                words = f"{random.choice(('', 'NOT '))}BETWEEN {random.choice(('', 'SYMMETRIC '))}"
                return f"({self.of(ordered, depth - 1)} {words}{ends[0]} AND {ends[1]})"
            case 7 | 8:
                items = [
                    random.choice((self.literal, self.bare, self.leaf))(type_) for _ in range(random.randrange(1, 5))
                ]
                if random.random() < 0.2:
                    items.append("NULL")
                return f"({self.of(type_, depth - 1)} {random.choice(('', 'NOT '))}IN ({', '.join(items)}))"
            case 9 | 10:
                element = BY_NAME[random.choice(_ELEMENTS)]
                array = random.choice((self.leaf, self.bare))(array_of(element))
                name = random.choice(("=", "<>", "<", ">="))
                return f"({self.of(element, depth - 1)} {name} {random.choice(('ANY', 'ALL'))} ({array}))"
            case 11:
                name = random.choice(("LIKE", "ILIKE", "NOT LIKE", "NOT ILIKE"))
                subject = self.of(random.choice((TEXT, VARCHAR, BPCHAR)), depth - 1)
                return f"({subject} {name} {quoted(random.choice(_PATTERNS))})"
            case 12:
                name = random.choice(("~", "!~", "~*", "!~*"))
                return f"({self.of(TEXT, depth - 1)} {name} {quoted(random.choice(_REGULAR))})"
            case 13:
                zone = random.choice(("UTC", "Europe/Berlin", "America/New_York"))
                stamp = random.choice((TIMESTAMP, TIMESTAMPTZ))
                other = TIMESTAMPTZ if stamp is TIMESTAMP else TIMESTAMP
                return f"(({self.leaf(stamp)} AT TIME ZONE '{zone}') < {self.leaf(other)})"
            case 14:
                unit = random.choice(("hour", "day", "week", "month", "quarter", "year", "decade", "century"))
                return f"(date_trunc('{unit}', {self.leaf(TIMESTAMP)}) = {self.leaf(TIMESTAMP)})"
        return self.called(*random.choice(self._by_result[BOOL]), depth)


def expression(random: Random, depth: int = 3) -> str:
    """A boolean expression over the oracle's table."""
    return Expressions(random).condition(depth)


__all__ = ["ENUM", "FLOAT8", "TIMETZ", "VALUES", "Expressions", "array_text", "expression", "quoted", "row"]

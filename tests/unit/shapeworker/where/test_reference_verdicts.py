"""The 165 verdicts of the reference's own evaluator (1.7.12): each the same here, or decided otherwise for a reason.

A line of the file is a clause, the row, and what came out: a value, or an error.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import pytest

from shapeworker.where import Column, ColumnType, EvaluationError, InvalidWhere, compile_where
from shapeworker.where.compile import constant_value, value_program

_TYPES: Final = {
    "i": "int4", "l": "int8", "n": "numeric", "f": "float8", "t": "text", "b": "bool", "d": "date", "ts": "timestamp",
    "tz": "timestamptz", "tm": "time", "iv": "interval", "u": "uuid", "j": "jsonb", "by": "bytea", "bp": "bpchar",
}  # fmt: skip
COLUMNS: Final = (
    *(Column(name, place, ColumnType("pg_catalog", type_)) for place, (name, type_) in enumerate(_TYPES.items())),
    Column("a", len(_TYPES), ColumnType("pg_catalog", "_int4", "a", element=ColumnType("pg_catalog", "int4"))),
    Column("e", len(_TYPES) + 1, ColumnType("public", "mood", "e", labels=("sad", "ok", "happy"))),
)
PARAMETERS: Final = {
    "i = $1 AND t = $1": ("1",),
    "l = $1 AND i = $1": ("1",),
    "i = $1": ("abc",),
    "$1": ("true",),
    "$1::bool": ("true",),
    "i = $2": ("1",),
    "t = $1": ("o'x",),
    "t = 'x' AND i = $1": ("1",),
}

NOT_YET: Final = "subqueries are not supported yet"

# What the verdict is here, where it is another one; numbers are those of the register (where-and-subqueries.md 23). A
# text is that of the error, without its place.
DECIDED: Final[dict[str, bool | str | None]] = {
    # 1: <> and ordering for every type that has an order
    "d <> '2024-01-01'": True,
    "d IS DISTINCT FROM '2024-01-01'": True,
    "e < e": False,
    "b < true": False,
    "iv > '1 day'": True,
    # 2: number literals of any size and form
    "l = 10000000000": True,
    "n > 1e5": True,
    "n = .5": True,
    "f = 100000000000000000000": True,
    "l > 2147483648": False,
    # 3: NULLs and dimensions in ANY and ALL
    "i = ANY('{1,NULL}')": None,
    "i < ANY('{NULL}')": None,
    "i <> ALL('{1,NULL}')": None,
    "i = ANY('{{1,2},{3,4}}')": False,
    "NOT (i = ANY('{1,NULL}'))": None,
    # 4: LIKE and ILIKE
    "t LIKE 'hell\\%'": True,
    "t LIKE 'a%b'": True,
    "t LIKE 'abc'": False,
    "t LIKE '_'": True,
    "t ILIKE 'É'": True,
    # 5: values that rows may hold
    "n > 5.5": True,
    "a = '{1,2}'": False,
    "tm > '10:00:00'": True,
    "d = 'infinity'": True,
    "f > 1": True,
    "f = 'NaN'": True,
    "tz > '2024-01-01 00:00:00+00' {'tz': 'infinity'}": True,
    # 6: jsonb and bytea
    "j IS NOT NULL": True,
    "j = '{}'": True,
    "by = '\\x01'": True,
    "by IS NULL": False,
    # 7: exact numeric
    "n = 12345678901234567890.5": False,
    "l = '9007199254740993'::numeric": False,
    "l = 9007199254740993.0": False,
    # 8: blanks at the end of char(n)
    "bp = 'ab'": True,
    # 9: texts as Postgres prints them
    "b::text = 'true'": True,
    "ts::text = '2024-01-01 00:00:00'": True,
    "n::text = '1.50'": True,
    "n::text = '1.5'": False,
    # 10: intervals by their length
    "iv = '24 hours'": True,
    # 11: enums
    "e = 'happy'": True,
    "e = e": True,
    # 12: casts
    "n::int4 = 1": True,
    "l::int4 = 1": True,
    "t::numeric = 1": True,
    "tz::text = 'x'": False,
    "i = 1::smallint": True,
    "i::bool": True,
    "t::int4 = 1": "invalid input syntax for type int4",
    # literals in all usual forms (section 4)
    "b = 'yes'": True,
    "tz > '2024-01-01'": True,
    "ts > '2024-01-01'": True,
    "tm > '10:00'": True,
    "d > '2024-1-1'": True,
    "timestamptz '2024-01-01' < tz": True,
    # 15, 16: what is not a clause
    "$1": "WHERE clause must return a boolean",
    "i = 1 UNION SELECT 2": "malformed query ending with SQL clauses",
    "i = 1 LIMIT 1": "malformed query ending with SQL clauses",
    "i": "WHERE clause must return a boolean",
    "NULL": "WHERE clause must return a boolean",
    # 19: the left side of OR decides; errors have Postgres' reasons
    "i / 0 = 1": "division by zero",
    "n = 1 OR n / 0 = 1": True,
    # 24 and additions of issue 4
    "i % 2 = 0": True,
    "t || 1 = 'a1'": True,
    "t ~ 'a'": True,
    "t LIKE 'a!%' ESCAPE '!'": True,
    "length(t) = 1": True,
    "CASE WHEN b THEN true ELSE false END": True,
    "nullif(i,1) IS NULL": True,
    "array_length(a,1) = 2": True,
    "tm - interval '1 hour' > '01:00:00'": True,
    "array_append(a,3) @> '{3}'": True,
    # letters have one counterpart in the other case, on every database
    "upper(t) = 'STRASSE'": False,
    # refused too, for a reason that is nearer
    "t SIMILAR TO 'a'": 'expression "~" of :AEXPR_SIMILAR is not currently supported',
    "(i, l) = (1, 2)": "RowExpr is not supported in this context",
    "(i, l) IN ((1, 2))": "RowExpr is not supported in this context",
    "ROW(i) = ROW(1)": "RowExpr is not supported in this context",
    # subqueries come later
    "i IN (SELECT id FROM dep)": "subqueries are not supported yet",
    "i NOT IN (SELECT id FROM dep)": "subqueries are not supported yet",
    "l IN (SELECT id FROM dep)": "subqueries are not supported yet",
    "i + 1 IN (SELECT id FROM dep)": "subqueries are not supported yet",
    "i IN (SELECT id FROM dep) AND NOT (t = 'a')": "subqueries are not supported yet",
    "i IN (SELECT id FROM dep) OR (t = 'a' AND b)": "subqueries are not supported yet",
    "t IN ('a','b') AND i IN (SELECT id FROM dep)": "subqueries are not supported yet",
    "i IN (SELECT id FROM dep LIMIT 5)": "subqueries are not supported yet",
}


def lines() -> list[tuple[str, dict[str, str | None], str]]:
    """Clause, row and outcome of each line."""
    found = []
    for line in (Path(__file__).parent / "evaluation-1.7.12.txt").read_text().splitlines():
        match = re.fullmatch(r"(.*?)  \[(.*?)\] => (\{.*\})", line)
        assert match is not None, line
        clause, record, outcome = match.groups()
        values = dict(re.findall(r'"(\w+)"=>(nil|"(?:[^"\\]|\\.)*")', record))
        row = {name: None if text == "nil" else _unescaped(text) for name, text in values.items()}
        found.append((clause, row, outcome))
    return found


def _unescaped(text: str) -> str:
    escapes = {"n": "\n", "t": "\t"}
    return re.sub(r"\\(.)", lambda match: escapes.get(match[1], match[1]), text[1:-1])


def verdict(clause: str, row: dict[str, str | None]) -> bool | str | None:
    """Ours: the value, or the error's text."""
    values = PARAMETERS.get(clause, ())
    try:
        filter_ = compile_where(clause, {str(n): v for n, v in enumerate(values, 1)}, COLUMNS)
    except InvalidWhere as error:
        return error.message
    texts: list[bytes | None] = [None] * len(COLUMNS)
    for column in COLUMNS:
        text = row.get(column.name)
        texts[column.position] = None if text is None else text.encode()
    try:
        value: bool | None = value_program(filter_.tree).bound(constant_value)(texts)
        assert filter_.predicate(texts) is (value is True)
    except EvaluationError as error:
        return str(error)
    return value


def reference(outcome: str) -> bool | str | None:
    """The reference's: the value, or the error's text."""
    if match := re.match(r"\{\{:ok, (true|false|nil)\}", outcome):
        return {"true": True, "false": False, "nil": None}[match[1]]
    if match := re.match(r'\{:ERR, "(.*)"\}', outcome):
        return match[1].replace('\\"', '"')
    return outcome


def unplaced(text: bool | str | None) -> bool | str | None:
    """An error without its place."""
    return re.sub(r"^At location \d+: ", "", text) if isinstance(text, str) else text


@pytest.mark.parametrize(("clause", "row", "outcome"), lines())
def test_verdict(clause: str, row: dict[str, str | None], outcome: str) -> None:
    ours = verdict(clause, row)
    key = f"{clause} {row}" if f"{clause} {row}" in DECIDED else clause
    if key in DECIDED:
        assert unplaced(ours) == DECIDED[key]
        assert ours != reference(outcome), "it is the reference's"
    else:
        assert ours == reference(outcome)


def test_all_are_there() -> None:
    assert len(lines()) == 165

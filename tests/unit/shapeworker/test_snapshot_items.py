"""Items of COPY's rows, against JSON made value by value.

tests/pipeline/test_type_agreement.py has the server's COPY.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.table import Column, Table
from shapeworker.snapshot_items import SnapshotItems
from shapeworker.snapshot_query import read_columns

INT4, TEXT, BOOL = 23, 25, 16

_ESCAPES = str.maketrans({"\\": "\\\\", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\v": "\\v"})
"""What COPY TO escapes in text format."""

ODD = st.text(st.sampled_from('\\\\"/N/nvtx\b\f\n\r\t\v\x01\x02\x1f\x7f\u2028é日🎉,:{}%_ '), max_size=8)
VALUES = st.none() | ODD | st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12)


def column(name: str, base: int = TEXT, key: int | None = None, number: int = 1) -> Column:
    return Column(name, number, base, "x", -1, base, False, key, "", 0)


def row(values: list[str | None]) -> bytes:
    """As COPY sends it."""
    return ("\t".join("\\N" if value is None else value.translate(_ESCAPES) for value in values) + "\n").encode()


def expected(table: Table, selected: list[str], values: dict[str, str | None]) -> dict[str, Any]:
    """http-api.md 14.3, 14.4."""

    def section(value: str | None) -> str:
        return "_" if value is None else '"' + value.replace("/", "//") + '"'

    keys = sorted((c.key_index, c.name) for c in table.columns if c.key_index is not None)
    names = [name for _, name in keys] or [c.name for c in table.columns]
    return {
        "key": "/".join(['"s"."t"', *(section(values[name]) for name in names)]),
        "value": {name: values[name] for name in sorted(selected)},
        "headers": {"operation": "insert", "relation": ["s", "t"]},
    }


@given(st.lists(st.tuples(VALUES, VALUES, VALUES, VALUES), max_size=5), st.sampled_from([(), ("b",), ("c", "a")]))
def test_items_are_what_the_rows_say(rows: list[tuple[str | None, ...]], key: tuple[str, ...]) -> None:
    names = ["c", "a", 'quo"te\\N', "b"]
    columns = [column(name, key=key.index(name) if name in key else None) for name in names]
    table = Table(1, "s", "t", "r", "p", tuple(columns))
    values = [dict(zip(names, texts, strict=True)) for texts in rows]
    for known in values:
        known |= {name: known[name] or "" for name in key}
    order = read_columns(table, names)
    made = SnapshotItems(table, names).of([row([known[name] for name in order]) for known in values])
    lines = made.split(b",\n")
    assert lines.pop() == b""
    assert b"\n" not in b"".join(lines)
    assert [json.loads(line) for line in lines] == [expected(table, names, known) for known in values]


def test_bytes_of_an_item() -> None:
    table = Table(1, "s", "t", "r", "p", (column("id", INT4, 0), column("b", BOOL), column("hidden")))
    items = SnapshotItems(table, ["id", "b"], ',"snapshot_mark":7', b",")
    assert items.of([b"true\t1\n", b"\\N\t2\n"]) == (
        b'{"key":"\\"s\\".\\"t\\"/\\"1\\"","value":{"b":"true","id":"1"},'
        b'"headers":{"operation":"insert","relation":["s","t"],"snapshot_mark":7}},'
        b'{"key":"\\"s\\".\\"t\\"/\\"2\\"","value":{"b":null,"id":"2"},'
        b'"headers":{"operation":"insert","relation":["s","t"],"snapshot_mark":7}},'
    )
    assert items.of([]) == b""


@pytest.mark.parametrize("text", ["\\N", "\\", '"', '"\\N"', "\v", "\\v", "\\\\N", "\x01", "\\\x01", "N", ""])
def test_what_could_be_taken_for_something_else(text: str) -> None:
    table = Table(1, "s", "t", "r", "p", (column("a"), column("b")))
    made = SnapshotItems(table, ["a", "b"]).of([row([text, None]), row([None, text])])
    assert [json.loads(line)["value"] for line in made.split(b",\n")[:-1]] == [
        {"a": text, "b": None},
        {"a": None, "b": text},
    ]

"""The SQL of snapshots. That its rows agree with the stream is the matter of tests/pipeline/test_type_agreement.py."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import msgspec
import psycopg
import pytest
from psycopg import sql

from common.table import Table, describe
from shapeworker.snapshot_query import copy_statement, row_expression


async def read(
    url: str, setup: Sequence[str], name: str, selected: Sequence[str], condition: sql.Composable | None = None
) -> list[Any]:
    """The items that the statement gives, in any order."""
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        for statement in setup:
            await connection.execute(statement.encode())
        table = await describe(connection, "public", name)
        assert table is not None
        async with connection.cursor() as cursor, cursor.copy(copy_statement(table, selected, condition)) as copy:
            copy.set_types(["text"])
            return [json.loads(row[0]) async for row in copy.rows()]


async def test_only_selected_columns_are_read(database: str) -> None:
    setup = [
        "CREATE TABLE t (id int PRIMARY KEY, a text, b text)",
        "INSERT INTO t VALUES (1, 'x', 'y'), (2, NULL, 'y')",
    ]
    items = await read(database, setup, "t", ("id", "a"))
    assert sorted(items, key=lambda item: item["key"]) == [
        {
            "key": f'"public"."t"/"{number}"',
            "value": {"a": value, "id": number},
            "headers": {"operation": "insert", "relation": ["public", "t"]},
        }
        for number, value in (("1", "x"), ("2", None))
    ]


async def test_condition_chooses_rows(database: str) -> None:
    setup = ["CREATE TABLE t (id int PRIMARY KEY, a text)", "INSERT INTO t SELECT i, i FROM generate_series(1, 9) i"]
    condition = sql.SQL("a = {} OR id > 8").format(sql.Literal("3"))
    assert {item["value"]["id"] for item in await read(database, setup, "t", ("id",), condition)} == {"3", "9"}


async def test_lines_have_no_raw_newline(database: str) -> None:
    setup = ['CREATE TABLE t (id int PRIMARY KEY, "a\n" text)', "INSERT INTO t VALUES (1, E'x\\n\\ry')"]
    async with await psycopg.AsyncConnection.connect(database, autocommit=True) as connection:
        for statement in setup:
            await connection.execute(statement.encode())
        table = await describe(connection, "public", "t")
        assert table is not None
        query = sql.SQL("SELECT {} FROM t").format(row_expression(table, ("id", "a\n")))
        cursor = await connection.execute(query)
        row = await cursor.fetchone()
    assert row is not None
    assert row[0].isprintable()
    assert json.loads(row[0])["value"] == {"a\n": "x\n\ry", "id": "1"}


async def test_null_in_an_invalid_not_null_column_is_no_lost_row(database: str) -> None:
    """Postgres 18 lets a constraint be added without looking at the rows that are there."""
    async with await psycopg.AsyncConnection.connect(database) as connection:
        if connection.info.server_version < 180000:
            pytest.skip("needs Postgres 18")
    setup = [
        "CREATE TABLE t (id int PRIMARY KEY, a int, b text)",
        "INSERT INTO t VALUES (1, NULL, NULL)",
        "ALTER TABLE t ADD CONSTRAINT later NOT NULL a NOT VALID",
    ]
    (item,) = await read(database, setup, "t", ("id", "a", "b"))
    assert item["value"] == {"a": None, "b": None, "id": "1"}


def wide(columns: int) -> Table:
    names = [f'c"{n}' for n in range(columns)]
    facts = {"type_oid": 25, "type_name": "text", "type_mod": -1, "base_oid": 25, "not_null": False, "generated": ""}
    described = [{"name": name, "attnum": n, "key_index": None, "dims": 0, **facts} for n, name in enumerate(names, 1)]
    return msgspec.convert(
        {"oid": 1, "schema": "s", "name": 't"', "kind": "r", "persistence": "p", "columns": described}, Table
    )


def depth(text: str) -> int:
    deepest = level = 0
    for character in text:
        level += (character == "(") - (character == ")")
        deepest = max(deepest, level)
    return deepest


def test_the_expression_stays_flat_however_wide_the_table() -> None:
    table = wide(1600)
    text = row_expression(table, [column.name for column in table.columns]).as_string()
    assert depth(text) < 40


def test_names_are_quoted() -> None:
    statement = copy_statement(wide(1), ['c"0']).decode()
    assert 'FROM ONLY "s"."t"""' in statement
    assert '"c""0"' in statement
    assert statement.startswith("COPY (SELECT ")
    assert statement.endswith(") TO STDOUT (FORMAT binary)")

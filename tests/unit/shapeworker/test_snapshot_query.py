"""The SQL of snapshots, and what is made of its rows.

That these agree with the stream is the matter of tests/pipeline/test_type_agreement.py.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import psycopg
import pytest
from psycopg import sql

from common.table import Column, Table, describe
from shapeworker.snapshot_items import SnapshotItems
from shapeworker.snapshot_query import copy_statement


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
            items = SnapshotItems(table, selected).of([bytes(row) async for row in copy])
            return [json.loads(item) for item in items.split(b",\n")[:-1]]


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


def test_names_are_quoted() -> None:
    column = Column('c"0', 1, 25, "text", -1, 25, False, None, "", 0)
    table = Table(1, "s", 't"', "r", "p", (column,))
    assert copy_statement(table, ['c"0']) == b'COPY (SELECT "c""0" FROM ONLY "s"."t""") TO STDOUT'


async def test_as_many_columns_as_a_table_can_have(database: str) -> None:
    names = [f"c{number:04}" for number in range(1600)]
    setup = [f"CREATE TABLE t ({', '.join(f'{name} int2' for name in names)})", "INSERT INTO t (c0001) VALUES (7)"]
    (item,) = await read(database, setup, "t", names)
    assert item["value"] == dict.fromkeys(names) | {"c0001": "7"}
    assert item["key"] == '"public"."t"/_/"7"' + "/_" * 1598

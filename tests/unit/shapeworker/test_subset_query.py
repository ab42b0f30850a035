"""The SQL of subsets: whole, and of nothing but what was understood."""

from __future__ import annotations

import pytest
from psycopg import sql

from common.subset import SubsetRequest
from common.table import Column, Table, TypeFacts
from shapeworker.subset_query import InvalidSubset, Selection, subset_statement, understand
from shapeworker.where.ordering import SortKey

TABLE = Table(
    oid=5,
    schema="public",
    name="t",
    kind="r",
    persistence="p",
    columns=(
        Column("id", 1, 23, "int4", -1, 23, True, 0, "", 0, (TypeFacts("pg_catalog", "int4", "b"),)),
        Column("v", 2, 25, "text", -1, 25, False, None, "", 0, (TypeFacts("pg_catalog", "text", "b"),)),
    ),
)


def _after_from(statement: bytes) -> str:
    return statement.decode().rsplit(" FROM ", 1)[1]


def test_conditions_stay_apart_whatever_is_in_them() -> None:
    selection = Selection(sql.SQL("c OR d"), (), None, None)
    statement = subset_statement(TABLE, ["id"], sql.SQL("a OR b"), selection)
    assert _after_from(statement) == 'ONLY "public"."t" WHERE (a OR b) AND (c OR d)) TO STDOUT'
    alone = subset_statement(TABLE, ["id"], None, selection)
    assert _after_from(alone) == 'ONLY "public"."t" WHERE (c OR d)) TO STDOUT'


def test_order_and_limits_come_last() -> None:
    selection = Selection(None, (SortKey("v", " DESC NULLS LAST"), SortKey("id", "")), 5, 10)
    assert _after_from(subset_statement(TABLE, ["id"], None, selection)) == (
        'ONLY "public"."t" ORDER BY "public"."t"."v" DESC NULLS LAST, "public"."t"."id" LIMIT 5 OFFSET 10) TO STDOUT'
    )


def test_what_is_asked_for_is_understood_against_the_table() -> None:
    asked = SubsetRequest(where="id = $1", params={"1": "5"}, order_by="v, 1", limit=3)
    selection = understand(TABLE, asked)
    assert selection.condition is not None
    assert (selection.order, selection.limit, selection.offset) == ((SortKey("v", ""),), 3, None)
    assert understand(TABLE, SubsetRequest()) == Selection(None, (), None, None)


@pytest.mark.parametrize(
    ("subset", "field", "message"),
    [
        ({"where": "zz"}, "where", "At location 0: unknown reference zz"),
        ({"where": "id = $1"}, "where", "At location 5: parameter $1 was not provided"),
        ({"where": "id = 1", "params": {"a": "1"}}, "params", "Parameters can only use numbers as keys"),
        ({"where": "id IN (SELECT id FROM t)"}, "where", "Subqueries are not allowed in subsets"),
        ({"where": "id = 1 OR NOT (v = 'x' AND id IN (SELECT 1))"}, "where", "Subqueries are not allowed in subsets"),
        ({"where": "id"}, "where", "WHERE clause must return a boolean"),
        ({"where": "v = 'x'", "queryable": ("id",)}, "where", "At location 0: unknown reference v"),
        ({"order_by": "v", "queryable": ("id",)}, "order_by", "At location 18: unknown reference v"),
        ({"order_by": "id; SELECT 1"}, "order_by", "Unexpected `;` in order by"),
        ({"where": "id = 1) OR (true"}, "where", 'At location 21: syntax error at or near ")"'),
    ],
)
def test_what_is_not_is_told(subset: dict[str, object], field: str, message: str) -> None:
    with pytest.raises(InvalidSubset) as caught:
        understand(TABLE, SubsetRequest(**subset))  # type: ignore[arg-type]
    assert (caught.value.field, caught.value.message) == (field, message)

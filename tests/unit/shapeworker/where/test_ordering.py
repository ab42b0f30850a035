"""ORDER BY of subsets: what is let in, and that nothing else ever is (http-api.md 18.4)."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shapeworker.where.errors import InvalidWhere
from shapeworker.where.ordering import SortKey, parse_ordering

COLUMNS = {"id", "n", "Title", 'we"ird', "select"}


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("id", [("id", "")]),
        (" ID ", [("id", "")]),
        ('id asc, "Title" DESC NULLS LAST', [("id", " ASC"), ("Title", " DESC NULLS LAST")]),
        ("n NULLS FIRST", [("n", " NULLS FIRST")]),
        ('"we""ird" desc', [('we"ird', " DESC")]),
        ('("select")', [("select", "")]),
        ("n -- a comment\n, id /* another; one */ desc", [("n", ""), ("id", " DESC")]),
        ("1, -1, 'x', NULL, true, 1.5", []),
        ("1 DESC, n", [("n", "")]),
        ("n, id, n DESC", [("n", ""), ("id", "")]),
    ],
)
def test_columns_are_let_in(text: str, keys: list[tuple[str, str]]) -> None:
    assert parse_ordering(text, COLUMNS) == tuple(SortKey(*key) for key in keys)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nope", "At location 18: unknown reference nope"),
        ("id, nope DESC", "At location 22: unknown reference nope"),
        ("Title", "At location 18: unknown reference title"),
        ('"No Such"', 'At location 18: unknown reference "No Such"'),
        ("t.id", "At location 18: unknown reference t.id"),
        ("t.*", "At location 18: unknown reference t.*"),
        ("lower(n)", "At location 18: FuncCall expressions are not allowed in ORDER BY clauses"),
        ("pg_sleep(10)", "At location 18: FuncCall expressions are not allowed in ORDER BY clauses"),
        ("id::text", "At location 20: TypeCast expressions are not allowed in ORDER BY clauses"),
        ("(SELECT 1)", "At location 18: SubLink expressions are not allowed in ORDER BY clauses"),
        ("(SELECT secret FROM x)", "At location 18: SubLink expressions are not allowed in ORDER BY clauses"),
        ("CASE WHEN id > 1 THEN n END", "At location 18: CaseExpr expressions are not allowed in ORDER BY clauses"),
        ("id + 1", "At location 21: A_Expr expressions are not allowed in ORDER BY clauses"),
        ('n COLLATE "C"', "At location 20: CollateClause expressions are not allowed in ORDER BY clauses"),
        ("current_user", "At location 18: SQLValueFunction expressions are not allowed in ORDER BY clauses"),
        ("id USING <", "At location 18: USING operators are not allowed in ORDER BY clauses"),
        ("$1", "At location 18: parameter $1 is not supported in ORDER BY clauses"),
        ("id; DROP TABLE x", "Unexpected `;` in order by"),
        ("id;", "Unexpected `;` in order by"),
        ("id LIMIT 1", "malformed query ending with SQL clauses"),
        ("id OFFSET 1 ROWS", "malformed query ending with SQL clauses"),
        ("id FOR UPDATE", "malformed query ending with SQL clauses"),
        ("id FETCH FIRST ROW WITH TIES", "malformed query ending with SQL clauses"),
        ("id UNION SELECT 1", 'At location 21: syntax error at or near "union"'),
        ("id INTO x", 'At location 21: syntax error at or near "into"'),
        ("id,", "At location 21: syntax error at end of input"),
        ("id) TO '/tmp/x'", 'At location 20: syntax error at or near ")"'),
        ("id\0", "the order by clause contains a zero byte"),
        ("id\ud800", "the order by clause is not valid Unicode"),
    ],
)
def test_everything_else_is_refused_by_name(text: str, message: str) -> None:
    with pytest.raises(InvalidWhere) as caught:
        parse_ordering(text, COLUMNS)
    assert caught.value.message.lower() == message.lower()


@pytest.mark.parametrize(
    "text", ["id," * 30_000 + "id", "(" * 60_000 + "id" + ")" * 60_000, "-" * 60_000 + "1", "NOT " * 15_000 + "id"]
)
def test_hostile_texts_are_refused_or_understood(text: str) -> None:
    try:
        found = parse_ordering(text, COLUMNS)
    except InvalidWhere:
        return
    assert found in ((), (SortKey("id", ""),))


_PIECES = st.sampled_from(
    ["id", "n", '"Title"', ",", " ", "desc", "nulls first", "(", ")", "'", '"', ";", "--", "/*", "*/", "1", "$1", ".",
     "select", "limit", "union", "::text", "lower(n)", "E'\\''", "$$", "\n", "collate", "using <", "é"]
)  # fmt: skip


@settings(deadline=None)
@given(st.lists(_PIECES, max_size=8).map("".join) | st.text(max_size=20))
def test_whatever_is_sent_only_known_columns_and_directions_come_out(text: str) -> None:
    try:
        found = parse_ordering(text, COLUMNS)
    except InvalidWhere:
        return
    for column, direction in found:
        assert column in COLUMNS
        assert direction.replace(" NULLS FIRST", "").replace(" NULLS LAST", "") in ("", " ASC", " DESC")

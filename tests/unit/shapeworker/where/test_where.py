"""The face of the package: filters, their parameters, their texts, and what clients are told."""

from __future__ import annotations

import pytest

from shapeworker.where import Column, ColumnType, EvaluationError, InvalidWhere, compile_where
from shapeworker.where.compile import predicate_program
from shapeworker.where.types import JSON, type_of
from tests.unit.shapeworker.where.expressions import VALUES
from tests.unit.shapeworker.where.oracle import BY_NAME, COLUMNS
from tests.unit.shapeworker.where.test_hostile import row


def canonical(text: str, *params: str) -> str:
    return compile_where(text, {str(n): v for n, v in enumerate(params, 1)}, COLUMNS).canonical


def error(text: str, *params: str) -> str:
    with pytest.raises(InvalidWhere) as raised:
        canonical(text, *params)
    return raised.value.message


@pytest.mark.parametrize("column", [c for c in COLUMNS if type_of(c.type).name in VALUES], ids=lambda c: c.name)
def test_a_parameter_is_the_literal_of_the_same_text(column: Column) -> None:
    if not type_of(column.type).comparable:
        pytest.skip(f"{JSON} has no equality")
    for value in VALUES[type_of(column.type).name]:
        quoted = value.replace("'", "''")
        try:
            literal = compile_where(f"{column.name} = '{quoted}'", {}, COLUMNS)
        except InvalidWhere:
            with pytest.raises(InvalidWhere):
                compile_where(f"{column.name} = $1", {"1": value}, COLUMNS)
            continue
        parameter = compile_where(f"{column.name} = $1", {"1": value}, COLUMNS)
        assert parameter.canonical == literal.canonical
        assert parameter.sql == literal.sql
        for other in VALUES[type_of(column.type).name][:6]:
            cells = row(**{column.name: other.encode()})
            try:
                expected = literal.predicate(cells)
            except (ValueError, ArithmeticError, AssertionError, LookupError):
                # Not all of these are as Postgres would print them.
                continue
            assert parameter.predicate(cells) == expected


def test_parameters_take_part_in_constants() -> None:
    filter_ = compile_where("i4 IN ($1, $2::int4 + 1) AND t = upper($3)", {"1": "5", "2": "6", "3": "x"}, COLUMNS)
    assert filter_.canonical == """(("i4" = ANY ('{5,7}'::int4[])) AND ("t" = 'X'::text))"""
    assert filter_.predicate(row(i4=b"7", t=b"X")) is True
    assert filter_.predicate(row(i4=b"6", t=b"X")) is False


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"a": "1"}, "Parameters can only use numbers as keys"),
        ({"2": "1"}, "Parameters must be numbered sequentially, starting from 1"),
        ({"1": "1", "3": "1"}, "Parameters must be numbered sequentially, starting from 1"),
        ({"1": "a\0"}, "parameter $1 is not a valid text"),
        ({"-1": "1"}, "Parameters can only use numbers as keys"),
        ({"0": "1"}, "Parameters must be numbered sequentially, starting from 1"),
    ],
)
def test_wrong_parameters(params: dict[str, str], message: str) -> None:
    with pytest.raises(InvalidWhere) as raised:
        compile_where("i4 = 1", params, COLUMNS)
    assert (raised.value.message, raised.value.field) == (message, "params")


def test_equal_filters_have_equal_texts() -> None:
    assert canonical("i4=5") == canonical(" i4  =  5 -- so") == canonical("i4 = '5'") == canonical("i4 = $1", "5")
    assert canonical("i4 = 2 + 3") == canonical("(i4 = 5)")
    assert canonical("b AND (c AND i4 = 1)") == canonical("b AND c AND i4 = 1")
    assert canonical("ts > '2024-01-01'") == canonical("ts > '2024-01-01T00:00:00'")


def test_different_filters_have_different_texts() -> None:
    texts = [
        *("i4 = 5", "i8 = 5", "i4 = 6", "i4 <> 5", "i4 = 5 AND b", "i4 = 5 OR b"),
        *("n = 1.5", "n = 1.50", "t = 'a'", "t = 'A'"),
        *(
            "b AND c OR b",
            "b AND (c OR b)",
            "t LIKE 'a'",
            "t ILIKE 'a'",
            "t ~ 'a'",
            "ai[1] = 1",
            "ai[1:1] = '{1}'",
            "f4 = 1",
        ),
        *("t = 'a'' OR ''b'", "t = 'a' OR t = 'b'", "NOT (b AND c)", "NOT b AND c", "b IS TRUE", "b IS NOT FALSE"),
    ]
    assert len({canonical(text) for text in texts}) == len(texts)


def test_columns_are_those_that_matter() -> None:
    assert compile_where("i4 = 1 AND (t LIKE 'x' OR d IS NULL)", {}, COLUMNS).columns == {"i4", "t", "d"}
    # What cannot be reached is not looked at.
    assert compile_where("i4 = 1 OR (false AND t = 'x')", {}, COLUMNS).columns == {"i4"}


def test_clauses_that_differ_in_constants_share_their_code() -> None:
    programs = [
        predicate_program(compile_where(text, {}, COLUMNS).tree)
        for text in ("i4 = 5 AND t LIKE 'a%'", "j4 = 7 AND s LIKE '%b'", "i4 = 7 AND t LIKE '_'")
    ]
    first, other_columns, third = programs
    assert first.factory is third.factory
    assert first.source.count("row[") == other_columns.source.count("row[")


def test_places_are_bytes_of_the_clients_text() -> None:
    assert error("t = 'é' AND zz = 1") == "At location 13: unknown reference zz"
    assert error('"Zz Y" = 1') == 'At location 0: unknown reference "Zz Y"'
    assert error("i4 = $1", "abc") == "At location 5: invalid syntax for type int4: abc"
    assert error("i4 + t > 1") == "At location 3: Could not select an operator overload"
    assert error("i4 = 1 +") == "At location 23: syntax error at end of input"
    assert error("concat(d, foo(i4)) = ''") == "At location 10: unknown or unsupported function foo/1"
    assert error("i4 / 0 > 1 OR 1 / 0 = 1").startswith("At location 16: Failed to apply function to constant arguments")


def test_nondeterministic_collations_allow_null_tests_only() -> None:
    columns = (Column("x", 0, ColumnType("pg_catalog", "text"), deterministic=False),)
    assert compile_where("x IS NOT NULL", {}, columns).predicate([b""]) is True
    for text in ("x = 'a'", "x || '' = 'a'", "x LIKE 'a'", "coalesce(x, '') IS NULL"):
        with pytest.raises(InvalidWhere, match="nondeterministic collation"):
            compile_where(text, {}, columns)


def test_types_beyond_the_language_have_null_tests() -> None:
    assert compile_where("pt IS NULL", {}, COLUMNS).predicate(row(pt=b"(1,2)")) is False
    assert "overload" in error("pt = '(1,2)'")
    assert "unknown cast" in error("pt::text = ''")
    # A type of somebody else's with the name of one that is known.
    columns = (Column("x", 0, ColumnType("public", "text")),)
    with pytest.raises(InvalidWhere):
        compile_where("x = 'a'", {}, columns)


def test_a_label_that_is_newer_than_the_shape() -> None:
    assert compile_where("mo = 'ok'", {}, COLUMNS).predicate(row(mo=b"new")) is False
    with pytest.raises(EvaluationError, match='a label of enum "mood"'):
        compile_where("mo > 'ok'", {}, COLUMNS).predicate(row(mo=b"new"))


def test_sql_quotes_names_and_values() -> None:
    columns = (Column('we"ird', 0, ColumnType("pg_catalog", "text")),)
    filter_ = compile_where('"we""ird" = $1', {"1": "o'x\\{}%s"}, columns)
    assert filter_.sql.as_string(None) == """("we""ird" = 'o''x\\{}%s'::text)"""
    assert filter_.predicate([b"o'x\\{}%s"]) is True


def test_rows_are_not_parsed_where_their_text_decides() -> None:
    text = "i4 = 5 AND t > 'a' AND d IN ('2024-01-01', '2024-01-02') AND u <> 'a0eebc999c0b4ef8bb6d6bb9bd380a11'"
    source = predicate_program(compile_where(text, {}, COLUMNS).tree).source
    assert "decode" not in source
    assert "int(" not in source
    assert source.count("row[") == 4


def test_positions_are_those_of_the_stream() -> None:
    filter_ = compile_where("j4 = 2", {}, COLUMNS)
    cells = row(i4=b"2")
    assert filter_.predicate(cells) is False
    cells[BY_NAME["j4"].position] = b"2"
    assert filter_.predicate(cells) is True


def test_columns_that_the_stream_lacks_are_refused_by_name() -> None:
    column = Column("w", 0, ColumnType("pg_catalog", "int4"), published=False)
    for text in ("w = 1", "w IS NULL"):
        with pytest.raises(InvalidWhere, match="At location 0: column w is generated and not part of the stream"):
            compile_where(text, {}, [column])

"""Casting and validation: http-api.md 6, 8, 9, 26."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.lsn import BEFORE_ALL, MAX_LSN, OP_INFINITE, Offset
from common.shape import ShapeRequest
from gateway.query_string import parse_query
from gateway.request import (
    NOT_NUMBERS,
    NOT_SEQUENTIAL,
    DeleteQuery,
    Errors,
    InvalidRequest,
    LogQuery,
    parse_delete_query,
    parse_explain_query,
    parse_log_query,
)

RECIPES = ShapeRequest(schema="public", table="recipes")
NOT_FOUND = "The following columns are not found on the table: "


def log_query(query: str) -> LogQuery:
    return parse_log_query(parse_query(query))


@pytest.mark.parametrize(
    ("query", "errors"),
    [
        ("", {"offset": ["can't be blank"]}),
        ("table=recipes", {"offset": ["can't be blank"]}),
        ("table=recipes&offset=", {"offset": ["can't be blank"]}),
        ("table=recipes&offset=%20", {"offset": ["can't be blank"]}),
        ("offset=-1", {"table": ["can't be blank"]}),
        ("table=&offset=-1", {"table": ["can't be blank"]}),
        ("handle=1-1&offset=0_0", {"table": ["can't be blank"]}),
        ("table=recipes&offset=5_0", {"handle": ["can't be blank when offset != -1"]}),
        ("table=recipes&offset=0_0&handle=", {"handle": ["can't be blank when offset != -1"]}),
        ("table=recipes&offset=-1&live", {"live": ["can't be true when offset == -1"]}),
        ("table=recipes&offset=-1&live=", {"live": ["can't be true when offset == -1"]}),
        ("table=recipes&offset=-1&live=0", {"live": ["can't be true when offset == -1"]}),
        ("table=recipes&offset=now&live=true", {"live": ["can't be true when offset is 'now'"]}),
        ("table=recipes&offset=-1&live_sse=true", {"live_sse": ["can't be true unless live is also true"]}),
        (
            "table=recipes&offset=-1&experimental_live_sse=1",
            {"live_sse": ["can't be true unless live is also true"]},
        ),
        ("table=recipes&offset=-1&experimental_live_sse=yes", {"live_sse": ["is invalid"]}),
        ("table=recipes&offset=-1&replica=half&log=none", {"replica": ["is invalid"], "log": ["is invalid"]}),
        ("replica=half", {"replica": ["is invalid"], "offset": ["can't be blank"]}),
        ("table=recipes&offset=-1&params=x", {"params": ["is invalid"]}),
        ("table=recipes&offset=-1&params[]=x", {"params": ["is invalid"]}),
        ("table=recipes&offset=-1&params[1][2]=x", {"params": ["is invalid"]}),
        ("table[]=recipes&offset=-1", {"table": ["is invalid"]}),
        ("table=recipes&offset[x]=-1", {"offset": ["is invalid"]}),
        ("table=recipes&offset=-1&columns[x]=a", {"columns": ["is invalid"]}),
        ("table=recipes&offset=-1&experimental_compaction=maybe", {"experimental_compaction": ["is invalid"]}),
        ("table=my-table&offset=-1", {"table": ["Invalid unquoted identifier contains special characters: my-table"]}),
        ("table=.x&offset=-1", {"table": ["Invalid zero-length delimited identifier"]}),
        ("table=a.b.c&offset=-1", {"table": ["Invalid relation identifier, too many delimiters: a.b.c"]}),
        (
            "table=recipes&offset=-1&columns=id,%20x",
            {"columns": ["Invalid unquoted identifier contains special characters:  x"]},
        ),
        ("table=recipes&offset=-1&columns=id,", {"columns": ["Invalid zero-length delimited identifier"]}),
        ("table=recipes&offset=-1&columns[]=id&columns[]=", {"columns": ["Invalid zero-length identifier"]}),
        ("table=recipes&offset=-1&columns=id,x,id", {"columns": [NOT_FOUND + "id"]}),
        (
            "table=recipes&offset=-1&queryable_columns=a-b",
            {"queryable_columns": ["Invalid unquoted identifier contains special characters: a-b"]},
        ),
        ("table=recipes&offset=-1&columns=id,x,y&queryable_columns=id", {"columns": [NOT_FOUND + "x, y"]}),
        ("table=recipes&offset=-1&params={", {"params": ["is invalid"]}),
        ("table=recipes&offset=-1&params={%221%22:5}", {"params": ["is invalid"]}),
        ("table=recipes&offset=-1&where=x&params[a]=5", {"params": [NOT_NUMBERS]}),
        ("table=recipes&offset=-1&where=x&params[-1]=5", {"params": [NOT_NUMBERS]}),
        ("table=recipes&offset=-1&where=x&params[1]=5&params[3]=5", {"params": [NOT_SEQUENTIAL]}),
        ("table=recipes&offset=-1&where=x&params[0]=5", {"params": [NOT_SEQUENTIAL]}),
        ("table=recipes&offset=-1&where=x&params[1]=5&params[01]=5", {"params": [NOT_SEQUENTIAL]}),
        # Later rounds do not run when an earlier one fails.
        ("offset=abc&live_sse=true", {"offset": ["has invalid format"]}),
        ("offset=0_0&live_sse=true&table=a.b.c", {"handle": ["can't be blank when offset != -1"]}),
        (
            "table=a.b.c&offset=-1&where=x&subset__limit=1",
            {"table": ["Invalid relation identifier, too many delimiters: a.b.c"]},
        ),
    ],
)
def test_a_bad_request_is_told_what_is_wrong(query: str, errors: Errors) -> None:
    with pytest.raises(InvalidRequest) as caught:
        log_query(query)
    assert caught.value.errors == errors


@pytest.mark.parametrize(
    "text",
    [
        "abc",
        "-2",
        "1",
        "1_",
        "_1",
        "1_1_1",
        "0",
        "0_",
        "inf",
        "0_0x",
        "1.5",
        "%200_0",
        "NOW",
        "7",
        "7_1_2",
        "7_1%20",
        "-1_inf",
        "a_1",
        "0_-1",
        "-1_1",
        "-5_0",
        "٣_0",
    ],
)
def test_what_is_no_offset_has_an_invalid_format(text: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        log_query(f"table=recipes&handle=h&offset={text}")
    assert caught.value.errors == {"offset": ["has invalid format"]}


@pytest.mark.parametrize(
    ("text", "offset"),
    [
        ("-1", BEFORE_ALL),
        ("-1_0", BEFORE_ALL),
        ("now", None),
        ("0_0", Offset(0, 0)),
        ("0_inf", Offset(0, OP_INFINITE)),
        ("007_02", Offset(7, 2)),
        ("%2B7_%2B2", Offset(7, 2)),
        ("1_inf", Offset(1, OP_INFINITE)),
        ("18446744073709551615_0", Offset(MAX_LSN, 0)),
        # Larger than 64 bits: beyond the end of every log, but no other format.
        ("99999999999999999999_0", Offset(MAX_LSN, OP_INFINITE)),
        ("9" * 5000 + "_0", Offset(MAX_LSN, OP_INFINITE)),
        ("7_99999999999999999999", Offset(7, OP_INFINITE)),
        ("0_99999999999999999999", Offset(0, OP_INFINITE)),
    ],
)
def test_offsets(text: str, offset: Offset | None) -> None:
    assert log_query(f"table=recipes&handle=h&offset={text}").offset == offset


@pytest.mark.parametrize(
    ("query", "live"),
    [
        ("live=true", True),
        ("live", True),
        ("live=", True),
        ("live=0", True),
        ("live=no", True),
        ("live=false", False),
        ("", False),
    ],
)
def test_live_is_on_unless_it_says_false(query: str, live: bool) -> None:
    assert log_query(f"table=recipes&handle=h&offset=0_0&{query}").live is live


@pytest.mark.parametrize(
    ("query", "sse"),
    [
        ("live_sse=true", True),
        ("live_sse", True),
        ("live_sse=false", False),
        ("experimental_live_sse=true", True),
        ("experimental_live_sse=1", True),
        ("experimental_live_sse=0", False),
        ("experimental_live_sse=", False),
        ("live_sse=true&experimental_live_sse=true", True),
        ("live_sse=true&experimental_live_sse=no", True),
        ("live_sse=false&experimental_live_sse=true", False),
        ("", False),
    ],
)
def test_events_are_asked_for_by_either_name(query: str, sse: bool) -> None:
    assert log_query(f"table=recipes&handle=h&offset=0_0&live=true&{query}").sse is sse


@pytest.mark.parametrize(
    ("query", "shape"),
    [
        ("table=recipes", RECIPES),
        ("table=public.recipes", RECIPES),
        ("table=RECIPES", RECIPES),
        ("table=recipes&foo=bar&cache-buster=1&expired_handle=x", RECIPES),
        ("table=recipes&where=&params[1]=5&columns=&replica=%20&log=", RECIPES),
        ("table=recipes&where=%20&params[a]=5", RECIPES),
        ("table=recipes&where=ID%3E1", ShapeRequest(schema="public", table="recipes", where="id > 1")),
        (
            "table=recipes&where="
            + "%7C".join(f"${number}" for number in range(1, 11))
            + "".join(f"&params[{number}]=v{number}" for number in (10, *range(1, 10))),
            ShapeRequest(
                schema="public",
                table="recipes",
                where=" | ".join(f"${number}" for number in range(1, 11)),
                params=tuple(f"v{number}" for number in range(1, 11)),
            ),
        ),
        (
            "table=recipes&where=$2||$1&params=%7B%222%22:%22b%22,%221%22:%22%22%7D",
            ShapeRequest(schema="public", table="recipes", where="$1 || $2", params=("b", "")),
        ),
        ("table=recipes&experimental_compaction=true&live_sse=false&experimental_live_sse=false", RECIPES),
        ("table=x&table=recipes", RECIPES),
        ("table=recipes&columns=title,id", ShapeRequest(schema="public", table="recipes", columns=("id", "title"))),
        (
            'table=recipes&columns=%22Id%22,"has,comma"',
            ShapeRequest(schema="public", table="recipes", columns=("Id", "has,comma")),
        ),
        (
            "table=recipes&columns[]=Title&columns[]=id",
            ShapeRequest(schema="public", table="recipes", columns=("Title", "id")),
        ),
        (
            "table=recipes&queryable_columns=title,id",
            ShapeRequest(schema="public", table="recipes", columns=("id", "title")),
        ),
        (
            "table=recipes&queryable_columns=title,id&columns=id",
            ShapeRequest(schema="public", table="recipes", columns=("id",)),
        ),
        (
            "table=a.b&replica=full&log=changes_only",
            ShapeRequest(schema="a", table="b", replica="full", log="changes_only"),
        ),
    ],
)
def test_the_shape_that_is_asked_for(query: str, shape: ShapeRequest) -> None:
    assert log_query(query + "&offset=-1").shape == shape


def test_the_clause_as_sent_is_kept_for_errors() -> None:
    query = log_query("table=recipes&offset=-1&where=ID%3E$2&params[1]=a&params[2]=b")
    assert (query.shape.where, query.shape.params) == ("id > $1", ("b",))
    assert (query.sent.where, query.sent.params) == ("ID>$2", ("a", "b"))
    plain = log_query("table=recipes&offset=-1&columns=id")
    assert plain.sent == plain.shape


def test_a_delete_finds_every_spelling() -> None:
    one, other = (
        parse_delete_query(parse_query(f"table=recipes&where={where}")) for where in ("ID%3E1", "id%20%3E%201")
    )
    assert one.shape == other.shape


def test_what_is_explained_is_parsed_like_what_is_asked_for() -> None:
    text = "table=Recipes&where=ID%3E$1&params[1]=a&columns=id,title"
    assert parse_explain_query(parse_query(text)) == log_query(f"{text}&offset=-1").sent


@pytest.mark.parametrize(
    ("query", "errors"),
    [
        ("", {"table": ["can't be blank"]}),
        ("table=.x", {"table": ["Invalid zero-length delimited identifier"]}),
        ("table=recipes&where=x&params[2]=1", {"params": [NOT_SEQUENTIAL]}),
        ("table=recipes&where=x&params[a]=1", {"params": [NOT_NUMBERS]}),
        ("table=recipes&replica=half&where[]=x", {"where": ["is invalid"], "replica": ["is invalid"]}),
        ("table=recipes&columns=id,id", {"columns": [NOT_FOUND + "id"]}),
    ],
)
def test_what_cannot_be_explained_is_told_like_for_a_shape(query: str, errors: Errors) -> None:
    with pytest.raises(InvalidRequest) as explained:
        parse_explain_query(parse_query(query))
    with pytest.raises(InvalidRequest) as asked:
        log_query(f"{query}&offset=-1")
    assert explained.value.errors == asked.value.errors == errors


@pytest.mark.parametrize(
    ("text", "cursor"),
    [("66938420", 66938420), ("-5", -5), ("%2B7", 7), ("", 0), ("7x", 0), ("1_0", 0), ("%207", 0), ("٣", 0)],
)
def test_only_an_integer_counts_as_cursor(text: str, cursor: int) -> None:
    assert log_query(f"table=recipes&offset=-1&cursor={text}").cursor == cursor


def test_a_handle_counts_only_when_the_client_goes_on() -> None:
    assert not log_query("table=recipes&offset=-1&handle=h").resumes
    assert not log_query("table=recipes&offset=now&handle=h").resumes
    assert log_query("table=recipes&offset=0_0&handle=h").resumes


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("handle=1-2", DeleteQuery(shape=None, sent=None, handle="1-2")),
        ("table=recipes", DeleteQuery(shape=RECIPES, sent=RECIPES, handle=None)),
        ("table=recipes&handle=1-2&offset=nonsense&live=true", DeleteQuery(shape=RECIPES, sent=RECIPES, handle="1-2")),
    ],
)
def test_a_delete_names_a_shape_or_a_handle(query: str, expected: DeleteQuery) -> None:
    assert parse_delete_query(parse_query(query)) == expected


@pytest.mark.parametrize(
    ("query", "errors"),
    [
        ("", {"handle": ["can't be blank when shape definition is missing"]}),
        ("where=x", {"handle": ["can't be blank when shape definition is missing"]}),
        ("handle=1-2&live=banana", {"live": ["is invalid"]}),
        ("handle=1-2&live_sse=x&replica=x", {"live_sse": ["is invalid"], "replica": ["is invalid"]}),
        ("table=.x", {"table": ["Invalid zero-length delimited identifier"]}),
    ],
)
def test_a_bad_delete_is_told_what_is_wrong(query: str, errors: Errors) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_delete_query(parse_query(query))
    assert caught.value.errors == errors


@given(st.text(alphabet="tableofsh=&[]_-1 0now+\"'.,\0ä", max_size=80))
def test_no_query_string_breaks_the_parser(query: str) -> None:
    values = parse_query(query)
    for parse in (parse_log_query, parse_delete_query):
        try:
            parsed: object = parse(values)
        except InvalidRequest as invalid:
            parsed = invalid.errors
        assert parsed

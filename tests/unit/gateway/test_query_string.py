"""The request target: http-api.md 1.6, 1.7."""

from __future__ import annotations

import pytest

from gateway.query_string import Value, parse_query, parse_target

SHAPE = ("v1", "shape")


@pytest.mark.parametrize(
    ("raw", "segments", "query"),
    [
        ("/", (), ""),
        ("/v1/shape", SHAPE, ""),
        ("/v1/shape/", SHAPE, ""),
        ("/v1//shape?a=b", SHAPE, "a=b"),
        ("//v1/%73hape?a=?b", SHAPE, "a=?b"),
        ("http://host:1/v1/shape?x#y", SHAPE, "x"),
        ("/v1%2Fshape", ("v1/shape",), ""),
        ("/v1/shape/..", ("v1", "shape", ".."), ""),
        ("/v1/%ff", ("v1", "\ufffd"), ""),
    ],
)
def test_a_path_is_normalised_before_it_is_matched(raw: str, segments: tuple[str, ...], query: str) -> None:
    assert parse_target(raw) == (segments, query)


@pytest.mark.parametrize(
    ("query", "values"),
    [
        ("", {}),
        ("a=1&b=2&a=3", {"a": "3", "b": "2"}),
        ("live&x=", {"live": "", "x": ""}),
        ("&&a=b=c&", {"a": "b=c"}),
        ("a=x+y%20z%2B", {"a": "x y z+"}),
        ("where=%zz&b=100%", {"where": "%zz", "b": "100%"}),
        ("a=%C3%A4", {"a": "ä"}),
        ("a;b=c", {"a;b": "c"}),
        ("params[1]=a&params[2]=b", {"params": {"1": "a", "2": "b"}}),
        ("params%5B1%5D=a", {"params": {"1": "a"}}),
        ("params[1]=a&params[1]=b", {"params": {"1": "b"}}),
        ("columns[]=a&columns[]=b", {"columns": ["a", "b"]}),
        ("subset[params][1]=x", {"subset": {"params": {"1": "x"}}}),
        ("a=1&a[x]=2", {"a": {"x": "2"}}),
        ("a[x]=1&a=2", {"a": "2"}),
        ("a[x=1&[y]=2", {"a[x": "1", "[y]": "2"}),
    ],
)
def test_a_query_is_decoded_as_a_form(query: str, values: dict[str, Value]) -> None:
    assert parse_query(query) == values


@pytest.mark.parametrize("query", ["table=%ff", "%ff=1", "a[%c3]=1", "table=\udcff"])
def test_bytes_that_are_no_utf8_are_refused(query: str) -> None:
    with pytest.raises(UnicodeDecodeError):
        parse_query(query)

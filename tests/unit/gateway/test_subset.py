"""The parameters of subsets, in queries and bodies: http-api.md 6.3, 8, 18.1, 18.2."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.lsn import BEFORE_ALL, SNAPSHOT_END, Offset
from common.subset import SubsetRequest
from gateway.body import BadBody, merged
from gateway.query_string import Value, parse_query
from gateway.request import Errors, InvalidRequest
from gateway.subset import MAX_COUNT, NO_JSON, NO_OBJECT, NO_ORDER, parse_subset
from gateway.subset_delivery import reached

INVALID = ["is invalid"]


def subset(query: str) -> SubsetRequest | None:
    return parse_subset(parse_query(query), None)


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("table=t&offset=-1&limit=5&order_by=id", None),
        ("subset=", None),
        ("subset=%20", None),
        ("subset__where=", SubsetRequest()),
        ("subset__where=%20", SubsetRequest()),
        ("subset__anything=1", SubsetRequest()),
        ("subset__where_expr={", SubsetRequest()),
        ("subset__where=n%3D1", SubsetRequest(where="n=1")),
        ("subset[where]=n%3D1&subset[order_by]=n", SubsetRequest(where="n=1", order_by="n")),
        ("subset[where]=a&subset__where=b", SubsetRequest(where="b")),
        ('subset__params={"1":"x"}', SubsetRequest(params={"1": "x"})),
        (
            'subset__params={"1":5,"2":1.50,"3":true,"4":null}',
            SubsetRequest(params={"1": "5", "2": "1.50", "3": "true"}),
        ),
        (
            'subset__params={"1":123456789012345678901234567890}',
            SubsetRequest(params={"1": "123456789012345678901234567890"}),
        ),
        ("subset__params[1]=x&subset__params[2]=y", SubsetRequest(params={"1": "x", "2": "y"})),
        ("subset[params][1]=x", SubsetRequest(params={"1": "x"})),
        ("subset__params={}", SubsetRequest()),
        ("subset__order_by=n&subset__limit=2&subset__offset=0", SubsetRequest(order_by="n", limit=2, offset=0)),
        ("subset__order_by=n&subset__limit=%2B2", SubsetRequest(order_by="n", limit=2)),
        ("subset__order_by=n&subset__limit=" + "9" * 90, SubsetRequest(order_by="n", limit=MAX_COUNT)),
    ],
)
def test_a_subset_is_read(query: str, expected: SubsetRequest | None) -> None:
    assert subset(query) == expected


@pytest.mark.parametrize(
    ("query", "errors"),
    [
        ("subset=x", {"subset": INVALID}),
        ("subset[]=x", {"subset": INVALID}),
        ("subset__limit=1", {"subset": {"order_by": [NO_ORDER]}}),
        ("subset__offset=0&subset__order_by=%20", {"subset": {"order_by": [NO_ORDER]}}),
        ("subset__order_by=n&subset__limit=0", {"subset": {"limit": ["must be greater than 0"]}}),
        ("subset__order_by=n&subset__limit=-99999999999999999999", {"subset": {"limit": ["must be greater than 0"]}}),
        (
            "subset__limit=1&subset__order_by=n&subset__offset=-1",
            {"subset": {"offset": ["must be greater than or equal to 0"]}},
        ),
        ("subset__order_by=n&subset__limit=1.5", {"subset": {"limit": INVALID}}),
        ("subset__order_by=n&subset__limit=x&subset__offset=y", {"subset": {"limit": INVALID, "offset": INVALID}}),
        ("subset__order_by=n&subset__limit=%D9%A1", {"subset": {"limit": INVALID}}),
        ("subset__where[]=x", {"subset": {"where": INVALID}}),
        ("subset__order_by[a]=x", {"subset": {"order_by": INVALID}}),
        ("subset__params=x", {"subset": {"params": [NO_JSON]}}),
        ("subset__params=[1]", {"subset": {"params": [NO_OBJECT]}}),
        ("subset__params=1", {"subset": {"params": [NO_OBJECT]}}),
        ("subset__params=null", {"subset": {"params": [NO_OBJECT]}}),
        ("subset__params[]=x", {"subset": {"params": [NO_OBJECT]}}),
        ('subset__params={"1":[2]}', {"subset": {"params": INVALID}}),
        ("subset__params=" + '{"1":' * 5000, {"subset": {"params": [NO_JSON]}}),
    ],
)
def test_a_bad_subset_is_told_what_is_wrong(query: str, errors: Errors) -> None:
    with pytest.raises(InvalidRequest) as caught:
        subset(query)
    assert caught.value.errors == errors


def test_the_queryable_columns_go_along() -> None:
    assert parse_subset({"subset": {}}, ("id",)) == SubsetRequest(queryable=("id",))


@pytest.mark.parametrize(
    ("query", "body", "expected"),
    [
        ("a=1", "", {"a": "1"}),
        ("a=1", " \n", {"a": "1"}),
        ("a=1", "{}", {"a": "1"}),
        ("a=1&b=2", '{"a": "x", "c": ["y", null]}', {"a": "x", "b": "2", "c": ["y"]}),
        ("live=x", '{"live": false}', {"live": "false"}),
        ("live=x", '{"live": null}', {}),
        # Flat members belong to the subset, the rest does not.
        ("offset=-1", '{"where": "n", "table": "t"}', {
            "offset": "-1", "table": "t", "subset": {}, "subset__where": "n"}),
        ("offset=-1", '{"offset": 3}', {"offset": "-1", "subset": {}, "subset__offset": "3"}),
        ("", '{"params": {"1": 2.50, "2": true}}', {"subset": {}, "subset__params": {"1": "2.50", "2": "true"}}),
        # With a nested subset, flat ones mean the shape.
        ("subset__limit=1", '{"subset": {"where": "n"}, "offset": "-1"}', {
            "offset": "-1", "subset": {}, "subset__limit": "1", "subset__where": "n"}),
        ("", '{"subset": {}}', {"subset": {}}),
        ("subset__where=a", '{"subset": {"where": null}}', {"subset": {}}),
        ("", '{"subset": "x"}', {"subset": "x"}),
        ("secret=s&cursor=1", '{"secret": "t", "api_secret": "t", "cursor": 5}', {"secret": "s", "cursor": "1"}),
    ],
)  # fmt: skip
def test_a_body_comes_before_the_query(query: str, body: str, expected: dict[str, Value]) -> None:
    assert merged(parse_query(query), body.encode()) == expected


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b"{bad", "Invalid JSON in request body"),
        (b'{"a": "\xff"}', "Invalid JSON in request body"),
        (b'{"a": "\\ud800"}', "Invalid JSON in request body"),
        (b"[" * 100_000, "Invalid JSON in request body"),
        (b"[1]", "Request body must be a JSON object"),
        (b"null", "Request body must be a JSON object"),
        (b'"x"', "Request body must be a JSON object"),
    ],
)
def test_a_body_that_is_no_object_is_refused(body: bytes, error: str) -> None:
    with pytest.raises(BadBody) as caught:
        merged({}, body)
    assert caught.value.answer.status == 400
    assert json.loads(caught.value.answer.body)["error"] == error
    assert "cache-control" not in caught.value.answer.fields


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)
_NAMES = st.sampled_from(["subset", "where", "params", "limit", "offset", "order_by", "table", "x"])


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.dictionaries(_NAMES, _JSON), st.dictionaries(_NAMES, _JSON))
def test_no_body_makes_anything_else_than_a_subset_or_an_error(
    outer: dict[str, object], inner: dict[str, object]
) -> None:
    for body in (outer, {"subset": inner}, inner | {"subset": outer}):
        try:
            found = parse_subset(merged({}, json.dumps(body).encode()), None)
        except (InvalidRequest, BadBody):
            continue
        assert found is None or all(isinstance(value, str) for value in found.params.values())


def test_a_client_is_never_moved_past_what_it_has_not_seen() -> None:
    last = Offset(500, 2)
    assert reached(None, last) == last, "who asks for now begins where the log ends"
    assert reached(BEFORE_ALL, last) == Offset(0, 0)
    for asked in (Offset(0, 0), Offset(0, 3), SNAPSHOT_END, Offset(100, 0), last, Offset(900, 0)):
        assert reached(asked, last) == asked

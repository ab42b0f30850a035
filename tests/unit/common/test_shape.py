"""Identity, handle and partition of shapes (http-api.md 10, architecture.md 2.1)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.shape import ShapeRequest, make_handle, partition_of, partition_of_handle

REQUESTS = st.builds(
    ShapeRequest,
    schema=st.text(max_size=5),
    table=st.text(max_size=5),
    columns=st.none() | st.lists(st.text(max_size=3), max_size=3).map(tuple),
    where=st.none() | st.text(max_size=5),
    params=st.lists(st.text(max_size=3), max_size=2).map(tuple),
    replica=st.sampled_from(["default", "full"]),
    log=st.sampled_from(["full", "changes_only"]),
)


@given(REQUESTS, REQUESTS)
def test_equal_requests_and_no_others_share_an_identity(left: ShapeRequest, right: ShapeRequest) -> None:
    assert (left.identity() == right.identity()) == (left == right)


@given(REQUESTS, st.integers(1, 1024), st.integers(0, 1 << 60))
def test_a_handle_names_the_partition_of_its_request(request: ShapeRequest, partitions: int, created: int) -> None:
    handle = make_handle(request.hash(), created)
    assert partition_of_handle(handle, partitions) == partition_of(request.hash(), partitions)


def test_the_hash_is_stable_for_ever() -> None:
    assert ShapeRequest(schema="public", table="t").hash() == 970898558


@pytest.mark.parametrize("text", ["", "bogus", "1", "-", "1-", "-5", "12x-5", "5-x", "99999999999-1", "²-1"])
def test_what_is_no_handle_has_no_partition(text: str) -> None:
    assert partition_of_handle(text, 32) is None

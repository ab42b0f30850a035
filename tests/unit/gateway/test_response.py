"""Headers, tags, cursors and bodies: http-api.md 20 to 25."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.lsn import BEFORE_ALL, SNAPSHOT_END, Offset
from common.messages import Refusal
from gateway import response
from gateway.response import CURSOR_EPOCH, CachePolicy

POLICY = CachePolicy(max_age=60, stale_age=300)
H = "48117022-1763818243512345"
AT_18_00_07 = 66938407 + CURSOR_EPOCH


def test_the_cursor_is_the_end_of_the_bucket() -> None:
    assert response.next_cursor(AT_18_00_07, 20_000, 0) == 66938420
    assert response.next_cursor(AT_18_00_07 + 12.9, 20_000, 0) == 66938420
    assert response.next_cursor(AT_18_00_07 + 13.9, 20_000, 0) == 66938420
    assert response.next_cursor(AT_18_00_07 + 14, 20_000, 0) == 66938440
    assert response.next_cursor(AT_18_00_07, 20_999, 66938419) == 66938420
    assert response.next_cursor(AT_18_00_07, 4_000, 0) == 66938408
    assert response.next_cursor(AT_18_00_07, 999, 7) == 0


def test_a_cursor_that_was_sent_already_is_left_behind() -> None:
    asked: list[tuple[int, int]] = []

    def draw(low: int, high: int) -> int:
        asked.append((low, high))
        return 17

    assert response.next_cursor(AT_18_00_07, 20_000, 66938420, draw) == 66938437
    assert asked == [(1, 3600)]


@given(st.floats(CURSOR_EPOCH, 4e9), st.integers(1_000, 100_000), st.integers(-(10**30), 10**30))
def test_the_cursor_always_grows(now: float, long_poll_ms: int, previous: int) -> None:
    assert response.next_cursor(now, long_poll_ms, previous) > previous


@pytest.mark.parametrize(
    ("requested", "end", "unique", "tag"),
    [
        (BEFORE_ALL, Offset(0, 0), None, f'"{H}:-1:0_0"'),
        (Offset(0, 0), Offset(26719432, 0), None, f'"{H}:0_0:26719432_0"'),
        (None, SNAPSHOT_END, -5, f'"{H}:now:0_inf:-5"'),
        (Offset(7, 2), Offset(7, 2), 99, f'"{H}:7_2:7_2:99"'),
    ],
)
def test_the_tag_names_handle_and_range(requested: Offset | None, end: Offset, unique: int | None, tag: str) -> None:
    assert response.etag(H, requested, end, unique) == tag


TAG = f'"{H}:-1:0_0"'


@pytest.mark.parametrize(
    ("header", "matches"),
    [
        (TAG, True),
        (TAG.strip('"'), True),
        (f'"x", {TAG}', True),
        (f" {TAG} ,y", True),
        (f"W/{TAG}", False),
        ("*", False),
        ("", False),
        (None, False),
        (f'"{H}:-1:0_0:5"', False),
        (TAG[:-2] + '"', False),
    ],
)
def test_if_none_match(header: str | None, matches: bool) -> None:
    assert response.is_match(header, TAG) is matches


LOG = {"cache-control", "content-type", "etag", "electric-handle", "electric-has-data", "electric-offset"}


@pytest.mark.parametrize(
    ("requested", "live", "complete", "unique", "extra", "has_data", "cache"),
    [
        (BEFORE_ALL, False, False, None, {"electric-schema"}, "true",
         "public, max-age=604800, s-maxage=3600, stale-while-revalidate=2629746"),
        (Offset(0, 0), False, False, None, {"electric-schema"}, "true",
         "public, max-age=60, stale-while-revalidate=300"),
        (Offset(0, 0), False, True, None, {"electric-schema", "electric-up-to-date"}, "true",
         "public, max-age=60, stale-while-revalidate=300"),
        (Offset(7, 0), True, False, None, set(), "true", "public, max-age=5, stale-while-revalidate=5"),
        (Offset(7, 0), True, True, None, {"electric-up-to-date"}, "true",
         "public, max-age=5, stale-while-revalidate=5"),
        (Offset(7, 0), True, True, 5, {"electric-up-to-date"}, "false", "public, max-age=5, stale-while-revalidate=5"),
        (None, False, True, 5, {"electric-schema", "electric-up-to-date"}, "false",
         "public, max-age=60, stale-while-revalidate=300"),
    ],
)  # fmt: skip
def test_the_header_matrix(
    requested: Offset | None,
    live: bool,
    complete: bool,
    unique: int | None,
    extra: set[str],
    has_data: str,
    cache: str,
) -> None:
    fields = response.log_fields(
        handle=H,
        requested=requested,
        end=Offset(9, 0),
        live=live,
        complete=complete,
        policy=POLICY,
        schema='{"id":{"type":"int4"}}',
        unique=unique,
    )
    assert set(fields) == LOG | extra
    assert fields["electric-has-data"] == has_data
    assert fields["cache-control"] == cache
    assert fields["electric-offset"] == "9_0"
    assert fields.get("electric-up-to-date", "") == ""
    not_modified = response.not_modified(fields)
    assert not_modified.status == 304
    assert set(not_modified.fields) == (LOG | extra) - {"electric-schema"}


def test_the_ages_of_catch_up_answers_are_settings() -> None:
    assert response.cache_control(None, False, CachePolicy(1, 3)) == "public, max-age=1, stale-while-revalidate=3"


def test_a_conflict_names_the_new_handle_if_there_is_one() -> None:
    known = response.conflict(H)
    assert known.status == 409
    assert known.body == b'[{"headers":{"control":"must-refetch"}}]'
    assert known.fields == {
        "cache-control": "public, max-age=60, must-revalidate",
        "content-type": "application/json; charset=utf-8",
        "etag": f'"{H}::"',
        "electric-handle": H,
    }
    unknown = response.conflict(None)
    assert (unknown.status, unknown.body) == (409, known.body)
    assert unknown.fields == {
        "cache-control": "public, max-age=1, must-revalidate",
        "content-type": "application/json; charset=utf-8",
    }


def test_errors_are_not_stored() -> None:
    invalid = response.invalid({"table": ["can't be blank"]})
    assert invalid.status == 400
    assert invalid.body == b'{"message":"Invalid request","errors":{"table":["can\'t be blank"]}}'
    assert invalid.fields["cache-control"] == invalid.fields["surrogate-control"] == "no-store"
    written = response.invalid({"table": ["x"]}, "write")
    assert written.fields["cache-control"] == "no-cache"
    assert "surrogate-control" not in written.fields


def test_a_refusal_is_passed_on_as_the_worker_worded_it() -> None:
    answer = response.refused(Refusal(id=1, status=503, body=b'{"message":"x"}', retry_after=10, known=True))
    assert (answer.status, answer.body) == (503, b'{"message":"x"}')
    assert answer.fields["retry-after"] == "10"
    assert answer.fields["electric-internal-known-error"] == "true"
    plain = response.refused(Refusal(id=1, status=400, body=b"{}"))
    assert "retry-after" not in plain.fields
    assert "electric-internal-known-error" not in plain.fields
    changed = response.refused(Refusal(id=1, status=409, body=b""))
    assert changed.body == b'[{"headers":{"control":"must-refetch"}}]'
    assert "electric-handle" not in changed.fields


@given(st.dictionaries(st.text(min_size=1), st.text()))
def test_the_schema_header_is_ascii_and_means_the_same(schema: dict[str, str]) -> None:
    text = json.dumps(schema, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        return
    header = response.schema_header(text)
    assert header.isascii()
    assert header.isprintable()
    assert json.loads(header) == schema

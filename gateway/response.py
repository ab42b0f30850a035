"""Answers as plain values: status, headers, body, for every case of ``/v1/shape`` (http-api.md 20 to 25).

Nothing here reads a clock, a file or a socket. Headers that every exchange carries (date, CORS, request id) are added
when an answer is sent (:mod:`gateway.exchange`).
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Final, Literal

import msgspec
import orjson

from common.lsn import BEFORE_ALL, Offset
from common.messages import Refusal
from gateway.request import OUT_OF_BOUNDS, Errors

SERVER: Final = "ElectricSQL/1.7.12"
"""What clients are told they talk to: the version whose protocol this is."""

CURSOR_EPOCH: Final = 1_728_432_000
"""2024-10-09T00:00:00Z in Unix seconds: cursors count from here."""

MUST_REFETCH: Final = b'[{"headers":{"control":"must-refetch"}}]'

NO_STORE: Final = {"cache-control": "no-store", "surrogate-control": "no-store"}
NO_CACHE: Final = {"cache-control": "no-cache"}
JSON: Final = {"content-type": "application/json; charset=utf-8"}

COMPLETE: Final = "electric-up-to-date"
"""The header of an answer that ends where the log does."""

EVENTS_MAX_AGE: Final = 59
"""Seconds that caches may keep a stream of events: one less than it lasts (http-api.md 21)."""

_REASONS: Final = {status.value: status.phrase for status in HTTPStatus}

_NOT_HEADER_SAFE = re.compile(r"[^\x20-\x7e]")


class CachePolicy(msgspec.Struct, frozen=True):
    """How long caches may keep catch-up answers, both in seconds (http-api.md 21)."""

    max_age: int = 60
    stale_age: int = 300


class Answer:
    """One answer. It may be shared by many clients, so it never changes; ``head`` is the part of its head, status line
    and headers, that is the same for all of them.

    ``streamed`` marks bodies that go out in chunked transfer although their bytes are at hand, as clients of a log
    expect; a HEAD then tells no length.
    """

    __slots__ = ("body", "fields", "head", "status", "streamed")

    def __init__(self, status: int, fields: Mapping[str, str], body: bytes = b"", *, streamed: bool = False) -> None:
        self.status = status
        self.fields = fields
        self.body = body
        self.streamed = streamed
        self.head = _head(status, fields)


def status_line(status: int) -> bytes:
    """The first line of an answer."""
    return f"HTTP/1.1 {status} {_REASONS.get(status, '')}\r\n".encode()


def _head(status: int, fields: Mapping[str, str]) -> bytes:
    lines = f"electric-server: {SERVER}\r\n"
    if status != 204:
        lines += "vary: accept-encoding\r\n"
        if "cache-control" not in fields:
            lines += "cache-control: max-age=0, private, must-revalidate\r\n"
    for name, value in fields.items():
        lines += f"{name}: {value}\r\n"
    return status_line(status) + lines.encode("utf-8", "surrogateescape")


def uncached(answer: Answer) -> Answer:
    """The same as the answer to a POST: whatever a GET would let caches do (http-api.md 21, row 2).

    One that is made for a POST stays as it is: a refusal of admission keeps its surrogate-control.
    """
    if answer.fields.get("cache-control", "no-cache") == "no-cache":
        return answer
    fields = {name: value for name, value in answer.fields.items() if name != "surrogate-control"}
    return Answer(answer.status, fields | NO_CACHE, answer.body, streamed=answer.streamed)


def schema_header(schema: str) -> str:
    """The ``electric-schema`` value in ASCII: JSON escapes stand for the rest, meaning the same (http-api.md 24)."""
    return _NOT_HEADER_SAFE.sub(_json_escape, schema)


def _json_escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < 0x10000:
        return f"\\u{code:04x}"
    code -= 0x10000
    return f"\\u{0xD800 + (code >> 10):04x}\\u{0xDC00 + (code & 0x3FF):04x}"


def etag(handle: str, requested: Offset | None, end: Offset, unique: int | None = None) -> str:
    """The quoted entity tag; ``unique`` makes it one that never matches again. ``requested`` ``None`` is ``now``."""
    asked = "now" if requested is None else str(requested)
    return f'"{handle}:{asked}:{end}"' if unique is None else f'"{handle}:{asked}:{end}:{unique}"'


def is_match(if_none_match: str | None, tag: str) -> bool:
    """Whether ``If-None-Match`` lists the tag. Weak tags and ``*`` are not understood (http-api.md 22.2)."""
    if not if_none_match:
        return False
    wanted = tag.strip('"')
    return any(item.strip().strip('"') == wanted for item in if_none_match.split(","))


def next_cursor(
    now: float,
    long_poll_ms: int,
    previous: int,
    draw: Callable[[int, int], int] = random.randint,
) -> int:
    """``electric-cursor`` at Unix time ``now``: equal for all clients in a bucket, greater than what this one sent.

    ``long_poll_ms`` counts in whole seconds only (http-api.md 23).
    """
    width = long_poll_ms // 1000
    if width == 0:
        return 0
    bucket = -(-(int(now) - CURSOR_EPOCH) // width) * width
    return bucket if bucket > previous else previous + draw(1, 3600)


def up_to_date(lsn: int) -> bytes:
    """The item that ends a complete answer (http-api.md 13.2)."""
    return b'{"headers":{"control":"up-to-date","global_last_seen_lsn":"%d"}}' % lsn


def cache_control(requested: Offset | None, live: bool, policy: CachePolicy) -> str:
    """Rows 6, 8 and 9 of the matrix in http-api.md 21."""
    if requested == BEFORE_ALL:
        return "public, max-age=604800, s-maxage=3600, stale-while-revalidate=2629746"
    if live:
        return "public, max-age=5, stale-while-revalidate=5"
    return f"public, max-age={policy.max_age}, stale-while-revalidate={policy.stale_age}"


def log_fields(
    *,
    handle: str,
    requested: Offset | None,
    end: Offset,
    live: bool,
    complete: bool,
    policy: CachePolicy,
    schema: str | None = None,
    unique: int | None = None,
) -> dict[str, str]:
    """The headers of columns A to F and H of the matrix (http-api.md 20), all but the cursor.

    ``complete`` tells that the answer is up to date; ``unique`` is given exactly when it has no data. Live answers
    carry no ``schema``.
    """
    fields = {
        "cache-control": cache_control(requested, live, policy),
        **JSON,
        "etag": etag(handle, requested, end, unique),
        "electric-handle": handle,
    }
    if schema is not None and not live:
        fields["electric-schema"] = schema
    if complete:
        fields[COMPLETE] = ""
    fields["electric-has-data"] = "true" if unique is None else "false"
    fields["electric-offset"] = str(end)
    return fields


def event_fields(*, handle: str, requested: Offset, offset: Offset, end: Offset, complete: bool) -> dict[str, str]:
    """The headers of column E of the matrix (http-api.md 20), all but the cursor.

    ``offset`` is where a client goes on that saw no event, ``end`` the end of the log; ``complete`` tells that an
    up-to-date event follows as soon as there is anything to send.
    """
    fields = {
        "cache-control": f"public, max-age={EVENTS_MAX_AGE}",
        "content-type": "text/event-stream",
        "etag": etag(handle, requested, end),
        "electric-handle": handle,
    }
    if complete:
        fields[COMPLETE] = ""
    return {**fields, "electric-has-data": "true", "electric-offset": str(offset)}


def subset_fields(handle: str, offset: Offset, schema: str | None) -> dict[str, str]:
    """The headers of a subset (http-api.md 18.6): nothing that would let a cache keep it."""
    fields = {**NO_CACHE, **JSON, "electric-snapshot": "true", "electric-handle": handle}
    if schema is not None:
        fields["electric-schema"] = schema
    fields["electric-offset"] = str(offset)
    return fields


def not_modified(fields: Mapping[str, str]) -> Answer:
    """304 with the headers that a 200 would refresh a cache with, without the schema."""
    return Answer(304, {name: value for name, value in fields.items() if name != "electric-schema"})


def conflict(handle: str | None) -> Answer:
    """409: refetch, as the shape ``handle`` or, if there is none yet, as whatever comes (http-api.md 11)."""
    if handle is None:
        return Answer(409, {"cache-control": "public, max-age=1, must-revalidate", **JSON}, MUST_REFETCH)
    fields = {
        "cache-control": "public, max-age=60, must-revalidate",
        **JSON,
        "etag": f'"{handle}::"',
        "electric-handle": handle,
    }
    return Answer(409, fields, MUST_REFETCH)


Kind = Literal["read", "write"]
"""GET and HEAD read; every other method writes: its answers are never cached, so they need no surrogate-control."""


def error(status: int, body: bytes, kind: Kind = "read", retry_after: int | None = None, known: bool = False) -> Answer:
    """An error answer with this JSON body; ``retry_after`` in seconds (http-api.md 21 rows 2 and 5)."""
    fields = {**(NO_STORE if kind == "read" else NO_CACHE), **JSON}
    if retry_after is not None:
        fields["retry-after"] = str(retry_after)
    if known:
        fields["electric-internal-known-error"] = "true"
    return Answer(status, fields, body)


def invalid(errors: Errors, kind: Kind = "read") -> Answer:
    """400 with the errors by field (http-api.md 8)."""
    return error(400, orjson.dumps({"message": "Invalid request", "errors": errors}), kind)


def out_of_bounds() -> Answer:
    """400 for an offset that the log has not reached after waiting (http-api.md 12.6)."""
    return invalid({"offset": [OUT_OF_BOUNDS]})


def failure(status: int, message: str, kind: Kind = "read", retry_after: int | None = None) -> Answer:
    """An error that is told as ``{"message": …}``."""
    return error(status, orjson.dumps({"message": message}), kind, retry_after)


def refused(refusal: Refusal, kind: Kind = "read") -> Answer:
    """What a worker refused, as it said; its 409 means that the table changed meanwhile (http-api.md 11)."""
    if refusal.status == 409 and kind == "read":
        return conflict(None)
    return error(refusal.status, refusal.body, kind, refusal.retry_after, refusal.known)


UNAUTHORIZED: Final = Answer(401, {}, b'{"message":"Unauthorized - Invalid API secret"}')
NOT_FOUND: Final = Answer(404, {}, b"Not found")
INTERNAL_ERROR: Final = Answer(500, JSON, b'{"error":"Internal server error"}')

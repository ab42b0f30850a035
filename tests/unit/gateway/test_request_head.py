"""Requests that are not parsed as a whole are what the parser would have made of them."""

from __future__ import annotations

import pytest
from aiohttp.http_exceptions import HttpProcessingError
from hypothesis import given
from hypothesis import strategies as st

from gateway.request_head import Request, make_parser, remembered, request_of

HEADERS = (
    "host: a\r\n\r\n",
    'host: a\r\nx-request-id: 01234567890123456789\r\nif-none-match: "1"\r\n\r\n',
    "host: a\r\nconnection: close\r\n\r\n",
    "host: a\r\nconnection: upgrade\r\n\r\n",
    "host: a\r\norigin: b\r\norigin: c\r\n\r\n",
)
BROKEN = ("\r\n", "host a\r\n\r\n", " host: a\r\n\r\n", "host: a\r\n", "host: a\r\n\r\nGET")
TARGETS = "/v1/shape?table=t&offset=12_0%zz+~.,:*-[]#!$'();@\\\"<>{}|^` é\x7f\t"


def parsed(packet: bytes) -> Request | None:
    """What the parser says, if the packet is one request without a body."""
    try:
        messages, _, _ = make_parser(None).feed_data(packet)
    except HttpProcessingError:
        return None
    return request_of(*messages[0]) if len(messages) == 1 else None


def told(request: Request | None) -> tuple[object, ...] | None:
    if request is None:
        return None
    return (
        request.method,
        request.target,
        list(request.headers.items()),
        request.http11,
        request.keep_alive,
        request.payload,
    )


@pytest.mark.parametrize("headers", HEADERS)
async def test_only_the_target_of_the_next_request_is_new(headers: str) -> None:
    @given(st.text(TARGETS, max_size=30), st.booleans())
    def check(rest: str, rooted: bool) -> None:
        packet = f"GET {'/' if rooted else ''}{rest} HTTP/1.1\r\n{headers}".encode()
        found = told(remembered(packet))
        assert found is None or found == told(parsed(packet))

    check()
    first, second = (remembered(f"GET /v1/shape?offset={n}_0 HTTP/1.1\r\n{headers}".encode()) for n in (1, 2))
    if first is None or second is None:
        assert first is second is None
        return
    assert (first.target, second.target) == ("/v1/shape?offset=1_0", "/v1/shape?offset=2_0")
    assert first.headers is second.headers, "they are parsed once"


@pytest.mark.parametrize("headers", BROKEN)
async def test_what_is_not_one_whole_request_is_left_to_a_parser(headers: str) -> None:
    assert remembered(f"GET /v1/shape?offset=1_0 HTTP/1.1\r\n{headers}".encode()) is None

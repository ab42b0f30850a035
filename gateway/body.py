"""The body of a POST: a JSON object whose members are parameters like those of the query (http-api.md 6.3)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Final

import msgspec
import orjson
from aiohttp.http_exceptions import BadHttpMessage
from aiohttp.web import RequestPayloadError

from gateway.query_string import Value
from gateway.request_head import Request
from gateway.response import JSON, Answer

MAX_BODY_BYTES: Final = 8_000_000

READ_SECONDS: Final = 30.0
"""How long a client may take to send its body."""

_ONLY_IN_QUERY: Final = frozenset(("secret", "api_secret", "cursor"))
_FLAT_SUBSET: Final = ("where", "order_by", "limit", "offset", "params", "where_expr", "order_by_expr")

# Numbers with a point keep their digits: they become texts anyhow.
_decode = msgspec.json.Decoder(float_hook=str).decode


class BadBody(Exception):
    """The body cannot be used. Its answer lacks the cache headers of other answers to a POST (http-api.md 21)."""

    def __init__(self, status: int, error: str, details: str = "", *, is_whole: bool = False) -> None:
        """``is_whole``: it has been read to its end, so another request may follow it."""
        super().__init__(error)
        self.is_whole = is_whole
        body = {"error": error} | ({"details": details} if details else {})
        self.answer = Answer(status, JSON, orjson.dumps(body))


async def read_body(request: Request, ask_for_it: Callable[[], None]) -> bytes:
    """All of it; ``ask_for_it`` tells a client to go on that waits for that.

    Raises :class:`BadBody`, ``ConnectionError`` if the client is gone.
    """
    if request.headers.get("expect", "").lower() == "100-continue" and request.http11:
        ask_for_it()
    if int(request.headers.get("content-length", 0)) > MAX_BODY_BYTES:
        raise BadBody(413, "Request body too large")
    received = bytearray()
    if request.payload is None:
        return b""
    try:
        async with asyncio.timeout(READ_SECONDS):
            async for piece in request.payload.iter_any():
                received += piece
                if len(received) > MAX_BODY_BYTES:
                    raise BadBody(413, "Request body too large")
    except ConnectionError:
        raise
    except (RequestPayloadError, BadHttpMessage, TimeoutError, ValueError):
        raise BadBody(400, "Failed to read request body") from None
    return bytes(received)


def merged(query: Mapping[str, Value], body: bytes) -> dict[str, Value]:
    """The parameters of a POST: those of the body come before those of the query. Raises :class:`BadBody`.

    Members that belong to a subset get the names that they have in a query. A null takes a parameter away.
    """
    parameters = dict(query)
    if not body.strip():
        return parameters
    try:
        given = _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadBody(400, "Invalid JSON in request body", str(error), is_whole=True) from None
    if not isinstance(given, dict):
        raise BadBody(400, "Request body must be a JSON object", is_whole=True)
    subset = given.get("subset")
    if isinstance(subset, dict):
        del given["subset"]
    else:
        subset = {name: given.pop(name) for name in _FLAT_SUBSET if name in given} or None
    for name, value in given.items():
        if name not in _ONLY_IN_QUERY:
            _assign(parameters, name, value)
    if subset is not None:
        # Also without any member it asks for a subset.
        parameters.setdefault("subset", {})
        for name, value in subset.items():
            _assign(parameters, f"subset__{name}", value)
    return parameters


def _assign(parameters: dict[str, Value], name: str, value: object) -> None:
    plain = as_parameter(value)
    if plain is None:
        parameters.pop(name, None)
    else:
        parameters[name] = plain


def as_parameter(value: object) -> Value | None:
    """A value of JSON as a query would have it: numbers and booleans are texts, nulls are not there."""
    match value:
        case None:
            return None
        case bool():
            return "true" if value else "false"
        case list():
            return [plain for item in value if (plain := as_parameter(item)) is not None]
        case dict():
            members = ((str(name), as_parameter(item)) for name, item in value.items())
            return {name: plain for name, plain in members if plain is not None}
    return str(value)

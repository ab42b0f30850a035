"""The head of a request, as clients send it (http-api.md 1).

Nearly every request is one packet without a body, and clients that follow a shape together send the same bytes. Such a
packet is parsed once for all of them; and of a client's next one, which differs in its target, only the request line.
"""

from __future__ import annotations

import asyncio
import re
from copy import copy
from functools import lru_cache
from typing import Final

from aiohttp import EMPTY_PAYLOAD, HttpVersion, HttpVersion10, StreamReader
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http import HttpRequestParser, RawRequestMessage
from aiohttp.http_exceptions import BadHttpMessage, HttpProcessingError, LineTooLong
from aiohttp.web import RequestPayloadError
from multidict import CIMultiDictProxy

LINE_BYTES: Final = 10_000
"""The longest request line, and the longest header line (http-api.md 1.2)."""

QUEUE: Final = 32
"""Requests that a client may send before it has the answers to earlier ones; then it is read no further."""

REMEMBERED: Final = 1_024
"""Parsed requests kept; none is longer than :data:`PACKET`."""

PACKET: Final = 2_048
"""Bytes up to which a request is remembered."""

_READ_BYTES: Final = 64 * 1024
"""Bytes of a body that may wait for whoever reads it."""

_SAFE = re.compile(r"[\x20-\x7e]+")
"""What may be echoed in a header."""

_ANY_ORIGIN: Final = "*"

_PLAIN = re.compile(rb"GET [^\r\n]+ HTTP/1\.1\r\n(?:[^\r\n]+\r\n)+\r\n")
_LINE = re.compile(rb"GET (/[\w/.~%&=?,:+*-]*) HTTP/1\.1\r\n")
"""A request line with a target that needs no parser to be told from a bad one."""
_NOT_PLAIN = re.compile(rb"\r\n(?:content-length|transfer-encoding|upgrade|expect)", re.IGNORECASE)


class Request:
    """The head of a request. It may be shared by all who send the same bytes, so it never changes."""

    __slots__ = ("_joined", "given_id", "headers", "http11", "keep_alive", "method", "origin", "payload", "target")

    def __init__(
        self,
        method: str,
        target: str,
        headers: CIMultiDictProxy[str],
        version: HttpVersion,
        keep_alive: bool,
        payload: StreamReader | None,
    ) -> None:
        """``target`` as sent; ``payload`` is ``None`` where no body follows."""
        self.method = method
        self.target = target
        self.headers = headers
        self.http11 = version > HttpVersion10
        self.keep_alive = keep_alive
        self.payload = payload
        self.given_id = _given_id(headers)
        """What its answer and our log call it, if the client says so."""
        self.origin = _origin(headers)
        """Whom the answer is for, as that is told by it (http-api.md 4)."""
        self._joined: dict[str, str | None] = {}

    def header(self, name: str) -> str | None:
        """A header; several lines of it as one list."""
        if name not in self._joined:
            values = self.headers.getall(name, None)
            self._joined[name] = None if values is None else ", ".join(values)
        return self._joined[name]

    def at(self, target: str) -> Request:
        """The same for another target."""
        other = copy(self)
        other.target = target
        return other


def _given_id(headers: CIMultiDictProxy[str]) -> str | None:
    given = headers.get("x-request-id")
    usable = given and 20 <= len(given.encode("utf-8", "surrogateescape")) <= 200 and _SAFE.fullmatch(given)
    return given if usable else None


def _origin(headers: CIMultiDictProxy[str]) -> str:
    origins = headers.getall("origin", ())
    return origins[0] if len(origins) == 1 and _SAFE.fullmatch(origins[0]) else _ANY_ORIGIN


def request_of(message: RawRequestMessage, payload: StreamReader) -> Request:
    """What the parser has read."""
    tunnel = message.method == "CONNECT"
    keep_alive = not (message.should_close or tunnel or "upgrade" in message.headers)
    body = None if tunnel or payload is EMPTY_PAYLOAD else payload
    return Request(message.method, message.path, message.headers, message.version, keep_alive, body)


@lru_cache(maxsize=REMEMBERED)
def remembered(packet: bytes) -> Request | None:
    """The request that a packet is, if it is exactly one, valid and without a body."""
    line = _LINE.match(packet)
    if line is None:
        return _parsed(packet)
    same = _parsed(b"GET / HTTP/1.1\r\n" + packet[line.end() :])
    return None if same is None else same.at(line[1].decode())


@lru_cache(maxsize=REMEMBERED)
def _parsed(packet: bytes) -> Request | None:
    if _PLAIN.fullmatch(packet) is None or _NOT_PLAIN.search(packet):
        return None
    try:
        messages, _, _ = make_parser(None).feed_data(packet)
    except HttpProcessingError:
        # Whoever parses it again meets the error where it can be answered.
        return None
    return request_of(*messages[0]) if len(messages) == 1 else None


def make_parser(protocol: BaseProtocol | None) -> HttpRequestParser:
    """One for a connection, which it pauses while bodies are not read."""
    return HttpRequestParser(
        protocol,
        asyncio.get_running_loop(),
        _READ_BYTES,
        max_line_size=LINE_BYTES,
        max_field_size=LINE_BYTES,
        payload_exception=RequestPayloadError,
        max_msg_queue_size=QUEUE,
    )


def status_of(error: HttpProcessingError) -> int:
    """The status for what is not HTTP as we take it (http-api.md 1.2)."""
    if isinstance(error, LineTooLong):
        return 414 if bytes(error.args[0]).startswith((b"/", b"http:", b"https:")) else 431
    return 431 if isinstance(error, BadHttpMessage) and "headers" in str(error) else 400

"""Hostile clients: requests made at random from the description of the interface, and what every answer must be.

Each connection is a plan of requests: well-formed ones and broken ones, pipelined, dribbled bit by bit, given up in the
middle. Whoever sends a well-formed request gets an answer that the description has, with its framing right.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import sys
import zlib
from collections import Counter
from typing import Any, Final, NamedTuple
from urllib.parse import quote_plus, unquote_to_bytes

import orjson

from gateway.openapi import DOCUMENT

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

HANG_SECONDS: Final = 120.0
SECRET: Final = "fuzz-secret-0123"
DESCRIPTION: Final[Any] = orjson.loads(DOCUMENT)
TABLES: Final = (
    "items",
    "public.items",
    '"items"',
    "ITEMS",
    "bare",
    "nope",
    "pg_catalog.pg_class",
    "a.b.c",
    '"',
    "",
    "é",
)
LINE_LIMIT: Final = 9_000
"""Bytes of a request line that is surely short enough."""

_HOSTILE: Final = (
    "",
    " ",
    "0",
    "-1",
    "true",
    "false",
    "null",
    "NaN",
    "%00",
    "\0",
    "\r\nx-injected: 1",
    "'; DROP TABLE items; --",
    "\u202e\ufeff\U0001f4a3",
    "é" * 40,
    "9" * 400,
    "9" * 4_400,
    "-" + "9" * 30,
    "1e309",
    "[" * 200,
    '{"1":' * 50,
    '{"1":"2"}',
    '{"1":{"2":[]}}',
    '"' * 33,
    "a" * 3_000,
    "1_1",
    "0_inf",
    "18446744073709551616_0",
    "0_18446744073709551616",
    "../../etc/passwd",
    "(" * 300,
    "NOT " * 300 + "true",
)
_BYTES: Final = (b"%ff", b"%c3%28", b"%ed%a0%80", b"%zz", b"%", b"%2", b"+", b"%f5%80%80%80", b"\xff\xfe", b"%00%01")
_WHERES: Final = (
    "id > 10",
    "id IN (1, 2, 3)",
    "title LIKE $1",
    "n = $1",
    "1 x 1",
    "id =",
    "nope = 1",
    "id = 1; DROP TABLE items",
    "id IN (SELECT id FROM items)",
    "title ~ '(a+)+$'",
    "id::text::int = 1 OR " * 50 + "true",
    "'\\'",
    "$99999999999999999999 = 1",
)
_VALUES: Final[dict[str, tuple[str, ...]]] = {
    "table": TABLES,
    "offset": ("-1", "now", "0_0", "0_inf", "0_99", "1_0", "99999999999_0", "-1_0", "x", "+0_+0"),
    "live": ("true", "false", "", "1"),
    "live_sse": ("false", "true"),
    "where": _WHERES,
    "columns": ("id", "id,title", '"id"', "id,id", "nope", "title", "id,"),
    "replica": ("full", "default", "half"),
    "log": ("full", "changes_only", "none"),
    "cursor": ("0", "5", "x", "9" * 23, "9" * 4_400),
    "subset__where": _WHERES,
    "subset__limit": ("1", "0", "-1", "x"),
    "subset__order_by": ("id", "id DESC", "nope", "random()"),
}
_BODIES: Final = (
    b"",
    b"{}",
    b"[1]",
    b"null",
    b"{bad",
    b'{"table":"items","offset":"-1"}',
    b'{"where":"id > $1","params":{"1":"2"},"order_by":"id","limit":2}',
    b'{"subset":{"where":"id > 1"},"live":false}',
    b'{"subset":[]}',
    b'{"limit":1e400}',
    b'{"limit":' + b"9" * 5_000 + b"}",
    b"[" * 100_000,
    b'{"a":' * 50_000,
    b'{"where":"\xff"}',
    b'{"table":"\\ud800"}',
    b'{"offset":{"a":1},"table":[1],"params":{"1":{"2":3}},"subset":{"params":[[]]}}',
    b"x" * 200_000,
)


class Request(NamedTuple):
    """What goes over the wire. ``path`` is the one that is described, or None; ``is_sound`` if HTTP allows it."""

    raw: bytes
    method: str
    path: str | None
    is_sound: bool
    is_authorized: bool


class Fault(AssertionError):
    """An answer that must not be; the text has the request."""


class Fuzzer:
    """Makes requests from a seed and holds them against a server. ``answers`` counts what came, by status.

    With ``deletes`` shapes are deleted, and so bodies that are being sent may be cut.
    """

    def __init__(self, port: int, seed: int, *, deletes: bool) -> None:
        self.deletes = deletes
        self.answers: Counter[int] = Counter()
        self.requests = 0
        self._port = port
        self._choice = random.Random(seed)
        self._handles = ["1-1", "123-456", "3188839641-1763818243512345"]
        self._offsets = ["0_0"]

    async def run(self, requests: int, connections: int = 24) -> None:
        """Send so many requests over so many connections at a time. Raises :class:`Fault`."""

        async def work() -> None:
            while self.requests < requests:
                await self._connection()

        async with asyncio.TaskGroup() as group:
            for _ in range(connections):
                group.create_task(work())

    async def _connection(self) -> None:
        choice = self._choice
        plan = [self._request() for _ in range(choice.choice((1, 1, 2, 3, 8)))]
        # Nobody may send more after that, and what is parsed together with it would be refused.
        closes = [index for index, request in enumerate(plan) if b"Connection: close" in request.raw]
        plan = plan[: closes[0] + 1] if closes else plan
        # What is broken may spoil what comes after it, and what came in the same packet before it.
        are_sound = all(request.is_sound for request in plan)
        manner = choice.choices(("whole", "pipelined", "slow", "given up", "half closed"), (60, 25, 5, 7, 3))[0]
        self.requests += len(plan)
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port, limit=1 << 24)
        try:
            async with asyncio.timeout(HANG_SECONDS):
                if manner == "given up":
                    raw = plan[0].raw
                    writer.write(raw[: choice.randrange(len(raw) + 1)])
                    await asyncio.sleep(choice.choice((0, 0.01)))
                    return
                sender = asyncio.create_task(self._send(writer, plan, manner))
                try:
                    for request in plan:
                        # Who closes its half is taken for one who has gone; it may get an answer or none.
                        sound = are_sound and manner != "half closed"
                        if not await self._answer(reader, request._replace(is_sound=sound), manner):
                            break
                finally:
                    sender.cancel()
                    with contextlib.suppress(asyncio.CancelledError, ConnectionError):
                        await sender
        except Fault as error:
            error.add_note(
                f"on the connection: {[request.raw[:300] + b' ... ' + request.raw[-500:] for request in plan]}"
            )
            raise
        except TimeoutError:
            raise Fault(f"no answer within {HANG_SECONDS} s: {manner} {[each.raw[:500] for each in plan]}") from None
        finally:
            writer.transport.abort()

    async def _send(self, writer: asyncio.StreamWriter, plan: list[Request], manner: str) -> None:
        with contextlib.suppress(ConnectionError):
            if manner == "pipelined":
                writer.write(b"".join(request.raw for request in plan))
            elif manner == "slow":
                raw = b"".join(request.raw for request in plan)
                size = max(1, len(raw) // 20)
                for start in range(0, len(raw), size):
                    writer.write(raw[start : start + size])
                    await writer.drain()
                    await asyncio.sleep(0.005)
            else:
                for request in plan:
                    writer.write(request.raw)
                    await writer.drain()
            if manner == "half closed":
                writer.write_eof()

    async def _answer(self, reader: asyncio.StreamReader, request: Request, manner: str) -> bool:
        """Read and check one answer; whether another may follow."""

        def fault(text: str) -> Fault:
            return Fault(f"{text}\nrequest, {manner}: {request.raw[:3000]!r}")

        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        except (EOFError, ConnectionError):
            if request.is_sound:
                raise fault("the connection was closed without an answer") from None
            return False
        first, *lines = head.rstrip("\r\n").split("\r\n")
        protocol, _, rest = first.partition(" ")
        if protocol != "HTTP/1.1" or not rest[:3].isdigit():
            raise fault(f"no status line: {first!r}")
        status = int(rest[:3])
        if status == 100:
            return await self._answer(reader, request, manner)
        pairs = [line.lower().partition(":") for line in lines]
        headers = {name: value.strip() for name, _, value in pairs}
        if len(headers) != len(lines):
            raise fault(f"a header twice: {head}")
        self.answers[status] += 1
        try:
            body = await self._body(reader, request, status, headers, fault)
        except (EOFError, ConnectionError) as error:
            if self.deletes and status == 200 and "electric-handle" in headers:
                return False
            raise fault(f"the body ends early: {status} {headers} {error!r}") from None
        coding = headers.get("content-encoding")
        if body and coding is not None:
            body = zlib.decompress(body, 31) if coding == "gzip" else zstd.decompress(body)
        self._check(request, status, headers, body, fault)
        return headers.get("connection") != "close" and headers.get("content-type") != "text/event-stream"

    async def _body(
        self, reader: asyncio.StreamReader, request: Request, status: int, headers: dict[str, str], fault: Any
    ) -> bytes:
        if request.method == "HEAD" or status in (204, 304):
            return b""
        if "content-length" in headers:
            return await reader.readexactly(int(headers["content-length"]))
        body = b""
        if headers.get("transfer-encoding") == "chunked":
            while size := int(await reader.readuntil(b"\r\n"), 16):
                body += (await reader.readexactly(size + 2))[:-2]
                if headers.get("content-type") == "text/event-stream":
                    return body
            await reader.readexactly(2)
        elif headers.get("connection") != "close":
            raise fault(f"a body without a length: {status} {headers}")
        return body

    def _check(self, request: Request, status: int, headers: dict[str, str], body: bytes, fault: Any) -> None:
        told = f"{status} {headers} {body[:500]!r}"
        if status >= 500 and status != 503:
            raise fault(f"the server failed: {told}")
        if b"Traceback" in body or b'File "' in body or SECRET.encode() in body or SECRET in str(headers):
            raise fault(f"an answer tells too much: {told}")
        if "x-injected" in headers:
            raise fault(f"a header of the client's: {told}")
        is_bare = "x-request-id" not in headers
        if is_bare:
            if request.is_sound or status not in (400, 414, 431) or body or headers != {"connection": "close"}:
                raise fault(f"a bare answer: {told}")
            return
        if headers.get("content-type", "").startswith("application/json") and body:
            parsed = json.loads(body)
            if status == 200 and isinstance(parsed, list) and "electric-offset" in headers:
                self._learn(headers)
        if request.path is None:
            return
        if request.path in ("/v1/shape", "/v1/explain") and not request.is_authorized and request.method != "OPTIONS":
            if status not in (401, 404):
                raise fault(f"served without the secret: {told}")
            return
        described = DESCRIPTION["paths"][request.path].get(request.method.lower())
        if described is None:
            if status != 404:
                raise fault(f"a method that is not described: {told}")
        elif str(status) not in described["responses"]:
            raise fault(f"a status that is not described: {told}")
        elif status != 404 and not headers.keys() <= described["responses"][str(status)]["headers"].keys():
            raise fault(f"headers that are not described: {told}")

    def _learn(self, headers: dict[str, str]) -> None:
        for known, value in ((self._handles, headers["electric-handle"]), (self._offsets, headers["electric-offset"])):
            if value not in known:
                known.append(value)
                del known[3:-40]

    def _request(self) -> Request:
        choice = self._choice
        is_sound = choice.random() < 0.93
        methods = ("GET", "HEAD", "POST", "OPTIONS", "PUT", "TRACE", "DELETE")
        method = choice.choices(methods, (68, 8, 10, 4, 3, 3, 8 if self.deletes else 0))[0]
        path = choice.choices(
            ("/v1/shape", "/v1/health", "/", "/openapi.json", "/v1/explain", None), (80, 4, 3, 1, 6, 6)
        )[0]
        spelled = self._spelled(path)
        query = self._query()
        authorization = choice.random()
        if authorization < 0.9:
            query += f"&{choice.choice(('secret', 'secret', 'api_secret'))}={SECRET}".encode()
        target = spelled + (b"?" + query if query else b"")
        headers = [b"Host: h"]
        body = b""
        if method in ("POST", "PUT") or choice.random() < 0.03:
            body, lines = self._body_of(is_sound)
            headers += lines
        headers += self._headers()
        if not is_sound:
            target, headers = self._broken(target, headers)
        raw = method.encode() + b" " + target + b" HTTP/1.1\r\n" + b"\r\n".join(headers) + b"\r\n\r\n" + body
        is_sound = is_sound and len(target) < LINE_LIMIT and _is_utf8(query)
        names = [pair.partition(b"=")[0] for pair in query.split(b"&")]
        # Of a repeated parameter the last one counts, and ours is the last; other spellings of a name come before.
        return Request(
            raw,
            method,
            path if is_sound else None,
            is_sound,
            names[-1] in (b"secret", b"api_secret") and _is_only(names),
        )

    def _spelled(self, path: str | None) -> bytes:
        choice = self._choice
        if path is None:
            return choice.choice(
                (
                    b"/nope",
                    b"/v1",
                    b"/v1/shape/x",
                    b"/%2e%2e/v1/shape",
                    b"/v1%2fshape",
                    b"/v1/shape%00",
                    b"/%ff",
                    b"/a%",
                )
            )
        if choice.random() < 0.85:
            return path.encode()
        doubled = path.replace("/", choice.choice(("//", "///")))
        encoded = "".join(f"%{ord(char):02x}" if char != "/" and choice.random() < 0.5 else char for char in path)
        return choice.choice((doubled, encoded, path + "/", "http://h" + path)).encode()

    def _query(self) -> bytes:
        choice = self._choice
        pairs: list[bytes] = []
        if choice.random() < 0.85:
            pairs.append(b"table=items")
        kind = choice.random()
        if kind < 0.4:
            pairs.append(b"offset=" + choice.choice((b"-1", b"now")))
        elif kind < 0.9:
            pairs.append(f"offset={choice.choice(self._offsets)}&handle={choice.choice(self._handles)}".encode())
        for _ in range(choice.choice((0, 0, 1, 1, 2, 5))):
            pairs.append(self._pair())
        if choice.random() < 0.02:
            pairs += [pairs[-1] if pairs else b"a"] * 400
        choice.shuffle(pairs)
        return b"&".join(pairs)

    def _pair(self) -> bytes:
        choice = self._choice
        name = choice.choice([*DESCRIPTION["components"]["parameters"], "foo", "subset", "subset[where]"])
        if name in ("secret", "api_secret"):
            name = "expired_handle"
        if name == "params":
            name = choice.choice(
                ("params[1]", "params[1]", "params[2]", "params[a]", "params[]", "params[1][2]", "params")
            )
        elif choice.random() < 0.05:
            name += choice.choice(("[]", "[x]", "[][]", "[", "]", "[[]]"))
        value = choice.choice(_VALUES.get(name, _HOSTILE) if choice.random() < 0.5 else _HOSTILE)
        encoded = quote_plus(value).encode()
        if choice.random() < 0.06:
            encoded += choice.choice(_BYTES)
        return quote_plus(name, safe="[]").encode() + (b"=" + encoded if choice.random() < 0.97 else b"")

    def _headers(self) -> list[bytes]:
        choice = self._choice
        lines = []
        for line in (
            b'If-None-Match: "x", W/"y", *',
            b"If-None-Match: " + b'"a",' * 500,
            b"Origin: http://a",
            b"Origin: http://a\r\nOrigin: http://b",
            b"Origin: \xff\xfe",
            b"X-Request-Id: " + b"i" * choice.choice((1, 20, 200, 201)),
            b"X-Request-Id: \xc3\xa9\xff" + b"i" * 30,
            b"Accept-Encoding: gzip, deflate, br, zstd",
            b"Accept: text/event-stream",
            b"Connection: close",
            b"Connection: keep-alive",
            b"Connection: Upgrade\r\nUpgrade: websocket",
            b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA",
            b"Expect: 100-continue",
            b"Range: bytes=0-1",
            b"Cookie: " + b"c" * 5_000,
            b"Access-Control-Request-Headers: traceparent, x-foo",
            b"Authorization: Bearer " + SECRET.encode(),
            b"Content-Type: application/json",
        ):
            if choice.random() < 0.05:
                lines.append(line)
        return lines

    def _body_of(self, is_sound: bool) -> tuple[bytes, list[bytes]]:
        choice = self._choice
        body = choice.choice(_BODIES)
        if choice.random() < 0.2:
            size = choice.choice((1, 7, 65_536))
            pieces = [body[start : start + size] for start in range(0, min(len(body), 2_000), size)]
            chunked = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
            if not is_sound and choice.random() < 0.3:
                return chunked + b"zz\r\n", [b"Transfer-Encoding: chunked"]
            return chunked + b"0\r\n\r\n", [b"Transfer-Encoding: chunked"]
        return body, [b"Content-Length: %d" % len(body)]

    def _broken(self, target: bytes, headers: list[bytes]) -> tuple[bytes, list[bytes]]:
        choice = self._choice
        kind = choice.randrange(10)
        if kind == 0:
            return target + b"&x=" + b"y" * choice.choice((8_000, 10_001, 70_000)), headers
        if kind == 1:
            return target, [*headers, b"X: " + b"y" * choice.choice((9_000, 10_001, 70_000))]
        if kind == 2:
            return target, [*headers, *([b"X: y"] * choice.choice((60, 200)))]
        if kind == 3:
            return target + b" x", headers
        if kind == 4:
            return target, [
                *headers,
                choice.choice((b"no colon", b": empty", b"X\x00: y", b"X : y", b" folded", b"X: \x01")),
            ]
        if kind == 5:
            return target, [
                *headers,
                choice.choice((b"Content-Length: -1", b"Content-Length: 1e3", b"Content-Length: 5")),
            ]
        if kind == 6:
            return target + b"\xff\x00\x7f", headers
        if kind == 7:
            return choice.choice((b"", b"*", b"http://", b"//", b"/\x80", b"?", b"http://[::1/v1/shape")), headers
        if kind == 8:
            return target, [*headers, b"Transfer-Encoding: gzip, chunked"]
        return target + b" HTTP/1.1\r\nHost: h\r\n\r\nBREW " + target, headers


def _is_only(names: list[bytes]) -> bool:
    """Whether no other parameter decides about the secret."""
    return not any(b"secret" in unquote_to_bytes(name) for name in names[:-1])


def _is_utf8(query: bytes) -> bool:
    try:
        unquote_to_bytes(query).decode()
    except UnicodeDecodeError:
        return False
    return True

"""The HTTP application: routes, the secret, CORS, and what every request has in common (http-api.md 1 to 5)."""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Final, Literal

import structlog
from aiohttp import web

from common.messages import Refusal
from common.obstacles import Obstacle
from common.subset import SubsetRequest
from gateway import openapi, response
from gateway.admission import Admission, Budget, Ticket
from gateway.body import BadBody, merged, read_body
from gateway.checks import Checks
from gateway.deletion import Deletion
from gateway.delivery import Delivery
from gateway.exchange import SHAPE_METHODS, Bare, Connection, Exchange
from gateway.measures import Traffic
from gateway.query_string import Value, parse_query, parse_target
from gateway.reception import Reception, declined
from gateway.request import InvalidRequest, LogQuery, parse_delete_query, parse_explain_query, parse_log_query
from gateway.response import Answer
from gateway.service import Service
from gateway.shapes import Shapes, Unavailable
from gateway.subset import parse_subset
from gateway.subset_delivery import SubsetDelivery

log = structlog.get_logger(__name__)

Route = Literal["root", "shape", "health", "explain", "openapi"]

CACHED_TEXTS: Final = 512
"""Parsed targets kept; none is longer than a request line."""

_ROUTES: Final[Mapping[tuple[str, ...], Route]] = {
    (): "root",
    ("v1", "shape"): "shape",
    ("v1", "health"): "health",
    ("v1", "explain"): "explain",
    ("openapi.json",): "openapi",
}
_SHAPE_METHODS: Final = frozenset(SHAPE_METHODS.split(", "))
_ALLOWED_HEADERS: Final = frozenset({"if-none-match", "traceparent"})

_HEALTH_FIELDS: Final = {**response.JSON, "cache-control": "no-cache, no-store, must-revalidate"}

_DESCRIPTION: Final = Answer(200, {**response.JSON, "cache-control": "public, max-age=3600"}, openapi.DOCUMENT)

NO_DELETE: Final = "DELETE not allowed"


# Clients that follow a shape together send the same text at the same time.
_parse_target = lru_cache(maxsize=CACHED_TEXTS)(parse_target)
_parse_query: Callable[[str], Mapping[str, Value]] = lru_cache(maxsize=CACHED_TEXTS)(parse_query)


def _parse(query: Mapping[str, Value]) -> tuple[LogQuery, SubsetRequest | None]:
    log_query = parse_log_query(query)
    return log_query, parse_subset(query, log_query.queryable)


@lru_cache(maxsize=CACHED_TEXTS)
def _parse_text(text: str) -> tuple[LogQuery, SubsetRequest | None]:
    return _parse(_parse_query(text))


def is_authorized(query: Mapping[str, Value], secret: str | None) -> bool:
    """Whether the query string carries the secret; ``api_secret`` counts only without ``secret`` (http-api.md 3)."""
    if secret is None:
        return True
    given = query["secret"] if "secret" in query else query.get("api_secret")
    return isinstance(given, str) and hmac.compare_digest(given.encode(), secret.encode())


def preflight(requested_headers: str | None) -> Answer:
    """The answer to OPTIONS: of the headers asked for, those that a client may send (http-api.md 4.2)."""
    fields = {"access-control-max-age": "86400"}
    names = [name.strip() for name in (requested_headers or "").split(",")]
    allowed = [name for name in names if name.lower() in _ALLOWED_HEADERS]
    if allowed:
        fields["access-control-allow-headers"] = ", ".join(allowed)
    return Answer(204, fields)


class App:
    """Handles each request of each connection. :meth:`drain` begins the end: every answer closes its connection."""

    def __init__(
        self,
        *,
        service: Service,
        shapes: Shapes,
        admission: Admission,
        traffic: Traffic,
        obstacles: Callable[[], list[Obstacle]],
        checks: Checks,
        reception: Reception,
        delivery: Delivery,
        subsets: SubsetDelivery,
        deletion: Deletion,
        secret: str | None,
        allow_delete: bool,
        send_timeout: float,
        requests_per_connection: int,
    ) -> None:
        """``send_timeout`` in seconds. ``obstacles``: what is in the way of this gateway, for ``/v1/health``."""
        self._service = service
        self._shapes = shapes
        self._admission = admission
        self._traffic = traffic
        self._obstacles = obstacles
        self._checks = checks
        self._reception = reception
        self._delivery = delivery
        self._subsets = subsets
        self._deletion = deletion
        self._secret = secret
        self._allow_delete = allow_delete
        self._send_timeout = send_timeout
        self._requests_per_connection = requests_per_connection
        self._draining = False

    def drain(self) -> None:
        """Close each connection with the answer it waits for."""
        self._draining = True

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request. Never raises for what a client can do."""
        began = time.monotonic()
        exchange = Exchange(request, stays_open=self._stays_open(request), send_timeout=self._send_timeout)
        try:
            if not await self._dispatch(request, exchange):
                return Bare(400)
        except (ConnectionError, TimeoutError):
            exchange.abort()
        except Exception as error:
            path, _, _ = request.raw_path.partition("?")
            log.error("request failed", request=exchange.id, method=request.method, path=path, exc_info=error)
            await self._fail(exchange)
        finally:
            # Also when the client has gone, and with it this task, after the answer was begun.
            if exchange.live is not None and exchange.status:
                self._traffic.add(exchange.status, exchange.live, time.monotonic() - began)
        return exchange.sent()

    async def _dispatch(self, request: web.BaseRequest, exchange: Exchange) -> bool:
        """Route and answer; ``False`` if the query string is not UTF-8 (http-api.md 1.6)."""
        target = _parse_target(request.raw_path)
        route = _ROUTES.get(target.segments)
        method = request.method
        if route == "shape" and method in _SHAPE_METHODS:
            exchange.cors_methods = SHAPE_METHODS
            if method == "OPTIONS":
                await exchange.answer(preflight(exchange.header("access-control-request-headers")))
                return True
            try:
                query = _parse_query(target.query)
            except UnicodeDecodeError:
                return False
            exchange.live = query.get("live") == "true"
            await self._shape(request, target.query, query, exchange)
        elif route == "health" and method in ("GET", "HEAD"):
            notes = [obstacle.text for obstacle in self._obstacles()]
            status, body = self._service.health(asyncio.get_running_loop().time(), notes)
            await exchange.answer(Answer(status, _HEALTH_FIELDS, body))
        elif route == "explain" and method in ("GET", "HEAD"):
            try:
                query = _parse_query(target.query)
            except UnicodeDecodeError:
                return False
            await self._explain(query, exchange)
        elif route == "openapi" and method in ("GET", "HEAD"):
            await exchange.answer(_DESCRIPTION)
        elif route == "root" and method in ("GET", "HEAD"):
            await exchange.answer(Answer(200, {}, streamed=exchange.head_only))
        else:
            await exchange.answer(response.NOT_FOUND)
        return True

    async def _shape(self, request: web.BaseRequest, text: str, query: Mapping[str, Value], exchange: Exchange) -> None:
        method = request.method
        if not is_authorized(query, self._secret):
            exchange.cors_methods = None
            await exchange.answer(response.UNAUTHORIZED)
        elif method == "DELETE":
            await exchange.answer(await self._delete(query))
        else:
            budget = self._budget(query.get("handle"))
            ticket = self._admission.admit(budget)
            if ticket is None:
                kind: response.Kind = "write" if method == "POST" else "read"
                await exchange.answer(self._admission.refusal(budget, kind))
                return
            with ticket:
                await self._admitted(request, text, query, exchange, ticket)

    async def _admitted(
        self, request: web.BaseRequest, text: str, query: Mapping[str, Value], exchange: Exchange, ticket: Ticket
    ) -> None:
        try:
            post = request.method == "POST"
            parsed = _parse(merged(query, await read_body(request))) if post else _parse_text(text)
        except BadBody as bad:
            await (exchange.answer if bad.is_whole else exchange.refuse)(bad.answer)
        except InvalidRequest as invalid:
            await exchange.answer(response.invalid(invalid.errors))
        else:
            await self._deliver(exchange, *parsed, ticket)

    async def _deliver(self, exchange: Exchange, query: LogQuery, subset: SubsetRequest | None, ticket: Ticket) -> None:
        refused = await self._checks.refusal(query, subset)
        if refused is not None:
            await exchange.answer(refused)
            return
        shape = await self._reception.shape(exchange, query, ticket, for_rows=subset is not None)
        if shape is None:
            return
        if subset is None:
            await self._delivery.run(exchange, query, shape)
        else:
            await self._subsets.run(exchange, query, subset, shape)

    def _budget(self, handle: Value | None) -> Budget:
        """Which budget a request counts against; of all it says, only its handle matters (http-api.md 28.2)."""
        return "existing" if isinstance(handle, str) and self._shapes.exists(handle) else "initial"

    async def _explain(self, query: Mapping[str, Value], exchange: Exchange) -> None:
        if not is_authorized(query, self._secret):
            exchange.cors_methods = None
            await exchange.answer(response.UNAUTHORIZED)
            return
        # It costs a worker, and perhaps the database, what a request for a new shape does, but for its snapshot.
        ticket = self._admission.admit("initial")
        if ticket is None:
            await exchange.answer(self._admission.refusal("initial", "read"))
            return
        with ticket:
            await exchange.answer(await self._explanation(query))

    async def _explanation(self, query: Mapping[str, Value]) -> Answer:
        try:
            request = parse_explain_query(query)
        except InvalidRequest as invalid:
            return response.invalid(invalid.errors)
        said = await self._shapes.explain(request)
        if isinstance(said, Unavailable):
            return declined(said)
        if isinstance(said, Refusal):
            return response.refused(said)
        return Answer(200, {**response.NO_STORE, **response.JSON}, said.body)

    async def _delete(self, query: Mapping[str, Value]) -> Answer:
        unavailable = await self._shapes.await_active()
        if unavailable is not None:
            return declined(unavailable, "write")
        if not self._allow_delete:
            return response.failure(405, NO_DELETE, "write")
        try:
            delete_query = parse_delete_query(query)
        except InvalidRequest as invalid:
            return response.invalid(invalid.errors, "write")
        return await self._deletion.answer(delete_query)

    async def _fail(self, exchange: Exchange) -> None:
        if exchange.started:
            exchange.abort()
            return
        try:
            await exchange.answer(response.INTERNAL_ERROR)
        except (ConnectionError, TimeoutError):
            exchange.abort()

    def _stays_open(self, request: web.BaseRequest) -> Callable[[], bool]:
        connection = request.protocol
        assert isinstance(connection, Connection)
        connection.served += 1
        return lambda: not self._draining and connection.served < self._requests_per_connection

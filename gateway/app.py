"""The HTTP application: routes, the secret, CORS, and what every request has in common (http-api.md 1 to 5)."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import Final, Literal, NamedTuple

import structlog

from common.messages import Refusal
from common.obstacles import Obstacle
from common.subset import SubsetRequest
from gateway import openapi, response
from gateway.admission import Admission, Ticket, budget_of
from gateway.body import BadBody, merged, read_body
from gateway.checks import Checks
from gateway.deletion import Deletion
from gateway.delivery import Delivery
from gateway.exchange import SHAPE_METHODS, Exchange
from gateway.measures import Traffic
from gateway.query_string import Value, parse_query, parse_target
from gateway.reception import Reception, declined
from gateway.request import InvalidRequest, LogQuery, parse_delete_query, parse_explain_query, parse_log_query
from gateway.response import Answer
from gateway.service import Service
from gateway.shapes import Shapes, Unavailable
from gateway.shortcut import Shortcut
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
_ALLOWED_HEADERS: Final = frozenset({"content-type", "if-none-match", "traceparent"})
"""The official client sends a subset's POST as JSON, which a browser asks leave for."""

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


class Plain(NamedTuple):
    """A GET of a log: its parameters, and what they ask for."""

    parameters: Mapping[str, Value]
    query: LogQuery


@lru_cache(maxsize=CACHED_TEXTS)
def _parse_plain(text: str) -> Plain | None:
    """The target of a GET, if it is one of a log, valid, and no worker must check it."""
    target = _parse_target(text)
    if _ROUTES.get(target.segments) != "shape":
        return None
    try:
        parameters = _parse_query(target.query)
        query, subset = _parse_text(target.query)
    except (UnicodeDecodeError, InvalidRequest):
        return None
    return Plain(parameters, query) if subset is None and query.queryable is None else None


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
    """Handles each request of each connection."""

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
        shortcut: Shortcut,
        secret: str | None,
        allow_delete: bool,
    ) -> None:
        """``obstacles``: what is in the way of this gateway, for ``/v1/health``."""
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
        self._shortcut = shortcut
        self._secret = secret
        self._allow_delete = allow_delete

    def begin(self, exchange: Exchange) -> None:
        """Answer one request: now, when there is news for it, or in a task. Never raises."""
        try:
            if self._try_shortcut(exchange):
                return
        except Exception as error:
            log.error("request failed", **_about(exchange), exc_info=error)
            exchange.run(partial(self._fail, exchange))
        else:
            exchange.run(partial(self.handle, exchange))

    def _try_shortcut(self, exchange: Exchange) -> bool:
        if exchange.method != "GET" or exchange.request.payload is not None:
            return False
        asked = _parse_plain(exchange.target)
        if asked is None or not is_authorized(asked.parameters, self._secret):
            return False
        exchange.cors_methods = SHAPE_METHODS
        exchange.count(self._traffic, live=asked.parameters.get("live") == "true")
        return self._shortcut.take(exchange, asked.query, self.handle)

    async def handle(self, exchange: Exchange) -> None:
        """Answer one request, whatever it takes. Never raises for what a client can do."""
        try:
            if not await self._dispatch(exchange):
                exchange.fail(400)
        except (ConnectionError, TimeoutError):
            exchange.abort()
        except Exception as error:
            log.error("request failed", **_about(exchange), exc_info=error)
            await self._fail(exchange)

    async def _dispatch(self, exchange: Exchange) -> bool:
        """Route and answer; ``False`` if the query string is not UTF-8 (http-api.md 1.6)."""
        target = _parse_target(exchange.target)
        route = _ROUTES.get(target.segments)
        method = exchange.method
        if route == "shape" and method in _SHAPE_METHODS:
            exchange.cors_methods = SHAPE_METHODS
            if method == "OPTIONS":
                await exchange.answer(preflight(exchange.header("access-control-request-headers")))
                return True
            try:
                query = _parse_query(target.query)
            except UnicodeDecodeError:
                return False
            exchange.count(self._traffic, live=query.get("live") == "true")
            await self._shape(target.query, query, exchange)
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

    async def _shape(self, text: str, query: Mapping[str, Value], exchange: Exchange) -> None:
        method = exchange.method
        if not is_authorized(query, self._secret):
            exchange.cors_methods = None
            await exchange.answer(response.UNAUTHORIZED)
        elif method == "DELETE":
            await exchange.answer(await self._delete(query))
        else:
            budget = budget_of(query.get("handle"), self._shapes.exists)
            ticket = self._admission.admit(budget)
            if ticket is None:
                kind: response.Kind = "write" if method == "POST" else "read"
                await exchange.answer(self._admission.refusal(budget, kind))
                return
            with ticket:
                await self._admitted(text, query, exchange, ticket)

    async def _admitted(self, text: str, query: Mapping[str, Value], exchange: Exchange, ticket: Ticket) -> None:
        try:
            if exchange.method == "POST":
                parsed = _parse(merged(query, await read_body(exchange.request, exchange.ask_for_body)))
            else:
                parsed = _parse_text(text)
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


def _about(exchange: Exchange) -> dict[str, str]:
    """What the log may say of a request: not its query, which may carry the secret."""
    path, _, _ = exchange.target.partition("?")
    return {"request": exchange.id, "method": exchange.method, "path": path}

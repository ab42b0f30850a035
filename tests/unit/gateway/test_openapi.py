"""``/openapi.json`` is complete and true: compared with the routes, parameters and headers that the gateway has."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from typing import Any, Final

import orjson
import pytest
import pytest_asyncio
from openapi_spec_validator import validate

from gateway import openapi, shapes
from gateway.query_string import Value
from gateway.request import parse_delete_query, parse_explain_query, parse_log_query
from tests.unit.gateway.cluster import Cluster, Response, cluster, entry, refuse

METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")

SUBSET: Final = {name for name in openapi.PARAMETERS if name.startswith("subset__")}
"""Parameters that the gateway looks for by their prefix."""

RARE: Final = {
    "connection",
    "transfer-encoding",
    "content-encoding",
    "content-length",
    "electric-snapshot",
    "electric-internal-known-error",
}
"""Headers that need not occur in the answers that are looked at here, or that depend on the connection."""

DOCUMENT: Final[Any] = orjson.loads(openapi.DOCUMENT)


class Watched(dict[str, Value]):
    """A query that notes what is looked for in it."""

    def __init__(self, **values: Value) -> None:
        super().__init__(values)
        self.names: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        self.names.add(key)
        return super().get(key, default)

    def __getitem__(self, key: str) -> Value:
        self.names.add(key)
        return super().__getitem__(key)

    def __contains__(self, key: object) -> bool:
        self.names.add(str(key))
        return super().__contains__(key)

    def __iter__(self) -> Iterator[str]:
        return super().__iter__()


@pytest_asyncio.fixture
async def world() -> AsyncIterator[Cluster]:
    async with cluster() as running:
        yield running


def operation(method: str, path: str) -> Any:
    return DOCUMENT["paths"].get(path, {}).get(method.lower())


def parameters_of(method: str, path: str = "/v1/shape") -> set[str]:
    """The names of the query parameters."""
    described = operation(method, path)["parameters"]
    return {each["$ref"].rpartition("/")[2] for each in described if "$ref" in each}


def test_it_is_valid() -> None:
    validate(DOCUMENT)


async def test_it_is_served_to_everybody(world: Cluster) -> None:
    answer = await world.ask("/openapi.json")
    assert (answer.status, answer.raw) == (200, openapi.DOCUMENT)
    assert answer.headers["content-type"] == "application/json; charset=utf-8"
    assert (await world.ask("/openapi.json", "HEAD")).headers["content-length"] == str(len(openapi.DOCUMENT))
    async with cluster(secret="s3cret", insecure=False) as closed:
        assert (await closed.ask("/openapi.json")).status == 200


async def test_it_has_all_routes(world: Cluster) -> None:
    for path in {*DOCUMENT["paths"], "/v1", "/v1/nope", "/openapi", "/metrics", "/v1/shape/x"}:
        for method in METHODS:
            answer = await world.ask(path, method, headers="Content-Length: 0\r\n" if method == "POST" else "")
            assert (answer.status != 404) == (operation(method, path) is not None), (method, path)


def test_it_has_all_parameters() -> None:
    log = Watched(table="items", offset="0_0", handle="1-1", where="id = $1", params={"1": "1"})
    parse_log_query(log)
    read = log.names - {"subset"} | SUBSET | {"secret", "api_secret"}
    absent = Watched(table="items", offset="-1", live_sse="false")
    parse_log_query(absent)
    assert parameters_of("GET") == parameters_of("HEAD") == parameters_of("POST") == read | absent.names - {"subset"}
    deletion = Watched(table="items", handle="1-1", where="id = $1", params={"1": "1"})
    parse_delete_query(deletion)
    assert parameters_of("DELETE") == deletion.names | {"secret", "api_secret"}
    explanation = Watched(table="items", where="id = $1", params={"1": "1"})
    parse_explain_query(explanation)
    assert parameters_of("GET", "/v1/explain") == explanation.names | {"secret", "api_secret"}


async def test_it_has_all_headers_of_all_answers(world: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each header of an answer is described for its status; what is described occurs."""
    monkeypatch.setattr(shapes, "READY_TIMEOUT", 0.2)
    seen: dict[tuple[str, str, int], set[str]] = defaultdict(set)

    async def look(method: str, target: str, headers: str = "", *, of: Cluster = world) -> Response:
        answer = await of.ask(target, method, headers)
        path = target.partition("?")[0]
        described = operation(method, path)["responses"][str(answer.status)]
        assert answer.headers.keys() <= described["headers"].keys(), (method, target, answer)
        seen[method, path, answer.status] |= answer.headers.keys()
        if answer.raw:
            assert {"content", "headers"} <= described.keys() or method == "OPTIONS", (method, target)
        return answer

    shape = world.worker.shape()
    query = "/v1/shape?table=items"
    resumed = f"{query}&handle={shape.handle}&offset="
    for method in ("GET", "HEAD"):
        initial = await look(method, f"{query}&offset=-1")
        await look(method, f"{resumed}0_0")
        await look(method, f"{query}&offset=now")
        await look(method, f"{resumed}0_inf&live=true")
        tag = (await world.ask(f"{resumed}0_inf")).headers["etag"]
        await look(method, f"{query}&offset=-1", f"If-None-Match: {initial.headers['etag']}\r\n")
        await look(method, f"{resumed}0_inf&live=true", f"If-None-Match: {tag}\r\n")
        await look(method, f"{query}&offset=x")
        await look(method, f"{query}&offset=0_0&handle=1-1")
        for path in ("/", "/v1/health", "/openapi.json"):
            await look(method, path)
        # The reference has no CORS headers, and no content-type, on a 401.
        async with cluster(secret="s3cret", insecure=False) as closed:
            await look(method, f"{query}&offset=-1", of=closed)
            await look(method, "/v1/explain?table=items", of=closed)
        await look(method, "/v1/explain?table=items")
        await look(method, "/v1/explain")
    waiting = asyncio.create_task(look("GET", f"{resumed}0_inf&live=true"))
    await asyncio.sleep(0.1)
    world.worker.commit(shape, 5, entry(0))
    await waiting
    await look("OPTIONS", "/v1/shape", "Access-Control-Request-Headers: If-None-Match\r\n")
    await look("DELETE", "/v1/shape")
    await look("DELETE", f"/v1/shape?handle={shape.handle}")
    await look("DELETE", f"/v1/shape?handle={shape.handle}")
    async with cluster(integration_testing=False) as strict:
        await look("DELETE", "/v1/shape?handle=1-1", of=strict)
    world.worker.refusal = refuse(500, b'{"message":"x"}', known=True)
    await look("GET", f"{query}&offset=-1&replica=full")
    world.worker.refusal = refuse(503, b'{"message":"x"}', 10, known=True)
    for method in ("GET", "HEAD", "DELETE"):
        await look(method, f"{query}&offset=-1&replica=full")
    world.worker.refusal = refuse(409, b"")
    await look("GET", f"{query}&offset=-1&replica=full")
    world.state = "waiting"
    for method in ("GET", "HEAD"):
        await world.until_health(202)
        await look(method, "/v1/health")

    for (method, path, status), names in seen.items():
        described = set(operation(method, path)["responses"][str(status)]["headers"])
        # Those that a HEAD, or an error that is no read, has not.
        spared = RARE | ({"surrogate-control"} if method == "DELETE" else set())
        if status == 500:
            spared |= {"retry-after"}
        assert described - names <= spared, (method, path, status, described - names)

"""Around the log: routes, the secret, CORS, health, readiness, DELETE, the connection (http-api.md 1-5, 25-27)."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Sequence

import pytest
import pytest_asyncio

from common.messages import Ensure, Find, handle_topic
from gateway import shapes
from gateway.shapes import Shapes
from tests.ports import free_port
from tests.unit.gateway.cluster import Cluster, cluster, refuse, row, until

SHAPE_METHODS = "GET, POST, HEAD, DELETE, OPTIONS"


@pytest_asyncio.fixture
async def world() -> AsyncIterator[Cluster]:
    async with cluster() as running:
        yield running


@pytest.mark.parametrize(
    ("method", "path", "status", "body"),
    [
        ("GET", "/", 200, b""),
        ("GET", "/v1/health", 200, b'{"status":"active"}'),
        ("GET", "/v1/health/", 200, b'{"status":"active"}'),
        ("GET", "/nope", 404, b"Not found"),
        ("GET", "/v1/nope", 404, b"Not found"),
        ("GET", "/v1/shape/foo", 404, b"Not found"),
        ("GET", "/v1%2Fshape", 404, b"Not found"),
        ("GET", "/metrics", 404, b"Not found"),
        ("PUT", "/v1/shape", 404, b"Not found"),
        ("PATCH", "/v1/shape", 404, b"Not found"),
        ("POST", "/v1/health", 404, b"Not found"),
        ("OPTIONS", "/v1/health", 404, b"Not found"),
        ("OPTIONS", "/nope", 404, b"Not found"),
        ("POST", "/", 404, b"Not found"),
    ],
)
async def test_routes(world: Cluster, method: str, path: str, status: int, body: bytes) -> None:
    answer = await world.ask(path, method)
    assert (answer.status, answer.raw) == (status, body)
    assert answer.headers["content-length"] == str(len(body))
    assert answer.headers["access-control-allow-methods"] == "GET, HEAD"
    assert answer.headers["electric-server"] == "ElectricSQL/1.7.12"
    assert answer.headers["vary"] == "accept-encoding"
    if "health" in path and status == 200:
        assert answer.headers["cache-control"] == "no-cache, no-store, must-revalidate"
        assert answer.headers["content-type"] == "application/json; charset=utf-8"
    else:
        assert answer.headers["cache-control"] == "max-age=0, private, must-revalidate"
        assert "content-type" not in answer.headers
    assert "server" not in answer.headers


async def test_head_of_root_and_health(world: Cluster) -> None:
    root, health = await world.ask("/", "HEAD"), await world.ask("/v1/health", "HEAD")
    assert root.status == health.status == 200
    assert "content-length" not in root.headers
    assert health.headers["content-length"] == "19"


@pytest.mark.parametrize("path", ["/v1/shape", "/v1/shape/", "/v1//shape", "//v1/%73hape", "http://h/v1/shape"])
async def test_no_spelling_of_the_path_goes_around_the_secret(path: str) -> None:
    async with cluster(secret="s3cret", insecure=False) as world:
        query = "?table=items&offset=-1"
        for wrong in (
            "",
            "&secret=",
            "&secret=x",
            "&secret=x&api_secret=s3cret",
            "&secret[]=s3cret",
            "&secret=s3cret&secret=x",
        ):
            for method in ("GET", "HEAD", "POST", "DELETE"):
                refused = await world.ask(path + query + wrong, method)
                assert refused.status == 401
                assert refused.raw in (b'{"message":"Unauthorized - Invalid API secret"}', b"")
                assert refused.headers["content-length"] == "47"
                assert not [name for name in refused.headers if name.startswith("access-control")]
                assert "content-type" not in refused.headers
                assert refused.headers["cache-control"] == "max-age=0, private, must-revalidate"
        assert not world.worker.asked
        for right in ("&secret=s3cret", "&api_secret=s3cret", "&secret=x&secret=s3cret"):
            assert (await world.ask(path + query + right)).status == 200
        header = await world.ask(path + query, headers="Authorization: Bearer s3cret\r\n")
        assert header.status == 401
        assert (await world.ask(path, "OPTIONS")).status == 204


@pytest.mark.parametrize(
    "path",
    [
        "/v1/./shape",
        "/v1/x/../shape",
        "/v1/shape/.",
        "/v1/%2e/shape",
        "/v1%2fshape",
        "/V1/shape",
        "/v1/shape;a",
        "\\v1",
    ],
)
async def test_a_path_that_only_looks_like_the_shape_is_nothing(path: str) -> None:
    async with cluster(secret="s3cret", insecure=False) as world:
        for method in ("GET", "POST", "DELETE"):
            for secret in ("", "&secret=s3cret"):
                answer = await world.ask(f"{path}?table=items&offset=-1{secret}", method)
                assert answer.status in (400, 404)
        assert not world.worker.asked


async def test_only_the_shape_is_secret() -> None:
    async with cluster(secret="s3cret", insecure=False) as world:
        for path, status in (("/", 200), ("/v1/health", 200), ("/nope", 404)):
            assert (await world.ask(path)).status == status
        missing = await world.ask("/v1/shape?offset=-1&api_secret=s3cret")
        assert missing.raw == b'{"message":"Invalid request","errors":{"table":["can\'t be blank"]}}'


async def test_preflight(world: Cluster) -> None:
    plain = await world.ask("/v1/shape", "OPTIONS")
    assert plain.status == 204
    assert {name: value for name, value in plain.headers.items() if name not in ("date", "x-request-id")} == {
        "electric-server": "ElectricSQL/1.7.12",
        "access-control-allow-origin": "*",
        "access-control-expose-headers": "electric-cursor,electric-handle,electric-has-data,electric-offset,"
        "electric-schema,electric-up-to-date,electric-internal-known-error,retry-after",
        "access-control-allow-methods": SHAPE_METHODS,
        "access-control-max-age": "86400",
        "connection": "keep-alive",
    }
    for asked, allowed in (
        ("If-None-Match", "If-None-Match"),
        ("x-foo, authorization", None),
        ("x-foo, traceparent,IF-NONE-MATCH", "traceparent, IF-NONE-MATCH"),
        # What a browser asks before the official client's POST of a subset.
        ("content-type", "content-type"),
    ):
        headers = f"Origin: https://cook.app\r\nAccess-Control-Request-Headers: {asked}\r\n"
        answer = await world.ask("/v1/shape?table=items", "OPTIONS", headers)
        assert answer.headers.get("access-control-allow-headers") == allowed
        assert answer.headers["access-control-allow-origin"] == "https://cook.app"


async def test_origin_and_request_id_are_echoed(world: Cluster) -> None:
    long_id = "my-request-id-0123456789abcdef"
    answer = await world.get("offset=-1", headers=f"Origin: http://a\r\nX-Request-Id: {long_id}\r\n")
    assert answer.headers["access-control-allow-origin"] == "http://a"
    assert answer.headers["x-request-id"] == long_id
    two = await world.get("offset=-1", headers="Origin: http://a\r\nOrigin: http://b\r\nX-Request-Id: short\r\n")
    assert two.headers["access-control-allow-origin"] == "*"
    assert two.headers["x-request-id"] not in ("short", long_id)


async def test_a_bad_request_creates_nothing_and_is_not_stored(world: Cluster) -> None:
    bad = await world.get("offset=abc")
    assert bad.status == 400
    assert bad.raw == b'{"message":"Invalid request","errors":{"offset":["has invalid format"]}}'
    assert bad.headers["cache-control"] == bad.headers["surrogate-control"] == "no-store"
    assert bad.headers["access-control-allow-methods"] == SHAPE_METHODS
    assert not world.worker.asked


async def test_bytes_that_are_no_utf8_get_a_bare_400(world: Cluster) -> None:
    stream = await world.open("/v1/shape?table=%ff&offset=-1")
    assert await stream.reader.read() == b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\n"
    stream.close()


@pytest.mark.parametrize(
    ("request_head", "status"),
    [
        (b"GET /" + b"a" * 12_000 + b" HTTP/1.1\r\nHost: h\r\n\r\n", b"414"),
        (b"GET / HTTP/1.1\r\nHost: h\r\nX: " + b"a" * 12_000 + b"\r\n\r\n", b"431"),
        (b"GET / HTTP/1.1\r\n" + b"X: a\r\n" * 200 + b"\r\n", b"431"),
        (b"hello\r\n\r\n", b"400"),
    ],
)
async def test_what_is_no_request_gets_a_bare_status(world: Cluster, request_head: bytes, status: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", world.settings.port)
    writer.write(request_head)
    answer = await reader.read()
    assert answer.split(b" ")[1] == status
    assert answer.endswith(b"connection: close\r\n\r\n")
    assert b"erver" not in answer
    writer.close()


@pytest.mark.parametrize(
    ("broken", "status"),
    [
        (b"GET /v1/shape?where=" + b"a" * 1_000_000 + b" HTTP/1.1\r\nHost: h\r\n\r\n", b"414 "),
        (b"GET / HTTP/1.1\r\nHost: h\r\nX: " + b"a" * 1_000_000 + b"\r\n\r\n", b"431 "),
    ],
)
async def test_who_is_refused_gets_all_answers_before_the_connection_ends(
    world: Cluster, broken: bytes, status: bytes
) -> None:
    world.worker.rows = [row(number, pad=20_000) for number in range(20)]
    for slow in (0.0, 0.3):
        client = socket.socket()
        # Most of the first answer waits in the gateway's kernel when the connection ends.
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        client.connect(("127.0.0.1", world.settings.port))
        reader, writer = await asyncio.open_connection(sock=client, limit=1_000)
        writer.write(b"GET /v1/shape?table=items&offset=-1 HTTP/1.1\r\nHost: h\r\n\r\n")
        # In another packet: what is parsed together with it would be refused with it.
        await asyncio.sleep(0.2)
        writer.write(broken)
        await asyncio.sleep(slow)
        writer.write(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        await asyncio.sleep(slow)
        async with asyncio.timeout(120):
            answers = await reader.read()
        body, _, end = answers.rpartition(b"0\r\n\r\nHTTP/1.1 ")
        assert len(body) > 400_000
        assert end.startswith(status)
        writer.close()


async def test_a_connection_is_kept_and_closed_after_its_share_of_requests() -> None:
    async with cluster(conn_max_requests=3) as world:
        stream = await world.open("/v1/shape?table=items&offset=-1")
        for number in (1, 2, 3):
            answer = await stream.response()
            assert answer.status == 200
            assert (answer.headers.get("connection") == "close") == (number == 3)
            if number < 3:
                stream.writer.write(b"GET /v1/shape?table=items&offset=now HTTP/1.1\r\nHost: h\r\n\r\n")
        assert await stream.reader.read() == b""
        stream.close()


async def test_pipelined_requests_are_answered_in_order(world: Cluster) -> None:
    stream = await world.open("/v1/health")
    stream.writer.write(b"GET /nope HTTP/1.1\r\nHost: h\r\n\r\nGET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
    assert [(await stream.response()).status for _ in range(3)] == [200, 404, 200]
    assert await stream.reader.read() == b""
    stream.close()


@pytest.mark.parametrize("protocol", ["websocket", "h2c"])
@pytest.mark.parametrize("cuts", [[], *([cut] for cut in range(48, 62)), range(45, 65)])
async def test_nobody_is_given_another_protocol(world: Cluster, protocol: str, cuts: Sequence[int]) -> None:
    """Java's client asks for HTTP/2 with each request, `curl --http2` too; the body may come in the same packet."""
    asked = (
        f"POST /nope HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUPGRADE: {protocol}\r\nContent-Length: 3\r\n\r\nabc"
        "GET /nope HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
    ).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", world.settings.port)
    for start, end in itertools.pairwise([0, *cuts, len(asked)]):
        writer.write(asked[start:end])
        await asyncio.sleep(0.02)
    async with asyncio.timeout(120):
        answers = await reader.read()
    assert answers.count(b"HTTP/1.1 404") == 2
    writer.close()


@pytest.mark.parametrize("end", ["\r\nu", "\r\nUpgrade"])
async def test_a_body_may_end_like_the_beginning_of_such_a_header(world: Cluster, end: str) -> None:
    body = "[1]" + end
    asked = f"POST /v1/shape?table=items&offset=-1 HTTP/1.1\r\nHost: h\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    reader, writer = await asyncio.open_connection("127.0.0.1", world.settings.port)
    for _ in range(2):
        writer.write(asked.encode())
        async with asyncio.timeout(120):
            head = await reader.readuntil(b"\r\n\r\n")
            assert b"Invalid JSON" in await reader.readexactly(
                int(head.split(b"content-length: ")[1].split(b"\r\n")[0])
            )
    writer.write(asked.encode())
    await asyncio.sleep(0.05)
    writer.write_eof()
    writer.close()


async def test_health_says_what_is_wrong(world: Cluster) -> None:
    world.state, world.reason = "waiting", "another instance holds the lock"
    waiting = await world.until_health(202)
    assert waiting.items == {"status": "waiting", "reason": "another instance holds the lock"}
    world.state, world.reason = "active", ""
    await world.until_health(200)
    world.owners.pop(3)
    unowned = await world.until_health(202)
    assert unowned.items["status"] == "starting"
    assert "partitions have no worker" in unowned.items["reason"]
    world.owners[3] = "w0"
    await world.until_health(200)
    world.silent = True
    stale = await world.until_health(202)
    assert stale.items["status"] == "starting"
    assert "no word from the ingester" in stale.items["reason"]


async def test_without_an_active_service_nothing_is_created_but_what_exists_is_found(
    world: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shapes, "READY_TIMEOUT", 0.3)
    world.worker.shape()
    world.state, world.reason = "starting", "no database"
    await world.until_health(202)
    assert (await world.get("offset=-1")).status == 200
    answer = await world.get("replica=full&offset=-1")
    assert answer.status == 503
    assert answer.headers["retry-after"] == "5"
    assert answer.items["message"].startswith("Timeout waiting for replication client to be ready.")
    assert answer.items["message"].endswith(": no database")
    assert answer.headers["cache-control"] == "no-store"
    assert {type(request) for request in world.worker.asked} == {Find}


async def test_a_service_that_becomes_active_in_time_is_waited_for(world: Cluster) -> None:
    world.state = "starting"
    await world.until_health(202)
    asked = asyncio.create_task(world.get("offset=-1"))
    await until(lambda: bool(world.worker.asked))
    world.state = "active"
    assert (await asked).status == 200
    assert type(world.worker.asked[-1]) is Ensure


async def test_a_creation_that_takes_too_long_is_given_up(world: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shapes, "CREATE_TIMEOUT", 0.3)
    world.worker.silent = True
    answer = await world.get("offset=-1")
    assert (answer.status, answer.headers["retry-after"]) == (503, "1")
    assert answer.items == {"message": "Failed to create shape, please retry"}


async def test_a_mistake_in_here_is_told_without_details(world: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    async def obtain(request: object) -> None:
        raise RuntimeError("password=hunter2")

    monkeypatch.setattr(world.gateway._shapes, "obtain", obtain)
    answer = await world.get("offset=-1")
    assert (answer.status, answer.raw) == (500, b'{"error":"Internal server error"}')
    assert answer.headers["cache-control"] == "max-age=0, private, must-revalidate"
    assert (await world.ask("/v1/health")).status == 200


async def test_delete_by_table_and_by_handle(world: Cluster) -> None:
    first = await world.get("offset=-1")
    deleted = await world.ask("/v1/shape?table=items", "DELETE")
    assert (deleted.status, deleted.raw) == (202, b"")
    assert deleted.headers["electric-has-data"] == "true"
    assert deleted.headers["cache-control"] == "no-cache"
    assert deleted.headers["content-length"] == "0"
    second = await world.get("offset=-1")
    handle = second.headers["electric-handle"]
    assert handle != first.headers["electric-handle"]
    poll = asyncio.create_task(world.get(f"offset=0_inf&handle={handle}&live=true"))
    await until(lambda: world.gateway._live.waiting == 1)
    assert (await world.ask(f"/v1/shape?handle={handle}", "DELETE")).status == 202
    assert (await poll).status == 409
    for target in (f"handle={handle}", "table=items", "handle=garbage"):
        gone = await world.ask(f"/v1/shape?{target}", "DELETE")
        assert (gone.status, gone.items) == (404, {"message": "No existing shape found"})
        assert gone.headers["cache-control"] == "no-cache"
        assert "surrogate-control" not in gone.headers


async def test_a_shape_that_ends_while_it_is_made_is_not_there_to_be_deleted(world: Cluster) -> None:
    world.worker.refusal = refuse(409, b"")
    answer = await world.ask("/v1/shape?table=items", "DELETE")
    assert (answer.status, answer.raw) == (404, b'{"message":"No existing shape found"}')


async def test_delete_checks_what_it_is_told(world: Cluster) -> None:
    handle = (await world.get("offset=-1")).headers["electric-handle"]
    mismatch = await world.ask("/v1/shape?table=items&handle=1-1", "DELETE")
    assert mismatch.status == 400
    assert "do not match" in mismatch.items["message"]
    nothing = await world.ask("/v1/shape", "DELETE")
    assert nothing.items["errors"] == {"handle": ["can't be blank when shape definition is missing"]}
    assert nothing.headers["cache-control"] == "no-cache"
    both = await world.ask(f"/v1/shape?table=items&handle={handle}", "DELETE")
    assert both.status == 202
    body = b'{"message":"Invalid request","errors":{"where":["no"]}}'
    world.worker.explain = lambda asked: refuse(400 if asked.request.where == "ID=nope" else 503, body)(asked.id)
    impossible = await world.ask("/v1/shape?table=items&where=ID=nope", "DELETE")
    assert (impossible.status, impossible.raw, impossible.headers["cache-control"]) == (400, body, "no-cache")
    assert (await world.ask("/v1/shape?table=items&where=ID=1", "DELETE")).status == 404


async def test_delete_needs_permission_and_an_active_service(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shapes, "READY_TIMEOUT", 0.3)
    async with cluster(integration_testing=False) as world:
        world.worker.shape()
        refused = await world.ask("/v1/shape?table=items", "DELETE")
        assert (refused.status, refused.items) == (405, {"message": "DELETE not allowed"})
        assert refused.headers["cache-control"] == "no-cache"
        assert world.worker.shapes
        world.state = "starting"
        await world.until_health(202)
        early = await world.ask("/v1/shape?table=items", "DELETE")
        assert (early.status, early.headers["retry-after"]) == (503, "5")


async def test_the_process_serves_and_leaves_on_sigterm() -> None:
    async with cluster() as world:
        port = free_port()
        environment = {
            **os.environ,
            "DATABASE_URL": "postgresql://u@localhost/db",
            "ELECTRIC_INSECURE": "true",
            "ELECTRIC_PORT": str(port),
            "ELECTRIC_STORAGE_DIR": str(world.storage),
            "GALVANIC_RUN_DIR": str(world.run_dir),
            "ELECTRIC_LONG_POLL_TIMEOUT": "60000",
        }
        code = (
            "import sys; from common.config import load_settings; from gateway.main import main;"
            " sys.exit(main(load_settings(), 'g0'))"
        )
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, env=environment)
        try:
            await until(lambda: is_open(port))
            world.settings.port = port
            await world.until_health(200)
            handle = (await world.get("offset=-1")).headers["electric-handle"]
            poll = await world.open(f"/v1/shape?table=items&offset=0_inf&handle={handle}&live=true")
            await until(lambda: handle_topic(handle) in world.worker.subscribed)
            process.send_signal(signal.SIGTERM)
            answer = await poll.response()
            assert answer.headers["electric-has-data"] == "false"
            async with asyncio.timeout(120):
                assert await process.wait() == 0
            poll.close()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


def is_open(port: int) -> bool:
    """Whether somebody listens."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.parametrize(
    "sent", [b"", b"G", b"GET /v1/health HTTP/1.1\r\nHost: h\r\n", b"GET / HTTP/1.1\r\n\r\nGET /v1"]
)
async def test_a_client_that_never_ends_its_request_is_hung_up_on(sent: bytes) -> None:
    async with cluster(tcp_read_timeout=0.3) as world:
        reader, writer = await asyncio.open_connection("127.0.0.1", world.settings.port)
        writer.write(sent)
        async with asyncio.timeout(120):
            answer = await reader.read()
        assert answer.count(b"HTTP/1.1 ") == sent.count(b"\r\n\r\n")
        writer.close()


async def test_a_client_that_never_ends_its_body_is_answered_all_the_same(world: Cluster) -> None:
    for method in ("GET", "PUT", "DELETE"):
        answer = await world.ask("/v1/health", method, headers="Content-Length: 100\r\n")
        assert answer.status == (200 if method == "GET" else 404)


async def test_an_error_of_ours_is_told_by_an_id_alone(
    world: Cluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def fail(*arguments: object) -> None:
        raise RuntimeError("a detail of ours")

    monkeypatch.setattr(Shapes, "obtain", fail)
    answer = await world.get("offset=-1&secret=not-for-logs")
    assert (answer.status, answer.raw) == (500, b'{"error":"Internal server error"}')
    assert answer.headers["cache-control"] == "max-age=0, private, must-revalidate"
    said = capsys.readouterr()
    logged = said.out + said.err
    assert answer.headers["x-request-id"] in logged
    assert "a detail of ours" in logged
    assert "not-for-logs" not in logged


async def test_answers_are_counted_by_status_and_the_time_of_those_that_do_not_wait(world: Cluster) -> None:
    handle = (await world.get("table=items&offset=-1")).headers["electric-handle"]
    await world.get("table=items&offset=-1")
    await world.get(f"table=items&offset=0_inf&handle={handle}&live=true")
    await world.get("table=items")
    await world.ask("/v1/shape?table=items&offset=-1", "OPTIONS")
    await world.ask("/v1/health")
    told = {(sample.name, sample.labels): sample.values for sample in world.gateway.measures.samples()}
    assert told["electric_plug_serve_shape_requests_count", ("200",)] == (3,)
    assert told["electric_plug_serve_shape_requests_count", ("400",)] == (1,)
    assert told["electric_plug_serve_shape_count", ()] == (3,)
    *counts, milliseconds = told["electric_plug_serve_shape_duration", ()]
    assert sum(counts) == 3
    assert milliseconds > 0
    assert told["galvanic_waiting_requests", ()] == (0,)
    assert told["electric_admission_control_acquire_current", ("existing",)] == (0,)


async def test_a_client_that_leaves_before_its_answer_is_not_counted(world: Cluster) -> None:
    handle = (await world.get("table=items&offset=-1")).headers["electric-handle"]
    stream = await world.open(f"/v1/shape?table=items&offset=0_inf&handle={handle}&live=true")
    await until(lambda: world.gateway.measures.facts()["waiting"] == "1")
    assert world.gateway.measures.facts()["connections"] != "0"
    stream.close()
    await until(lambda: world.gateway.measures.facts()["waiting"] == "0")
    assert world.gateway.measures.facts()["answers"] == "1"

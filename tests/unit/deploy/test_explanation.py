"""`galvanic explain`: what is asked, how answers look, and what is said when there is none."""

from __future__ import annotations

import http.server
import json
import os
import socket
import threading
from collections.abc import Iterator
from unittest import mock
from urllib.parse import parse_qs, urlsplit

import pytest
from click.testing import CliRunner, Result

from deploy.cli import main
from deploy.explanation import ExplainError, ask

ANSWER = {
    "table": '"public"."items"',
    "parsed": """("n" = '5'::int4)""",
    "sql": """SELECT * FROM "public"."items" WHERE ("n" = '5'::int4)""",
    "columns": [{"name": "n", "type": "int4"}],
    "access": {"summary": "one hash look-up; hash of n: n = '5'", "lookups": []},
    "residual": None,
    "cost": "constant",
    "advice": "none " * 40,
}


class Gateway:
    """A server that answers as it is told and keeps what it was asked."""

    def __init__(self) -> None:
        self.answer: tuple[int, bytes] = (200, json.dumps(ANSWER).encode())
        self.asked: list[str] = []
        gateway = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                gateway.asked.append(self.path)
                status, body = gateway.answer
                self.send_response(status)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self._thread = threading.Thread(target=self.server.serve_forever)
        self._thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self._thread.join()
        self.server.server_close()


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    running = Gateway()
    yield running
    running.close()


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    # The command completes the environment of its process.
    with mock.patch.dict(os.environ, {"ELECTRIC_SECRET": "s3cret", "NO_PROXY": "127.0.0.1,localhost"}):
        for name in ("DATABASE_URL", "ELECTRIC_INSECURE", "ELECTRIC_PORT"):
            os.environ.pop(name, None)
        yield


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["explain", *arguments])


def test_what_is_asked_and_how_it_looks(gateway: Gateway) -> None:
    found = run(
        *("--table", "Items", "--where", "n = $1 AND t = $2", "--param", "1=5", "--param", "2=a=b"),
        *("--columns", "id,n", "--url", gateway.url + "/"),
    )
    assert found.exit_code == 0, found.output
    target = urlsplit(gateway.asked[0])
    assert target.path == "/v1/explain"
    assert parse_qs(target.query) == {
        "table": ["Items"],
        "where": ["n = $1 AND t = $2"],
        "params[1]": ["5"],
        "params[2]": ["a=b"],
        "columns": ["id,n"],
        "secret": ["s3cret"],
    }
    lines = found.output.splitlines()
    assert lines[:5] == [
        'table     "public"."items"',
        """parsed    ("n" = '5'::int4)""",
        "reads     n int4",
        "cost      constant",
        "access    one hash look-up; hash of n: n = '5'",
    ]
    assert lines[5].startswith("advice    none none")
    assert lines[6].startswith("          none none")
    assert lines[-1] == """snapshot  EXPLAIN SELECT * FROM "public"."items" WHERE ("n" = '5'::int4);"""


def test_json_is_what_came(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ELECTRIC_PORT", str(gateway.server.server_port))
    found = run("--table", "t", "--json")
    assert json.loads(found.output) == ANSWER
    assert parse_qs(urlsplit(gateway.asked[0]).query) == {"table": ["t"], "secret": ["s3cret"]}


def test_no_secret_is_sent_to_who_wants_none(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ELECTRIC_SECRET")
    assert run("--table", "t", "--url", gateway.url).exit_code == 0
    assert parse_qs(urlsplit(gateway.asked[0]).query) == {"table": ["t"]}


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (
            400,
            b'{"message":"Invalid request","errors":{"where":["At location 0: unknown reference zz"]}}',
            "where: At location 0: unknown reference zz",
        ),
        (401, b'{"message":"Unauthorized - Invalid API secret"}', "set ELECTRIC_SECRET"),
        (503, b'{"message":"Timeout waiting for stack restart"}', "answers 503: Timeout waiting for stack restart"),
        (404, b"Not found", "is no gateway of this version"),
        (200, b"<html>", "is no gateway of this version"),
        (500, b"", "answers 500"),
    ],
)
def test_why_there_is_no_explanation_is_said(gateway: Gateway, status: int, body: bytes, said: str) -> None:
    gateway.answer = status, body
    found = run("--table", "t", "--where", "zz", "--url", gateway.url)
    assert found.exit_code == 1
    assert said in found.stderr
    assert "s3cret" not in found.output
    assert found.stdout == ""
    if status == 400:
        assert run("--table", "t", "--url", gateway.url, "--json").stdout.encode() == body + b"\n"


def test_somebody_who_speaks_something_else() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def greet() -> None:
            connection, _ = server.accept()
            with connection:
                connection.sendall(b"SSH-2.0-OpenSSH_9.6\r\n")
                connection.recv(10_000)

        thread = threading.Thread(target=greet)
        thread.start()
        found = run("--table", "t", "--url", f"http://127.0.0.1:{server.getsockname()[1]}")
        thread.join()
    assert (found.exit_code, "is no gateway of this version" in found.stderr) == (1, True)
    assert "s3cret" not in found.output


def test_nobody_there(gateway: Gateway) -> None:
    gateway.server.server_close()
    found = run("--table", "t", "--url", gateway.url)
    assert found.exit_code == 1
    assert "is Galvanic running? 'galvanic up' starts it" in found.stderr
    assert "s3cret" not in found.output


@pytest.mark.parametrize(
    "url", ["nonsense", "ftp://host", "http://", "http://a b", "file:///etc/passwd", "http://h?x=1"]
)
def test_an_address_that_is_none(url: str) -> None:
    with pytest.raises(ExplainError, match="is no address of a gateway") as refused:
        ask(url, {"table": "t", "secret": "s3cret"})
    assert "s3cret" not in str(refused.value)


@pytest.mark.parametrize("param", ["x", "=1", "a=1", "1"])
def test_parameters_have_a_number(param: str) -> None:
    found = run("--table", "t", "--param", param)
    assert found.exit_code == 2
    assert "must be N=VALUE" in found.stderr

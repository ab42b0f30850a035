"""How the database is reached: TLS in all its modes, addresses of both families, keep-alive (http-api.md 30)."""

from __future__ import annotations

import asyncio
import socket
import ssl
from pathlib import Path
from typing import Any

import pytest
import trustme

from common.config import Settings, load_settings
from common.postgres import CannotConnect, Kind, classify, connect
from deploy.embedded_postgres import EmbeddedPostgres
from tests.faults.gate import gate
from tests.faults.generations import create_table, run_ingester, witness
from tests.pipeline.fixtures import StartStack

pytestmark = pytest.mark.timeout(600)

FATAL = 78
CA = "ELECTRIC_DATABASE_CA_CERTIFICATE_FILE"


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """Who signs the server's certificate."""
    return trustme.CA()


@pytest.fixture
def tls(authority: trustme.CA) -> ssl.SSLContext:
    """A server's certificate for `localhost`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    return context


@pytest.fixture
def ca_file(authority: trustme.CA, tmp_path: Path) -> str:
    """The certificate that the server's can be verified with."""
    path = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return str(path)


def settings(monkeypatch: pytest.MonkeyPatch, url: str, **environment: str) -> Settings:
    """What a process with these variables would use."""
    for name, value in {"DATABASE_URL": url, "ELECTRIC_INSECURE": "true", **environment}.items():
        monkeypatch.setenv(name, value)
    return load_settings()


async def reason(found: Settings) -> str:
    """Why the database of these settings cannot be reached, which must be for good."""
    with pytest.raises(CannotConnect) as caught:
        await connect(found.database_url, "galvanic test")
    problem = classify(caught.value)
    assert problem.kind is Kind.FATAL, problem
    assert problem.message.startswith("DATABASE_URL: ")
    assert "\n" not in problem.message
    return problem.message


# --------------------------------------------------------------------------------------------------------------------
# TLS


async def test_tls_is_used_by_default_and_cannot_be_refused(
    postgres_server: EmbeddedPostgres, tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert postgres_server.port is not None
    async with gate(postgres_server.port, tls=tls) as port:
        url = f"postgresql://postgres@localhost:{port}/postgres"
        for mode in ("", "?sslmode=prefer", "?sslmode=require", "?sslmode=allow"):
            connection = await connect(settings(monkeypatch, url + mode).database_url, "galvanic test")
            assert connection.pgconn.ssl_in_use
            await connection.close()
        assert "do not set sslmode=disable" in await reason(settings(monkeypatch, f"{url}?sslmode=disable"))


async def test_a_server_that_wants_tls_is_not_reached_without(
    postgres_server: EmbeddedPostgres, tls: ssl.SSLContext, tmp_path: Path
) -> None:
    assert postgres_server.port is not None
    async with gate(postgres_server.port, tls=tls) as port:
        url = f"postgresql://postgres@localhost:{port}/postgres?sslmode=disable"
        code, output = await run_ingester(url, tmp_path / "storage")
    assert code == FATAL
    (line,) = [line for line in output.splitlines() if "cannot go on" in line]
    assert "DATABASE_URL: " in line
    assert "do not set sslmode=disable" in line


async def test_tls_that_the_server_does_not_have(
    postgres_server: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert postgres_server.port is not None
    async with gate(postgres_server.port) as port:
        url = f"postgresql://postgres@localhost:{port}/postgres"
        (await connect(settings(monkeypatch, url).database_url, "galvanic test")).pgconn.finish()
        assert "check sslmode" in await reason(settings(monkeypatch, f"{url}?sslmode=require"))


async def test_the_certificate_is_verified_against_the_given_authority(
    postgres_server: EmbeddedPostgres,
    tls: ssl.SSLContext,
    ca_file: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stranger, damaged = tmp_path / "stranger.pem", tmp_path / "damaged.pem"
    trustme.CA().cert_pem.write_to_path(str(stranger))
    damaged.write_text("-----BEGIN CERTIFICATE-----\nnothing\n-----END CERTIFICATE-----\n")
    assert postgres_server.port is not None
    async with gate(postgres_server.port, tls=tls) as port:
        url = f"postgresql://postgres@localhost:{port}/postgres"
        connection = await connect(settings(monkeypatch, url, **{CA: ca_file}).database_url, "galvanic test")
        assert connection.pgconn.ssl_in_use
        await connection.close()
        for path in (stranger, damaged):
            assert CA in await reason(settings(monkeypatch, url, **{CA: str(path)}))
        # The name is verified, too.
        assert CA in await reason(settings(monkeypatch, url.replace("localhost", "127.0.0.1"), **{CA: ca_file}))


async def test_an_authority_without_tls_is_a_contradiction(ca_file: str, tmp_path: Path) -> None:
    url = "postgresql://postgres@localhost/postgres?sslmode=disable"
    code, output = await run_ingester(url, tmp_path / "storage", **{CA: ca_file})
    assert code == FATAL
    assert f"must not use sslmode=disable together with {CA}" in output


@pytest.mark.faults
async def test_everything_goes_through_tls(
    private_server: EmbeddedPostgres, start_stack: StartStack, tls: ssl.SSLContext, ca_file: str
) -> None:
    await create_table(private_server.url)
    assert private_server.port is not None
    async with gate(private_server.port, tls=tls) as port:
        stack = await start_stack(f"postgresql://postgres@localhost:{port}/postgres", environment={CA: ca_file})
        async with witness(stack, private_server.url) as reader:
            await reader.kept()
        await stack.stop()


# --------------------------------------------------------------------------------------------------------------------
# addresses


@pytest.mark.parametrize("prefer_ipv6", [True, False])
@pytest.mark.parametrize("family", ["::1", "127.0.0.1"])
async def test_the_other_family_is_tried_when_the_preferred_one_does_not_answer(
    postgres_server: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch, prefer_ipv6: bool, family: str
) -> None:
    async def both(*_: object, **__: object) -> list[Any]:
        return [
            (socket.AF_INET6, 1, 6, "", ("::1", 0, 0, 0)),
            (socket.AF_INET, 1, 6, "", ("127.0.0.1", 0)),
        ]

    assert postgres_server.port is not None
    async with gate(postgres_server.port, host=family) as port:
        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", both)
        url = f"postgresql://postgres@db.example:{port}/postgres"
        connection = await connect(url, "galvanic test", prefer_ipv6=prefer_ipv6)
        assert connection.info.hostaddr == family
        await connection.close()


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
async def test_a_name_of_one_family_only_does_whatever_is_preferred(
    postgres_server: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET

    async def one(*_: object, **__: object) -> list[Any]:
        return [(family, 1, 6, "", (address, 0))]

    assert postgres_server.port is not None
    async with gate(postgres_server.port, host=address) as port:
        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", one)
        for prefer_ipv6 in (True, False):
            url = f"postgresql://postgres@db.example:{port}/postgres"
            connection = await connect(url, "galvanic test", prefer_ipv6=prefer_ipv6)
            await connection.close()


# --------------------------------------------------------------------------------------------------------------------
# keep-alive


async def test_keep_alive_settings_reach_the_socket(
    postgres_server: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    def option(number: int) -> int:
        with socket.socket(fileno=socket.dup(connection.pgconn.socket)) as copy:
            return copy.getsockopt(socket.IPPROTO_TCP, number)

    found = settings(
        monkeypatch,
        postgres_server.url,
        ELECTRIC_DATABASE_TCP_KEEPALIVE_IDLE="17s",
        ELECTRIC_DATABASE_TCP_KEEPALIVE_INTERVAL="5s",
        ELECTRIC_DATABASE_TCP_KEEPALIVE_COUNT="4",
        ELECTRIC_DATABASE_TCP_USER_TIMEOUT="21s",
    )
    for replication in (False, True):
        connection = await connect(found.database_url, "galvanic test", replication=replication)
        assert option(socket.TCP_KEEPIDLE) == 17
        assert option(socket.TCP_KEEPINTVL) == 5
        assert option(socket.TCP_KEEPCNT) == 4
        assert option(socket.TCP_USER_TIMEOUT) == 21_000
        await connection.close()

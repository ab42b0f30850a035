"""The judge of all tests here: one database for the session, in the one locale whose rules Postgres brings along."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from deploy.embedded_postgres import EmbeddedPostgres
from tests.unit.shapeworker.where.oracle import Oracle


def oracle_of(server: EmbeddedPostgres, name: str, options: str) -> Iterator[Oracle]:
    """An oracle in a database of its own, which goes afterwards."""
    with psycopg.connect(server.url, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name} {options} TEMPLATE template0 ENCODING 'UTF8'".encode())
    oracle = Oracle(server.url.rsplit("/", 1)[0] + "/" + name)
    yield oracle
    oracle.close()
    with psycopg.connect(server.url, autocommit=True) as admin:
        admin.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


@pytest.fixture(scope="session")
def oracle(postgres_server: EmbeddedPostgres) -> Iterator[Oracle]:
    """Postgres with case and order by code points, so that a client's own text means what our SQL makes of it."""
    yield from oracle_of(postgres_server, "where_oracle", "LOCALE_PROVIDER builtin BUILTIN_LOCALE 'C.UTF-8'")


@pytest.fixture(scope="session", params=["libc LOCALE 'C'", "builtin BUILTIN_LOCALE 'PG_UNICODE_FAST'"])
def foreign_oracle(postgres_server: EmbeddedPostgres, request: pytest.FixtureRequest) -> Iterator[Oracle]:
    """Postgres with other rules of case, for ASCII only or of whole words: only our SQL must mean the same there."""
    yield from oracle_of(postgres_server, "where_foreign", f"LOCALE_PROVIDER {request.param}")

"""Makes the fixtures of the tests with real processes available here, and a stack that tests share."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import NamedTuple

import psycopg
import pytest
from psycopg import sql

from deploy.embedded_postgres import EmbeddedPostgres
from tests.clients.follower import install_client
from tests.clients.lineup import Lineup
from tests.conftest import drop_replication_slots
from tests.pipeline.fixtures import private_server, pytest_runtest_makereport, seed, start_stack
from tests.pipeline.stack import Stack

__all__ = ["lineup", "packages", "private_server", "pytest_runtest_makereport", "seed", "standing", "start_stack"]

SUITE = {
    "ELECTRIC_CACHE_MAX_AGE": "1",
    "ELECTRIC_CACHE_STALE_AGE": "3",
    "ELECTRIC_SHAPE_CHUNK_BYTES_THRESHOLD": "10000",
    # Names of slots are the server's; other tests have stacks on it, too.
    "ELECTRIC_REPLICATION_STREAM_ID": "standing",
    # So that a table that was dropped and made again is noticed although nobody writes to it.
    "ELECTRIC_TWEAKS_PUBLICATION_REFRESH_PERIOD": "1s",
}
"""What the official client's own tests set (http-api.md 32), and what makes ours quicker."""


class Standing(NamedTuple):
    """A running stack and its database; each test uses tables of its own."""

    stack: Stack
    database: str

    @property
    def url(self) -> str:
        return self.stack.url


@pytest.fixture(scope="session", autouse=True)
def packages() -> None:
    """All of them, once per lock file."""
    install_client()


@pytest.fixture(scope="package")
def standing(postgres_server: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Standing]:
    """A stack for all tests here that leave it alone."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(postgres_server.url, autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    database = postgres_server.url.rsplit("/", 1)[0] + "/" + name
    # Tests have event loops of their own, so nothing of the stack may live in one.
    stack = Stack(database, tmp_path_factory.mktemp("standing"), environment=SUITE, keep_alive=False)
    stack.start()
    try:
        asyncio.run(stack.wait_active())
        asyncio.run(stack.wait_balanced())
        yield Standing(stack, database)
        asyncio.run(stack.stop())
    finally:
        stack.dispose()
        with psycopg.connect(postgres_server.url, autocommit=True) as admin:
            drop_replication_slots(admin, name)
            admin.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))
    stack.check()


@pytest.fixture
async def lineup(standing: Standing, tmp_path: Path) -> AsyncIterator[Lineup]:
    """Packages that follow tables of the shared stack."""
    async with Lineup(standing.url, standing.database, tmp_path) as lineup:
        yield lineup

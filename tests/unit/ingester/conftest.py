"""What tests of publishing start with."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Iterator

import psycopg
import pytest
from psycopg import sql

from common.postgres import connect
from deploy.embedded_postgres import EmbeddedPostgres
from ingester.publication_setup import ensure_publication
from tests.unit.ingester.publishing import NAME, Bench


@pytest.fixture
async def bench(database: str) -> AsyncIterator[Bench]:
    admin = await connect(database, "galvanic test admin")
    await ensure_publication(admin, NAME, manual=False)
    made = Bench(database, admin)
    yield made
    await made.close()
    await admin.close()


@pytest.fixture
def role(postgres_server: EmbeddedPostgres) -> Iterator[str]:
    """A role without any privileges; goes after the database that may hold things of its own."""
    name = f"role_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(postgres_server.url, autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(name)))
    yield name
    with psycopg.connect(postgres_server.url, autocommit=True) as admin:
        admin.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))

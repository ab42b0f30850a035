"""Fixtures every test may use: one Postgres server for the session, one empty database per test."""

from __future__ import annotations

import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from deploy.embedded_postgres import EmbeddedPostgres


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[EmbeddedPostgres]:
    """A running server without fsync. Tests that restart it or change its settings must start their own instead."""
    directory = Path(tempfile.mkdtemp(prefix="galvanic-test-postgres-"))
    server = EmbeddedPostgres(directory, fsync=False)
    try:
        server.start()
        yield server
    finally:
        server.stop("immediate")
        shutil.rmtree(directory, ignore_errors=True)
        shutil.rmtree(server.directory, ignore_errors=True)


@pytest.fixture
def database(postgres_server: EmbeddedPostgres) -> Iterator[str]:
    """The URL of an empty database of this test's own; afterwards it goes, with its replication slots."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(postgres_server.url, autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    yield postgres_server.url.rsplit("/", 1)[0] + "/" + name
    with psycopg.connect(postgres_server.url, autocommit=True) as admin:
        drop_replication_slots(admin, name)
        admin.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))


def drop_replication_slots(admin: psycopg.Connection, database_name: str) -> None:
    """Drops all slots of a database, ending the walsenders that still hold them."""
    deadline = time.monotonic() + 180
    while True:
        slots = admin.execute(
            "SELECT slot_name, active_pid FROM pg_replication_slots WHERE database = %s", [database_name]
        ).fetchall()
        if not slots:
            return
        for name, pid in slots:
            try:
                if pid is not None:
                    admin.execute("SELECT pg_terminate_backend(%s)", [pid])
                admin.execute(
                    "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = %s", [name]
                )
            except psycopg.errors.ObjectInUse:
                if time.monotonic() > deadline:
                    raise
        time.sleep(0.05)

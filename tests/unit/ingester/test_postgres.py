"""Connections: settings in force, errors told apart, the pool's bounds (engine.md 2.3, 28)."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest
from psycopg import errors
from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import TransactionStatus

from common.postgres import (
    DISPLAY_SETTINGS,
    Connection,
    DatabaseProblem,
    Kind,
    Pool,
    PoolBusy,
    classify,
    connect,
    conninfo,
    is_unavailable,
    resolve,
    transaction_settings,
)
from ingester.membership import look_all


async def value(connection: Connection, query: str) -> Any:
    row = await (await connection.execute(query.encode())).fetchone()
    assert row is not None
    return row[0]


@pytest.fixture
async def pool(database: str) -> AsyncIterator[Pool]:
    made = Pool(database, "galvanic test", 2, patience=0.2)
    yield made
    await made.close()


SERVER = 'connection failed: connection to server at "10.0.0.1", port 5432 failed: '


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (SERVER + 'FATAL:  password authentication failed for user "app"', Kind.FATAL),
        (
            SERVER + 'FATAL:  no pg_hba.conf entry for host "10.0.0.2", user "app", database "x", no encryption',
            Kind.FATAL,
        ),
        (SERVER + 'FATAL:  role "app" does not exist', Kind.FATAL),
        (SERVER + 'FATAL:  role "app" is not permitted to log in', Kind.FATAL),
        (SERVER + 'FATAL:  database "x" does not exist', Kind.FATAL),
        (SERVER + "FATAL:  must be superuser or replication role to start walsender", Kind.FATAL),
        (SERVER + "FATAL:  permission denied to start WAL sender", Kind.FATAL),
        (SERVER + "FATAL:  no such user", Kind.FATAL),
        (SERVER + 'FATAL:  "trust" authentication failed', Kind.FATAL),
        (SERVER + "FATAL:  no such database: d", Kind.FATAL),
        (SERVER + "FATAL:  server login has been failing, try again later (server_login_retry)", Kind.RETRY),
        (SERVER + 'FATAL:  no pg_hba.conf entry for host "h", user "u", database "d", no encryption', Kind.FATAL),
        (SERVER + "FATAL:  Passwort-Authentifizierung für Benutzer »u« fehlgeschlagen", Kind.RETRY),
        (SERVER + "server does not support SSL, but SSL was required", Kind.FATAL),
        (SERVER + "SSL error: certificate verify failed", Kind.FATAL),
        ('server certificate for "a" does not match host name "b"', Kind.FATAL),
        ("FATAL: unsupported startup parameter: replication", Kind.FATAL),
        ("failed to resolve host 'nowhere': [Errno -2] Name or service not known", Kind.FATAL),
        ('could not translate host name "nowhere" to address: Name or service not known', Kind.FATAL),
        ("logical decoding requires wal_level >= logical", Kind.FATAL),
        ('logical decoding requires "wal_level" >= "logical"', Kind.FATAL),
        ("ERROR: Your project has exceeded the data transfer quota. Upgrade your plan.", Kind.FATAL),
        ("ERROR: The requested endpoint could not be found, or you don't have access to it.", Kind.FATAL),
        ("ERROR: branch br-x does not exist", Kind.RETRY),
        ("failed to resolve host 'db': [Errno -3] Temporary failure in name resolution", Kind.RETRY),
        (SERVER + "Connection refused", Kind.RETRY),
        (SERVER + "FATAL:  the database system is starting up", Kind.RETRY),
        (SERVER + "FATAL:  the database system is shutting down", Kind.RETRY),
        (SERVER + "FATAL:  sorry, too many clients already", Kind.RETRY),
        (SERVER + "FATAL:  remaining connection slots are reserved for roles with the SUPERUSER attribute", Kind.RETRY),
        ("server closed the connection unexpectedly", Kind.RETRY),
        ("connection timeout expired", Kind.RETRY),
        ("something nobody has seen yet", Kind.RETRY),
        ('can no longer get changes from replication slot "s"', Kind.SLOT_LOST),
        ('can no longer access replication slot "s"', Kind.SLOT_LOST),
        ("requested WAL segment 000000010000000000000001 has already been removed", Kind.SLOT_LOST),
    ],
)
def test_connection_errors_are_told_by_their_text(text: str, kind: Kind) -> None:
    problem = classify(psycopg.OperationalError(text))
    assert problem.kind is kind
    assert "\n" not in problem.message
    assert not problem.message.startswith("connection failed")


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (errors.InsufficientPrivilege("permission denied for database"), Kind.FATAL),
        (errors.InvalidCatalogName("nothing here"), Kind.FATAL),
        (errors.InvalidPassword("no"), Kind.FATAL),
        (errors.SyntaxError("syntax error"), Kind.FATAL),
        (errors.ObjectInUse("slot is active"), Kind.RETRY),
        (errors.TooManyConnections("too many"), Kind.RETRY),
        (errors.UndefinedObject('publication "p" does not exist'), Kind.RETRY),
        (errors.DiskFull("no space left"), Kind.RETRY),
        (errors.QueryCanceled("canceling statement due to user request"), Kind.RETRY),
        (errors.AdminShutdown("terminating connection"), Kind.RETRY),
        (TimeoutError(), Kind.RETRY),
        (ConnectionResetError("reset"), Kind.RETRY),
    ],
)
def test_other_errors_are_told_by_their_state(error: Exception, kind: Kind) -> None:
    assert classify(error).kind is kind
    assert classify(error).message


def test_own_problems_keep_their_kind() -> None:
    assert classify(DatabaseProblem(Kind.SLOT_LOST, "gone")) == (Kind.SLOT_LOST, "gone")


@pytest.mark.parametrize(
    "text",
    [
        "bad dsn: host=h password=hunter2 user=u",
        "bad dsn: host=h password='hunter2 \\' x' user=u",
        "bad url postgresql://u:hunter2@h/x",
        "bad url postgresql://:hunter2@h/x",
    ],
)
def test_messages_hold_no_password(text: str) -> None:
    message = classify(psycopg.OperationalError(text)).message
    assert "hunter2" not in message
    assert "h" in message


@pytest.mark.parametrize(
    ("error", "unavailable"),
    [
        (psycopg.OperationalError("connection refused"), True),
        (errors.AdminShutdown("x"), True),
        (errors.CannotConnectNow("x"), True),
        (errors.TooManyConnections("x"), True),
        (PoolBusy(Kind.RETRY, "x"), True),
        (ConnectionRefusedError(), True),
        (errors.LockNotAvailable("x"), False),
        (errors.UndefinedTable("x"), False),
        (errors.DiskFull("x"), False),
    ],
)
def test_an_unavailable_database_differs_from_a_failed_statement(error: Exception, unavailable: bool) -> None:
    assert is_unavailable(error) is unavailable


def test_conninfo_has_defaults_that_the_url_overrides() -> None:
    plain = conninfo_to_dict(conninfo("postgresql://u@h/d", "app"))
    assert plain["keepalives_idle"] == "30"
    assert plain["client_encoding"] == "UTF8"
    assert "replication" not in plain
    given = conninfo_to_dict(
        conninfo("postgresql://u@h/d?keepalives_idle=7&connect_timeout=3", "app", replication=True)
    )
    assert given["keepalives_idle"] == "7"
    assert given["connect_timeout"] == "3"
    assert given["replication"] == "database"


def test_an_invalid_url_is_refused_without_being_shown() -> None:
    with pytest.raises(ValueError, match="not valid") as caught:
        conninfo("postgresql://u:hunter2%zz@h/d", "app")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(("prefer_ipv6", "first"), [(True, "2001:db8::1"), (False, "192.0.2.1")])
async def test_addresses_of_the_preferred_family_come_first(
    monkeypatch: pytest.MonkeyPatch, prefer_ipv6: bool, first: str
) -> None:
    async def addresses(*_: object, **__: object) -> list[Any]:
        return [
            (socket.AF_INET6, 1, 6, "", ("2001:db8::1", 0, 0, 0)),
            (socket.AF_INET, 1, 6, "", ("192.0.2.1", 0)),
            (socket.AF_INET6, 1, 6, "", ("2001:db8::1", 0, 0, 0)),
        ]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", addresses)
    found = conninfo_to_dict(await resolve("host=db.example user=u", prefer_ipv6))
    assert str(found["hostaddr"]).split(",")[0] == first
    assert str(found["hostaddr"]).count(",") == 1
    assert found["host"] == "db.example,db.example"


@pytest.mark.parametrize("text", ["host=/run/pg user=u", "host=a,b user=u", "host=a hostaddr=192.0.2.1", "user=u"])
async def test_what_leaves_no_choice_of_address_is_left_alone(text: str) -> None:
    assert await resolve(text, True) == text


async def test_real_connection_errors_are_classified(database: str) -> None:
    head, name = database.rsplit("/", 1)
    unused = socket.create_server(("127.0.0.1", 0))
    port = unused.getsockname()[1]
    unused.close()
    for url, kind in (
        (f"{head}/{name}_nope", Kind.FATAL),
        (database.replace("postgres@", "nobody_here@"), Kind.FATAL),
        (f"postgresql://u@127.0.0.1:{port}/d", Kind.RETRY),
    ):
        with pytest.raises(psycopg.OperationalError) as caught:
            await connect(url, "galvanic test")
        assert classify(caught.value).kind is kind, classify(caught.value)
        assert is_unavailable(caught.value)


HOSTILE = {
    "bytea_output": "escape",
    "DateStyle": "SQL, MDY",
    "TimeZone": "Asia/Tokyo",
    "extra_float_digits": "0",
    "IntervalStyle": "postgres_verbose",
    "search_path": "public",
    "standard_conforming_strings": "off",
    "statement_timeout": "900",
    "lock_timeout": "900",
    "idle_in_transaction_session_timeout": "9000",
}
TEXTS = (
    r"SELECT concat_ws(' ', '\x01ff'::bytea, '2026-02-01'::date, '2026-02-01 00:00Z'::timestamptz, 0.1::float8 + 0.2, "
    "interval '1 day 2 hours', current_setting('search_path'), current_setting('statement_timeout'), "
    "current_setting('lock_timeout'), current_setting('idle_in_transaction_session_timeout'))"
)
RENDERED = r"\x01ff 2026-02-01 2026-02-01 00:00:00+00 0.30000000000000004 P1DT2H pg_catalog 0 0 0"


async def hostile_database(database: str) -> None:
    admin = await connect(database, "galvanic test")
    name = database.rsplit("/", 1)[1]
    for setting, text in HOSTILE.items():
        quoted = text if "," in text else f"'{text}'"
        await admin.execute(f'ALTER DATABASE "{name}" SET {setting} TO {quoted}'.encode())
    await admin.close()


@pytest.mark.parametrize("replication", [False, True])
async def test_direct_sessions_render_alike_whatever_the_database_is_set_to(database: str, replication: bool) -> None:
    await hostile_database(database)
    connection = await connect(database, "galvanic test", replication=replication)
    assert await value(connection, TEXTS) == RENDERED
    await connection.close()


async def test_snapshot_transactions_render_like_the_stream_and_leave_the_session_alone(database: str) -> None:
    await hostile_database(database)
    connection = await connect(database, "galvanic test", pooled=True)
    before = await value(connection, TEXTS)
    assert before != RENDERED
    async with connection.transaction():
        await connection.execute(b"SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        await connection.execute(transaction_settings(connection.info.server_version).encode())
        # Only a transaction that has no snapshot yet may still change its isolation level.
        await connection.execute(b"SET TRANSACTION ISOLATION LEVEL SERIALIZABLE")
        assert await value(connection, TEXTS) == RENDERED
        assert await value(connection, "SHOW row_security") == "off"
    assert await value(connection, TEXTS) == before
    await connection.close()


def test_the_settings_have_no_transaction_timeout_before_17() -> None:
    assert transaction_settings(160004) == DISPLAY_SETTINGS
    assert "transaction_timeout" in transaction_settings(170000)


async def test_the_pool_reuses_connections_and_bounds_them(pool: Pool) -> None:
    async with pool.connection() as first:
        pid = first.info.backend_pid
        async with pool.connection() as second:
            assert second.info.backend_pid != pid
            with pytest.raises(PoolBusy):
                async with pool.connection():
                    pass
    async with pool.connection() as again:
        assert again.info.backend_pid == pid


async def test_what_a_caller_leaves_open_is_rolled_back(pool: Pool) -> None:
    async with pool.connection() as connection:
        await connection.execute("BEGIN")
        await connection.execute("CREATE TABLE public.t ()")
    async with pool.connection() as connection:
        assert connection.info.transaction_status == TransactionStatus.IDLE
        assert await value(connection, "SELECT to_regclass('public.t')::text") is None


async def test_a_connection_that_died_while_idle_is_replaced(pool: Pool) -> None:
    async with pool.connection() as killer, pool.connection() as victim:
        pid = victim.info.backend_pid
        async with asyncio.timeout(120):
            await killer.execute("SELECT pg_terminate_backend(%s, 5000)", (pid,))
    for _ in range(3):
        async with pool.connection() as connection, pool.connection() as other:
            assert {await value(connection, "SELECT 1"), await value(other, "SELECT 1")} == {1}
            assert pid not in (connection.info.backend_pid, other.info.backend_pid)


async def test_a_cancelled_query_frees_its_turn(pool: Pool) -> None:
    async def sleeper() -> None:
        async with pool.connection() as connection:
            await connection.execute("SELECT pg_sleep(60)")

    tasks = [asyncio.create_task(sleeper()) for _ in range(2)]
    await asyncio.sleep(0.2)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    async with pool.connection() as first, pool.connection() as second:
        assert await value(first, "SELECT 1") == await value(second, "SELECT 1")


async def test_the_pool_gives_the_true_error_at_once(database: str) -> None:
    pool = Pool(database + "_nope", "galvanic test", 1, patience=60)
    for _ in range(2):
        with pytest.raises(psycopg.OperationalError, match="does not exist"):
            async with pool.connection():
                pass


async def test_a_closed_pool_keeps_no_connection(pool: Pool) -> None:
    async with pool.connection() as connection:
        await pool.close()
    assert connection.closed


@pytest.mark.parametrize("prepares", [True, False])
async def test_only_what_is_meant_to_be_is_prepared_and_only_without_a_pooler(database: str, prepares: bool) -> None:
    pool = Pool(database, "galvanic test", 1, prepares=prepares)
    async with pool.connection() as connection:
        for _ in range(10):
            await connection.execute("SELECT 1 + %s", [2])
            await connection.execute("SELECT 1; SELECT 2")
            await connection.execute("SELECT 2 + %s", [2], prepare=True)
        found = await (await connection.execute("SELECT statement FROM pg_prepared_statements")).fetchall()
    assert found == ([("SELECT 2 + $1",)] if prepares else [])
    await pool.close()


async def test_what_is_prepared_is_planned_once_also_with_an_array(database: str) -> None:
    pool = Pool(database, "galvanic test", 1, prepares=True)
    async with pool.connection() as connection:
        for _ in range(10):
            await look_all(connection, "none", [0])
        plans = "SELECT generic_plans, custom_plans FROM pg_prepared_statements"
        assert await (await connection.execute(plans)).fetchall() == [(10, 0)]
    await pool.close()

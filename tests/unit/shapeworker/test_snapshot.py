"""Taking snapshots: what they show, how they fail, how they stop."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import errors, sql

from common.lsn import parse_lsn
from common.postgres import conninfo
from common.shapelog import LogWriter, ShapeReader, SnapshotState, SnapshotWriter
from common.table import describe
from common.xid import Snapshot
from shapeworker.snapshot import Snapshots
from shapeworker.snapshot_connection import SnapshotConnection, Stopped
from shapeworker.snapshot_failure import SnapshotFailed, failure
from shapeworker.snapshot_member import SnapshotPlan, SnapshotTaken
from shapeworker.snapshot_work import end_line

PATIENCE = 60.0
"""Seconds after which something hangs."""


class Sink:
    """Keeps everything, and tells what came in which order."""

    def __init__(self) -> None:
        self.rows: list[bytes] = []
        self.batches: list[int] = []
        self.calls: list[str] = []
        self.end = b""
        self.thread = 0

    def add(self, items: bytes, rows: int) -> None:
        self.rows += items.split(b",\n")[:-1]
        self.batches.append(len(items))
        self.calls.append("add")
        self.thread = threading.get_ident()

    def flush(self) -> None:
        self.calls.append("flush")

    def finish(self, end_line: bytes) -> None:
        self.end = end_line
        self.calls.append("finish")

    def values(self) -> list[Any]:
        return [json.loads(row)["value"] for row in self.rows]


class Bench:
    """A database, a table of it, and everything to take snapshots of it."""

    def __init__(self, url: str, connection: psycopg.AsyncConnection) -> None:
        self.url = url
        self.connection = connection
        self.snapshots = Snapshots(url, threads=2)
        self.started: list[tuple[Snapshot, int]] = []
        self._start = asyncio.Event()
        self.readable = 0
        self.closing = [self.snapshots]

    async def execute(self, *statements: str) -> None:
        for statement in statements:
            await self.connection.execute(statement.encode())

    async def one(self, query: str) -> Any:
        row = await (await self.connection.execute(query.encode())).fetchone()
        assert row is not None
        return row[0]

    async def other(self) -> psycopg.AsyncConnection:
        """A further connection, not in autocommit mode: it has its own transaction."""
        return await psycopg.AsyncConnection.connect(self.url)

    async def plan(self, name: str = "t", schema: str = "public", **rest: Any) -> SnapshotPlan:
        table = await describe(self.connection, schema, name)
        assert table is not None
        selected = rest.pop("selected", None) or tuple(sorted(column.name for column in table.columns))
        return SnapshotPlan(table, selected, rest.pop("explicit", False), **rest)

    async def take(
        self,
        plan: SnapshotPlan,
        sink: Any = None,
        on_started: Callable[[], bool] = lambda: True,
        snapshots: Snapshots | None = None,
    ) -> SnapshotTaken:
        def started(snapshot: Snapshot, filter_until: int) -> bool:
            self.started.append((snapshot, filter_until))
            self._start.set()
            return on_started()

        def readable() -> None:
            self.readable += 1

        async with asyncio.timeout(PATIENCE):
            return await (snapshots or self.snapshots).take(plan, sink or Sink(), started, readable)

    async def has_started(self) -> None:
        """Wait until a snapshot has been announced."""
        async with asyncio.timeout(PATIENCE):
            await self._start.wait()

    async def quiet(self) -> None:
        """Wait until no backend of a snapshot is at work in the database."""
        query = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'galvanic snapshot' AND state <> 'idle'"
        async with asyncio.timeout(PATIENCE):
            left = True
            while left:
                await asyncio.sleep(0.02)
                left = await self.one(query + " AND datname = current_database()") > 0


@pytest.fixture
async def bench(database: str) -> AsyncIterator[Bench]:
    async with await psycopg.AsyncConnection.connect(database, autocommit=True) as connection:
        bench = Bench(database, connection)
        yield bench
        for snapshots in bench.closing:
            await snapshots.close()


SERIES = "INSERT INTO t SELECT i, 'row ' || i FROM generate_series(1, {}) i"


async def test_all_rows_then_the_end_marker(bench: Bench) -> None:
    await bench.execute("CREATE TABLE t (id int PRIMARY KEY, v text)", SERIES.format(20000))
    sink = Sink()
    before = parse_lsn(await bench.one("SELECT pg_current_wal_insert_lsn()"))
    taken = await bench.take(await bench.plan(), sink)
    after = parse_lsn(await bench.one("SELECT pg_current_wal_insert_lsn()"))
    assert taken.rows == 20000
    assert {row["id"] for row in sink.values()} == {str(n) for n in range(1, 20001)}
    assert before <= taken.filter_until <= after
    assert bench.started == [(taken.snapshot, taken.filter_until)]
    assert json.loads(sink.end) == {
        "headers": {
            "control": "snapshot-end",
            "xmin": str(taken.snapshot.xmin),
            "xmax": str(taken.snapshot.xmax),
            "xip_list": [],
        }
    }
    # Early to the readers, then in large batches; never the whole table at once.
    assert sink.calls[:2] == ["add", "flush"]
    assert sink.calls[-1] == "finish"
    assert bench.readable == 1
    assert max(sink.batches) < 1 << 20
    assert len(sink.batches) < 200
    assert sink.thread != threading.get_ident()


async def test_empty_table(bench: Bench) -> None:
    await bench.execute("CREATE TABLE t (id int PRIMARY KEY)")
    sink = Sink()
    assert (await bench.take(await bench.plan(), sink)).rows == 0
    assert sink.calls == ["finish"]
    assert bench.readable == 1


async def test_changes_only_has_no_rows(bench: Bench) -> None:
    await bench.execute("CREATE TABLE t (id int PRIMARY KEY, v text)", SERIES.format(10))
    sink = Sink()
    taken = await bench.take(await bench.plan(log="changes_only"), sink)
    assert (taken.rows, sink.calls, bench.readable) == (0, ["finish"], 1)
    assert taken.snapshot.xmax > 0


async def test_rows_larger_than_any_buffer(bench: Bench) -> None:
    await bench.execute(
        "CREATE TABLE t (id int PRIMARY KEY, v text)",
        "INSERT INTO t SELECT i, repeat(chr(96 + i), 3000000) FROM generate_series(1, 4) i",
    )
    sink = Sink()
    await bench.take(await bench.plan(), sink)
    assert sorted((row["id"], len(row["v"]), row["v"][0]) for row in sink.values()) == [
        (str(n), 3000000, chr(96 + n)) for n in range(1, 5)
    ]


async def test_condition(bench: Bench) -> None:
    await bench.execute("CREATE TABLE t (id int PRIMARY KEY, v text)", SERIES.format(10))
    sink = Sink()
    await bench.take(await bench.plan(condition=sql.SQL("id > 8")), sink)
    assert {row["id"] for row in sink.values()} == {"9", "10"}


async def test_into_a_shape_on_disk(bench: Bench, tmp_path: Path) -> None:
    await bench.execute("CREATE TABLE t (id int PRIMARY KEY, v text)", SERIES.format(3000))
    log = LogWriter.create(tmp_path / "shape", 50_000)
    sink = SnapshotWriter(tmp_path / "shape", 50_000, log.header)
    await bench.take(await bench.plan(), sink)
    reader = ShapeReader(tmp_path / "shape")
    header = reader.header()
    assert header.snapshot is SnapshotState.COMPLETE
    assert header.chunks > 2
    items: list[Any] = []
    for chunk in range(header.chunks):
        data = reader.read_snapshot(chunk, 0, reader.snapshot_size(chunk))
        items += json.loads(b"[" + data.removesuffix(b",\n") + b"]")
    assert {item["value"]["id"] for item in items[:-1]} == {str(n) for n in range(1, 3001)}
    assert items[-1]["headers"]["control"] == "snapshot-end"
    reader.close()
    log.close()


async def test_a_snapshot_shows_what_it_says(bench: Bench) -> None:
    """A transaction that is open meanwhile is in xip and its row is not there; its commit comes after filter_until."""
    await bench.execute("CREATE TABLE t (id int PRIMARY KEY, v text)", SERIES.format(1))
    async with await bench.other() as writer:
        await writer.execute("INSERT INTO t VALUES (2, 'open')")
        row = await (await writer.execute("SELECT pg_current_xact_id()::text")).fetchone()
        assert row is not None
        # A later one that commits first: it makes xmax greater than the open one.
        await bench.execute("INSERT INTO t VALUES (3, 'committed')")
        sink = Sink()
        taken = await bench.take(await bench.plan(), sink)
        assert {item["id"] for item in sink.values()} == {"1", "3"}
        assert not taken.snapshot.shows(int(row[0]))
        assert json.loads(sink.end)["headers"]["xip_list"] == [row[0]]
        await writer.commit()


async def test_waits_until_the_unseen_are_visible(bench: Bench) -> None:
    await bench.execute("CREATE TABLE t (id int PRIMARY KEY, v text)")
    async with await bench.other() as writer:
        await writer.execute("INSERT INTO t VALUES (2, 'late')")
        row = await (await writer.execute("SELECT pg_current_xact_id()::text")).fetchone()
        assert row is not None
        sink = Sink()
        plan = await bench.plan(unseen=(3, int(row[0])))
        task = asyncio.create_task(bench.take(plan, sink))
        await asyncio.sleep(0.2)
        assert not bench.started
        await writer.commit()
        assert (await task).snapshot.shows(int(row[0]))
    assert [item["id"] for item in sink.values()] == ["2"]


async def test_what_a_snapshot_builds_on_is_flushed_when_it_is_done(bench: Bench) -> None:
    """A crash of the server must not take back transactions that the snapshot shows (engine.md H-E)."""
    await bench.execute("CREATE TABLE t (id int PRIMARY KEY, v text)", "SET synchronous_commit = off")
    for number in range(5):
        await bench.execute(f"INSERT INTO t VALUES ({number})")
        taken = await bench.take(await bench.plan())
        assert taken.rows == number + 1
        flushed = parse_lsn(await bench.one("SELECT pg_current_wal_flush_lsn()::text"))
        assert flushed >= taken.filter_until


async def test_concurrent_change_of_the_table_waits_or_is_seen(bench: Bench) -> None:
    """A rewrite that is not committed yet: the snapshot waits for it, sees the new table, and refuses it."""
    await bench.execute("CREATE TABLE t (id int PRIMARY KEY, v text)", SERIES.format(5))
    plan = await bench.plan()
    async with await bench.other() as changer:
        await changer.execute("ALTER TABLE t ALTER v TYPE int USING id")
        task = asyncio.create_task(bench.take(plan))
        await asyncio.sleep(0.2)
        assert not bench.started
        await changer.commit()
    with pytest.raises(SnapshotFailed) as raised:
        await task
    assert (raised.value.status, raised.value.known) == (409, True)
    assert not bench.started


async def test_a_rewrite_during_the_wait_does_not_empty_the_snapshot(bench: Bench) -> None:
    """To snapshots taken before it, a rewritten table is empty: so the lock has to come before the snapshot."""
    await bench.execute("CREATE TABLE t (id int PRIMARY KEY, v text)", SERIES.format(5))
    plan = await bench.plan(selected=("id", "v"), explicit=True)
    sink = Sink()
    async with await bench.other() as changer:
        await changer.execute("ALTER TABLE t ADD COLUMN w float DEFAULT random()")
        task = asyncio.create_task(bench.take(plan, sink))
        await asyncio.sleep(0.2)
        await changer.commit()
    await task
    assert len(sink.rows) == 5


@pytest.mark.parametrize(
    "change",
    [
        "DROP TABLE t",
        "ALTER TABLE t RENAME TO u",
        "ALTER TABLE t SET SCHEMA other",
        "ALTER TABLE t RENAME v TO w",
        "ALTER TABLE t ADD w int",
        "ALTER TABLE t DROP v",
        "ALTER TABLE t ALTER v TYPE varchar",
        "DROP TABLE t; CREATE TABLE t (id int PRIMARY KEY, v text)",
        "DROP SCHEMA other; ALTER TABLE t DROP CONSTRAINT t_pkey",
    ],
)
async def test_a_changed_table_is_a_409(bench: Bench, change: str) -> None:
    await bench.execute("CREATE SCHEMA other", "CREATE TABLE t (id int PRIMARY KEY, v text)", SERIES.format(5))
    plan = await bench.plan()
    await bench.execute(change)
    sink = Sink()
    with pytest.raises(SnapshotFailed) as raised:
        await bench.take(plan, sink)
    assert raised.value.status == 409
    assert sink.calls == []
    assert not bench.started


async def test_missing_privilege(bench: Bench) -> None:
    role = "snapshot_reader_" + (await bench.one("SELECT current_database()"))
    await bench.execute("CREATE TABLE t (id int PRIMARY KEY)", f"CREATE ROLE {role} LOGIN")
    try:
        limited = Snapshots(bench.url.replace("postgres@", f"{role}@"), threads=1)
        bench.closing.append(limited)
        with pytest.raises(SnapshotFailed) as raised:
            await bench.take(await bench.plan(), snapshots=limited)
        assert raised.value.message == "Unable to create initial snapshot: permission denied for table t"
        assert (raised.value.status, raised.value.retry_after, raised.value.known) == (503, 10, True)
        # Rows that the stream shows must not be missing silently either.
        await bench.execute(
            f"GRANT SELECT ON t TO {role}",
            "ALTER TABLE t ENABLE ROW LEVEL SECURITY",
            "INSERT INTO t VALUES (1)",
        )
        with pytest.raises(SnapshotFailed, match="row-level security"):
            await bench.take(await bench.plan(), snapshots=limited)
        await bench.quiet()
    finally:
        await bench.execute(f"DROP OWNED BY {role}", f"DROP ROLE {role}")


async def test_no_database(bench: Bench) -> None:
    await bench.execute("CREATE TABLE t (id int PRIMARY KEY)")
    nowhere = Snapshots("postgresql://u:secret@127.0.0.1:1/db", threads=1)
    bench.closing.append(nowhere)
    with pytest.raises(SnapshotFailed) as raised:
        await bench.take(await bench.plan(), snapshots=nowhere)
    assert raised.value.message == "Database connection not available"
    assert (raised.value.status, raised.value.retry_after, raised.value.known) == (503, 10, True)


async def test_another_cluster_is_refused(bench: Bench) -> None:
    await bench.execute("CREATE TABLE t (id int PRIMARY KEY)")
    own = int(await bench.one("SELECT system_identifier FROM pg_control_system()"))
    bench.snapshots.system_identifier = own
    await bench.take(await bench.plan())
    bench.snapshots.system_identifier = own + 1
    with pytest.raises(SnapshotFailed, match="another cluster"):
        await bench.take(await bench.plan())
    assert len(bench.started) == 1


SLOW = "CREATE FUNCTION slow(int) RETURNS bool LANGUAGE sql AS 'SELECT true FROM (SELECT pg_sleep(300)) s'"


async def test_a_query_without_rows_is_cancelled(bench: Bench) -> None:
    await bench.execute("CREATE TABLE t (id int PRIMARY KEY, v text)", SERIES.format(3), SLOW)
    hasty = Snapshots(bench.url, threads=1, first_row_seconds=0.3)
    bench.closing.append(hasty)
    sink = Sink()
    with pytest.raises(SnapshotFailed) as raised:
        await bench.take(await bench.plan(condition=sql.SQL("public.slow(id)")), sink, snapshots=hasty)
    assert raised.value.message == (
        "Snapshot query took too long to return data (cancelled after 300ms). "
        "Please ensure snapshot queries are using an index to avoid taking up all database connections."
    )
    assert (raised.value.status, raised.value.retry_after, raised.value.known) == (503, 10, True)
    assert sink.calls == []
    await bench.quiet()


async def test_the_limit_ends_with_the_first_row(bench: Bench) -> None:
    """The first rows fill the server's buffer and are seen; the rest may take as long as it takes."""
    await bench.execute(
        "CREATE TABLE t (id int PRIMARY KEY, v text)",
        "INSERT INTO t SELECT i, repeat('x', 9000) FROM generate_series(1, 12) i",
        "CREATE FUNCTION slow(int) RETURNS bool LANGUAGE sql AS "
        "'SELECT true FROM (SELECT pg_sleep(CASE WHEN $1 > 2 THEN 0.25 ELSE 0 END)) s'",
    )
    hasty = Snapshots(bench.url, threads=1, first_row_seconds=2)
    bench.closing.append(hasty)
    sink = Sink()
    taken = await bench.take(await bench.plan(condition=sql.SQL("public.slow(id)")), sink, snapshots=hasty)
    assert taken.rows == 12
    # Rows of a slow query are handed on before there are enough for a batch.
    assert sink.calls.count("flush") > 1


async def test_an_error_after_the_first_rows(bench: Bench) -> None:
    await bench.execute("CREATE TABLE t (id int PRIMARY KEY, v text)", SERIES.format(5000))
    sink = Sink()
    with pytest.raises(SnapshotFailed) as raised:
        await bench.take(await bench.plan(condition=sql.SQL("1 / (4999 - id) < 2")), sink)
    assert (raised.value.status, raised.value.retry_after) == (400, None)
    assert raised.value.message == "The where clause fails for a row of the table: division by zero"
    assert sink.rows
    assert "finish" not in sink.calls
    await bench.quiet()


async def test_the_server_ends_the_connection(bench: Bench) -> None:
    await bench.execute("CREATE TABLE t (id int PRIMARY KEY, v text)", SERIES.format(3), SLOW)
    task = asyncio.create_task(bench.take(await bench.plan(condition=sql.SQL("public.slow(id)"))))
    await bench.has_started()
    await bench.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE application_name = 'galvanic snapshot' AND datname = current_database()"
    )
    with pytest.raises(SnapshotFailed) as raised:
        await task
    assert (raised.value.status, raised.value.message) == (503, "Database connection not available")


async def test_nobody_wants_it_any_more(bench: Bench) -> None:
    await bench.execute("CREATE TABLE t (id int PRIMARY KEY, v text)", SERIES.format(3))
    sink = Sink()
    with pytest.raises(Stopped):
        await bench.take(await bench.plan(), sink, on_started=lambda: False)
    assert sink.calls == []
    await bench.quiet()


async def test_cancelling_lets_go_of_sink_and_server(bench: Bench) -> None:
    await bench.execute("CREATE TABLE t (id int PRIMARY KEY, v text)", SERIES.format(3), SLOW)
    sink = Sink()
    task = asyncio.create_task(bench.take(await bench.plan(condition=sql.SQL("public.slow(id)")), sink))
    await bench.has_started()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert sink.calls == []
    await bench.quiet()


async def test_a_cancellation_that_overtakes_its_statement(bench: Bench) -> None:
    """A server that has not read the statement yet drops it, and then begins."""
    await bench.execute(SLOW)
    stop = threading.Event()
    connection = await asyncio.to_thread(SnapshotConnection, conninfo(bench.url, "galvanic snapshot"), stop)
    deadline = time.monotonic() + PATIENCE
    ((pid,),) = await asyncio.to_thread(connection.query, b"SELECT pg_backend_pid()", deadline)
    backend = int(pid or 0)
    os.kill(backend, signal.SIGSTOP)
    try:
        stop.set()
        with pytest.raises(Stopped):
            list(connection.copy(b"COPY (SELECT public.slow(1)) TO STDOUT (FORMAT binary)", deadline))
        closing = asyncio.create_task(asyncio.to_thread(connection.close))
        async with asyncio.timeout(PATIENCE):
            while not _is_pending(backend, signal.SIGINT):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    finally:
        os.kill(backend, signal.SIGCONT)
    await closing
    await bench.quiet()


def _is_pending(pid: int, signum: int) -> bool:
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return bool(int(status["ShdPnd"], 16) >> signum - 1 & 1)


async def test_cancelling_while_waiting_for_a_lock_or_for_a_turn(bench: Bench) -> None:
    await bench.execute("CREATE TABLE t (id int PRIMARY KEY, v text)")
    plan = await bench.plan()
    async with await bench.other() as locker:
        await locker.execute("LOCK TABLE t")
        tasks = [asyncio.create_task(bench.take(plan)) for _ in range(4)]
        await asyncio.sleep(0.3)
        for task in tasks:
            task.cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [asyncio.CancelledError] * 4
    assert not bench.started
    await bench.quiet()
    # The turns were given back.
    assert (await bench.take(plan)).rows == 0


async def test_no_more_at_a_time_than_allowed(bench: Bench) -> None:
    await bench.execute("CREATE TABLE t (id int PRIMARY KEY, v text)", SERIES.format(3))
    plan = await bench.plan()
    running = most = 0

    class Counting(Sink):
        def add(self, items: bytes, rows: int) -> None:
            super().add(items, rows)
            threading.Event().wait(0.05)

        def finish(self, end_line: bytes) -> None:
            nonlocal running
            super().finish(end_line)
            running -= 1

    def started() -> bool:
        nonlocal running, most
        running += 1
        most = max(most, running)
        return True

    await asyncio.gather(*(bench.take(plan, Counting(), on_started=started) for _ in range(8)))
    assert 1 <= most <= 2


async def test_a_full_disk_is_told_as_it_is(bench: Bench) -> None:
    await bench.execute("CREATE TABLE t (id int PRIMARY KEY, v text)", SERIES.format(3))

    class Full(Sink):
        def add(self, items: bytes, rows: int) -> None:
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        await bench.take(await bench.plan(), Full())
    await bench.quiet()


async def test_an_error_in_the_callback_is_raised(bench: Bench) -> None:
    await bench.execute("CREATE TABLE t (id int PRIMARY KEY, v text)")

    def broken() -> bool:
        raise LookupError("broken")

    with pytest.raises(LookupError, match="broken"):
        await bench.take(await bench.plan(), on_started=broken)


async def test_bytes_that_are_no_utf8(database: str) -> None:
    name = database.rsplit("/", 1)[1] + "_ascii"
    url = database.rsplit("/", 1)[0] + "/" + name
    options = "ENCODING 'SQL_ASCII' LOCALE 'C' LOCALE_PROVIDER libc TEMPLATE template0"
    async with await psycopg.AsyncConnection.connect(database, autocommit=True) as admin:
        await admin.execute(sql.SQL("CREATE DATABASE {} " + options).format(sql.Identifier(name)))
        try:
            async with await psycopg.AsyncConnection.connect(
                url, autocommit=True, client_encoding="utf8"
            ) as connection:
                bench = Bench(url, connection)
                await bench.execute(
                    "CREATE TABLE t (id int PRIMARY KEY, v text)", "INSERT INTO t VALUES (1, 'caf\u00e9')"
                )
                sink = Sink()
                await bench.take(await bench.plan(), sink)
                assert sink.values() == [{"id": "1", "v": "caf\u00e9"}]
                await bench.execute("INSERT INTO t VALUES (2, E'\\xff')")
                with pytest.raises(SnapshotFailed, match="invalid byte sequence"):
                    await bench.take(await bench.plan())
                await bench.snapshots.close()
        finally:
            await admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


async def test_settings_of_the_role_do_not_show(bench: Bench) -> None:
    database = await bench.one("SELECT current_database()")
    await bench.execute(
        "CREATE TABLE t (id int PRIMARY KEY, d timestamptz, i interval, b bytea, f float8, r regclass)",
        "INSERT INTO t VALUES (1, '2024-02-29 12:00:00+02', '1 day', '\\x00', 0.1 + 0.2::float8, 't')",
    )
    for setting in (
        "DateStyle = 'SQL, MDY'",
        "TimeZone = 'Asia/Tokyo'",
        "IntervalStyle = 'postgres_verbose'",
        "bytea_output = 'escape'",
        "extra_float_digits = -5",
        "quote_all_identifiers = on",
        "statement_timeout = 1",
        "standard_conforming_strings = off",
        "client_encoding = 'LATIN1'",
    ):
        await bench.execute(f"ALTER DATABASE {database} SET {setting}")
    plan = await bench.plan()
    sink = Sink()
    await bench.take(plan, sink)
    assert sink.values() == [
        {
            "b": "\\x00",
            "d": "2024-02-29 10:00:00+00",
            "f": "0.30000000000000004",
            "i": "P1D",
            "id": "1",
            "r": "public.t",
        }
    ]


@pytest.mark.parametrize(
    ("error", "status", "message", "known"),
    [
        (errors.UndefinedTable("gone"), 409, "the table changed: gone", True),
        (errors.UndefinedColumn("gone"), 409, "the table changed: gone", True),
        (errors.UndefinedFunction("gone"), 409, "the table changed: gone", True),
        (errors.LockNotAvailable("locked"), 503, "Snapshot timed out while waiting for a table lock", True),
        (errors.InsufficientPrivilege("no"), 503, "Unable to create initial snapshot: no", True),
        (errors.QueryCanceled("stop"), 503, "Unable to create initial snapshot: stop", True),
        (errors.AdminShutdown("bye"), 503, "Database connection not available", True),
        (errors.TooManyConnections("full"), 503, "Database connection not available", True),
        (psycopg.OperationalError("lost"), 503, "Database connection not available", True),
        (errors.OutOfMemory("big\nrow"), 500, "Unexpected error while creating snapshot: big row", False),
    ],
)
def test_failure(error: psycopg.Error, status: int, message: str, known: bool) -> None:
    failed = failure(error)
    assert (failed.status, failed.message, failed.known) == (status, message, known)
    assert failed.retry_after == (10 if status == 503 else None)


def test_end_line() -> None:
    line = end_line(Snapshot(913, 1 << 40, frozenset((920, 915))))
    assert line == (
        b'{"headers":{"control":"snapshot-end","xmin":"913","xmax":"1099511627776","xip_list":["915","920"]}}'
    )

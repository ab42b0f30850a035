"""The recorded conversations with the reference, held again with Galvanic: headers and items are the same, but for a
list of differences that docs/differences.md gives the reasons of."""

from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, Final, NamedTuple

import psycopg
import pytest
from psycopg import sql

from deploy.embedded_postgres import EmbeddedPostgres
from tests.pipeline.fixtures import StartStack
from tests.pipeline.stack import REPOSITORY, Stack
from tests.pipeline.transcripts import FOLDER, Correspondence, Step, compare, decoded, read
from tests.ports import free_port
from tests.unit.gateway.cluster import Response, Stream

CATCH_UP_SECONDS: Final = 20.0
"""After a statement, an answer that lacks items is asked for again until this has passed; so long is waited for a
request to begin to wait."""


class Difference(NamedTuple):
    """What may differ: in which transcripts and steps, and what :func:`compare` says (all regexes; the last one from
    its beginning). ``name`` is a heading of docs/differences.md."""

    name: str
    transcripts: str
    steps: str
    what: str

    def concerns(self, number: str, step: str) -> bool:
        """Whether it is about this step."""
        return bool(re.fullmatch(self.transcripts, number) and re.fullmatch(self.steps, step))

    def explains(self, number: str, step: str, discrepancy: str) -> bool:
        """Whether it allows a discrepancy."""
        return self.concerns(number, step) and re.match(self.what, discrepancy) is not None


PENDING: Final = {
    "29": "subqueries",
    "30": "subqueries",
}
"""Transcripts, or steps of one, that are not replayed: a part of the product is being built. Take a line out
to switch it on."""

SAME_VALUES: Final = "Values are the same in snapshot and log"
DIFFERENCES: Final = (
    Difference(SAME_VALUES, ".*", ".*", r'(value|old_value)\.\w+: "(true|false)" for "[tf]"$'),
    Difference(SAME_VALUES, "0[34]", ".*", r'value\.ip: "::1" for "::1/128"$'),
    Difference(SAME_VALUES, "0[34]", ".*", r'value\.cmp: "\(,\)" for null$'),
    Difference("Keys of rows in partitions", "38", "root.*", r'key: .*part\\"/.* for .*part_(eu|us)\\"/'),
    Difference("Partitions that come with rows", "38", "root: new partition.*", "status 409 for 200"),
    Difference("Order of unknown columns", "10", "two unknown columns", "body: .*nah, nope.*nope, nah"),
    Difference("More filters", "12", "case expr: .*", "status 200 for 400"),
    Difference("More filters", "12", "(json op|exists): .*", "body: "),
    Difference("No LIMIT in a filter", "12", "limit: .*", "status 400 for 200"),
    Difference("Parameters as JSON", "11", "params as JSON object", "status 200 for 400"),
    Difference("System catalogs", "20", "system: .*", "status 400 for 500"),
    Difference("Generated columns", "20", "generated column: gen", "status 200 for 400"),
    Difference("Replica identity", "27", "ALTER TABLE.*", "status 409 for 200"),
    Difference("Database unreachable", "49", "shape .*|live", 'body: .*"Timeout waiting for .*"Cannot connect'),
    Difference("Database unreachable", "49", "health", "body: .*"),
    Difference("Bodies that are no JSON object", "16", "invalid json", "body: .*Invalid JSON in request body"),
    Difference(
        "Compression", "44", "200, .*(gzip|zstd).*", r"headers missing: \[\], added: \['content-encoding'\]|etag: "
    ),
    Difference("Compression", "44", "400, .*", r"headers missing: \['content-encoding'\], added: \[\]"),
    Difference(
        "The last answer of a connection", "46", "response 50", r"headers missing: \[\], added: \['connection'\]"
    ),
    Difference(
        "Server-sent events",
        "17|41",
        "SSE starting behind.*|experimental_live_sse|live SSE from behind",
        r"offset |electric-offset: |etag: |headers missing: \[\], added: \['electric-up-to-date'\]",
    ),
)


class Replay:
    """Conversations held with one stack. ``found`` is what differed: transcript, step, discrepancy."""

    def __init__(self, stack: Stack, database: str) -> None:
        self.found: list[tuple[str, str, str]] = []
        self.held: list[tuple[str, str]] = []
        self._stack = stack
        self._database = database
        self._known = Correspondence()
        self._sessions: dict[str, psycopg.AsyncConnection] = {}

    async def run(self, *numbers: str) -> None:
        """Hold these conversations, in this order."""
        for number in numbers:
            for step in read(number):
                await self._perform(number, step)

    async def run_on_one_connection(self, number: str) -> None:
        """Ask the same until the server closes the connection: answers are recorded by their number, and the last."""
        *recorded, closed = read(number)
        steps = {step.name: step for step in recorded}
        stream = await self._open(recorded[0])
        count = 0
        try:
            while True:
                response = await stream.response()
                count += 1
                if step := steps.get(f"response {count}"):
                    self._compare(number, step, response)
                self._send(stream, recorded[0])
        except (EOFError, ConnectionError):
            assert f"closed by the server after {count} responses" in closed.note
        finally:
            stream.close()

    async def execute(self, statement: str, session: str = "") -> None:
        """Run statements in a session: together one transaction, unless they say otherwise."""
        if session not in self._sessions:
            self._sessions[session] = await psycopg.AsyncConnection.connect(self._database, autocommit=True)
        await self._sessions[session].execute(statement.encode())

    async def close(self) -> None:
        """Hang up on Postgres."""
        for connection in self._sessions.values():
            await connection.close()

    async def _perform(self, number: str, step: Step) -> None:
        if step.sql:
            await self.execute(step.sql, step.session)
        elif step.note:
            await self._operate(step.note)
        elif not PENDING.keys() & {number, f"{number} {step.name}"}:
            self._compare(number, step, await self.ask(step, number))

    def _compare(self, number: str, step: Step, response: Response) -> None:
        self.held.append((number, step.name))
        cursor = re.search(r"[?&]cursor=(\d+)", step.ask)
        discrepancies = compare(
            step,
            response.status,
            response.headers,
            response.raw,
            self._known,
            sent_cursor=int(cursor[1]) if cursor else 0,
        )
        self.found.extend((number, step.name, discrepancy) for discrepancy in discrepancies)

    async def _operate(self, note: str) -> None:
        if note.startswith(("server stopped", "stopped")):
            await self._stack.stop()
        if "removed" in note:
            shutil.rmtree(self._stack.storage)
        if note.endswith(("started", "started again")):
            self._stack.start()
            await self._stack.wait_active()

    async def ask(self, step: Step, number: str = "") -> Response:
        """Ask until the answer has as many items as the recorded one."""
        deadline = time.monotonic() + CATCH_UP_SECONDS
        while True:
            if step.meanwhile:
                await self._waiting(0)
            stream = await self._open(step)
            events = Events()
            reading = asyncio.ensure_future(events.read(stream, step) if step.is_stream else stream.response())
            try:
                if step.meanwhile:
                    await self._waiting(1)
                    for inner in step.meanwhile:
                        seen = events.batches
                        await self._perform(number, inner)
                        # Each statement is a batch of its own in a stream.
                        if step.is_stream:
                            await _soon(lambda: events.batches > seen)  # noqa: B023
                response = await reading
            finally:
                reading.cancel()
                stream.close()
            response = response._replace(raw=decoded(response.headers, response.raw))
            if not _lacks_items(step, response) or time.monotonic() > deadline:
                return response
            await asyncio.sleep(0.02)

    async def _waiting(self, count: int) -> None:
        """Wait until so many live requests wait, if they ever do."""
        await _soon(lambda: self._stack.waiting() == count)

    async def _open(self, step: Step) -> Stream:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._stack.port, limit=1 << 24)
        stream = Stream(reader, writer, step.ask.partition(" ")[0])
        self._send(stream, step)
        return stream

    def _send(self, stream: Stream, step: Step) -> None:
        method, _, target = step.ask.partition(" ")
        headers = {"host": "h", **step.headers}
        if step.body is not None:
            headers["content-length"] = str(len(step.body.encode()))
        lines = "".join(f"{name}: {self._known.translate(value)}\r\n" for name, value in headers.items())
        request = f"{method} {self._known.translate(target)} HTTP/1.1\r\n{lines}\r\n{step.body or ''}"
        stream.writer.write(request.encode())


class Events:
    """What has come of a stream of events."""

    def __init__(self) -> None:
        self._body = b""

    @property
    def batches(self) -> int:
        """How many are complete."""
        return self._body.count(b'"up-to-date"')

    async def read(self, stream: Stream, step: Step) -> Response:
        """The beginning of the stream: as many events as were recorded."""
        status, headers = await stream.head()
        with contextlib.suppress(TimeoutError, EOFError):
            while self._body.count(b"data: ") < step.text.count("data: ") and (part := await stream.chunk()):
                self._body += part
        return Response(status, headers, self._body, True)


async def _soon(condition: Callable[[], bool]) -> None:
    """Wait for it; should it never come, the answer says what that means."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(CATCH_UP_SECONDS):
            while not condition():  # noqa: ASYNC110 - it comes true in another process
                await asyncio.sleep(0.01)


def _lacks_items(step: Step, response: Response) -> bool:
    """Whether an answer may be older than the statement before it."""
    if step.meanwhile or step.status != 200 or response.status not in (200, 304):
        return False
    return response.status == 304 or (isinstance(step.answer, list) and len(response.items) < len(step.answer))


async def create_tables(database: str) -> None:
    """The tables as they were before the first transcript."""
    async with await psycopg.AsyncConnection.connect(database, autocommit=True) as connection:
        await connection.execute((FOLDER / "setup.sql").read_bytes())
        for number, table in (("03", "types"), ("36", "toast"), ("40", "big")):
            for step in read(number):
                if f"table={table}" in step.ask and isinstance(step.answer, list):
                    await _insert_rows(connection, table, step.answer)
        # The reference shows it as null in a snapshot, and as what it is in the log.
        await connection.execute("UPDATE types SET cmp = ROW(NULL, NULL) WHERE id = 3")


async def _insert_rows(connection: psycopg.AsyncConnection, table: str, items: list[Any]) -> None:
    for item in items:
        if item["headers"].get("operation") == "insert" and "lsn" not in item["headers"]:
            names = sql.SQL(", ").join(map(sql.Identifier, item["value"]))
            values = sql.SQL(", ").join(map(sql.Literal, item["value"].values()))
            insert = sql.SQL("INSERT INTO {} ({}) VALUES ({}) ON CONFLICT DO NOTHING")
            await connection.execute(insert.format(sql.Identifier(table), names, values))


def check(replay: Replay) -> None:
    """Raises AssertionError for discrepancies that no difference explains, and for differences that are none now."""
    unexplained = [entry for entry in replay.found if not any(each.explains(*entry) for each in DIFFERENCES)]
    assert not unexplained, "\n".join(" | ".join(entry) for entry in unexplained)
    for each in DIFFERENCES:
        if each.transcripts != ".*" and any(each.concerns(*place) for place in replay.held):
            assert any(each.explains(*entry) for entry in replay.found), f"there is no such difference: {each}"


@contextlib.asynccontextmanager
async def replay(stack: Stack, database: str) -> AsyncIterator[Replay]:
    """A replay, checked at its end."""
    held = Replay(stack, database)
    try:
        yield held
    finally:
        await held.close()
    check(held)


async def test_conversations(database: str, start_stack: StartStack) -> None:
    """Transcripts 01 to 39: shapes live on from one to the next, as when they were recorded."""
    await create_tables(database)
    environment = {
        "ELECTRIC_ENABLE_INTEGRATION_TESTING": "false",
        "ELECTRIC_LONG_POLL_TIMEOUT": "1000",
        "ELECTRIC_TWEAKS_PUBLICATION_REFRESH_PERIOD": "300ms",
    }
    stack = await start_stack(database, environment=environment)
    async with replay(stack, database) as held:
        await held.run("01", "02", "03", "04", "05", "06", "07", "08", "09", "10", "12", "13", "14")
        # 11, 15 and 16 were recorded a second time, at the end; their first times left this in a shape.
        await held.execute("UPDATE wh SET v = v || '.' WHERE id = 3")
        await held.run("17", "18", "19", "20", "21", "22", "23", "24", "25", "26", "27")
    await stack.stop()
    # In 27 the reference loses all its shapes.
    stack = await start_stack(database, environment=environment)
    async with replay(stack, database) as held:
        await held.run("28", "29", "30", "31", "32", "33", "34", "35", "36", "37", "38", "39")
        await held.execute("UPDATE wh SET v = 'v' || id")
        await held.run("11", "15", "16")


async def test_compression_and_keep_alive(database: str, start_stack: StartStack) -> None:
    """Transcripts 44 and 46."""
    await create_tables(database)
    stack = await start_stack(database)
    async with replay(stack, database) as held:
        await held.run("44")
        await held.run_on_one_connection("46")


async def test_chunks_and_deletion(private_server: EmbeddedPostgres, start_stack: StartStack) -> None:
    """Transcripts 40 to 42, of a server with small chunks. Where a chunk ends depends on how long LSNs and xids are, so
    they need a server without a past."""
    database = private_server.url
    await create_tables(database)
    async with await psycopg.AsyncConnection.connect(database, autocommit=True) as connection:
        await connection.execute(
            "DO $$ BEGIN WHILE pg_current_xact_id()::text::int < 1000 LOOP COMMIT; END LOOP; END $$"
        )
    environment = {"ELECTRIC_SHAPE_CHUNK_BYTES_THRESHOLD": "2000", "ELECTRIC_LONG_POLL_TIMEOUT": "2000"}
    stack = await start_stack(database, environment=environment)
    async with replay(stack, database) as held:
        await held.run("40", "41", "42")


@pytest.mark.faults
async def test_secret(database: str, start_stack: StartStack) -> None:
    """Transcript 43."""
    await create_tables(database)
    environment = {
        "ELECTRIC_INSECURE": "false",
        "ELECTRIC_SECRET": "s3cret",
        "ELECTRIC_ENABLE_INTEGRATION_TESTING": "false",
    }
    stack = await start_stack(database, environment=environment)
    async with replay(stack, database) as held:
        await held.run("43")
    assert "s3cret" not in "".join(stack.log_of(name) for name in (*stack.gateways, *stack.workers, "ingester"))


@pytest.mark.faults
@pytest.mark.skipif("45" in PENDING, reason="is being built")
async def test_limits(database: str, start_stack: StartStack) -> None:
    """Transcript 45."""
    await create_tables(database)
    limits = {"ELECTRIC_MAX_CONCURRENT_REQUESTS": '{"initial":1,"existing":1}', "ELECTRIC_LONG_POLL_TIMEOUT": "2000"}
    stack = await start_stack(database, environment=limits)
    async with replay(stack, database) as held:
        await held.run("45")


@pytest.mark.faults
async def test_open_transactions_and_restart(database: str, start_stack: StartStack) -> None:
    """Transcripts 47 and 48."""
    await create_tables(database)
    stack = await start_stack(database)
    async with replay(stack, database) as held:
        # The table was published before: nobody can publish one that an open transaction has written to.
        await held.ask(Step(ask="GET /v1/shape?table=s&offset=-1"))
        await held.run("47", "48")


@pytest.mark.faults
async def test_database_down(start_stack: StartStack) -> None:
    """Transcript 49."""
    stack = await start_stack(f"postgresql://postgres@127.0.0.1:{free_port()}/postgres", ready=False)
    await stack.wait_health('"status"')
    async with replay(stack, "") as held:
        await held.run("49")


def test_each_difference_has_its_reason() -> None:
    """docs/differences.md has a section for each difference that is allowed here."""
    headings = set(re.findall(r"^## (.*)$", (REPOSITORY / "docs" / "differences.md").read_text(), re.MULTILINE))
    assert {difference.name for difference in DIFFERENCES} <= headings

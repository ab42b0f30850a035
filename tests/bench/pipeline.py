"""End to end: rows written to Postgres, through ingester and one worker, past many shapes with filters."""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import psycopg

from deploy.embedded_postgres import EmbeddedPostgres
from tests.bench.clauses import CLAUSES, TABLE_SQL, Clause, request, row
from tests.bench.report import Figures
from tests.pipeline.stack import Stack

ABOUT = """End to end: Postgres, ingester, one worker, one gateway, all on this machine.
rows/s: from the first insert, in transactions of 100, until a client has a row that was written after all of them.
of one: as a part of the rate with one shape. worker: rows per second of the worker's processor time.
created/s: shapes made over HTTP, 32 at a time."""
SHAPES = (1, 1_000)
"""More have to be asked for: to make a shape takes some ten milliseconds, with its snapshot and its files."""

_ROWS = 20_000
_TRANSACTION = 100
_AT_A_TIME = 32


def run(shapes: tuple[int, ...], only: list[str] | None) -> Iterator[Figures]:
    """Measures each clause with each number of shapes."""
    with asyncio.Runner() as runner, contextlib.ExitStack() as left:
        bench = runner.run(_Bench.start(left))
        try:
            for clause in CLAUSES:
                if only is not None and clause.name not in only:
                    continue
                first = 0.0
                for count in shapes:
                    figures = runner.run(bench.measure(clause, count))
                    first = first or figures["rows/s"]
                    yield figures | {"of one": figures["rows/s"] / first}
        finally:
            runner.run(bench.stop())


class _Bench:
    def __init__(self, url: str, stack: Stack) -> None:
        self._url = url
        self._stack = stack
        self._tables = 0

    @classmethod
    async def start(cls, left: contextlib.ExitStack) -> _Bench:
        root = Path(left.enter_context(tempfile.TemporaryDirectory(prefix="galvanic-bench-")))
        server = left.enter_context(EmbeddedPostgres(root / "postgres", fsync=False))
        stack = Stack(server.url, root / "stack")
        left.callback(stack.dispose)
        async with await psycopg.AsyncConnection.connect(server.url, autocommit=True) as connection:
            await connection.execute("CREATE TABLE marker (id bigint PRIMARY KEY)")
        stack.start()
        await stack.wait_active()
        await stack.wait_balanced()
        return cls(server.url, stack)

    async def stop(self) -> None:
        await self._stack.stop()
        self._stack.check()

    async def measure(self, clause: Clause, count: int) -> Figures:
        self._tables += 1
        table = f"rows_{self._tables}"
        async with (
            await psycopg.AsyncConnection.connect(self._url, autocommit=True) as connection,
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=_AT_A_TIME + 1)) as session,
        ):
            await connection.execute(TABLE_SQL.format(table).encode())
            begun = time.monotonic()
            await self._create(session, table, clause, count)
            created = count / (time.monotonic() - begun)
            async with self._marker(session, self._tables) as seen:
                spent, begun = self._worker_seconds(), time.monotonic()
                await self._write(connection, table)
                await connection.execute("INSERT INTO marker VALUES (%s)", (self._tables,))
                await seen
                elapsed, worker = time.monotonic() - begun, self._worker_seconds() - spent
            # The next measurement is not to be about these shapes, too.
            await connection.execute(f"DROP TABLE {table}".encode())
        return {
            "clause": clause.name,
            "shapes": count,
            "rows/s": _ROWS / elapsed,
            "worker": _ROWS / worker,
            "created/s": created if count > 1 else None,
        }

    async def _create(self, session: aiohttp.ClientSession, table: str, clause: Clause, count: int) -> None:
        numbers = iter(range(count))

        async def some() -> None:
            for number in numbers:
                where, params = request(clause, number)
                query = {"table": table, "offset": "-1", "where": where}
                query |= {f"params[{place}]": value for place, value in enumerate(params, 1)}
                await self._get(session, query)

        await asyncio.gather(*(some() for _ in range(_AT_A_TIME)))

    async def _get(self, session: aiohttp.ClientSession, query: dict[str, str]) -> tuple[dict[str, str], bytes]:
        while True:
            async with session.get(f"{self._stack.url}/v1/shape", params=query) as response:
                body = await response.read()
                if response.status in (429, 503):
                    await asyncio.sleep(0.2)
                    continue
                assert response.status == 200, (response.status, body[:500])
                return dict(response.headers), body

    @contextlib.asynccontextmanager
    async def _marker(self, session: aiohttp.ClientSession, number: int) -> AsyncIterator[asyncio.Task[None]]:
        """A task that ends when a client of the marker's shape has the row of this number."""
        headers, _ = await self._get(session, {"table": "marker", "offset": "-1"})

        async def follow() -> None:
            at = headers
            while True:
                query = {"table": "marker", "handle": at["electric-handle"], "offset": at["electric-offset"]}
                at, body = await self._get(session, query | {"live": "true"})
                if f'"id":"{number}"'.encode() in body:
                    return

        task = asyncio.create_task(follow())
        try:
            yield task
        finally:
            task.cancel()

    async def _write(self, connection: psycopg.AsyncConnection, table: str) -> None:
        for begin in range(0, _ROWS, _TRANSACTION):
            async with connection.cursor().copy(f"COPY {table} FROM STDIN".encode()) as copy:
                lines = (b"\t".join(row(number)) for number in range(begin, begin + _TRANSACTION))
                await copy.write(b"\n".join(lines) + b"\n")

    def _worker_seconds(self) -> float:
        fields = Path(f"/proc/{self._stack.pid('w00')}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

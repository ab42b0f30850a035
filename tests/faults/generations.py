"""Shapes over the life of slot, server and storage: kept where nothing can be missing, else ended and made anew."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psycopg

from common.lsn import parse_lsn
from deploy.embedded_postgres import EmbeddedPostgres
from tests.pipeline.reader import HANG_SECONDS, Reader
from tests.pipeline.stack import REPOSITORY, Stack

SLOT = "electric_slot_default"
PUBLICATION = "electric_publication_default"
NEW_GENERATION = "a new generation begins"


class Witness(Reader):
    """A reader of the table `t` whose shape may end at any time; it is the test that says whether it had to."""

    def __init__(self, stack: Stack, url: str) -> None:
        super().__init__(stack.url, "t", monotone_lsn=False)
        self.database = url

    def _check_may_end(self) -> None:
        pass

    async def kept(self) -> None:
        """What is written now arrives, and all is as Postgres says, in the shape that was there from the start."""
        await self.compare()
        assert self.view.ended == [], "the shape ended, although nothing could be missing"

    async def replaced(self, times: int = 1) -> None:
        """The shape ends with a 409, and the one after it holds what Postgres says."""
        async with asyncio.timeout(HANG_SECONDS):
            while len(self.view.ended) < times:
                self.check()
                await asyncio.sleep(0.05)
        await self.compare()
        assert len(self.view.ended) == times

    async def compare(self) -> None:
        """Writes a row, waits for it and compares everything with Postgres; follows on afterwards."""
        self.check()
        lsn = await insert(self.database)
        await self.at_rest(lsn)
        await self.verify(self.database)
        self.start()


@asynccontextmanager
async def witness(stack: Stack, url: str) -> AsyncIterator[Witness]:
    """A witness of the table `t` at `url` that is up to date."""
    reader = Witness(stack, url)
    reader.start()
    try:
        await reader.current()
        yield reader
    finally:
        await reader.stop()


async def execute(url: str, *statements: str) -> list[Any]:
    """Runs each statement in a transaction of its own; the rows of the last one."""
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        rows: list[Any] = []
        for statement in statements:
            cursor = await connection.execute(statement.encode())
            rows = await cursor.fetchall() if cursor.description is not None else []
    return rows


def database(url: str, name: str) -> str:
    """The URL of another database of the same server."""
    return f"{url.rsplit('/', 1)[0]}/{name}"


async def create_table(url: str) -> None:
    """Makes `t` with some rows."""
    await execute(
        url,
        "CREATE TABLE t (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, v text)",
        "INSERT INTO t (v) SELECT 'row ' || i FROM generate_series(1, 100) i",
    )


async def insert(url: str, rows: int = 1) -> int:
    """Commits rows into `t`. Returns an LSN above every earlier commit and at or below this one."""
    found = await execute(url, "SELECT pg_current_wal_insert_lsn()")
    await execute(url, f"INSERT INTO t (v) SELECT 'late ' || i FROM generate_series(1, {rows}) i")
    return parse_lsn(found[0][0])


async def until(url: str, query: str, expected: Any) -> None:
    """Waits until the first column of the first row is what it should be."""
    async with asyncio.timeout(HANG_SECONDS):
        while (await execute(url, query) or [(None,)])[0][0] != expected:  # noqa: ASYNC110
            await asyncio.sleep(0.1)


def generations(stack: Stack) -> list[str]:
    """The lines by which the ingester said that shapes had to end, oldest first."""
    return [line for line in stack.log_of("ingester").splitlines() if NEW_GENERATION in line]


async def run_ingester(url: str, storage: Path, **environment: str) -> tuple[int, str]:
    """An ingester that is expected to end by itself: its exit code and all it said."""
    with tempfile.TemporaryDirectory(prefix="gv-", dir="/tmp") as run_directory:
        output = Path(run_directory) / "output"
        kept = {name: os.environ[name] for name in ("HOME", "PATH", "TMPDIR") if name in os.environ}
        with output.open("wb") as file:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", "deploy", "ingester"),
                cwd=REPOSITORY,
                env={
                    **kept,
                    "DATABASE_URL": url,
                    "ELECTRIC_INSECURE": "true",
                    "ELECTRIC_STORAGE_DIR": str(storage),
                    "GALVANIC_RUN_DIR": run_directory,
                    **environment,
                },
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
            )
        try:
            await asyncio.wait_for(process.wait(), HANG_SECONDS)
        except TimeoutError:
            raise AssertionError(f"the ingester does not end:\n{output.read_text()[-4000:]}") from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        assert process.returncode is not None
        return process.returncode, output.read_text()


async def copy_server(server: EmbeddedPostgres, directory: Path, **settings: str) -> EmbeddedPostgres:
    """A server on a copy of the data of one that is stopped, with its slots; not started yet."""
    assert server.pid is None, "the data of a running server cannot be copied"
    copy = EmbeddedPostgres(directory, fsync=False, settings={**server.settings, **settings})
    copy.directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    await asyncio.to_thread(
        subprocess.run, ["cp", "-a", str(server.data_directory), str(copy.data_directory)], check=True
    )
    return copy

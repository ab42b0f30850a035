"""What bounds Galvanic, by tools that do nothing else: psql, pg_recvlogical, pgbench, nginx, a bare pipe."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Final

import psycopg

from common.process import dying_with_this_process
from deploy.postgres_binaries import find_binaries, server_account
from tests.bench.program import BenchError, Program
from tests.bench.usage import Processes, Usage
from tests.pipeline import nginx

PUBLICATION: Final = "bench_limit"

_START_SECONDS: Final = 60.0
_PIECE: Final = 1 << 20

_HTTP: Final = """
    access_log off;
    sendfile on;
    tcp_nopush on;
    keepalive_requests 1000000;
    default_type application/json;
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        root {directory}/files;
    }}
"""


def program(name: str) -> str:
    """The path of one of Postgres' programs, of the release that the embedded server has. Raises BenchError."""
    found = find_binaries(server_account()) / name
    if not found.exists():
        raise BenchError(f"{found} is missing: this Postgres has no client programs; unset GALVANIC_PG_BIN")
    return str(found)


async def copy_seconds(database: str, table: str) -> tuple[float, Usage]:
    """How long ``COPY table TO STDOUT`` takes psql, output thrown away."""
    command = [program("psql"), "-qX", "-d", database, "-c", f"COPY {table} TO STDOUT"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    begun = time.monotonic()
    await asyncio.to_thread(subprocess.run, command, check=True, stdout=subprocess.DEVNULL)
    seconds = time.monotonic() - begun
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, Usage({"psql": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime})


async def transactions_per_second(database: str, script: str, clients: int, count: int) -> float:
    """How many transactions of a script pgbench carries out per second, so many in all, by so many clients."""
    with tempfile.NamedTemporaryFile("w", suffix=".sql") as file:
        file.write(script)
        file.flush()
        command = [program("pgbench"), "-n", "-c", str(clients), "-j", "2", "-t", str(max(1, count // clients))]
        done = await asyncio.to_thread(
            subprocess.run, [*command, "-f", file.name, "-d", database], capture_output=True, text=True, check=False
        )
    for line in done.stdout.splitlines():
        if line.startswith("tps = "):
            return float(line.split()[2])
    raise BenchError(f"pgbench: {done.stdout} {done.stderr}")


@contextlib.asynccontextmanager
async def slot(database: str, table: str) -> AsyncIterator[str]:
    """A new slot of pgoutput, and a publication of one table; its name."""
    name = f"bench_{time.monotonic_ns()}"
    async with await psycopg.AsyncConnection.connect(database, autocommit=True) as connection:
        await connection.execute(f"DROP PUBLICATION IF EXISTS {PUBLICATION}".encode())
        await connection.execute(f"CREATE PUBLICATION {PUBLICATION} FOR TABLE {table}".encode())
        await connection.execute(f"SELECT pg_create_logical_replication_slot('{name}', 'pgoutput')".encode())
    try:
        yield name
    finally:
        async with await psycopg.AsyncConnection.connect(database, autocommit=True) as connection:
            await drop_slot(connection, name)


async def drop_slot(connection: psycopg.AsyncConnection, name: str) -> None:
    """Drops it, as soon as its last reader has gone; no error if it does not exist."""
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            await connection.execute(
                "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = %s", [name]
            )
            return
        except psycopg.errors.ObjectInUse:
            if time.monotonic() > deadline:
                raise
            await connection.execute(
                "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = %s", [name]
            )
            await asyncio.sleep(0.05)


class Receiver:
    """pg_recvlogical reading a slot into a pipe; whoever reads that only looks for a mark in the last row."""

    def __init__(self, database: str, slot: str) -> None:
        options = [f"--option={option}" for option in ("proto_version=1", f"publication_names={PUBLICATION}")]
        self._process = subprocess.Popen(
            [program("pg_recvlogical"), "-d", database, "-S", slot, "--start", "--no-loop", *options, "-f", "-"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            preexec_fn=dying_with_this_process(signal.SIGKILL),
        )

    async def until(self, mark: bytes) -> tuple[float, Usage]:
        """Ends it when the mark has come: at what time, and what it has cost."""
        try:
            at = await asyncio.to_thread(self._read, mark)
        finally:
            self._process.kill()
            _, _, used = await asyncio.to_thread(os.wait4, self._process.pid, 0)
            self._process.returncode = 0
        return at, Usage({"pg_recvlogical": used.ru_utime + used.ru_stime}, {"pg_recvlogical": used.ru_maxrss / 1000})

    def _read(self, mark: bytes) -> float:
        assert self._process.stdout is not None
        tail = b""
        while piece := os.read(self._process.stdout.fileno(), _PIECE):
            if mark in tail + piece:
                return time.monotonic()
            tail = piece[-len(mark) :]
        raise BenchError("pg_recvlogical has ended before the last row")


@contextlib.asynccontextmanager
async def bare_pipe(database: str, table: str) -> AsyncIterator[tuple[str, Program]]:
    """:mod:`tests.bench.bare` on a slot for this table; its URL."""
    async with (
        slot(database, table) as name,
        Program.started("tests.bench.bare", database=database, slot=name, publication=PUBLICATION) as bare,
    ):
        yield f"http://127.0.0.1:{(await bare.hear())['port']}", bare


class Files:
    """nginx with one worker, serving bodies from files: ``/0``, ``/1`` and so on."""

    def __init__(self, url: str, worker: int, count: int) -> None:
        self.url = url
        self.processes: Processes = {"nginx": lambda: worker}
        """Its worker; all the work is done there."""
        self.count = count
        """How many files there are."""


@contextlib.contextmanager
def nginx_files(bodies: Sequence[bytes]) -> Iterator[Files | None]:
    """None where nginx is not installed."""
    executable = nginx.find_nginx()
    if executable is None:
        yield None
        return
    directory = Path(tempfile.mkdtemp(prefix="gv-bench-", dir="/tmp"))
    try:
        (directory / "files").mkdir()
        for number, body in enumerate(bodies):
            (directory / "files" / str(number)).write_bytes(body)
        with _nginx(executable, directory, len(bodies)) as files:
            yield files
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextlib.contextmanager
def _nginx(executable: str, directory: Path, count: int) -> Iterator[Files]:
    from tests.ports import free_port

    port = free_port()
    process = nginx.start(executable, directory, _HTTP.format(directory=directory, port=port), connections=16_384)
    try:
        deadline = time.monotonic() + _START_SECONDS
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        while not (workers := children.read_text().split()):
            if process.poll() is not None or time.monotonic() > deadline:
                raise BenchError(f"nginx does not start: {(directory / 'error.log').read_text()}")
            time.sleep(0.05)
        yield Files(f"http://127.0.0.1:{port}", int(workers[0]), count)
    finally:
        process.terminate()
        process.wait(20)

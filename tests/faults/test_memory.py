"""Memory is bounded, whatever the size of a transaction, a snapshot, or what stands still (INV-11)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from deploy.embedded_postgres import EmbeddedPostgres
from tests.pipeline.bulk import WIDE_BYTES, BulkReader, create_tables, expected, insert
from tests.pipeline.fixtures import StartStack
from tests.pipeline.memory import LIMIT_MB, check_peaks, peaks_mb
from tests.pipeline.test_memory import stalled_clients
from tests.pipeline.workload import SCALE

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1800)]

TRANSACTION_BYTES = int(2e9 * SCALE)
TRANSACTION_ROWS = int(3.5e5 * SCALE)
SNAPSHOT_BYTES = int(5e9 * SCALE)
ROW_BYTES = int(2e8 * SCALE)

PEAK_MB = 200
"""All are at about 120 MB. Less than LIMIT_MB, so that a tenth of these bytes, if it stayed, would be too much."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedPostgres]:
    """Room for much WAL, so that checkpoints do not slow everybody down."""
    settings = {"max_wal_size": "4GB", "shared_buffers": "512MB", "autovacuum": "off"}
    with EmbeddedPostgres(tmp_path / "postgres", fsync=False, settings=settings) as running:
        yield running


async def test_large_transaction(server: EmbeddedPostgres, start_stack: StartStack) -> None:
    await _large_transaction(server, start_stack, "wide", TRANSACTION_BYTES // WIDE_BYTES)


async def test_transaction_of_many_rows(server: EmbeddedPostgres, start_stack: StartStack) -> None:
    await _large_transaction(server, start_stack, "small", TRANSACTION_ROWS)


async def _large_transaction(server: EmbeddedPostgres, start_stack: StartStack, table: str, rows: int) -> None:
    """Several shapes on the table, of both workers; one more that is made while the transaction passes."""
    await create_tables(server.url)
    await insert(server.url, table, -99, 100)
    stack = await start_stack(server.url, workers=2, keep_alive=False)
    readers = [
        BulkReader(stack.url, table),
        BulkReader(stack.url, table, replica="full"),
        BulkReader(stack.url, table, ["id", "body"]),
        BulkReader(stack.url, table, ["id", "batch"]),
    ]
    for reader in readers:
        await reader.follow(100)
    started = time.monotonic()
    await insert(server.url, table, 1, rows)
    print(f"written in {time.monotonic() - started:.0f} s")
    await asyncio.sleep(3)
    late = BulkReader(stack.url, table, ["id", "body"], replica="full")
    await late.follow(100)
    for reader in (*readers, late):
        got = await reader.follow(rows + 100)
        seconds = time.monotonic() - started
        print(f"{reader.columns}: {reader.bytes // 10**6} MB after {seconds:.0f} s, {reader.refetches} refetches")
        assert got == await expected(server.url, table, reader.columns)
    assert not any(reader.refetches for reader in (*readers, late)), "the late one, too, need not hold it back"
    check_peaks(stack, PEAK_MB)


async def test_large_snapshot(server: EmbeddedPostgres, start_stack: StartStack) -> None:
    await create_tables(server.url)
    rows = SNAPSHOT_BYTES // WIDE_BYTES
    started = time.monotonic()
    await insert(server.url, "wide", 1, rows)
    print(f"written in {time.monotonic() - started:.0f} s")
    stack = await start_stack(server.url, workers=2, keep_alive=False)
    reader = BulkReader(stack.url, "wide")
    await reader.follow(1)
    await insert(server.url, "wide", rows + 1, 10)
    got = await reader.follow(rows + 10)
    print(f"{reader.bytes / 1e6:.0f} MB after {time.monotonic() - started:.0f} s, {reader.refetches} refetches")
    assert got == await expected(server.url, "wide")
    assert not reader.refetches
    check_peaks(stack, PEAK_MB)


async def test_clients_that_stop_reading(database: str, start_stack: StartStack) -> None:
    await stalled_clients(database, start_stack, 1000, LIMIT_MB)


async def test_a_huge_row(server: EmbeddedPostgres, start_stack: StartStack) -> None:
    """It passes, in the stream and in a snapshot. Here memory follows the row: both come as one message each."""
    await create_tables(server.url)
    stack = await start_stack(server.url, workers=1, keep_alive=False)
    reader = BulkReader(stack.url, "small")
    await reader.follow(0)
    async with await psycopg.AsyncConnection.connect(server.url) as connection:
        await connection.execute("INSERT INTO small VALUES (1, 0, repeat('x', %s))", [ROW_BYTES])
    await insert(server.url, "small", 2, 10)
    assert await reader.follow(11) == await expected(server.url, "small")
    assert not reader.refetches
    print(f"in the stream: {peaks_mb(stack)}")
    late = BulkReader(stack.url, "small", replica="full")
    assert await late.follow(11) == await expected(server.url, "small")
    print(f"in a snapshot: {peaks_mb(stack)}")
    check_peaks(stack, 65 + 6 * ROW_BYTES // 10**6)
    assert peaks_mb(stack)["g0"] < LIMIT_MB

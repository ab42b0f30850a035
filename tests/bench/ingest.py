"""From writes to shapes: one shape, a thousand, those that all match, and after a pause."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Final
from urllib.parse import quote

from tests.bench import limits, rows
from tests.bench.case import Case, Measure, Running, Sample, Scale
from tests.bench.site import Target
from tests.bench.usage import Meter, Usage

_FOLLOWED: Final = 10
"""So many shapes, spread over all of them, have a client that waits for the last row."""

_AT_A_TIME: Final = 20
_LINE_BYTES: Final = 430


class Ingest:
    """Rows are written; the clock stops when the clients of the followed shapes have all that concern these."""

    def __init__(
        self,
        target: Target,
        table: str,
        queries: Sequence[str],
        *,
        count: int,
        per_transaction: int,
        rows_per_shape: int,
        orgs: int = 1000,
        paused: bool = False,
        to_files: int = 0,
    ) -> None:
        """``queries``: the followed shapes; ``rows_per_shape``: how many of the rows each of them gets. ``paused``: the
        ingester stands still while the rows are written. ``to_files``: the limit is not the slot but so many files."""
        self._target = target
        self._table = table
        self._queries = queries
        self._count = count
        self._per_transaction = per_transaction
        self._rows_per_shape = rows_per_shape
        self._orgs = orgs
        self._paused = paused
        self._to_files = to_files
        self._next = {target.database: 1, target.limit_database: 1}

    async def run(self) -> Sample:
        target, stack = self._target, self._target.stack
        expected = [self._rows_per_shape] * len(self._queries)
        async with target.load("follow", queries=self._queries, rows=expected) as load:
            await load.hear()
            load.say(go=True)
            await load.hear()
            meter = Meter({**target.processes, "load": lambda: load.pid})
            if not self._paused:
                begun = time.monotonic()
                await self._write(target.database)
            else:
                assert stack is not None
                stack.pause("ingester")
                try:
                    await self._write(target.database)
                    meter = Meter({**target.processes, "load": lambda: load.pid})
                finally:
                    stack.resume("ingester")
                begun = time.monotonic()
            seconds = (await load.hear())["done"] - begun
            return self._sample(seconds, meter.read())

    async def limit(self) -> Sample | None:
        if self._to_files:
            seconds = await asyncio.to_thread(_append, self._to_files, self._count, self._per_transaction)
            return self._sample(seconds, Usage())
        database = self._target.limit_database
        async with limits.slot(database, self._table) as slot:
            if self._paused:
                await self._write(database)
                begun = time.monotonic()
                receiver = limits.Receiver(database, slot)
            else:
                receiver = limits.Receiver(database, slot)
                begun = time.monotonic()
                await self._write(database)
            last = self._next[database] - 1
            at, used = await receiver.until(b" of %d" % last)
            return self._sample(at - begun, used)

    async def _write(self, database: str) -> None:
        first = self._next[database]
        await rows.write(database, self._table, first, self._count, self._per_transaction, orgs=self._orgs)
        self._next[database] += self._count

    def _sample(self, seconds: float, used: Usage) -> Sample:
        values = {"rows/s": self._count / seconds}
        ours = [used.cpu[name] for name in ("ingester", "worker", "gateway") if name in used.cpu]
        if ours:
            values["CPU us/row"] = sum(ours) * 1e6 / self._count
        return Sample(values, self._count, used)


def _append(files: int, count: int, per_transaction: int) -> float:
    """Seconds for the same bytes: one write to each file for each transaction, and one sync of each in the end."""
    folder = Path(tempfile.mkdtemp(prefix="gv-bench-"))
    try:
        piece = b"x" * (_LINE_BYTES * per_transaction)
        opened = [os.open(folder / str(number), os.O_WRONLY | os.O_CREAT | os.O_APPEND) for number in range(files)]
        begun = time.monotonic()
        for _ in range(count // per_transaction):
            for file in opened:
                os.write(file, piece)
        for file in opened:
            os.fdatasync(file)
        seconds = time.monotonic() - begun
        for file in opened:
            os.close(file)
        return seconds
    finally:
        shutil.rmtree(folder, ignore_errors=True)


async def make_shapes(target: Target, queries: Sequence[str]) -> float:
    """Makes them, some at a time; how many per second."""
    targets = [f"/v1/shape?{query}&offset=-1" for query in queries]
    async with target.load("requests", targets=targets, connections=_AT_A_TIME) as load:
        await load.hear()
        load.say(go=True)
        return len(queries) / float((await load.hear())["seconds"])


def _followed(queries: Sequence[str]) -> list[str]:
    return list(queries[:: max(1, len(queries) // _FOLLOWED)])[:_FOLLOWED]


@contextlib.asynccontextmanager
async def one_shape(
    target: Target, scale: Scale, *, count: int, per_transaction: int, paused: bool = False
) -> AsyncIterator[Running]:
    """A shape without a filter."""
    per_transaction = min(per_transaction, scale(count, 200))
    count = scale(count, 200) // per_transaction * per_transaction
    async with target.table() as table:
        yield Ingest(
            target,
            table,
            [f"table={table}"],
            count=count,
            per_transaction=per_transaction,
            rows_per_shape=count,
            paused=paused,
        )


@contextlib.asynccontextmanager
async def equal(target: Target, scale: Scale, *, shapes: int, count: int) -> AsyncIterator[Running]:
    """As many shapes as there are values of a column; each transaction has a row for each of them."""
    shapes = scale(shapes, 10)
    transactions = max(2, scale(count) // shapes)
    async with target.table() as table:
        queries = [f"table={table}&where={quote(f'org = {number}')}" for number in range(shapes)]
        await make_shapes(target, queries)
        yield Ingest(
            target,
            table,
            _followed(queries),
            count=transactions * shapes,
            per_transaction=shapes,
            rows_per_shape=transactions,
            orgs=shapes,
        )


@contextlib.asynccontextmanager
async def _ilike(target: Target, scale: Scale) -> AsyncIterator[Running]:
    shapes = rows.WORDS
    count = scale(20_000, 200) // shapes * shapes
    async with target.table() as table:
        clauses = [quote(f"title ILIKE '%W{number} O%'") for number in range(shapes)]
        queries = [f"table={table}&where={clause}" for clause in clauses]
        await make_shapes(target, queries)
        yield Ingest(
            target,
            table,
            _followed(queries),
            count=count,
            per_transaction=100,
            rows_per_shape=count // shapes,
        )


@contextlib.asynccontextmanager
async def matching(target: Target, *, shapes: int, count: int) -> AsyncIterator[Running]:
    """So many shapes that every row belongs to."""
    async with target.table() as table:
        queries = [f"table={table}&where={quote(f'id > -{number}')}" for number in range(shapes)]
        await make_shapes(target, queries)
        yield Ingest(
            target,
            table,
            _followed(queries),
            count=count,
            per_transaction=100,
            rows_per_shape=count,
            to_files=shapes,
        )


def _all_match(target: Target, scale: Scale) -> contextlib.AbstractAsyncContextManager[Running]:
    return matching(target, shapes=scale(200, 10), count=scale(100, 2) * 100)


CASES: Final = (
    Case(
        "transactions-of-1000",
        "one shape, transactions of 1 000 rows; limit: pg_recvlogical with the same writer",
        (
            Measure("rows/s", reference=15_900, times=4, of_limit=0.5),
            Measure("CPU us/row", reference=63, times=0.25, less_is_better=True),
        ),
        functools.partial(one_shape, count=200_000, per_transaction=1_000),
        item="row",
    ),
    Case(
        "transactions-of-1",
        "one shape, transactions of 1 row, one writer; limit: pg_recvlogical with the same writer",
        (
            Measure("rows/s", reference=845, times=1),
            Measure("CPU us/row", reference=1_360, times=0.3, less_is_better=True),
        ),
        functools.partial(one_shape, count=5_000, per_transaction=1),
        item="row",
    ),
    Case(
        "1000-equal",
        "1 000 shapes with `=`, each transaction touching all; limit: pg_recvlogical with the same writer",
        (
            Measure("rows/s", reference=2_000, times=15),
            Measure("CPU us/row", reference=900, times=1 / 15, less_is_better=True),
        ),
        functools.partial(equal, shapes=1_000, count=100_000),
        item="row",
    ),
    Case(
        "100-ilike",
        "100 shapes with ILIKE '%x%', a row matches one; limit: pg_recvlogical with the same writer",
        (
            Measure("rows/s", reference=320, times=50),
            Measure("CPU us/row", reference=6_070, times=1 / 50, less_is_better=True),
        ),
        _ilike,
        item="row",
    ),
    Case(
        "200-matching",
        "200 shapes that all match (x 200 appends); limit: the same bytes to 200 files, one write a transaction",
        (
            Measure("rows/s", reference=166, times=10),
            Measure("CPU us/row", reference=11_600, times=0.1, less_is_better=True),
        ),
        _all_match,
        item="row",
    ),
    Case(
        "catch-up",
        "catch-up of 1 000 000 rows (transactions of 1 000) after a pause; limit: pg_recvlogical over the same",
        (Measure("rows/s", of_limit=0.5), Measure("CPU us/row", less_is_better=True)),
        functools.partial(one_shape, count=1_000_000, per_transaction=1_000, paused=True),
        item="row",
        own_only=True,
        repeats=1,
    ),
)

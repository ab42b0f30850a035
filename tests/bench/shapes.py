"""What shapes cost: to make them, to have them, to start with them, and to be passed by what does not concern them."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator
from typing import Final
from urllib.parse import quote

from tests.bench import limits, routing
from tests.bench.case import Case, Measure, Running, Sample, Scale
from tests.bench.ingest import make_shapes
from tests.bench.latency import Latencies
from tests.bench.reading import end_of
from tests.bench.site import Target
from tests.bench.usage import POSTGRES, Meter, Usage, pss_mb

_AT_A_TIME: Final = 20
_CREATED: Final = 600
_KEPT: Final = 1_000
_MANY: Final = 10
"""Times as many show what one costs: of fewer, processes have room left that was only meant for making them."""

_STARTED_WITH: Final = 50_000
_MAKING_SECONDS: Final = 150.0
"""If not all can be made in this time, the start is measured with those that were."""

_FIRST_BATCH: Final = 100
_BATCH_SECONDS: Final = 10.0
"""The clock is looked at after so long."""

_SETTLED: Final = 1.5
"""Seconds after which processes have let go of what they needed to make shapes."""

_ROUTED: Final = 100_000
_SNAPSHOT: Final = """
\\set org random(0, 999)
BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;
SELECT pg_current_snapshot();
SELECT * FROM {table} WHERE org = :org;
COMMIT;
"""


class _Creation:
    """New shapes of a few rows each, some at a time."""

    def __init__(self, target: Target, table: str, count: int) -> None:
        self._target = target
        self._table = table
        self._count = count
        self._numbers = itertools.count(1)

    async def run(self) -> Sample:
        clauses = [quote(f"org = {number} AND id > -{next(self._numbers)}") for number in range(self._count)]
        targets = [f"/v1/shape?table={self._table}&where={clause}&offset=-1" for clause in clauses]
        answer, used = await self._target.measured("requests", targets=targets, connections=_AT_A_TIME)
        latencies = Latencies(answer["latencies"])
        values = {"shapes/s": self._count / answer["seconds"], "p99 ms": latencies.ms(99)}
        return Sample(values, self._count, used, latencies)

    async def limit(self) -> Sample | None:
        script = _SNAPSHOT.format(table=self._table)
        rate = await limits.transactions_per_second(
            self._target.limit_database, script, clients=_AT_A_TIME, count=self._count * 4
        )
        return Sample({"shapes/s": rate})


@contextlib.asynccontextmanager
async def _creation(target: Target, scale: Scale) -> AsyncIterator[Running]:
    async with target.table(1_000) as table:
        await end_of(target, f"table={table}")
        yield _Creation(target, table, scale(_CREATED, 20))


class _Memory:
    """Shapes that are there, first by themselves, then with a client each."""

    def __init__(self, target: Target, table: str, count: int) -> None:
        self._target = target
        self._table = table
        self._count = count

    async def run(self) -> Sample:
        target, count = self._target, self._count
        queries = [f"table={self._table}&where={quote(f'org = {number}')}" for number in range(count)]
        meter = Meter(target.processes)
        await make_shapes(target, queries)
        await asyncio.sleep(_SETTLED)
        idle = self._now()
        targets = [f"/v1/shape?{query}&live=true" for query in queries]
        places = [f"&{place}" for place in await asyncio.gather(*(end_of(target, query) for query in queries))]
        async with target.load("wait", targets=targets, places=places, clients=count) as load:
            await load.hear()
            load.say(mark="nothing that comes")
            await load.hear()
            await asyncio.sleep(1)
            waited = self._now()
        few = self._now()
        more = [f"table={self._table}&where={quote(f'org = {number}')}" for number in range(count, count * _MANY)]
        await make_shapes(target, more)
        await asyncio.sleep(_SETTLED)
        many = self._now()
        shapes = {f"KB/shape {name}": (many[name] - few[name]) * 1000 / len(more) for name in ("worker", "gateway")}
        values = {"MB": sum(idle.values()), "MB with as many clients": sum(waited.values()), **shapes}
        return Sample(values, count, Usage({}, meter.read().peak))

    async def limit(self) -> Sample | None:
        return None

    def _now(self) -> dict[str, float]:
        return {name: pss_mb(pid()) for name, pid in self._target.processes.items() if name != POSTGRES}


@contextlib.asynccontextmanager
async def _memory(target: Target, scale: Scale) -> AsyncIterator[Running]:
    async with target.table(1_000) as table:
        await end_of(target, f"table={table}")
        yield _Memory(target, table, scale(_KEPT, 10))


class _Start:
    """All processes end and start again on a storage directory full of shapes."""

    def __init__(self, target: Target, query: str, count: int) -> None:
        self._target = target
        self._query = query
        self._count = count

    async def run(self) -> Sample:
        stack = self._target.stack
        assert stack is not None
        await stack.stop()
        begun = time.monotonic()
        stack.start()
        await stack.wait_active()
        meter = Meter(self._target.processes)
        active = time.monotonic() - begun
        await end_of(self._target, self._query)
        await stack.wait_balanced()
        seconds = time.monotonic() - begun
        cpu = {name: spent for name, spent in meter.read().cpu.items() if name != POSTGRES}
        values = {"shapes": self._count, "seconds": seconds, "seconds to active": active}
        memory = {name: pss_mb(pid()) for name, pid in self._target.processes.items() if name != POSTGRES}
        return Sample(values, self._count, Usage(cpu, memory))

    async def limit(self) -> Sample | None:
        return None


@contextlib.asynccontextmanager
async def _start(target: Target, scale: Scale) -> AsyncIterator[Running]:
    wanted, made, more = scale(_STARTED_WITH, 20), 0, _FIRST_BATCH
    until = time.monotonic() + scale.seconds(_MAKING_SECONDS)
    async with target.table(100) as table:
        while made < wanted and (made == 0 or time.monotonic() < until):
            clauses = [quote(f"id = {number}") for number in range(made, min(made + more, wanted))]
            rate = await make_shapes(target, [f"table={table}&where={clause}" for clause in clauses])
            made += len(clauses)
            more = max(_FIRST_BATCH, round(rate * _BATCH_SECONDS))
        yield _Start(target, f"table={table}&where={quote('id = 0')}", made)


class _Routing:
    """The router alone, in this process: rows of processor time, past so many shapes."""

    def __init__(self, count: int) -> None:
        self._count = count

    async def run(self) -> Sample:
        return await self._measured(self._count)

    async def limit(self) -> Sample | None:
        return await self._measured(1)

    async def _measured(self, count: int) -> Sample:
        names = ["=", "ILIKE '%x%'", "AND"]
        found = await asyncio.to_thread(lambda: list(routing.run((count,), names)))
        return Sample({f"rows/s {figures['clause']}": figures["rows/s"] for figures in found})


@contextlib.asynccontextmanager
async def _routing(target: Target, scale: Scale) -> AsyncIterator[Running]:
    yield _Routing(scale(_ROUTED, 100))


CASES: Final = (
    Case(
        "shapes-created",
        "shapes made, 20 at a time; limit: pgbench with a snapshot and a query each",
        (Measure("shapes/s", reference=85, times=10), Measure("p99 ms", less_is_better=True)),
        _creation,
        item="shape",
    ),
    Case(
        "memory-1000-shapes",
        "memory of ingester, worker and gateway at 1 000 shapes, with 1 000 waiting clients, and of each of 9 000 more",
        (
            Measure("MB", reference=524, times=0.3, less_is_better=True),
            Measure("MB with as many clients", most=200, less_is_better=True),
            Measure("KB/shape worker", most=3, less_is_better=True),
            Measure("KB/shape gateway", most=3, less_is_better=True),
        ),
        _memory,
        own_only=True,
        repeats=1,
    ),
    Case(
        "start-50000-shapes",
        "start with 50 000 shapes, until one of them is served and all partitions have their worker",
        (
            Measure("shapes"),
            Measure("seconds", less_is_better=True),
            Measure("seconds to active", less_is_better=True),
        ),
        _start,
        item="shape",
        own_only=True,
        repeats=2,
    ),
    Case(
        "routing-100000-shapes",
        "the router alone past 100 000 shapes, per second of processor time; limit: the same with one shape",
        (Measure("rows/s ="), Measure("rows/s ILIKE '%x%'"), Measure("rows/s AND")),
        _routing,
        own_only=True,
        repeats=1,
    ),
)

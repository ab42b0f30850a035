"""From a commit to the clients that wait for it: one of them, thousands, by long-polls and by server-sent events."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import statistics
import time
from collections.abc import AsyncIterator, Callable
from typing import Final

from tests.bench import limits
from tests.bench.case import Case, Measure, Running, Sample, Scale
from tests.bench.latency import Latencies
from tests.bench.program import Program
from tests.bench.reading import client_of, end_of
from tests.bench.rows import Writer
from tests.bench.site import Target
from tests.bench.usage import Meter, pss_mb

_PAUSE: Final = 0.01
_PAUSE_PER_CLIENT: Final = 0.0002
"""Seconds from the requests to the write that answers them: until then all of them are to wait at the server."""

_QUIET: Final = 0.02
_QUIET_TIMES: Final = 3
_QUIET_WITHIN: Final = 10.0
"""A server with many clients has dealt with their requests when it answers others within ``_QUIET`` seconds, so often.
Nobody waits longer than ``_QUIET_WITHIN`` for that, since long-polls would be over."""

_marks = itertools.count(1)


class Live:
    """Clients that wait for the rows of one table, at one server and, for comparison, at a bare pipe from the slot."""

    def __init__(self, target: Target, table: str, *, clients: int, rounds: int, events: bool, size: int = 1) -> None:
        """``size``: the rows of a transaction. ``events``: server-sent ones."""
        self._target = target
        self._table = table
        self._clients = clients
        self._rounds = rounds
        self._events = events
        self._size = size
        self._before: dict[str, float] = {}

    async def run(self) -> Sample:
        target = self._target
        place = await end_of(target, f"table={self._table}")
        path = f"/v1/shape?table={self._table}&live=true"
        if self._events:
            path += f"&live_sse=true&{place}"
        else:
            path += f"&{place.partition('&')[0]}"
        # What clients take is not given back between repeats, so all are compared with the first one.
        self._before = self._before or _memory(target)
        async with self._load(target.url, path, place.partition("&")[2]) as load:
            return await self._measured(load, target.database, dict(target.processes), self._before)

    async def limit(self) -> Sample | None:
        path = "/live_sse" if self._events else "/live"
        async with (
            limits.bare_pipe(self._target.limit_database, self._table) as (url, bare),
            self._load(url, path, "") as load,
        ):
            return await self._measured(load, self._target.limit_database, {"bare": lambda: bare.pid}, {})

    def _load(self, url: str, path: str, place: str) -> contextlib.AbstractAsyncContextManager[Program]:
        if self._events:
            return self._target.load("stream", url, target=path, clients=self._clients)
        return self._target.load(
            "wait", url, targets=[path], places=[f"&{place}" if place else ""], clients=self._clients
        )

    async def _measured(
        self, load: Program, database: str, processes: dict[str, Callable[[], int]], before: dict[str, float]
    ) -> Sample:
        await load.hear()
        meter = Meter({**processes, "load": lambda: load.pid})
        spans, grown, total = [], 0.0, 0.0
        latencies = Latencies()
        async with Writer(database, self._table) as writer:
            for number in range(self._rounds):
                mark = f"mark-{next(_marks):08}"
                load.say(mark=mark)
                await load.hear()
                await asyncio.sleep(_PAUSE + self._clients * _PAUSE_PER_CLIENT)
                # The bare pipe keeps whatever it is asked, and takes no longer than the pause.
                if database != self._target.limit_database and self._clients > 1:
                    await _quiet(self._target)
                if before and number == 0:
                    after = _memory(self._target)
                    grown = after["gateway"] - before["gateway"]
                    total = sum(after.values())
                begun = time.monotonic()
                await writer.write(mark, self._size)
                arrived = [at - begun for at in (await load.hear())["arrived"]]
                spans.append(arrived[-1])
                for seconds in arrived:
                    latencies.record(seconds)
        span = statistics.median(spans)
        values = {
            "p50 ms": latencies.ms(50),
            "p99 ms": latencies.ms(99),
            "last ms": span * 1000,
            "clients/s": self._clients / span,
        }
        if before:
            values |= {"memory MB": total, "KB/client": grown * 1000 / self._clients}
        return Sample(values, self._clients * self._rounds, meter.read(), latencies)


async def _quiet(target: Target) -> None:
    client = client_of(target)
    until, times = time.monotonic() + _QUIET_WITHIN, 0
    while times < _QUIET_TIMES and time.monotonic() < until:
        begun = time.monotonic()
        await client.get("/v1/health")
        times = times + 1 if time.monotonic() - begun < _QUIET else 0
    client.connection.close()


def _memory(target: Target) -> dict[str, float]:
    """Of our processes, without Postgres; ``{}`` at another server."""
    return {name: pss_mb(pid()) for name, pid in target.processes.items() if name != "postgres"}


@contextlib.asynccontextmanager
async def opened(
    target: Target, scale: Scale, *, clients: int, rounds: int, events: bool = False
) -> AsyncIterator[Running]:
    """A table, and everything about it at ``target``."""
    async with target.table(1) as table:
        least = min(clients, 20)
        yield Live(target, table, clients=scale(clients, least), rounds=scale(rounds, 2), events=events)


_MILLISECONDS: Final = functools.partial(Measure, less_is_better=True)

CASES: Final = (
    Case(
        "commit-to-client",
        "from before a commit (Postgres' own write included) until a long-polling client has it; limit: a bare pipe",
        (
            _MILLISECONDS("p50 ms", reference=3.8, times=0.6, of_limit=2),
            _MILLISECONDS("p99 ms", reference=11.9, times=0.6),
        ),
        functools.partial(opened, clients=1, rounds=300),
        item="commit",
        repeats=5,
    ),
    Case(
        "2000-long-polls",
        "one write to 2 000 long-polls of one shape; memory of all processes; limit: a bare pipe",
        (
            Measure("clients/s", reference=3_000, times=4),
            _MILLISECONDS("p99 ms"),
            Measure("memory MB", reference=454, times=0.4, less_is_better=True),
        ),
        functools.partial(opened, clients=2_000, rounds=7),
        item="client",
    ),
    Case(
        "10000-long-polls",
        "one write to 10 000 long-polls of one shape; limit: a bare pipe",
        (
            _MILLISECONDS("last ms", of_limit=2),
            _MILLISECONDS("p50 ms"),
            Measure("clients/s"),
            Measure("KB/client", most=12, less_is_better=True),
        ),
        functools.partial(opened, clients=10_000, rounds=4),
        item="client",
    ),
    Case(
        "2000-streams",
        "one write to 2 000 streams of server-sent events of one shape; limit: a bare pipe",
        (
            Measure("clients/s"),
            _MILLISECONDS("last ms"),
            _MILLISECONDS("p50 ms"),
            Measure("KB/client", less_is_better=True),
        ),
        functools.partial(opened, clients=2_000, rounds=7, events=True),
        item="client",
    ),
)

"""Reading a shape from its beginning: while it is made, and when it is there."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import AsyncIterator
from typing import Final
from urllib.parse import quote

from tests.bench import limits
from tests.bench.case import Case, Measure, Running, Sample, Scale
from tests.bench.latency import Latencies
from tests.bench.limits import Files
from tests.bench.reading import end_of, sync, whole
from tests.bench.site import Target
from tests.bench.usage import RESOLUTION, Processes, Usage

_ROWS: Final = 200_000
_CLIENTS: Final = 500
_CLIENT_ROWS: Final = 500
_SMALL_CONNECTIONS: Final = 32
_SMALL_SECONDS: Final = 3.0


class _Large:
    """A shape of many rows, read by one client: another one each time, or always the same one."""

    def __init__(self, target: Target, table: str, rows: int, warm: bool, files: Files | None) -> None:
        self._target = target
        self._table = table
        self._rows = rows
        self._warm = warm
        self._files = files
        self._numbers = itertools.count(1)

    def _query(self, number: int) -> str:
        return f"table={self._table}&where={quote(f'id > -{number}')}"

    async def run(self) -> Sample:
        query = self._query(0 if self._warm else next(self._numbers))
        sample, answer = await sync(self._target, query)
        assert answer["rows"] == self._rows, answer
        values = {"rows/s": self._rows / answer["seconds"], "MB/s": answer["bytes"] / 1e6 / answer["seconds"]}
        if self._warm:
            _, plain = await sync(self._target, query, parse=False)
            values["MB/s unparsed"] = plain["bytes"] / 1e6 / plain["seconds"]
        return Sample(values, self._rows, sample.used)

    async def limit(self) -> Sample | None:
        if not self._warm:
            seconds, used = await limits.copy_seconds(self._target.limit_database, self._table)
            return Sample({"rows/s": self._rows / seconds}, self._rows, used)
        if self._files is None:
            return None
        parsed, used = await self._fetched(self._files, parse=True)
        plain, _ = await self._fetched(self._files, parse=False)
        return Sample({"MB/s": parsed, "MB/s unparsed": plain}, self._rows, used)

    async def _fetched(self, files: Files, parse: bool) -> tuple[float, Usage]:
        targets = [f"/{number}" for number in range(files.count)]
        answer, used = await self._target.measured(
            "fetch", beside=files.processes, url=files.url, targets=targets, parse=parse
        )
        return answer["bytes"] / 1e6 / answer["seconds"], used


@contextlib.asynccontextmanager
async def _first(target: Target, scale: Scale) -> AsyncIterator[Running]:
    rows = scale(_ROWS, 100)
    async with target.table(rows) as table:
        # The table is published, so that no repeat waits for that.
        await sync(target, f"table={table}&where={quote('id < 0')}")
        yield _Large(target, table, rows, warm=False, files=None)


@contextlib.asynccontextmanager
async def _again(target: Target, scale: Scale) -> AsyncIterator[Running]:
    rows = scale(_ROWS, 100)
    async with target.table(rows) as table:
        bodies = await whole(target, f"table={table}&where={quote('id > -0')}")
        with limits.nginx_files(bodies) as files:
            yield _Large(target, table, rows, warm=True, files=files)


class _Crowd:
    """Many clients read one shape of few rows."""

    def __init__(self, target: Target, query: str, clients: int, files: Files | None) -> None:
        self._target = target
        self._query = query
        self._clients = clients
        self._files = files

    async def run(self) -> Sample:
        sample, answer = await sync(self._target, self._query, self._clients, parse=False)
        assert sample.latencies is not None
        values = {"clients/s": self._clients / answer["seconds"], "p99 ms": sample.latencies.ms(99)}
        return Sample(values, self._clients, sample.used, sample.latencies)

    async def limit(self) -> Sample | None:
        files = self._files
        if files is None:
            return None
        # As many requests for the same bytes, by as many connections.
        targets = [f"/{number}" for _ in range(self._clients) for number in range(files.count)]
        answer, used = await self._target.measured(
            "requests", beside=files.processes, url=files.url, targets=targets, connections=self._clients
        )
        return Sample({"clients/s": self._clients / answer["seconds"]}, self._clients, used)


@contextlib.asynccontextmanager
async def _crowd(target: Target, scale: Scale) -> AsyncIterator[Running]:
    async with target.table(scale(_CLIENT_ROWS, 50)) as table:
        query = f"table={table}"
        bodies = await whole(target, query)
        with limits.nginx_files(bodies) as files:
            yield _Crowd(target, query, scale(_CLIENTS, 10), files)


class _Small:
    """Answers of some 300 bytes without pause: clients that ask whether there is something new, and there is not."""

    def __init__(self, target: Target, path: str, files: Files | None, seconds: float) -> None:
        self._target = target
        self._path = path
        self._files = files
        self._seconds = seconds

    async def run(self) -> Sample:
        return self._told(await self._measured(self._target.url, self._path, self._target.processes), "gateway")

    async def limit(self) -> Sample | None:
        files = self._files
        if files is None:
            return None
        return self._told(await self._measured(files.url, "/0", files.processes), "nginx")

    def _told(self, sample: Sample, process: str) -> Sample:
        core = sample.used.cpu.get(process)
        values = dict(sample.values)
        if core is not None:
            values["requests/s of a core"] = sample.items / max(core, RESOLUTION)
        return Sample(values, sample.items, sample.used, sample.latencies)

    async def _measured(self, url: str, path: str, processes: Processes) -> Sample:
        connections, seconds = _SMALL_CONNECTIONS, self._seconds
        answer, used = await self._target.measured(
            "requests", beside=processes, url=url, targets=[path], connections=connections, seconds=seconds
        )
        latencies = Latencies(answer["latencies"])
        values = {"requests/s": answer["requests"] / answer["seconds"], "p99 ms": latencies.ms(99)}
        return Sample(values, answer["requests"], used, latencies)


@contextlib.asynccontextmanager
async def _small(target: Target, scale: Scale) -> AsyncIterator[Running]:
    async with target.table(1) as table:
        client_bodies = await whole(target, f"table={table}")
        path = f"/v1/shape?table={table}&{await end_of(target, f'table={table}')}"
        with limits.nginx_files([client_bodies[-1]]) as files:
            yield _Small(target, path, files, scale.seconds(_SMALL_SECONDS))


CASES: Final = (
    Case(
        "first-sync",
        "first sync of a shape of 200 000 rows; limit: COPY to psql",
        (Measure("rows/s", reference=53_000, times=2, of_limit=0.35),),
        _first,
        item="row",
    ),
    Case(
        "warm-sync",
        "the same shape again, one client that parses; limit: the same client at nginx",
        (
            Measure("MB/s", reference=85, times=5),
            Measure("MB/s unparsed", of_limit=0.8),
        ),
        _again,
        item="row",
    ),
    Case(
        "500-clients",
        "500 clients make the first sync of one shape of 500 rows at once; limit: nginx with the same bytes",
        (Measure("clients/s", reference=340, times=4), Measure("p99 ms", less_is_better=True)),
        _crowd,
        item="client",
        repeats=5,
    ),
    Case(
        "small-answers",
        "answers of 300 bytes, 32 connections; limit: nginx with the same bytes",
        (
            Measure("requests/s"),
            Measure("requests/s of a core", of_limit=0.4),
            Measure("p99 ms", less_is_better=True),
        ),
        _small,
        item="request",
    ),
)

"""Reading long logs: many clients from the beginning, and clients that come back to any place of them."""

from __future__ import annotations

import contextlib
import functools
import random
import re
from collections.abc import AsyncIterator, Sequence
from typing import Final

import psycopg

from tests.bench import limits, rows
from tests.bench.case import Case, Measure, Running, Sample, Scale
from tests.bench.latency import Latencies
from tests.bench.limits import Files
from tests.bench.reading import client_of, end_of
from tests.bench.site import Target
from tests.bench.usage import Processes

_NOTE_BYTES: Final = 8_000
"""Of a row; few and long rows make a log of this size in less time."""

_SECONDS: Final = 8.0
_LSN: Final = re.compile(rb'"lsn":"(\d+)"')
_POSITION: Final = re.compile(rb'"op_position":(\d+)')


class _Replay:
    """Connections that read without pause, each beginning at another of these places."""

    def __init__(
        self, target: Target, paths: Sequence[str], files: Files | None, connections: int, seconds: float
    ) -> None:
        self._target = target
        self._paths = paths
        self._files = files
        self._connections = connections
        self._seconds = seconds

    async def run(self) -> Sample:
        return await self._measured(self._target.url, self._paths, self._target.processes)

    async def limit(self) -> Sample | None:
        files = self._files
        if files is None:
            return None
        paths = [f"/{number}" for number in range(files.count)]
        return await self._measured(files.url, paths, files.processes)

    async def _measured(self, url: str, paths: Sequence[str], processes: Processes) -> Sample:
        connections, seconds = self._connections, self._seconds
        answer, used = await self._target.measured(
            "requests", beside=processes, url=url, targets=list(paths), connections=connections, seconds=seconds
        )
        firsts = Latencies(answer["firsts"])
        megabytes = answer["bytes"] / 1e6
        values = {"MB/s": megabytes / answer["seconds"], "first byte p50 ms": firsts.ms(50)}
        values |= {"first byte p99 ms": firsts.ms(99)}
        if "gateway" in used.peak:
            values["gateway MB"] = used.peak["gateway"]
        return Sample(values, megabytes, used, firsts)


@contextlib.asynccontextmanager
async def _log(target: Target, scale: Scale, *, size: int, connections: int, anywhere: bool) -> AsyncIterator[Running]:
    count = scale(size, 400_000) // (_NOTE_BYTES + 400)
    async with target.table() as table:
        await _prepare(target, table)
        await end_of(target, f"table={table}")
        note = "".join(random.Random(1).choices("abcdefghijklmnopqrstuvwxyz ", k=_NOTE_BYTES))
        await rows.write(target.database, table, 1, count, 1_000, note=note)
        bodies, chunks, places = await _read(target, f"table={table}", count)
        seconds = scale.seconds(_SECONDS)
        with limits.nginx_files(bodies) as files:
            bodies.clear()
            yield _Replay(target, places if anywhere else chunks, files, scale(connections, 10), seconds)


async def _prepare(target: Target, table: str) -> None:
    async with await psycopg.AsyncConnection.connect(target.database, autocommit=True) as connection:
        await connection.execute(f"ALTER TABLE {table} ALTER COLUMN note SET STORAGE EXTERNAL".encode())


async def _read(target: Target, query: str, count: int) -> tuple[list[bytes], list[str], list[str]]:
    """The chunks of a log of ``count`` rows: their bodies, their paths, and paths that begin anywhere in them."""
    client = client_of(target)
    chance = random.Random(1)
    bodies: list[bytes] = []
    chunks: list[str] = []
    places: list[str] = []
    place, seen = "offset=-1", 0
    while seen < count:
        path = f"/v1/shape?{query}&{place}"
        body = await client.get(path)
        answer = client.connection
        assert answer.status == 200, (answer.status, body[:500])
        found = body.count(b'"insert"')
        handle = answer.header("electric-handle")
        place = f"handle={handle}&offset={answer.header('electric-offset')}"
        if found:
            seen += found
            bodies.append(body)
            chunks.append(path)
            lsns, positions = _LSN.findall(body), _POSITION.findall(body)
            for number in (chance.randrange(len(positions)) for _ in range(10)):
                offset = f"{lsns[number].decode()}_{positions[number].decode()}"
                places.append(f"/v1/shape?{query}&handle={handle}&offset={offset}")
    answer.close()
    chance.shuffle(places)
    return bodies, chunks, places


CASES: Final = (
    Case(
        "500-replays",
        "500 clients replay a log of 200 MB without pause; limit: nginx with the same bytes",
        (
            Measure("MB/s"),
            Measure("first byte p99 ms", less_is_better=True),
            Measure("gateway MB", most=300, less_is_better=True),
        ),
        functools.partial(_log, size=200_000_000, connections=500, anywhere=False),
        item="MB",
    ),
    Case(
        "resume-1gb",
        "a log of 1 GB resumed at random offsets, 8 connections; limit: nginx with chunks of it",
        (
            Measure("MB/s"),
            Measure("first byte p50 ms", less_is_better=True),
            Measure("first byte p99 ms", less_is_better=True),
        ),
        functools.partial(_log, size=1_000_000_000, connections=8, anywhere=True),
        item="MB",
    ),
)

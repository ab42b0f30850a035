"""``python -m tests.bench.sweeps``: latency and throughput over numbers of shapes, clients and rows in a transaction.

Keeps the figures in ``bench/results/sweeps.json`` and draws the plots of docs/performance.md.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import json
import signal
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote

from tests.bench import report
from tests.bench.case import Case, Opener, Running, Sample, Scale
from tests.bench.document import PLOTS, redraw
from tests.bench.ingest import Ingest, make_shapes, matching
from tests.bench.live import Live
from tests.bench.reading import end_of
from tests.bench.run import OURS, measure, median
from tests.bench.site import Site, Target

_ROUNDS: Final = 60
"""Commits whose latency is measured for each point."""

_SAME_TRANSACTION: Final = 100


@dataclass(frozen=True)
class Sweep:
    """One thing that grows. ``open``: sets up what is measured for a value of it."""

    name: str
    values: tuple[int, ...]
    open: Callable[[int], Opener]


class _Both:
    """Throughput, then latency, of the same table with the same shapes."""

    def __init__(self, throughput: Running, latency: Running) -> None:
        self._parts = (throughput, latency)

    async def run(self) -> Sample:
        return _joined([await part.run() for part in self._parts])

    async def limit(self) -> Sample | None:
        return _joined([await part.limit() for part in self._parts])


def _joined(samples: list[Sample | None]) -> Sample:
    return Sample({name: value for sample in samples if sample for name, value in sample.values.items()})


@contextlib.asynccontextmanager
async def _shapes(target: Target, scale: Scale, *, shapes: int) -> AsyncIterator[Running]:
    """So many shapes with ``=``, of which a row concerns one at most; and one shape of all rows, which is followed."""
    count = scale(300, 2) * _SAME_TRANSACTION
    async with target.table() as table:
        await make_shapes(target, [f"table={table}&where={quote(f'org = {number}')}" for number in range(shapes - 1)])
        ingest = Ingest(
            target,
            table,
            [f"table={table}"],
            count=count,
            per_transaction=_SAME_TRANSACTION,
            rows_per_shape=count,
            orgs=10_000,
        )
        yield _Both(ingest, Live(target, table, clients=1, rounds=scale(_ROUNDS, 2), events=False))


@contextlib.asynccontextmanager
async def _idle(target: Target, scale: Scale, *, clients: int) -> AsyncIterator[Running]:
    """One shape, while so many clients wait for another one, which nothing is written to."""
    count = scale(300, 2) * _SAME_TRANSACTION
    async with target.table() as table, target.table() as quiet:
        handle, _, offset = (await end_of(target, f"table={quiet}")).partition("&")
        path = f"/v1/shape?table={quiet}&live=true&{handle}"
        async with target.load("wait", targets=[path], places=[f"&{offset}"], clients=clients) as load:
            await load.hear()
            load.say(mark="nothing that comes")
            await load.hear()
            yield Ingest(
                target,
                table,
                [f"table={table}"],
                count=count,
                per_transaction=_SAME_TRANSACTION,
                rows_per_shape=count,
            )


@contextlib.asynccontextmanager
async def _transaction(target: Target, scale: Scale, *, size: int) -> AsyncIterator[Running]:
    """One shape, transactions of so many rows."""
    count = max(size, scale(min(100_000, size * 2_000), size))
    count = count // size * size
    async with target.table() as table:
        ingest = Ingest(target, table, [f"table={table}"], count=count, per_transaction=size, rows_per_shape=count)
        rounds = scale(_ROUNDS if size <= 1_000 else _ROUNDS // 4, 2)
        yield _Both(ingest, Live(target, table, clients=1, rounds=rounds, events=False, size=size))


def _matching(target: Target, scale: Scale, *, shapes: int) -> contextlib.AbstractAsyncContextManager[Running]:
    return matching(target, shapes=shapes, count=scale(100, 2) * 100)


@contextlib.asynccontextmanager
async def _clients(target: Target, scale: Scale, *, clients: int) -> AsyncIterator[Running]:
    """So many long-polls of one shape."""
    async with target.table(1) as table:
        rounds = scale(_ROUNDS if clients <= 100 else 6, 2)
        yield Live(target, table, clients=clients, rounds=rounds, events=False)


SWEEPS: Final = (
    Sweep("shapes", (1, 10, 100, 1_000), lambda shapes: functools.partial(_shapes, shapes=shapes)),
    Sweep("matching", (1, 10, 100), lambda shapes: functools.partial(_matching, shapes=shapes)),
    Sweep("clients", (1, 10, 100, 1_000, 10_000), lambda clients: functools.partial(_clients, clients=clients)),
    Sweep("idle", (1, 10, 100, 1_000, 10_000), lambda clients: functools.partial(_idle, clients=clients)),
    Sweep("transaction", (1, 10, 100, 1_000, 10_000), lambda size: functools.partial(_transaction, size=size)),
)


async def points(sweep: Sweep, site: Site, scale: Scale, repeats: int) -> list[dict[str, Any]]:
    """For each value, the medians of ours and of the limit."""
    found = []
    for value in sweep.values:
        await site.clear()
        result = await measure(Case(sweep.name, "", (), sweep.open(value)), site, scale, repeats)
        found.append({"at": value, "Galvanic": _medians(result.servers[OURS]), "limit": _medians(result.limits)})
        print(sweep.name, json.dumps(found[-1]), flush=True)
    return found


def _medians(samples: list[Sample]) -> dict[str, float]:
    names = {name for sample in samples for name in sample.values}
    return {name: value for name in sorted(names) if (value := median(samples, name)) is not None}


async def _run(names: list[str], scale: Scale, repeats: int) -> None:
    path = report.RESULTS / "sweeps.json"
    kept: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    for sweep in SWEEPS:
        if sweep.name in names:
            async with Site.opened() as site:
                before = report.circumstances() | {"scale": scale.factor}
                kept[sweep.name] = {**before, "points": await points(sweep, site, scale, repeats)}
            path.write_text(json.dumps(kept, indent=1) + "\n")
    redraw()
    print(f"{path}, {PLOTS}")


def main() -> None:
    """Measures all sweeps, or those that are named, and draws them."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.sweeps", description="Measures over growing numbers.")
    parser.add_argument("names", nargs="*", metavar="SWEEP", help=", ".join(sweep.name for sweep in SWEEPS))
    parser.add_argument("--quick", action="store_true", help="fewer rows and rounds")
    parser.add_argument("--repeats", type=int, default=3)
    asked = parser.parse_args()
    unknown = set(asked.names) - {sweep.name for sweep in SWEEPS}
    if unknown:
        parser.error(f"no such sweep: {', '.join(sorted(unknown))}")
    # Like Ctrl-C: what was set up is taken down.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    names = asked.names or [sweep.name for sweep in SWEEPS]
    asyncio.run(_run(names, Scale(0.1 if asked.quick else 1.0), asked.repeats))


if __name__ == "__main__":
    main()

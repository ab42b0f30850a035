"""The router alone: how many rows it takes in a second of processor time, by kind of clause and number of shapes."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from pathlib import Path

from shapeworker.routing.router import Router
from shapeworker.where import compile_where
from tests.bench.clauses import CLAUSES, COLUMNS, NO_INDEX, Clause, request, row
from tests.bench.report import Figures

ABOUT = """The router alone, by processor time.
rows/s: each routed to the shapes it belongs to. of one: as a part of the rate with one shape. hits: shapes per row.
built/s: shapes bound and added to a router that knows the template."""
SHAPES = (1, 1_000, 100_000, 1_000_000)

_SECONDS = 0.7
_ROWS = 10_000
_NO_INDEX_MOST = 1_000


def run(shapes: tuple[int, ...], only: list[str] | None) -> Iterator[Figures]:
    """Measures each clause with each number of shapes."""
    rows = [row(number) for number in range(_ROWS)]
    for clause in (*CLAUSES, NO_INDEX):
        if only is not None and clause.name not in only:
            continue
        first = 0.0
        for count in shapes:
            if clause is NO_INDEX and count > _NO_INDEX_MOST:
                continue
            router, built, grown = _built(clause, count)
            rate, hits = _rate(router, rows)
            first = first or rate
            yield {
                "clause": clause.name,
                "shapes": count,
                "rows/s": rate,
                "of one": rate / first,
                "hits": hits,
                # Of one shape alone it is the compiler's time.
                "built/s": built if count > 1 else None,
                "bytes/shape": grown / count if count >= 1_000 else None,
            }


def _built(clause: Clause, count: int) -> tuple[Router[int], float, float]:
    where, params = request(clause, 0)
    compile_where(where, {str(place): value for place, value in enumerate(params, 1)}, COLUMNS)
    router: Router[int] = Router()
    # As in a worker that has many objects: collections do not count here, and few of them come there (gc.freeze).
    gc.collect()
    gc.disable()
    before, start = _resident(), time.process_time()
    try:
        for shape in range(count):
            where, params = request(clause, shape)
            values = {str(place): value for place, value in enumerate(params, 1)}
            router.add(shape, compile_where(where, values, COLUMNS))
        return router, count / (time.process_time() - start), _resident() - before
    finally:
        gc.enable()


def _rate(router: Router[int], rows: list[list[bytes]]) -> tuple[float, float]:
    router.route(rows[0], {})
    done = hits = 0
    start = time.process_time()
    while (spent := time.process_time() - start) < _SECONDS:
        for number in range(done, done + 200):
            hits += len(router.route(rows[number % _ROWS], {}))
        done += 200
    return done / spent, hits / done


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

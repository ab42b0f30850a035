"""How many rows a second the router takes, by kind of clause and number of shapes.

Run it as ``python -m tests.bench.routing [shapes…]``. Nothing else should load the machine.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable

from shapeworker.routing.router import Router
from shapeworker.where import Column, ColumnType, compile_where

SECONDS = 1.0


def _type(name: str) -> ColumnType:
    return ColumnType("pg_catalog", name)


COLUMNS = (
    Column("id", 0, _type("int8")),
    Column("org", 1, _type("int4")),
    Column("status", 2, _type("text")),
    Column("n", 3, _type("int4")),
    Column("title", 4, _type("text")),
    Column("tags", 5, ColumnType("pg_catalog", "_text", "a", element=_type("text"))),
)
WORDS = [f"{a}{b}{c}" for a in ("lorem", "ipsum", "dolor", "amet") for b in "abcdefghij" for c in "klmnopqrst"]

CASES: dict[str, tuple[str, Callable[[int], tuple[str, ...]], int]] = {
    "=": ("org = $1", lambda k: (str(k),), 1_000_000),
    "IN of 5": ("org IN ($1, $2, $3, $4, $5)", lambda k: tuple(str(k * 5 + i) for i in range(5)), 100_000),
    "= AND =, residual": (
        "org = $1 AND status = 'open' AND n > $2",
        lambda k: (str(k), str(k % 1000)),
        100_000,
    ),
    "@> of 2": ("tags @> ARRAY[$1, $2]", lambda k: (f"tag{k % 5000}", f"tag{k * 7 % 4999}"), 100_000),
    "BETWEEN": ("n BETWEEN $1 AND $2", lambda k: (str(k * 10), str(k * 10 + 15)), 100_000),
    ">": ("n > $1", lambda k: (str(1_000_000 + k),), 100_000),
    "LIKE 'x%'": ("title LIKE $1", lambda k: (f"{WORDS[k % 400]}{k}%",), 100_000),
    "ILIKE '%x%'": ("title ILIKE $1", lambda k: (f"%{WORDS[k % 400]}{k // 400}%",), 100_000),
    "OR of = and >": ("org = $1 OR n > $2", lambda k: (str(k), str(2_000_000 + k)), 100_000),
    "scan": ("n % $1::int4 = 1", lambda k: (str(k + 2),), 1_000),
}


def row(number: int) -> list[bytes | None]:
    """A row that few clauses match."""
    return [
        b"%d" % number,
        b"%d" % (number * 7919 % 1_000_000),
        b"open" if number % 2 else b"closed",
        b"%d" % (number * 104_729 % 1_000_000),
        f"{WORDS[number % 400]}{number * 31 % 250} {WORDS[number * 17 % 400]}x".encode(),
        b"{tag%d,tag%d,tag%d,tag%d}" % tuple((number * step + step) % 5000 for step in (1, 7, 11, 13)),
    ]


def rate(router: Router[int], rows: list[list[bytes | None]]) -> tuple[float, float]:
    """Rows a second, and shapes per row."""
    done = hits = 0
    start = time.perf_counter()
    while (spent := time.perf_counter() - start) < SECONDS:
        for row_ in rows[:200]:
            hits += len(router.route(row_, {}))
        done += 200
        rows = rows[200:] + rows[:200]
    return done / spent, hits / done


def main() -> None:
    """Prints a table."""
    counts = [int(word) for word in sys.argv[1:]] or [1, 1_000, 100_000]
    rows = [row(number) for number in range(10_000)]
    print(f"{'clause':20} {'shapes':>9} {'rows/s':>9} {'of one':>7} {'hits':>7} {'built/s':>9} {'MB':>6}")
    for name, (text, parameters, most) in CASES.items():
        first = 0.0
        for count in counts:
            if count > most:
                continue
            router: Router[int] = Router()
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            start = time.perf_counter()
            for shape in range(count):
                values = {str(place): value for place, value in enumerate(parameters(shape), 1)}
                router.add(shape, compile_where(text, values, COLUMNS))
            built = count / (time.perf_counter() - start)
            grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
            found, hits = rate(router, rows)
            first = first or found
            print(f"{name:20} {count:9} {found:9.0f} {found / first:7.2f} {hits:7.3f} {built:9.0f} {grown:6.0f}")


if __name__ == "__main__":
    main()

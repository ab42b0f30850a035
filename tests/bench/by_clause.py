"""``python -m tests.bench.by_clause [NAMES…]``: rates by kind of filter, printed and kept in ``bench/results/``.

Each is a module of this package with ``ABOUT``, ``SHAPES`` and ``run``. Nothing else should load the machine.
"""

from __future__ import annotations

import argparse
from typing import Final

from tests.bench import pipeline, report, routing

_BENCHES: Final = {"routing": routing, "pipeline": pipeline}


def main() -> None:
    """Runs the benchmarks that were named, or all."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.by_clause", description="Measures how fast Galvanic is."
    )
    parser.add_argument("names", nargs="*", choices=[*_BENCHES, []], metavar="NAME", help=", ".join(_BENCHES))
    parser.add_argument("--shapes", help="numbers of shapes, with commas between them")
    parser.add_argument("--only", nargs="+", metavar="CLAUSE", help="the clauses to measure, by their names")
    parser.add_argument("--keep", default="", help="a suffix for the name of the results, so that others stay")
    asked = parser.parse_args()
    for name in asked.names or _BENCHES:
        bench = _BENCHES[name]
        shapes = tuple(map(int, asked.shapes.split(","))) if asked.shapes else bench.SHAPES
        before, rows = report.circumstances(), []
        print(f"{bench.ABOUT}\n", flush=True)
        for figures in bench.run(shapes, asked.only):
            rows.append(figures)
            # Each line as it comes, for there may be minutes between them; the whole table at the end.
            print(report.table([figures]).splitlines()[1], flush=True)
        print(
            f"\n{report.table(rows)}\n\n{report.save(name + asked.keep, bench.ABOUT, before, rows)}\n",
            flush=True,
        )


if __name__ == "__main__":
    main()

"""``python -m tests.bench``: Galvanic beside its limits, as a table; kept in ``bench/results/``.

With ``--only``, the results of all other cases stay as they are. Nothing else should load the machine. Rates by kind of
filter are measured by ``python -m tests.bench.by_clause``, and the plots of docs/performance.md are made by
``python -m tests.bench.sweeps``.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys

from tests.bench import report
from tests.bench.case import Case, Scale
from tests.bench.cases import CASES
from tests.bench.program import BenchError
from tests.bench.run import costs, figures, histograms, measure
from tests.bench.site import Site

ABOUT = """Galvanic beside its limits: Postgres, ingester, one worker, one gateway and the clients, all on this machine.
Galvanic, limit: medians of interleaved repeats; spread: the least and the most of ours.
reference: Electric 1.7.12 alone on two cores, as recorded in issue 6.
times: of the other server if one was measured here, else of the reference.
us: processor time per item; MB: the most memory while it was measured, of Postgres its proportional share."""
_QUICK = 0.1


def main() -> None:
    """Runs the cases that were asked for, or all."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="Measures how fast Galvanic is.")
    parser.add_argument(
        "--only", nargs="+", metavar="CASE", help="these cases: " + ", ".join(case.name for case in CASES)
    )
    parser.add_argument("--quick", action="store_true", help="everything a tenth as large")
    parser.add_argument("--repeats", type=int, help="how often each is measured, instead of what suits the case")
    parser.add_argument("--url", help="another Electric-compatible server, to be measured in turns with Galvanic")
    parser.add_argument("--database", help="its database, as a URL; tables bench_N are made and dropped in it")
    parser.add_argument("--keep", default="", metavar="SUFFIX", help="for the name of the results, so that others stay")
    asked = parser.parse_args()
    if bool(asked.url) != bool(asked.database):
        parser.error("--url and --database belong together")
    unknown = set(asked.only or ()) - {case.name for case in CASES}
    if unknown:
        parser.error(f"no such case: {', '.join(sorted(unknown))}")
    cases = [case for case in CASES if not asked.only or case.name in asked.only]
    # Like Ctrl-C: what was set up is taken down.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    failed = asyncio.run(_run(cases, Scale(_QUICK if asked.quick else 1.0), asked))
    if failed:
        sys.exit(f"not measured: {', '.join(failed)}")


async def _run(cases: list[Case], scale: Scale, asked: argparse.Namespace) -> list[str]:
    """The names of those that could not be measured here."""
    failed = []
    print(f"{ABOUT}\n", flush=True)
    results = report.Results(f"table{asked.keep}", ABOUT, [case.name for case in CASES])
    async with Site.opened(asked.url, asked.database) as site:
        for case in cases:
            before = report.circumstances() | {"scale": scale.factor}
            # What one case leaves in the processes is not to be told of the next.
            await site.clear()
            try:
                result = await measure(case, site, scale, asked.repeats)
            except BenchError as error:
                print(f"{case.title}\nnot measured: {error}\n", flush=True)
                failed.append(case.name)
                continue
            told = figures(result)
            # After each, so that an interruption costs one case.
            results.save(case.name, before, told, costs(result), histograms(result))
            print(f"{case.title}\n{report.table(told)}\n", flush=True)
    print(f"{results.text()}\n{results.path}", flush=True)
    return failed


if __name__ == "__main__":
    main()

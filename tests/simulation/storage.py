"""Crash simulation of shape logs and catalogs: what was durable stays, what is read was written, what ended stays away.

All of the worker but sockets and Postgres is the real code, SQLite included, on a disk that forgets (``storage_disk``).
A seed is one history (``storage_scenario``), watched by an oracle (``storage_oracle``).

    python -m tests.simulation.storage --seeds 10000 --jobs 2
    python -m tests.simulation.storage --seed 123 --trace
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator, MutableMapping
from typing import Any

import structlog

import common.shapelog.reader
import common.shapelog.snapshot
import common.shapelog.writer
import shapeworker.apply
from tests.simulation.storage_scenario import simulate

BATCH = 25
"""Seeds that a process runs before it is heard of."""


@contextlib.contextmanager
def small_world() -> Iterator[None]:
    """Everything that is cut into pieces is cut into small ones, nothing is logged, nobody waits."""
    settings: list[tuple[Any, str, Any]] = [
        (shapeworker.apply, "SPILL_BYTES", 150),
        (common.shapelog.writer, "BUFFER_BYTES", 400),
        (common.shapelog.snapshot, "BLOCK_BYTES", 64),
        (common.shapelog.reader, "_PAUSE", 0),
    ]
    before = [getattr(module, name) for module, name, _ in settings]
    logging = structlog.get_config()

    def silent(logger: Any, method: str, event: MutableMapping[str, Any]) -> Any:
        raise structlog.DropEvent

    for module, name, value in settings:
        setattr(module, name, value)
    structlog.configure(processors=[silent])
    try:
        yield
    finally:
        for (module, name, _), value in zip(settings, before, strict=True):
            setattr(module, name, value)
        structlog.configure(**logging)


def _run_many(seeds: range) -> list[tuple[int, str]]:
    with small_world():
        return [(seed, found) for seed in seeds if (found := simulate(seed)) is not None]


def main() -> int:
    """The command line. Returns the exit code."""
    parser = argparse.ArgumentParser(description="crash simulation of shape logs and catalogs")
    parser.add_argument("--seeds", type=int, default=1000, help="how many seeds")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--until-failure", action="store_true", help="stop at the first seed that fails")
    parser.add_argument("--seed", type=int, help="only this one")
    parser.add_argument("--trace", action="store_true", help="with every step")
    arguments = parser.parse_args()
    if arguments.seed is not None:
        with small_world():
            found = simulate(arguments.seed, arguments.trace)
        print(found or "nothing found")
        return found is not None
    started = time.monotonic()
    end = arguments.first + arguments.seeds
    parts = [range(start, min(start + BATCH, end)) for start in range(arguments.first, end, BATCH)]
    failures: list[tuple[int, str]] = []
    with multiprocessing.Pool(arguments.jobs) as pool:
        for part in pool.imap_unordered(_run_many, parts):
            for seed, text in part:
                print(f"seed {seed}: {text}", flush=True)
            failures += part
            if failures and arguments.until_failure:
                pool.terminate()
                break
    seconds = time.monotonic() - started
    print(f"{arguments.seeds} seeds in {seconds:.0f} s ({arguments.seeds / seconds:.0f}/s): {len(failures)} failed")
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())

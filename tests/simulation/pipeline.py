"""Run seeds: ``python -m tests.simulation.pipeline --seeds 1000 --jobs 2``, or one with ``--seed 17 --trace``."""

from __future__ import annotations

import argparse
import gc
import sys
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import NamedTuple

from tests.simulation.world import World


class Result(NamedTuple):
    """What became of a seed: ``failure`` is empty if all was well."""

    seed: int
    failure: str
    fingerprint: str
    seconds: float
    steps: int


def simulate(seed: int, echo: Callable[[str], None] | None = None) -> Result:
    """Run one seed."""
    gc.disable()
    try:
        world = World(seed, echo)
        failure = ""
        try:
            world.run()
        except Exception as error:  # noqa: BLE001 - whatever it is, it is what the seed has found
            failure = "".join(traceback.format_exception(error)) if echo else f"{type(error).__name__}: {error}"
        return Result(seed, failure, world.scheduler.fingerprint(), world.scheduler.now, world.scheduler.steps)
    finally:
        gc.enable()
        if seed % 8 == 0:
            gc.collect()


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=200, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--jobs", type=int, default=1, help="processes to use")
    parser.add_argument("--seed", type=int, help="only this one")
    parser.add_argument("--trace", action="store_true", help="say what happens (with --seed)")
    parser.add_argument("--stop", type=int, default=1_000_000, help="give up after so many failures")
    arguments = parser.parse_args()
    if arguments.seed is not None:
        result = simulate(arguments.seed, print if arguments.trace else None)
        print(result.failure or "ok", result.fingerprint, f"{result.seconds:.1f} s", result.steps, "steps")
        return 1 if result.failure else 0
    seeds = range(arguments.first, arguments.first + arguments.seeds)
    started, failed, steps = time.monotonic(), 0, 0
    with ProcessPoolExecutor(arguments.jobs) as pool:
        waiting = [pool.submit(simulate, seed) for seed in seeds]
        for done in as_completed(waiting):
            result = done.result()
            steps += result.steps
            if result.failure:
                failed += 1
                print(f"seed {result.seed}: {result.failure[:1000]}", flush=True)
                if failed >= arguments.stop:
                    pool.shutdown(wait=True, cancel_futures=True)
                    break
    seconds = time.monotonic() - started
    print(f"{len(seeds)} seeds, {failed} failed, {seconds:.1f} s, {len(seeds) / seconds:.1f} seeds/s, {steps} steps")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

"""The whole pipeline under simulated faults: ``make simulate`` runs many more seeds (pipeline.py)."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Final

import pytest

from tests.simulation.pipeline import simulate

SEEDS: Final = 200

ROOT: Final = Path(__file__).parents[2]


def test_many_seeds() -> None:
    """Whatever fails, stops or is delayed: nothing is lost, nothing is wrong, and all comes to rest."""
    with ProcessPoolExecutor(2) as pool:
        failures = [result for result in pool.map(simulate, range(SEEDS), chunksize=5) if result.failure]
    assert not failures, "\n".join(f"seed {result.seed}: {result.failure}" for result in failures)


@pytest.mark.parametrize("seed", [3, 11])
def test_a_seed_replays_exactly(seed: int) -> None:
    """In another process, with other hashes of strings and objects, too."""
    command = [sys.executable, "-m", "tests.simulation.pipeline", "--seed", str(seed)]
    other = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": str(seed)},
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    result = simulate(seed)
    assert not result.failure
    assert result.fingerprint in other.stdout
    assert simulate(seed).fingerprint == result.fingerprint

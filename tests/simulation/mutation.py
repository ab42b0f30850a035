"""Breaks the product in one place at a time, in a copy, and looks whether a simulation notices."""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).parents[2]
_PACKAGES: Final = ("common", "gateway", "ingester", "shapeworker", "tests")
_LINE: Final = 160


class Mutation(NamedTuple):
    """What is broken, in words, and how: this text of the file becomes that one."""

    name: str
    file: str
    old: str
    new: str


def try_all(mutations: Iterable[Mutation], simulation: Sequence[str], *, seeds: int, about: str | None) -> int:
    """Tries each that the command line asks for; returns 1 if one is not found.

    ``simulation``: a module and its options, to which ``--seeds`` is added, by default ``seeds``; it exits with 0 when
    it found nothing and prints what it found first.

    Before that it looks whether there is what they break, and exits if not; ``--look`` does no more.
    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=seeds, help="how many seeds a mutation may survive")
    parser.add_argument("--only", default="", help="those with this text in their name or file")
    parser.add_argument("--look", action="store_true", help="only look whether the product still has what they break")
    arguments = parser.parse_args()
    wanted = [mutation for mutation in mutations if arguments.only in f"{mutation.name} {mutation.file}"]
    counts = [(mutation, (ROOT / mutation.file).read_text().count(mutation.old)) for mutation in wanted]
    # The product has moved on: a mutation that breaks nothing would look like one that is not found.
    stale = [
        f"{mutation.name}: its text is {count} times in {mutation.file}" for mutation, count in counts if count != 1
    ]
    if stale:
        raise SystemExit("\n".join(stale))
    survivors = 0
    for mutation in wanted if not arguments.look else ():
        found = _try(mutation, [*simulation, "--seeds", str(arguments.seeds)])
        survivors += found is None
        print(f"{mutation.name}: {found or 'SURVIVES'}", flush=True)
    return bool(survivors)


def _try(mutation: Mutation, simulation: Sequence[str]) -> str | None:
    """What the simulation says first about the broken product; ``None`` if it finds nothing."""
    with tempfile.TemporaryDirectory() as copy:
        for package in _PACKAGES:
            shutil.copytree(ROOT / package, Path(copy, package), ignore=shutil.ignore_patterns("__pycache__"))
        path = Path(copy, mutation.file)
        path.write_text(path.read_text().replace(mutation.old, mutation.new))
        run = subprocess.run([sys.executable, "-m", *simulation], cwd=copy, capture_output=True, text=True, check=False)
    return (run.stdout or run.stderr)[:_LINE].split("\n")[0] if run.returncode else None

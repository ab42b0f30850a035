"""Figures of the benchmarks: a table for people, and a file with the circumstances they were measured under."""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Final

REPOSITORY: Final = Path(__file__).resolve().parents[2]
RESULTS: Final = REPOSITORY / "bench" / "results"

Figures = dict[str, Any]
"""One measurement: by column, in the order of the columns."""

_PACKAGES: Final = ("msgspec", "pyahocorasick", "pyzmq", "uvloop")


def circumstances() -> dict[str, Any]:
    """Where and of what something was measured."""
    model = next(
        (line.split(":")[1].strip() for line in _lines(Path("/proc/cpuinfo")) if line.startswith("model name")), ""
    )
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": _git("rev-parse", "--short", "HEAD") + ("+" if _git("status", "--porcelain", "-uno") else ""),
        "machine": f"{model or platform.machine()}, {os.cpu_count()} cores",
        "load before": round(os.getloadavg()[0], 2),
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in _PACKAGES},
    }


def table(rows: Sequence[Figures]) -> str:
    """The figures as text; a column for each name in any of them."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [names, *([_shown(row.get(name)) for name in names] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for line in cells:
        first, *others = [
            cell.ljust(width) if not at else cell.rjust(width) for at, (cell, width) in _placed(line, widths)
        ]
        lines.append("  ".join([first, *others]).rstrip())
    return "\n".join(lines)


def save(bench: str, about: str, before: dict[str, Any], rows: Sequence[Figures]) -> Path:
    """Keeps the figures of a benchmark as JSON and as a table; where."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{bench}.json"
    path.write_text(json.dumps({"bench": bench, "about": about, **before, "figures": list(rows)}, indent=1) + "\n")
    told = "\n".join(f"{name}: {value}" for name, value in before.items())
    path.with_suffix(".txt").write_text(f"{about}\n\n{told}\n\n{table(rows)}\n")
    return path


def _placed(line: list[str], widths: list[int]) -> list[tuple[int, tuple[str, int]]]:
    return list(enumerate(zip(line, widths, strict=True)))


def _shown(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    return done.stdout.strip()

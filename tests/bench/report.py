"""Figures of the benchmarks: a table for people, and a file with the circumstances they were measured under."""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from deploy.postgres_binaries import find_binaries, server_account
from tests.pipeline.nginx import find_nginx

REPOSITORY: Final = Path(__file__).resolve().parents[2]
RESULTS: Final = REPOSITORY / "bench" / "results"

Figures = dict[str, Any]
"""One measurement: by column, in the order of the columns."""

_CODE: Final = ("--", ".", ":!bench/results", ":!docs")
"""What makes a figure that of another commit, if it was changed."""

_PACKAGES: Final = ("aiohttp", "msgspec", "psycopg", "pyahocorasick", "pyzmq", "uvloop")


def circumstances() -> dict[str, Any]:
    """Where and of what something was measured."""
    model = next(
        (line.split(":")[1].strip() for line in _lines(Path("/proc/cpuinfo")) if line.startswith("model name")), ""
    )
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": _git("rev-parse", "--short", "HEAD") + ("+" if _git("status", "--porcelain", "-uno", *_CODE) else ""),
        "machine": f"{model or platform.machine()}, {os.cpu_count()} cores",
        "load before": round(os.getloadavg()[0], 2),
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in _PACKAGES},
        "programs": {name: _first_line(command) for name, command in _programs().items()},
    }


def table(rows: Sequence[Figures]) -> str:
    """The figures as text; a column for each name in any of them."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [names, *([shown(row.get(name)) for name in names] for row in rows)]
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


class Results:
    """The table of all cases, kept case by case: those that are not measured again stay, with their circumstances."""

    def __init__(self, name: str, about: str, order: Sequence[str]) -> None:
        """``order``: of the cases; others than these are forgotten."""
        self.path = RESULTS / f"{name}.json"
        self._about = about
        self._order = order
        kept = json.loads(self.path.read_text())["cases"] if self.path.exists() else {}
        self._cases: dict[str, dict[str, Any]] = {case: kept[case] for case in order if case in kept}

    def save(
        self,
        case: str,
        before: dict[str, Any],
        figures: Sequence[Figures],
        costs: Sequence[Figures],
        histograms: Mapping[str, Any],
    ) -> None:
        """A case that was measured now, under these circumstances."""
        measured = {"figures": list(figures), "costs": list(costs), "histograms": dict(histograms)}
        varying = {name: before[name] for name in ("date", "commit", "load before", "scale")}
        self._cases[case] = varying | measured
        RESULTS.mkdir(parents=True, exist_ok=True)
        everywhere = {name: value for name, value in before.items() if name not in varying}
        cases = {name: self._cases[name] for name in self._order if name in self._cases}
        self.path.write_text(json.dumps({"about": self._about, **everywhere, "cases": cases}, indent=1) + "\n")
        told = "\n".join(f"{name}: {value}" for name, value in everywhere.items())
        self.path.with_suffix(".txt").write_text(f"{self._about}\n\n{told}\n\n{self.text()}")

    def text(self) -> str:
        """Three tables: figures, costs, and when and of what each case was measured."""
        cases = {name: self._cases[name] for name in self._order if name in self._cases}
        figures = [row for case in cases.values() for row in case["figures"]]
        costs = [row for case in cases.values() for row in case["costs"]]
        when = [
            {"case": name, **{key: value for key, value in case.items() if not isinstance(value, list | dict)}}
            for name, case in cases.items()
        ]
        return "\n\n".join(table(rows) for rows in (figures, costs, when) if rows) + "\n"


def _placed(line: list[str], widths: list[int]) -> list[tuple[int, tuple[str, int]]]:
    return list(enumerate(zip(line, widths, strict=True)))


def shown(value: Any) -> str:
    """A figure as people read it: three digits, or thousands."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def _programs() -> dict[str, list[str]]:
    nginx = find_nginx()
    postgres = find_binaries(server_account()) / "postgres"
    return {"postgres": [str(postgres), "--version"]} | ({"nginx": [nginx, "-v"]} if nginx else {})


def _first_line(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return next(iter((done.stdout or done.stderr).splitlines()), "")


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    return done.stdout.strip()

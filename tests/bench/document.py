"""``python -m tests.bench.document``: puts what ``bench/results/`` has into docs/performance.md, table and plots."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from tests.bench.cases import CASES
from tests.bench.plot import Line, Plot, svg
from tests.bench.report import REPOSITORY, RESULTS, Figures, shown

DOCUMENT: Final = REPOSITORY / "docs" / "performance.md"
PLOTS: Final = REPOSITORY / "docs" / "plots"

_BEGIN: Final = "<!-- table: python -m tests.bench.document -->"
_END: Final = "<!-- end of table -->"

_Lines = Sequence[tuple[str, str, str]]
"""Of a plot: server, measure, name."""

_LATENCY: Final[_Lines] = (
    ("Galvanic", "p50 ms", "Galvanic, median"),
    ("limit", "p50 ms", "bare pipe from the slot, median"),
    ("Galvanic", "p99 ms", "Galvanic, 99 %"),
)
_THROUGHPUT: Final[_Lines] = (("Galvanic", "rows/s", "Galvanic"), ("limit", "rows/s", "pg_recvlogical"))
_WAKING: Final[_Lines] = (("Galvanic", "clients/s", "Galvanic"), ("limit", "clients/s", "bare pipe from the slot"))
_COST: Final[_Lines] = (("Galvanic", "CPU us/row", "ingester, worker and gateway together"),)
_PLOTS: Final[Sequence[tuple[str, str, str, str, str, _Lines]]] = (
    # file, sweep, title, across, up, lines
    ("shapes-latency", "shapes", "Commit to client", "shapes of the table", "ms", _LATENCY),
    ("shapes-throughput", "shapes", "Transactions of 100 rows", "shapes of the table", "rows/s", _THROUGHPUT),
    ("shapes-cost", "shapes", "Processor time of a row", "shapes of the table", "us", _COST),
    (
        "matching-throughput",
        "matching",
        "Rows that match every shape",
        "shapes",
        "rows/s",
        (("Galvanic", "rows/s", "Galvanic"), ("limit", "rows/s", "the same bytes written to as many files")),
    ),
    ("matching-cost", "matching", "Processor time of a row that matches all", "shapes", "us", _COST),
    ("clients-latency", "clients", "Commit to clients", "long-polls of one shape", "ms", _LATENCY),
    ("clients-throughput", "clients", "Clients woken by one write", "long-polls of one shape", "clients/s", _WAKING),
    ("idle-throughput", "idle", "Transactions of 100 rows", "idle clients of another shape", "rows/s", _THROUGHPUT),
    ("idle-cost", "idle", "Processor time of a row", "idle clients of another shape", "us", _COST),
    ("transaction-latency", "transaction", "Commit to client", "rows in the transaction", "ms", _LATENCY),
    ("transaction-throughput", "transaction", "One shape", "rows in a transaction", "rows/s", _THROUGHPUT),
    ("transaction-cost", "transaction", "Processor time of a row", "rows in a transaction", "us", _COST),
)


def plot(sweep: Sequence[Mapping[str, Any]], title: str, across: str, up: str, lines: _Lines) -> Plot:
    """A plot of the points of a sweep; lines that nothing was measured for are left out."""
    drawn = []
    for server, measure, name in lines:
        points = [(float(point["at"]), point[server][measure]) for point in sweep if point[server].get(measure)]
        if points:
            drawn.append(Line(name, points))
    return Plot(title, across, up, drawn)


def redraw() -> None:
    """All plots that there are figures for."""
    sweeps = _sweeps()
    PLOTS.mkdir(exist_ok=True)
    for file, sweep, title, across, up, lines in _PLOTS:
        if sweep in sweeps:
            (PLOTS / f"{file}.svg").write_text(svg(plot(sweeps[sweep]["points"], title, across, up, lines)))


def markdown(rows: Sequence[Figures]) -> str:
    """The table as a page has it: numbers to the right, nothing that nobody asked for."""
    names = ["case", "measure", "Galvanic", "limit", "of limit", "reference", "times", "ask", "met"]
    titles = {case.name: f"`{case.name}`: {case.title}" for case in CASES}
    lines = ["| " + " | ".join(names) + " |", "|---|---|" + "---:|" * 5 + "---|---|"]
    seen = ""
    for row in rows:
        told = [shown(row.get(name)).replace("|", "\\|") for name in names]
        # Once is enough where a case has several measures.
        told[0], seen = "" if told[0] == seen else titles.get(told[0], told[0]), told[0]
        lines.append("| " + " | ".join(told) + " |")
    return "\n".join(lines)


def rewrite(text: str, results: Mapping[str, Any], sweeps: Mapping[str, Any]) -> str:
    """The page with the present table between its two marks."""
    begin, end = text.index(_BEGIN) + len(_BEGIN), text.index(_END)
    machine = f"{results['machine']}, {results['programs'].get('postgres', '')}, Python {results['python']}"
    told = f"{machine}. Table: {_measured(results['cases'])}. Plots: {_measured(sweeps)}."
    rows = [row for case in results["cases"].values() for row in case["figures"]]
    return f"{text[:begin]}\n{told}\n\n{markdown(rows)}\n{text[end:]}"


def _measured(parts: Mapping[str, Any]) -> str:
    """When, of what, how large, and what else the machine had to do: a figure is worth no more than that allows."""
    if not parts:
        return "nothing"
    dates, commits, scales = ({str(part[name]) for part in parts.values()} for name in ("date", "commit", "scale"))
    loads = [part["load before"] for part in parts.values()]
    return (
        f"{min(dates)[:10]} at {', '.join(sorted(commits))}, scale {', '.join(sorted(scales))}, "
        f"load average beforehand {min(loads):g} to {max(loads):g}"
    )


def _sweeps() -> dict[str, Any]:
    path = RESULTS / "sweeps.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found


def main() -> None:
    """Rewrites the table and draws the plots."""
    results = json.loads((RESULTS / "table.json").read_text())
    DOCUMENT.write_text(rewrite(DOCUMENT.read_text(), results, _sweeps()))
    redraw()


if __name__ == "__main__":
    main()

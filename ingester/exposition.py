"""All that the processes report, added up, as Prometheus reads it (text format 0.0.4). No I/O."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from common.metrics import CATALOGUE, Metric, Report, Sample

FRESH: Final = 16.0
"""Seconds for which the gauges of a process count: three reports may be lost. Then it is gone."""

Key = tuple[str, tuple[str, ...]]


class Exposition:
    """Counters grow by what is reported, whoever reports it; gauges are sums over the processes that are there."""

    def __init__(self) -> None:
        self._totals: dict[Key, tuple[float, ...]] = {}
        self._gauges: dict[str, tuple[float, tuple[Sample, ...]]] = {}

    def take(self, now: float, report: Report) -> None:
        """A process reports, at ``now`` on a monotonic clock (s)."""
        for sample in report.increases:
            key = sample.name, sample.labels
            before = self._totals.get(key, (0.0,) * len(sample.values))
            self._totals[key] = tuple(then + more for then, more in zip(before, sample.values, strict=True))
        self._gauges[report.process] = now, report.gauges

    def text(self, now: float) -> str:
        """Everything, each metric with its description."""
        self._gauges = {process: each for process, each in self._gauges.items() if now - each[0] <= FRESH}
        values = dict(self._totals)
        for _, samples in self._gauges.values():
            for sample in samples:
                key = sample.name, sample.labels
                values[key] = (values.get(key, (0.0,))[0] + sample.values[0],)
        of_name: dict[str, list[Key]] = {}
        for key in sorted(values):
            of_name.setdefault(key[0], []).append(key)
        lines: list[str] = []
        for name, metric in CATALOGUE.items():
            if name in of_name:
                lines += (f"# HELP {name} {_escape(metric.about)}", f"# TYPE {name} {metric.kind}")
                for key in of_name[name]:
                    lines += _lines(name, metric, dict(zip(metric.labels, key[1], strict=True)), values[key])
        return "\n".join(lines) + "\n" if lines else ""


def _lines(name: str, metric: Metric, labels: Mapping[str, str], values: tuple[float, ...]) -> Iterable[str]:
    if metric.kind != "histogram":
        yield f"{name}{_labelled(labels)} {_number(values[0])}"
        return
    *counts, total = values
    count = 0.0
    for bound, more in zip((*map(_number, metric.bounds), "+Inf"), counts, strict=True):
        count += more
        yield f"{name}_bucket{_labelled({**labels, 'le': bound})} {_number(count)}"
    yield f"{name}_sum{_labelled(labels)} {_number(total)}"
    yield f"{name}_count{_labelled(labels)} {_number(count)}"


def _labelled(labels: Mapping[str, str]) -> str:
    if not labels:
        return ""
    inside = ",".join(f'{label}="{_escape(value, quoted=True)}"' for label, value in labels.items())
    return f"{{{inside}}}"


def _escape(text: str, *, quoted: bool = False) -> str:
    text = text.replace("\\", r"\\").replace("\n", r"\n")
    return text.replace('"', r"\"") if quoted else text


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(value)

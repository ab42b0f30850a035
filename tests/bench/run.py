"""Runs cases: at every server in turn, beside their limits, as often as it takes; and says what came of it."""

from __future__ import annotations

import contextlib
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from tests.bench.case import Case, Measure, Sample, Scale
from tests.bench.latency import Latencies
from tests.bench.report import Figures
from tests.bench.site import Site

_TOOL: Final = "tool"
"""A column for all that limits are measured with."""

_COMMON: Final = ("load", "postgres")
OURS: Final = 0
"""The place of Galvanic among the servers."""


@dataclass
class Result:
    """All samples of a case: ``servers`` in the order of ``names``."""

    case: Case
    names: list[str]
    servers: list[list[Sample]]
    limits: list[Sample] = field(default_factory=list)


async def measure(case: Case, site: Site, scale: Scale, repeats: int | None = None) -> Result:
    """Sets the case up everywhere, then takes turns: limit, ours, others, and the other way round the next time."""
    targets = await site.targets()
    if case.own_only:
        targets = targets[:1]
    async with contextlib.AsyncExitStack() as left:
        running = [await left.enter_async_context(case.open(target, scale)) for target in targets]
        result = Result(case, [target.name for target in targets], [[] for _ in targets])

        async def limit() -> None:
            sample = await running[OURS].limit()
            if sample is not None:
                result.limits.append(sample)

        async def server(at: int) -> None:
            result.servers[at].append(await running[at].run())

        for number in range(repeats or case.repeats):
            turns = [limit, *(lambda at=at: server(at) for at in range(len(targets)))]
            for turn in turns if number % 2 == 0 else reversed(turns):
                await turn()
    return result


def figures(result: Result) -> list[Figures]:
    """A row of the table for each measure."""
    rows = []
    for measure in result.case.measures:
        value = median(result.servers[OURS], measure.name)
        if value is None:
            continue
        limit = median(result.limits, measure.name)
        others = {
            name: median(samples, measure.name)
            for name, samples in zip(result.names[1:], result.servers[1:], strict=True)
        }
        reference = next((found for found in others.values() if found is not None), measure.reference)
        rows.append(
            {
                "case": result.case.name,
                "measure": measure.name,
                "Galvanic": value,
                **others,
                "limit": limit,
                "of limit": None if not limit else value / limit,
                "reference": measure.reference,
                "times": None if not reference else value / reference,
                "ask": _asked(measure),
                "met": _met(measure, value, limit, reference),
                "spread": _spread(result.servers[OURS], measure.name),
            }
        )
    return rows


def costs(result: Result) -> list[Figures]:
    """Processor time per item and peak memory of each process; a row for each server and for the limit."""
    rows = []
    for name, samples in [*zip(result.names, result.servers, strict=True), ("limit", result.limits)]:
        cpu = _by_process(samples, lambda sample: {k: v / sample.items for k, v in sample.used.cpu.items()})
        peak = _by_process(samples, lambda sample: sample.used.peak)
        if not cpu and not peak:
            continue
        if name == "limit":
            cpu = {process if process in _COMMON else _TOOL: seconds for process, seconds in cpu.items()}
            peak = {process if process in _COMMON else _TOOL: megabytes for process, megabytes in peak.items()}
        row: Figures = {"case": result.case.name, "at": name, "per": result.case.item}
        row |= {f"{process} us": seconds * 1e6 for process, seconds in cpu.items()}
        row |= {f"{process} MB": megabytes for process, megabytes in peak.items() if process != "load"}
        rows.append(row)
    return rows


def histograms(result: Result) -> dict[str, dict[str, float]]:
    """The latencies of all repeats together, by server and for the limit."""
    told = {}
    for name, samples in [*zip(result.names, result.servers, strict=True), ("limit", result.limits)]:
        found = [sample.latencies for sample in samples if sample.latencies is not None]
        if found:
            whole = Latencies()
            for latencies in found:
                whole.add(latencies)
            told[name] = whole.told()
    return told


def _asked(measure: Measure) -> str:
    sign = "<=" if measure.less_is_better else ">="
    asked = []
    if measure.times is not None:
        asked.append(f"{sign} {measure.times:.2g}x")
    if measure.of_limit is not None:
        asked.append(f"{sign} {measure.of_limit:g} of limit")
    if measure.most is not None:
        asked.append(f"{sign} {measure.most:g}")
    return ", ".join(asked)


def _met(measure: Measure, value: float, limit: float | None, reference: float | None) -> str:
    """``reference``: of the other server where one was measured, else the one on record."""
    bounds = []
    if measure.times is not None and reference is not None:
        bounds.append(measure.times * reference)
    if measure.of_limit is not None:
        if limit is None:
            return "no limit here"
        bounds.append(measure.of_limit * limit)
    if measure.most is not None:
        bounds.append(measure.most)
    if not bounds:
        return ""
    kept = all(value <= bound if measure.less_is_better else value >= bound for bound in bounds)
    return "yes" if kept else "NO"


def median(samples: Sequence[Sample], name: str) -> float | None:
    """Of a value over the samples that have it."""
    values = [sample.values[name] for sample in samples if name in sample.values]
    return statistics.median(values) if values else None


def _spread(samples: Sequence[Sample], name: str) -> str:
    values = [sample.values[name] for sample in samples]
    return f"{_short(min(values))}-{_short(max(values))}" if len(values) > 1 else ""


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _by_process(samples: Iterable[Sample], part: Callable[[Sample], Mapping[str, float]]) -> dict[str, float]:
    gathered: dict[str, list[float]] = defaultdict(list)
    for sample in samples:
        for process, value in part(sample).items():
            gathered[process].append(value)
    return {process: statistics.median(values) for process, values in gathered.items()}

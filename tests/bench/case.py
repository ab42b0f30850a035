"""What a case of the benchmark is: what it measures, what is asked of it, and how it is run beside its limit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from tests.bench.latency import Latencies
from tests.bench.usage import Usage

if TYPE_CHECKING:
    from tests.bench.site import Target


@dataclass(frozen=True)
class Measure:
    """One figure of a case, and what is asked of it.

    ``reference``: what Electric 1.7.12 does alone on two cores (issue 6). ``times``: asked, as a multiple of that, or
    of another server that is measured in the same run. ``of_limit``: asked, as a part of the limit measured in the same
    run. ``most``: asked, in the unit itself. Where less is better, all three are upper bounds.
    """

    name: str
    reference: float | None = None
    times: float | None = None
    of_limit: float | None = None
    most: float | None = None
    less_is_better: bool = False


@dataclass(frozen=True)
class Sample:
    """One run. ``values``: by the name of the measure. ``items``: what processor time is divided by."""

    values: Mapping[str, float]
    items: float = 0
    used: Usage = field(default_factory=Usage)
    latencies: Latencies | None = None


class Running(Protocol):
    """A case that is set up at one server."""

    async def run(self) -> Sample:
        """Measures once."""
        ...

    async def limit(self) -> Sample | None:
        """Measures once what bounds it; the same names of values as far as there is such a bound."""
        ...


@dataclass(frozen=True)
class Scale:
    """How large to measure: 1 is what the titles say."""

    factor: float = 1.0

    def __call__(self, full: int, least: int = 1) -> int:
        """So many, scaled down, but ``least`` at any rate (never more than ``full``)."""
        return max(min(least, full), round(full * self.factor))

    def seconds(self, full: float) -> float:
        """A duration scaled down, within reason."""
        return max(full * self.factor, min(full, 0.3))


Opener = Callable[["Target", Scale], AbstractAsyncContextManager[Running]]
"""Sets a case up at a server, and cleans up behind."""


@dataclass(frozen=True)
class Case:
    """A line, or several, of the table.

    ``item``: what processor time is told per. ``own_only``: needs more than HTTP and SQL, so only ours has it.
    """

    name: str
    title: str
    measures: tuple[Measure, ...]
    open: Opener
    item: str = ""
    repeats: int = 3
    own_only: bool = False

"""ELECTRIC_MAX_SHAPES over all workers: who ends how many of its least recently used shapes. Decisions only, no I/O.

Each worker knows only the shapes of its partitions, so the ingester asks all of them, in rounds. A round is decided
when each has answered under its present assignment: then no shape is counted twice, and one on its way between two
workers is missed rather than counted. An answer speaks of the time after all that was sent before, so no surplus is
ended twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from common.messages import Evict, Survey, Usage
from common.obstacles import Lasting, Obstacle

EVERY: Final = 10.0
"""Seconds between two rounds."""

AGAIN: Final = 1.0
"""The same after a round that ended shapes: there may be more."""

MOST: Final = 200
"""Shapes of one worker that end in a round: each costs its disk some milliseconds, which new shapes wait for."""

PATIENCE: Final = 60.0
"""Seconds after which too many shapes that are all in use are worth a line."""


def shares(excess: int, usages: Mapping[str, Usage]) -> dict[str, int]:
    """How many shapes each worker ends, so that the ``excess`` longest unused of all end. Workers without any are left
    out."""
    offered = sorted(((-idle, worker) for worker, usage in usages.items() for idle in usage.idle))
    counts: dict[str, int] = {}
    for _, worker in offered[: max(0, excess)]:
        counts[worker] = counts.get(worker, 0) + 1
    return counts


class Eviction:
    """The rounds. Times are seconds of a monotonic clock."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._round = 0
        self._most = 0
        self._due = float("-inf")
        self._usages: dict[str, Usage] = {}
        self._decided = True
        self._lasting: Lasting[str] = Lasting()
        self.obstacles: list[Obstacle] = []
        """That there are too many shapes, if none of them may end."""

    def survey(self, now: float) -> Survey | None:
        """The question to put to every worker now, if it is time. What is not answered yet of the last one is void."""
        if now < self._due:
            return None
        self._due = now + EVERY
        self._round += 1
        self._usages = {}
        self._decided = False
        return Survey(self._round, self._most)

    def answered(self, now: float, worker: str, usage: Usage, versions: Mapping[str, int]) -> dict[str, Evict]:
        """A worker's answer; what to tell whom if it was the last one. ``versions``: the present assignment of each
        worker, 0 if it has not been carried out."""
        if usage.round != self._round or self._decided:
            return {}
        self._usages[worker] = usage
        answers = {name: self._usages.get(name) for name in versions}
        if any(answer is None for answer in answers.values()):
            return {}
        self._decided = True
        complete = {name: answer for name, answer in answers.items() if answer is not None}
        if any(answer.version == 0 or answer.version != versions[name] for name, answer in complete.items()):
            return {}
        return self._decide(now, complete)

    def _decide(self, now: float, usages: Mapping[str, Usage]) -> dict[str, Evict]:
        total = sum(usage.shapes for usage in usages.values())
        counts = shares(total - self._limit, usages)
        asked, self._most = self._most, MOST if total > self._limit else 0
        if self._most and not asked:
            # To choose among very many costs workers some time, so they are not asked before it is needed.
            self._due = now
        elif counts:
            self._due = now + AGAIN
        stuck = total > self._limit and asked > 0 and not counts
        lasting = self._lasting.seconds(now, ["stuck"] if stuck else [])
        self.obstacles = []
        if lasting.get("stuck", 0.0) >= PATIENCE:
            text = f"there are {total} shapes, ELECTRIC_MAX_SHAPES is {self._limit}, and all are in use: none ends"
            self.obstacles.append(Obstacle("ELECTRIC_MAX_SHAPES", text))
        return {worker: Evict(self._round, count, total, self._limit) for worker, count in counts.items()}

"""How many requests may be under way at once (http-api.md 28).

There are two budgets: one for requests that may have to make a shape, which costs the database a snapshot, and a much
larger one for those that follow a shape. So whoever waits for changes never keeps a new client out, nor the reverse.
Each gateway has budgets of its own.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Final, Literal, Self

import orjson

from common.obstacles import Obstacle
from gateway.response import JSON, NO_CACHE, NO_STORE, Answer, Kind

Budget = Literal["initial", "existing"]

BUDGETS: Final[tuple[Budget, ...]] = ("initial", "existing")

RECENT: Final = 10.0
"""Seconds for which a refusal is told in ``/v1/health``."""

SETTING: Final = "ELECTRIC_MAX_CONCURRENT_REQUESTS"


SPARE_FILES: Final = 200
"""Descriptors that a gateway needs for other things than clients, at least."""


def budget_of(handle: object, exists: Callable[[str], bool]) -> Budget:
    """Which budget a request counts against; of all it says, only its ``handle`` matters (http-api.md 28.2).

    ``exists`` tells whether there is a shape with this handle.
    """
    return "existing" if isinstance(handle, str) and exists(handle) else "initial"


def short_of_files(limits: Mapping[str, int], files: int) -> str:
    """Why a process that may open so many ``files`` cannot have as many clients as the limits allow; "" if it can."""
    needed = sum(limits.values()) + SPARE_FILES
    if needed <= files:
        return ""
    return (
        f"{SETTING} allows {sum(limits.values())} requests, but the process may open {files} files: ulimit -n {needed}"
    )


class _Count:
    __slots__ = ("in_flight", "limit", "refused", "refused_at")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.in_flight = 0
        self.refused = 0
        self.refused_at = float("-inf")


class Ticket:
    """A request that was let in. It counts until it is given back, at the end of the ``with`` block around its answer
    if it has one."""

    __slots__ = ("_admission", "_budget")

    def __init__(self, admission: Admission, budget: Budget) -> None:
        self._admission = admission
        self._budget = budget

    def found(self) -> None:
        """The shape exists and its snapshot has started: from now on the request follows it, if there is room."""
        if self._budget == "initial" and self._admission.take("existing"):
            self._admission.give_back("initial")
            self._budget = "existing"

    def give_back(self) -> None:
        """It counts no more."""
        self._admission.give_back(self._budget)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.give_back()


class Admission:
    """The counters of one gateway."""

    def __init__(
        self,
        limits: Mapping[str, int],
        clock: Callable[[], float],
        draw: Callable[[int, int], int] = random.randint,
    ) -> None:
        """``limits`` has both budgets; ``clock`` is monotonic, in seconds."""
        self._counts: dict[Budget, _Count] = {
            "initial": _Count(limits["initial"]),
            "existing": _Count(limits["existing"]),
        }
        self._clock = clock
        self._draw = draw

    def admit(self, budget: Budget) -> Ticket | None:
        """Let a request in, or refuse it: ``None``. A ticket must be used in a ``with`` block at once."""
        if self.take(budget):
            return Ticket(self, budget)
        count = self._counts[budget]
        count.refused += 1
        count.refused_at = self._clock()
        return None

    def take(self, budget: Budget) -> bool:
        """Count one more request if there is room."""
        count = self._counts[budget]
        if count.in_flight >= count.limit:
            return False
        count.in_flight += 1
        return True

    def give_back(self, budget: Budget) -> None:
        """Count one request less."""
        self._counts[budget].in_flight -= 1

    def in_flight(self, budget: Budget) -> int:
        """How many requests of this kind are under way."""
        return self._counts[budget].in_flight

    def limit(self, budget: Budget) -> int:
        """How many there may be."""
        return self._counts[budget].limit

    def refused(self, budget: Budget) -> int:
        """How many were refused so far."""
        return self._counts[budget].refused

    def refusal(self, budget: Budget, kind: Kind) -> Answer:
        """The answer to a request that was not let in (http-api.md 21, 25, 28.3)."""
        limit = self._counts[budget].limit
        message = f"Concurrent {budget} request limit exceeded (limit: {limit}), please retry"
        fields = {
            **NO_STORE,
            **(NO_CACHE if kind == "write" else {}),
            **JSON,
            "electric-internal-known-error": "true",
            "retry-after": str(5 + self._draw(1, 5)),
        }
        return Answer(503, fields, orjson.dumps({"code": "concurrent_request_limit_exceeded", "message": message}))

    def obstacles(self) -> list[Obstacle]:
        """What was refused a moment ago, with all that was counted."""
        since = self._clock() - RECENT
        refused = [budget for budget, count in self._counts.items() if count.refused_at > since]
        if not refused:
            return []
        counts = "; ".join(
            f"{count.in_flight} of {count.limit} {budget} in flight, {count.refused} refused so far"
            for budget, count in self._counts.items()
        )
        return [Obstacle(f"{SETTING}: {each}", f"{SETTING} refuses {each} requests: {counts}") for each in refused]

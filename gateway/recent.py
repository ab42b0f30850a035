"""The answers that were sent last, for all who ask the same again while nothing has changed.

What is in memory has a bound. An answer that is still being sent counts for its clients, not here.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Final

from gateway.response import Answer

HELD_BYTES: Final = 16 * 1024 * 1024
"""Bytes of all the answers that are kept."""

OVERHEAD: Final = 2_048
"""Bytes that an answer takes besides its body."""


class Recent:
    """Answers by what was asked, each with the state of the log that it speaks of."""

    def __init__(self, held_bytes: int = HELD_BYTES) -> None:
        self._limit = held_bytes
        self._held = 0
        self._answers: OrderedDict[Hashable, tuple[Hashable, Answer]] = OrderedDict()

    def get(self, asked: Hashable, state: Hashable) -> Answer | None:
        """The answer to this in this state, if it is kept."""
        found = self._answers.get(asked)
        if found is None or found[0] != state:
            return None
        self._answers.move_to_end(asked)
        return found[1]

    def keep(self, asked: Hashable, state: Hashable, answer: Answer) -> None:
        """Keep it for others; of one state only."""
        before = self._answers.pop(asked, None)
        if before is not None:
            self._held -= OVERHEAD + len(before[1].body)
        self._answers[asked] = state, answer
        self._held += OVERHEAD + len(answer.body)
        while self._held > self._limit:
            _, (_, oldest) = self._answers.popitem(last=False)
            self._held -= OVERHEAD + len(oldest.body)

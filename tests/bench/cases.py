"""All cases, in the order of the table."""

from __future__ import annotations

from typing import Final

from tests.bench import first_sync, ingest, live, replay, shapes
from tests.bench.case import Case

CASES: Final[tuple[Case, ...]] = (
    *first_sync.CASES,
    *live.CASES,
    *ingest.CASES,
    *shapes.CASES,
    *replay.CASES,
)

"""The answers of a log as values: their headers, the item that says «up to date», and those that all waiters share.

What is sent of them, and how, is in :mod:`gateway.delivery`.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec

from common.lsn import SNAPSHOT_END, Offset
from common.messages import Place
from common.shapelog.layout import DamagedLog
from gateway import log, response
from gateway.log import Position
from gateway.progress import Progress
from gateway.response import Answer, CachePolicy
from gateway.shape import Shape, ShapeGone


class Policy(msgspec.Struct, frozen=True):
    """The settings that answers depend on: how long caches keep them and how long a long-poll waits (ms)."""

    cache: CachePolicy
    long_poll_ms: int


class LiveAnswers:
    """The answers that all waiters at one offset of a shape share (:class:`gateway.live.Answers`)."""

    def __init__(self, progress: Progress, policy: Policy, unique: Callable[[], int] = time.monotonic_ns) -> None:
        self._progress = progress
        self._policy = policy
        self._unique = unique

    def seen(self, shape: Shape) -> int:
        """The LSN that an answer may claim when the log is looked at after this.

        It holds for a shape whose snapshot still runs, too: what was held back is in the log before its place is told.
        """
        return self._progress.seen(shape.partition, shape.generation)

    def changed(self, shape: Shape, offset: Offset) -> Answer | None:
        """The live answer with data, if it is small enough to be held by all at once."""
        try:
            with shape as reader:
                position, _ = log.locate(reader, offset)
                if position.is_empty or position.range.end - position.range.start > log.SHARED:
                    return None
                complete, tail = self.tail(offset, position, live=True, seen=0)
                fields = self.fields(shape, offset, position.range.end_offset, live=True, complete=complete)
                return Answer(200, fields, log.body(reader, position.range, tail), streamed=True)
        except (ShapeGone, DamagedLog, OSError):
            return None

    def unchanged(self, shape: Shape, offset: Offset, last: Offset, seen: int) -> Answer:
        """The live answer without data (http-api.md 15.3)."""
        return self.empty(shape, offset, max(last, offset), live=True, seen=seen)

    def empty(self, shape: Shape, offset: Offset | None, end: Offset, *, live: bool, seen: int) -> Answer:
        """An answer with nothing but the up-to-date item, and a tag that never matches again."""
        fields = self.fields(shape, offset, end, live=live, complete=True, unique=self._unique())
        return Answer(200, fields, b"[" + response.up_to_date(max(seen, end.tx)) + b"]")

    def begun(self, place: Place) -> Answer:
        """The answer to ``now`` for a shape whose snapshot failed, which a client goes on from as from any other."""
        fields = response.log_fields(
            handle=place.handle,
            requested=None,
            end=SNAPSHOT_END,
            live=False,
            complete=True,
            policy=self._policy.cache,
            schema=response.schema_header(place.schema),
            unique=self._unique(),
        )
        return Answer(200, fields, b"[" + response.up_to_date(0) + b"]")

    def fields(
        self,
        shape: Shape,
        offset: Offset | None,
        end: Offset,
        *,
        live: bool,
        complete: bool,
        unique: int | None = None,
    ) -> dict[str, str]:
        """The headers of a log answer."""
        return response.log_fields(
            handle=shape.handle,
            requested=offset,
            end=end,
            live=live,
            complete=complete,
            policy=self._policy.cache,
            schema=shape.schema,
            unique=unique,
        )

    def tail(self, offset: Offset, position: Position, *, live: bool, seen: int) -> tuple[bool, bytes]:
        """Whether the answer is up to date, and the item that says so (http-api.md 13.1, 13.3)."""
        end = position.range.end_offset
        if end < max(position.last, offset):
            return False, b""
        return True, response.up_to_date(end.tx if live else max(seen, end.tx))

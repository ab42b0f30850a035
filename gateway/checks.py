"""What only a worker can tell before a shape may be made: is the subset one of its table (http-api.md 5, step 7)."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from common.messages import Check, Refusal
from common.shape import ShapeRequest, partition_of
from common.subset import SubsetRequest
from gateway.reception import declined
from gateway.request import LogQuery
from gateway.response import Answer
from gateway.shapes import Shapes, Unavailable

MAX_REMEMBERED: Final = 10_000


class Checks:
    """Asks a worker where it must, and remembers which lists of queryable columns a shape may be asked with."""

    def __init__(self, shapes: Shapes) -> None:
        self._shapes = shapes
        self._fit: OrderedDict[tuple[ShapeRequest, tuple[str, ...]], None] = OrderedDict()

    async def refusal(self, query: LogQuery, subset: SubsetRequest | None) -> Answer | None:
        """Why the request cannot be answered; ``None`` if nothing is known against it.

        The worker that reads a subset of a known shape checks it as well, so it need not be asked before.
        """
        queryable = query.queryable
        if subset is None and queryable is None:
            return None
        if self._shapes.known(query.shape) and (queryable is None or (query.shape, queryable) in self._fit):
            return None
        asked = subset or SubsetRequest(queryable=queryable)
        reply = await self._shapes.ask_partition(
            lambda total: partition_of(query.shape.hash(), total), lambda id: Check(id, query.sent, asked)
        )
        if isinstance(reply, Refusal | Unavailable):
            return declined(reply)
        if queryable is not None:
            self._fit[query.shape, queryable] = None
            if len(self._fit) > MAX_REMEMBERED:
                self._fit.popitem(last=False)
        return None

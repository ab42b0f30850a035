"""From a valid request to its shape, and what a client is told where there is none or it turns out to be gone.

The beginning and the bad ends are the same for logs and subsets (http-api.md 11, 25).
"""

from __future__ import annotations

from collections.abc import Callable

from common.messages import Place, Refusal
from gateway import response
from gateway.admission import Ticket
from gateway.exchange import Exchange
from gateway.request import LogQuery
from gateway.response import Answer, Kind
from gateway.shape import Shape
from gateway.shapes import Shapes, Unavailable


def declined(why: Refusal | Unavailable, kind: Kind = "read") -> Answer:
    """What a worker refused, or that nobody could say."""
    if isinstance(why, Refusal):
        return response.refused(why, kind)
    return response.failure(503, why.message, kind, why.retry_after)


class Reception:
    """Answers for shapes that cannot be served. Its methods raise ``ConnectionError`` when the client is gone."""

    def __init__(self, shapes: Shapes, ended: Callable[[str], None], begun: Callable[[Place], Answer]) -> None:
        """``ended`` is told each handle whose shape turned out to be gone; ``begun`` makes the answer to ``now`` for
        one whose snapshot failed."""
        self._shapes = shapes
        self._ended = ended
        self._begun = begun

    async def shape(self, exchange: Exchange, query: LogQuery, ticket: Ticket, *, for_rows: bool) -> Shape | None:
        """The shape that a request is about, found or created; ``None`` once it was answered that there is none.

        ``now`` asks for nothing that a snapshot has, so it matters to the next request only that it failed
        (http-api.md 17.1), unless it is ``for_rows``.
        """
        found = await self._shapes.obtain(query.shape, query.sent)
        if isinstance(found, Refusal) and found.place is not None and query.offset is None and not for_rows:
            await exchange.answer(self._begun(found.place))
            return None
        if isinstance(found, Refusal | Unavailable):
            await exchange.answer(declined(found))
            return None
        ticket.found()
        if query.resumes and query.handle != found.handle:
            await exchange.answer(response.conflict(found.handle))
            return None
        return found

    async def unreadable(self, exchange: Exchange, shape: Shape, error: Exception) -> None:
        """Answer for a shape that could not be read.

        Files go away under a reader when their shape ends; of a shape that lives none may be missing or wrong.
        """
        if not shape.lives():
            return await self.gone(exchange, shape)
        if exchange.started:
            exchange.abort()
        obstacle = await self._shapes.doubt(shape, str(error))
        if obstacle is None:
            return await self.gone(exchange, shape)
        if not exchange.started:
            await exchange.answer(declined(obstacle))
        return None

    async def gone(self, exchange: Exchange, shape: Shape) -> None:
        """Answer for a shape that has ended, with its successor's handle if there is one."""
        self._shapes.forget(shape)
        self._ended(shape.handle)
        if exchange.started:
            exchange.abort()
            return
        successor = self._shapes.known(shape.request)
        await exchange.answer(response.conflict(None if successor is None else successor.handle))

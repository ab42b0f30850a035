"""The short way of a request: what is at hand is sent at once, and whoever waits for news is an object in a list.

A task for each request, with its chain of coroutines, costs more than all else together (performance.md 6). So none is
made for a request about a shape that is known here, if its answer takes one read at most or goes from a file as it is,
or if it waits at the end of a log. Every other request, and every trouble, goes the long way
(:meth:`gateway.app.App.handle`), which knows all cases, these included.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

import structlog

from common.shapelog.layout import DamagedLog
from gateway.admission import Admission, Ticket, budget_of
from gateway.delivery import Delivery, End, FileAnswer
from gateway.exchange import Exchange
from gateway.extent import Transfer
from gateway.live import Gone, Live, Outcome, Waiter
from gateway.request import LogQuery
from gateway.response import Answer
from gateway.shape import Shape, ShapeGone
from gateway.shapes import Shapes

log = structlog.get_logger(__name__)

LongWay = Callable[[Exchange], Coroutine[Any, Any, None]]
"""Answers a request from its beginning."""


class Shortcut:
    """Answers what it can."""

    def __init__(
        self,
        shapes: Shapes,
        admission: Admission,
        live: Live[Shape],
        delivery: Delivery,
        gone: Callable[[Exchange, Shape], Coroutine[Any, Any, None]],
        unreadable: Callable[[Exchange, Shape, Exception], Coroutine[Any, Any, None]],
    ) -> None:
        """``gone`` answers for a shape that ended while a request waited, ``unreadable`` for one whose files turned out
        not to be what they should while an answer was being sent."""
        self._shapes = shapes
        self.admission = admission
        self.live = live
        self.delivery = delivery
        self.gone = gone
        self.unreadable = unreadable

    def take(self, exchange: Exchange, query: LogQuery, long_way: LongWay) -> bool:
        """Answer a GET of a log, or let it wait; ``False`` if it must go the long way, as if nothing had happened."""
        shape = self._shapes.at_hand(query.shape)
        if shape is None or (query.resumes and query.handle != shape.handle):
            return False
        budget = budget_of(query.handle, self._shapes.exists)
        if not self.admission.take(budget):
            return False
        try:
            found = self._look(exchange, query, shape)
            if isinstance(found, End) and budget == "existing":
                LongPoll(self, exchange, query, shape, found, long_way)
                return True
            if isinstance(found, Answer):
                exchange.put(found, self.delivery.cursor(query))
        except (ShapeGone, DamagedLog, OSError):
            found = None
        if isinstance(found, FileAnswer):
            Sending(self, exchange, shape, Ticket(self.admission, budget)).begin(found, self.delivery.cursor(query))
            return True
        self.admission.give_back(budget)
        if isinstance(found, Answer):
            exchange.end()
            return True
        return False

    def _look(self, exchange: Exchange, query: LogQuery, shape: Shape) -> Answer | FileAnswer | End | None:
        with shape as reader:
            found = self.delivery.look(exchange, query, shape, reader)
            if isinstance(found, End) and not found.ahead and self.live.enter(shape):
                found = self.delivery.look(exchange, query, shape, reader)
        if isinstance(found, End):
            return None if found.ahead else found
        return found if isinstance(found, Answer | FileAnswer) else None


class LongPoll:
    """A request at the end of a log. It holds its shape's files and its place among those that may be under way."""

    __slots__ = ("_exchange", "_long_way", "_query", "_shape", "_shortcut", "_waiter")

    def __init__(
        self, shortcut: Shortcut, exchange: Exchange, query: LogQuery, shape: Shape, end: End, long_way: LongWay
    ) -> None:
        self._shortcut = shortcut
        self._exchange = exchange
        self._query = query
        self._shape = shape
        self._long_way = long_way
        shape.take()
        exchange.wait(self)
        delivery = shortcut.delivery
        self._waiter: Waiter[Shape, Answer] = shortcut.live.wait(
            shape, end.offset, end.last, delivery.patience, delivery.answers, self
        )

    def leave(self) -> None:
        """The client has gone, or the wait is over."""
        self._shortcut.live.leave(self._waiter)
        self._shortcut.admission.give_back("existing")
        self._shape.give_back()

    def __call__(self, outcome: Outcome[Answer]) -> None:
        """What became of the wait."""
        exchange, shape = self._exchange, self._shape
        exchange.proceed()
        if isinstance(outcome, Gone):
            self.leave()
            exchange.run(partial(self._shortcut.gone, exchange, shape))
        elif outcome.answer is None:
            self.leave()
            exchange.run(partial(self._long_way, exchange))
        else:
            # The client waits for the answer, nobody for the rest.
            try:
                exchange.put(outcome.answer, self._shortcut.delivery.cursor(self._query))
            except ConnectionError:
                exchange.abort()
            finally:
                self.leave()
            exchange.end()


class Sending:
    """A request whose answer is on its way from a file. It holds what :class:`LongPoll` holds."""

    __slots__ = ("_exchange", "_shape", "_shortcut", "_ticket", "_transfer")

    def __init__(self, shortcut: Shortcut, exchange: Exchange, shape: Shape, ticket: Ticket) -> None:
        self._shortcut = shortcut
        self._exchange = exchange
        self._shape = shape
        self._ticket = ticket
        self._transfer: Transfer | None = None

    def begin(self, found: FileAnswer, extra: str) -> None:
        """Send it; ``extra`` are header lines of this exchange alone."""
        self._shape.take()
        self._ticket.found()
        self._exchange.wait(self)
        try:
            self._transfer = self._exchange.put_file(found.head, found.body, extra, self._ended)
        except ConnectionError as error:
            self._ended(error)

    def leave(self) -> None:
        """The client has gone, perhaps because it was cut off."""
        if self._transfer is not None:
            self._transfer.stop()
        self._give_back()
        self._exchange.end()

    def _ended(self, error: Exception | None) -> None:
        exchange, shape = self._exchange, self._shape
        exchange.proceed()
        self._give_back()
        if isinstance(error, ShapeGone | DamagedLog | FileNotFoundError):
            exchange.run(partial(self._shortcut.unreadable, exchange, shape, error))
            return
        if error is not None:
            # A client never takes a part for the whole (engine.md INV-22).
            exchange.abort()
        if error is not None and not isinstance(error, ConnectionError):
            log.error("answer cut short", request=exchange.id, shape=shape.handle, exc_info=error)
        exchange.end()

    def _give_back(self) -> None:
        self._ticket.give_back()
        self._shape.give_back()

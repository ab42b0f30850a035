"""New shapes that wait until the ingester feeds their table (architecture.md 4).

A shape holds changes back from the moment that its table's changes begin; its snapshot, taken after the answer, shows
every transaction before that moment. Many shapes of one table ask together.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from typing import Final

from common.frames import Answer, Entered, InFrame, Refused, Subscribed
from common.messages import Subscribe
from shapeworker.requests import CannotCreate
from shapeworker.shape import Shape

SUBSCRIBE_SECONDS: Final = 45.0
"""How long the ingester may take to publish the table."""

TableName = tuple[int, str, str]
"""Oid, schema, name."""


class _Subscription:
    """A subscription, and the shapes that wait for its answer; ``None``: it has not come in time."""

    __slots__ = ("answer", "shapes", "subscribe", "timeout")

    def __init__(self, subscribe: Subscribe, answer: asyncio.Future[Answer | None]) -> None:
        self.subscribe = subscribe
        self.answer = answer
        self.shapes: list[Shape] = []
        self.timeout: asyncio.TimerHandle | None = None

    @property
    def table(self) -> TableName:
        """Which table."""
        return self.subscribe.table, self.subscribe.schema, self.subscribe.name


class Joining:
    """The subscriptions under way: per table at most one that was asked for, and one that more shapes may join."""

    def __init__(self, subscribe: Callable[[Subscribe], None]) -> None:
        """``subscribe`` sends the ingester a request for a table."""
        self._subscribe = subscribe
        self._numbers = itertools.count(1)
        self._waiting: dict[int, _Subscription] = {}
        self._open: dict[TableName, _Subscription] = {}
        self._asked: dict[TableName, _Subscription] = {}

    async def join(self, shape: Shape) -> tuple[int, ...]:
        """Have the table published; returns the transactions that the snapshot must show.

        Shapes of one table share a subscription as long as its changes have not begun: none of them has got any. Those
        that come later wait for its answer, and share the next one.
        """
        table = shape.table.oid, shape.table.schema, shape.table.name
        subscription = self._open.get(table)
        if subscription is None:
            loop = asyncio.get_running_loop()
            request = Subscribe(next(self._numbers), *table)
            subscription = self._open[table] = _Subscription(request, loop.create_future())
            subscription.timeout = loop.call_later(SUBSCRIBE_SECONDS, self._answered, subscription, None)
            if table not in self._asked:
                self._ask(subscription)
        subscription.shapes.append(shape)
        answer = await asyncio.shield(subscription.answer)
        if answer is None:
            message = "Snapshot timed out while waiting for a table lock"
            raise CannotCreate(503, {"message": message}, 10, known=True)
        if isinstance(answer, Refused):
            raise CannotCreate(answer.status, {"message": answer.reason}, answer.retry_after, known=True)
        assert isinstance(answer, Subscribed)
        assert shape.holds_back, "the table was entered before"
        return answer.unseen

    def answer(self, answer: InFrame) -> None:
        """The ingester answered a subscription, or says that the answer comes and the table's changes begin."""
        if answer.id not in self._waiting:
            return
        subscription = self._waiting[answer.id]
        if isinstance(answer, Entered):
            self._close(subscription)
        else:
            self._answered(subscription, answer)

    def ask_anew(self) -> None:
        """Another ingester or a new epoch: what was asked or answered before may be lost.

        It may also still come, and speak of a place in the stream that will be passed again: so all is held back.
        """
        for subscription in self._waiting.values():
            self._close(subscription)
            self._subscribe(subscription.subscribe)

    def _close(self, subscription: _Subscription) -> None:
        """The table's changes begin, or may have begun: who is with it holds them back, who comes later is not."""
        for shape in subscription.shapes:
            shape.holds_back = True
        self._leave(subscription)

    def _ask(self, subscription: _Subscription) -> None:
        self._asked[subscription.table] = subscription
        self._waiting[subscription.subscribe.id] = subscription
        self._subscribe(subscription.subscribe)

    def _answered(self, subscription: _Subscription, answer: Answer | None) -> None:
        self._leave(subscription)
        self._waiting.pop(subscription.subscribe.id, None)
        if self._asked.get(subscription.table) is subscription:
            del self._asked[subscription.table]
            if (following := self._open.get(subscription.table)) is not None:
                self._ask(following)
        if subscription.timeout is not None:
            subscription.timeout.cancel()
        if not subscription.answer.done():
            subscription.answer.set_result(answer)

    def _leave(self, subscription: _Subscription) -> None:
        if self._open.get(subscription.table) is subscription:
            del self._open[subscription.table]

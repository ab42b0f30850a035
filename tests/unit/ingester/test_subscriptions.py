"""What the ingester answers to a worker that wants a table."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

from common.frames import ANSWER, Entered, Subscribed, decode_answer, records
from common.messages import Hello, Subscribe
from ingester.coordinator import Coordinator
from ingester.fanout import Fanout
from ingester.publication import Published
from ingester.subscriptions import Subscriptions


class _Admin:
    """A database of which a snapshot taken now shows all but the transaction 7."""

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[_Admin]:
        yield self

    async def execute(self, _: str, *, prepare: bool) -> _Admin:
        return self

    async def fetchone(self) -> tuple[str]:
        return ("7:10:7",)


class _Publication:
    async def ensure_table(self, *_: object) -> Published:
        return Published()


async def test_a_snapshot_must_show_what_was_dispatched_before_a_rewind_too() -> None:
    """Otherwise a new shape would be said to have what comes to it only with the replay (INV-42)."""
    frames: list[bytes] = []
    fanout = Fanout(lambda _, frame: frames.append(frame), 0)
    coordinator = Coordinator(1)
    coordinator.hello(0, b"w:1", Hello(worker="w", boot="1", version=0, held=(), tables=(), requests="", events=""))
    fanout.ring.extend([(6, 1000), (7, 2000)])
    fanout.start_epoch(2, 500, {"w": ((0,), set())})  # the stream begins again before both

    def now(action: Callable[[], None]) -> None:
        action()

    subscriptions = Subscriptions(cast(Any, _Publication()), cast(Any, _Admin()), coordinator, fanout, now)
    subscriptions.subscribe("w", b"w:1", Subscribe(3, 16384, "public", "items"))
    for task in list(subscriptions._tasks):
        await task
    answers = [decode_answer(payload) for frame in frames for kind, _, payload in records(frame) if kind == ANSWER]
    assert answers == [Entered(3), Subscribed(3, 499, (7,), 16384)]

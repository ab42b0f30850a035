"""What the group does when a connection loses what was on it: real sockets, a worker that says what the test wants."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
import zmq

from common.config import Settings
from common.messages import MESSAGE, Durable, Hello, decode_to_worker, encode
from common.obstacles import Obstacle
from common.sockets import Channel, connected
from ingester.group import Group
from tests.unit import pgoutput_messages as build

_HANG_SECONDS = 60
TABLE = 10


@pytest.fixture
def settings() -> Iterator[Settings]:
    directory = Path(tempfile.mkdtemp(prefix="gr-"))  # the paths of Unix sockets must be short
    yield Settings(
        database_url="postgresql://u@localhost/db",
        insecure=True,
        storage_dir=directory,
        run_dir=directory,
        partitions=2,
    )
    shutil.rmtree(directory)


class Worker:
    """Holds what it is assigned, and is heard; it gives no credit."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], settings: Settings) -> None:
        self.frames = 0
        self.told: tuple[Obstacle, ...] = ()
        self._hello: Hello | None = None
        dealer = connected(context, zmq.DEALER, settings.stream_endpoint, {zmq.ROUTING_ID: b"w0:1"})
        self._channel = Channel(dealer, self._on_message)

    def say_hello(self, version: int = 0, held: tuple[int, ...] = ()) -> None:
        self._hello = Hello(worker="w0", boot="1", version=version, held=held, tables=(TABLE,), requests="", events="")
        self._channel.send([MESSAGE, encode(self._hello)])

    def plead(self, epoch: int) -> None:
        """Say that frames of this epoch are missing."""
        assert self._hello is not None
        self._channel.send([MESSAGE, encode(msgspec.structs.replace(self._hello, lost=True, epoch=epoch))])

    async def beat(self) -> None:
        while True:
            self._channel.send([MESSAGE, encode(Durable(1, 0, self.told))])
            await asyncio.sleep(0.05)

    def close(self) -> None:
        self._channel.close()

    def _on_message(self, parts: list[bytes]) -> None:
        if parts[0] == MESSAGE:
            assignment = decode_to_worker(parts[1])
            self.say_hello(assignment.version, assignment.partitions)
        else:
            self.frames += 1


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0.01)


async def test_what_is_lost_with_a_connection_is_sent_again(settings: Settings) -> None:
    changed = asyncio.Event()
    group = Group(settings, "b", on_subscribe=lambda *_: None, on_credit=lambda: None, on_change=changed.set)
    group.adopt(2, 1, 100)
    group.lead()
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    worker = Worker(context, settings)
    tasks = [asyncio.create_task(group.run()), asyncio.create_task(worker.beat())]
    try:
        worker.say_hello()
        async with asyncio.timeout(_HANG_SECONDS):
            await changed.wait()
            assert group.start_epoch(1) == {"w0": 2}
            assert group.coordinator is not None
            group.fanout.message(build.begin(2000, 7))
            while not group.fanout.blocked:
                group.fanout.message(build.insert(TABLE, [b"x" * 100_000]))
            await until(lambda: worker.frames > 0)
            # Also a worker without credit gets one more frame at times: so it learns what was lost, or gives credit.
            before = worker.frames
            group.fanout.beat()
            group.fanout.beat()
            await until(lambda: worker.frames > before)
            worker.told = (Obstacle("a", "is slow"),)
            await until(lambda: group.told == {"w0": worker.told})
            assert not group.coordinator.needs_epoch
            worker.plead(epoch=1)
            await until(lambda: group.coordinator is not None and group.coordinator.needs_epoch)
            assert group.start_epoch(2) == {"w0": 2}
            assert not group.fanout.blocked
            # One that comes late speaks of what has come again meanwhile.
            worker.plead(epoch=1)
            worker.told = ()
            await until(lambda: group.told == {"w0": ()})
            assert not group.coordinator.needs_epoch
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        worker.close()
        group._workers.close()
        group._events.close()
        group._context.term()
        context.term()

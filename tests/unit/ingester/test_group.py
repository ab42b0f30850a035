"""Who is told what, and when: nobody is given partitions while the lock is not ours (INV-3, INV-39)."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from common.config import Settings
from common.messages import (
    MESSAGE,
    STATUS_TOPIC,
    Assign,
    Blocked,
    FromWorker,
    Hello,
    Status,
    decode_status,
    decode_to_worker,
    encode,
)
from common.sockets import Channel, connected
from ingester.group import Group

PARTITIONS = 4


class Peer:
    """A worker's end of the stream socket; it does what the test says."""

    def __init__(self, context: zmq.Context[Any], settings: Settings, name: str, boot: str) -> None:
        self.name, self.boot = name, boot
        self.assigned: list[Assign] = []
        options: dict[int, int | bytes] = {zmq.ROUTING_ID: f"{name}:{boot}".encode()}
        self.channel = Channel(connected(context, zmq.DEALER, settings.stream_endpoint, options), self._on_message)

    def say(self, message: FromWorker) -> None:
        self.channel.send([MESSAGE, encode(message)])

    def hello(self, version: int = 0, held: tuple[int, ...] = ()) -> None:
        self.say(
            Hello(
                worker=self.name, boot=self.boot, version=version, held=held, tables=(), requests="ipc://r", events=""
            )
        )

    async def told(self) -> Assign:
        """The next assignment."""
        async with asyncio.timeout(120):
            while not self.assigned:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        return self.assigned.pop(0)

    def _on_message(self, parts: list[bytes]) -> None:
        if parts[0] == MESSAGE:
            self.assigned.append(decode_to_worker(parts[1]))


class World:
    """A group, what it published, and its workers."""

    def __init__(self, directory: Path) -> None:
        self.context: zmq.Context[Any] = zmq.Context()
        self.settings = Settings(database_url="postgresql://u@localhost/db", insecure=True, run_dir=directory)
        self.statuses: list[Status] = []
        self.group = Group(
            self.settings, "b", on_subscribe=lambda *_: None, on_credit=lambda: None, on_change=lambda: None
        )
        self.listener = Channel(
            connected(self.context, zmq.SUB, self.settings.status_endpoint, {zmq.SUBSCRIBE: STATUS_TOPIC}),
            lambda parts: self.statuses.append(decode_status(parts[1])),
        )
        self.task = asyncio.create_task(self.group.run())

    def worker(self, name: str = "w0", boot: str = "1") -> Peer:
        return Peer(self.context, self.settings, name, boot)

    async def status(self) -> Status:
        """What is published now."""
        async with asyncio.timeout(120):
            self.statuses.clear()
            while not self.statuses:
                self.group.publish()
                await asyncio.sleep(0.02)
        return self.statuses[-1]


@pytest.fixture
async def world() -> AsyncIterator[World]:
    directory = Path(tempfile.mkdtemp(prefix="gr-", dir="/tmp"))
    made = World(directory)
    yield made
    made.task.cancel()
    made.context.destroy(linger=0)
    made.group._context.destroy(linger=0)
    shutil.rmtree(directory)


async def settled() -> None:
    """Let everything that is on its way arrive, and the coordinator make up its mind."""
    await asyncio.sleep(0.9)


async def test_partitions_are_given_only_while_the_lock_is_held(world: World) -> None:
    group, worker = world.group, world.worker()
    worker.hello()
    await settled()
    status = await world.status()
    assert (status.partitions, status.generation, status.workers) == (0, 0, {})
    group.adopt(PARTITIONS, 7, 100)
    await settled()
    assert not worker.assigned
    assert (await world.status()).workers.keys() == {"w0"}, "what was said before counts"
    group.lead()
    first = await worker.told()
    assert (first.partitions, first.generation) == ((0, 1, 2, 3), 7)
    worker.hello(first.version, first.partitions)

    # The lock is lost, and the worker is started again: another instance's worker may need the partitions now.
    group.follow()
    again = world.worker(boot="2")
    again.hello()
    await settled()
    assert not again.assigned
    group.lead()
    assert (await again.told()).partitions == (0, 1, 2, 3)


async def test_health_names_the_partitions_that_somebody_holds(world: World) -> None:
    group, worker = world.group, world.worker()
    group.adopt(PARTITIONS, 1, 100)
    group.lead()
    worker.hello()
    assignment = await worker.told()
    assert group.missing == "4 partitions have no worker yet"
    worker.say(Blocked((1, 3), "another process still holds them"))
    await settled()
    assert group.missing == "4 partitions have no worker yet; w0 waits for 1, 3: another process still holds them"
    worker.hello(assignment.version, assignment.partitions)
    await settled()
    assert group.missing == "4 partitions have no worker yet", "held, but not fed yet"
    group.start_epoch(1)
    assert group.missing == ""


async def test_superseded_is_said_only_as_long_as_it_is_so(world: World) -> None:
    world.group.say("waiting", "another instance holds the lock", superseded=True)
    assert (await world.status()).superseded
    world.group.say("waiting", "the database is away")
    assert not (await world.status()).superseded

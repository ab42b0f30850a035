"""ZeroMQ on the loop: nothing lies unread, whatever the order of sends and receives."""

from __future__ import annotations

import asyncio
import select
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

import pytest
import zmq

from common.sockets import DRAIN_LIMIT, Channel, EndpointInUse, bound, connected, is_listened_on

Context: TypeAlias = zmq.Context[zmq.Socket[bytes]]


@pytest.fixture
def endpoint(tmp_path: Path) -> str:
    return f"ipc://{tmp_path}/s"


@pytest.fixture
def context() -> Iterator[Context]:
    """Ended with all its sockets: one that a failed test leaves would stop a later test when it is collected."""
    context: Context = zmq.Context()
    yield context
    context.destroy(linger=0)


async def until(condition: object, count: int) -> None:
    """Wait, without polling sockets, until the list has so many members."""
    assert isinstance(condition, list)
    async with asyncio.timeout(120):
        while len(condition) < count:  # noqa: ASYNC110 - what is tested is that callbacks come by themselves
            await asyncio.sleep(0.01)


async def test_every_message_arrives_in_order_also_when_both_sides_send_at_once(
    context: Context, endpoint: str
) -> None:
    got: list[bytes] = []
    echoed: list[bytes] = []

    def echo(parts: list[bytes]) -> None:
        got.append(parts[1])
        server.send(parts)

    server = Channel(bound(context, zmq.ROUTER, endpoint), echo)
    client = Channel(connected(context, zmq.DEALER, endpoint), lambda parts: echoed.append(parts[0]))
    count = 5 * DRAIN_LIMIT
    for number in range(count):
        assert client.send([b"%d" % number])
        if number % 100 == 0:
            await asyncio.sleep(0)
    await until(echoed, count)
    assert got == echoed == [b"%d" % number for number in range(count)]
    server.close()
    client.close()


async def test_what_a_send_has_noticed_does_not_lie_unread(context: Context, endpoint: str) -> None:
    got: list[list[bytes]] = []
    bare = bound(context, zmq.ROUTER, endpoint)
    server = Channel(bare, got.append)
    client = connected(context, zmq.DEALER, endpoint)
    client.send(b"first")
    await until(got, 1)
    news = select.poll()
    news.register(bare.getsockopt(zmq.FD), select.POLLIN)
    for number in range(2, 5):
        client.send(b"next")
        # The loop does not turn meanwhile; a send looks for news by itself when the last look was a millisecond ago.
        assert news.poll(60_000)
        time.sleep(0.01)  # noqa: ASYNC251 - as it says
        assert server.send([got[0][0], b"answer"])
        await until(got, number)
    server.close()
    client.close(0)


async def test_a_socket_that_only_sends_needs_no_reader(context: Context, endpoint: str) -> None:
    got: list[list[bytes]] = []
    publisher = Channel(bound(context, zmq.PUB, endpoint), None)
    subscriber = Channel(connected(context, zmq.SUB, endpoint, {zmq.SUBSCRIBE: b"a"}), got.append)
    async with asyncio.timeout(120):
        while not got:
            publisher.send([b"a", b"1"])
            publisher.send([b"b", b"2"])
            await asyncio.sleep(0.01)
    assert all(parts == [b"a", b"1"] for parts in got)
    publisher.close()
    subscriber.close()


async def test_a_router_says_when_it_does_not_know_the_peer(context: Context, endpoint: str) -> None:
    router = Channel(bound(context, zmq.ROUTER, endpoint, {zmq.ROUTER_MANDATORY: 1}), lambda _: None)
    assert not router.send([b"nobody", b"x"])
    router.close()
    assert not router.send([b"nobody", b"x"]), "a closed channel takes nothing"
    router.close()


async def test_an_endpoint_is_not_taken_from_whoever_has_it(context: Context, endpoint: str, tmp_path: Path) -> None:
    assert not is_listened_on(tmp_path / "s")
    first = bound(context, zmq.ROUTER, endpoint)
    with pytest.raises(EndpointInUse, match="GALVANIC_RUN_DIR"):
        bound(context, zmq.ROUTER, endpoint)
    first.close(0)
    context.term()  # only now the path is given up
    # What a process that was killed leaves behind.
    with socket.socket(socket.AF_UNIX) as dead:
        (tmp_path / "s").unlink(missing_ok=True)
        dead.bind(str(tmp_path / "s"))
    assert (tmp_path / "s").exists()
    with zmq.Context() as later:
        bound(later, zmq.ROUTER, endpoint).close(0)


async def test_a_turn_ends_when_nothing_waits_or_it_was_much(context: Context, endpoint: str) -> None:
    events: list[bytes] = []
    sender = Channel(bound(context, zmq.PUSH, endpoint), None)
    receiver = Channel(
        connected(context, zmq.PULL, endpoint),
        lambda parts: events.append(parts[0]),
        4,
        limit_bytes=1000,
        on_turn=lambda: events.append(b"turn"),
    )
    async with asyncio.timeout(60):
        for message in [b"small"] * 9 + [b"x" * 1000] * 3:
            while not sender.send([message]):  # noqa: ASYNC110 - until they are connected
                await asyncio.sleep(0.01)
        while len(events) - events.count(b"turn") < 12:  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.01)
    assert events[-1] == b"turn"
    assert all(b"turn" in events[at : at + 5] for at in range(len(events) - 4)), "others have theirs after four"
    assert events[events.index(b"x" * 1000) :] == [b"x" * 1000, b"turn"] * 3
    sender.close()
    receiver.close()

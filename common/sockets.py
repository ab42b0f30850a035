"""ZeroMQ sockets on an asyncio loop, without ``zmq.asyncio`` (14 times slower, performance.md 3).

ZMQ_FD is edge-triggered: it tells that *something* may have happened, once. So after every receive **and every send**
the socket must be looked at again, else a message can lie unread until the next one arrives. That look is to ask for
ZMQ_EVENTS: to be refused a message costs three times as much, a turn of the loop for nothing ten times.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import zmq

DRAIN_LIMIT = 256
"""Messages handled before other callbacks of the loop get their turn."""

DRAIN_BYTES = 1 << 20
"""The same in bytes."""


# As plain numbers, and parts one by one: pyzmq's enums and lists of parts cost more than what they are for.
_NOW = int(zmq.NOBLOCK)
_MORE_NOW = int(zmq.NOBLOCK | zmq.SNDMORE)
_EVENTS = int(zmq.EVENTS)
_INPUT = int(zmq.POLLIN)

RECONNECT_MS = (50, 1000)
HEARTBEAT_MS = 1000


class EndpointInUse(Exception):
    """Another process listens on an ipc endpoint; the text says on which, and what to do."""


class Channel:
    """A connected or bound socket whose messages are handed to ``on_message(parts)`` on the running loop.

    Sending never blocks; what cannot be sent (no such peer, full) is refused with ``False``: whoever must not lose
    messages bounds them by credits or asks again.
    """

    def __init__(
        self,
        socket: zmq.Socket[bytes],
        on_message: Callable[[list[bytes]], None] | None,
        limit: int = DRAIN_LIMIT,
        *,
        limit_bytes: int = DRAIN_BYTES,
        on_turn: Callable[[], None] | None = None,
    ) -> None:
        """``on_message`` is ``None`` for sockets that only send (PUB).

        After ``limit`` messages, or ``limit_bytes`` in their last parts, others get a turn. ``on_turn`` comes first,
        whenever messages have been handled.
        """
        self.socket = socket
        self._limit = limit
        self._limit_bytes = limit_bytes
        self._on_turn = on_turn
        self._on_message = on_message
        self._loop = asyncio.get_running_loop()
        self._scheduled = False
        self._closed = False
        self._fd = int(socket.getsockopt(zmq.FD))
        if on_message is not None:
            self._loop.add_reader(self._fd, self._drain)
            self._look_again()

    def send(self, parts: list[bytes]) -> bool:
        """Queue a message. ``False`` if the socket cannot take it or the peer is unknown (ROUTER_MANDATORY)."""
        return self.send_all((parts,))

    def send_all(self, messages: Iterable[list[bytes]]) -> bool:
        """Queue messages, one after the other. ``False`` at the first that is refused; the others are dropped."""
        if self._closed:
            return False
        send = self.socket.send
        try:
            for parts in messages:
                for part in parts[:-1]:
                    send(part, _MORE_NOW)
                send(parts[-1], _NOW)
        except zmq.ZMQError:
            return False
        finally:
            if self._on_message is not None and not self._scheduled and self._has_input():
                self._look_again()
        return True

    def close(self) -> None:
        """Stop listening and close the socket; messages queued but not sent are dropped."""
        if not self._closed:
            self._closed = True
            self._loop.remove_reader(self._fd)
            self.socket.close(0)

    def _has_input(self) -> bool:
        return bool(int(self.socket.getsockopt(_EVENTS)) & _INPUT)

    def _look_again(self) -> None:
        if self._on_message is not None and not self._scheduled and not self._closed:
            self._scheduled = True
            self._loop.call_soon(self._scheduled_drain)

    def _scheduled_drain(self) -> None:
        self._scheduled = False
        self._drain()

    def _drain(self) -> None:
        try:
            handled, more = self._handle_some()
            if handled and self._on_turn is not None:
                self._on_turn()
        except BaseException:
            # The event that announced the messages behind this one is spent.
            self._look_again()
            raise
        if more:
            self._look_again()

    def _handle_some(self) -> tuple[int, bool]:
        """Handle messages; how many they were, and whether there may be more."""
        count = size = 0
        while count < self._limit and size < self._limit_bytes:
            if self._closed or self._on_message is None:
                return count, False
            try:
                parts = self._receive()
            except zmq.Again:
                return count, False
            count += 1
            size += len(parts[-1])
            self._on_message(parts)
            if self._closed or not self._has_input():
                return count, False
        return count, True

    def _receive(self) -> list[bytes]:
        frame = self.socket.recv(_NOW, False)
        parts = [frame.bytes]
        while frame.more:
            frame = self.socket.recv(_NOW, False)
            parts.append(frame.bytes)
        return parts


def bound(context: zmq.Context[Any], kind: int, endpoint: str, options: dict[int, int | bytes] | None = None) -> Any:
    """A socket of this kind bound to the endpoint: nothing lingers at exit, queues are unbounded unless told else.

    Raises :class:`EndpointInUse`, since ZeroMQ would take an ipc endpoint away from whoever has it; ``zmq.ZMQError``
    when the endpoint cannot be bound.
    """
    if endpoint.startswith("ipc://") and is_listened_on(Path(endpoint.removeprefix("ipc://"))):
        raise EndpointInUse(
            f"another process listens on {endpoint}: each stack needs a GALVANIC_RUN_DIR of its own, and each of its "
            "workers an --id of its own"
        )
    socket = _socket(context, kind, options)
    socket.bind(endpoint)
    return socket


def is_listened_on(path: Path) -> bool:
    """Whether a living process listens on this Unix socket. One that was killed leaves its file behind."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(0)
        try:
            return probe.connect_ex(str(path)) in (0, errno.EAGAIN)
        except OSError:
            return False  # a path too long to be one


def connected(
    context: zmq.Context[Any], kind: int, endpoint: str, options: dict[int, int | bytes] | None = None
) -> Any:
    """A socket of this kind that connects, now or whenever the endpoint appears, and again after each loss."""
    socket = _socket(context, kind, options)
    socket.connect(endpoint)
    return socket


def _socket(context: zmq.Context[Any], kind: int, options: dict[int, int | bytes] | None) -> Any:
    socket = context.socket(kind)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.SNDHWM, 0)
    socket.setsockopt(zmq.RCVHWM, 0)
    socket.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS[0])
    socket.setsockopt(zmq.RECONNECT_IVL_MAX, RECONNECT_MS[1])
    # Over tcp a peer can vanish without a word: then both sides must notice, and connect anew.
    socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 4 * HEARTBEAT_MS)
    socket.setsockopt(zmq.HEARTBEAT_TTL, 4 * HEARTBEAT_MS)
    for option, value in (options or {}).items():
        socket.setsockopt(option, value)
    return socket

"""Sockets as ZeroMQ's behave, over a network that delays, stalls and cuts connections and drops what is only a hint.

Between two sockets there is at most one link, with the messages of each direction in order. When it is cut, what is
under way is lost; each side notices at its own time, and what it sends until then is lost too. A DEALER keeps what it
is given while it is not connected; a ROUTER refuses what is for nobody; a PUB drops it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import zmq

from tests.simulation.process import Process
from tests.simulation.scheduler import Scheduler

Parts = list[bytes]


class Network:
    """All sockets. ``hint_loss`` is the share of published messages that get lost."""

    def __init__(self, scheduler: Scheduler, *, delay: float, hint_loss: float) -> None:
        self.scheduler = scheduler
        self.delay = delay
        self.hint_loss = hint_loss
        self.links: dict[int, Link] = {}
        self._bound: dict[str, SimSocket] = {}
        self._numbers = 0

    def bind(self, kind: int, endpoint: str, options: dict[int, int | bytes]) -> SimSocket:
        """A socket of the present process; a former one at this endpoint is cut off, as with ipc."""
        socket = SimSocket(self, kind, endpoint, options)
        self._bound[endpoint] = socket
        return socket

    def connect(self, kind: int, endpoint: str, options: dict[int, int | bytes]) -> SimSocket:
        """A socket that connects as soon as it can, and again."""
        socket = SimSocket(self, kind, endpoint, options)
        if zmq.SUBSCRIBE in options:
            socket.topics[_bytes(options[zmq.SUBSCRIBE])] = None
        socket.reconnect(self.scheduler.rng.random() * 0.02)
        return socket

    def find(self, endpoint: str) -> SimSocket | None:
        """Who listens there."""
        socket = self._bound.get(endpoint)
        return socket if socket is not None and socket.open else None

    def number(self) -> int:
        """A new number."""
        self._numbers += 1
        return self._numbers

    def cut(self, link: Link, patience: float) -> None:
        """The connection is gone; its ends notice within ``patience`` seconds."""
        if link.number in self.links:
            del self.links[link.number]
            link.whole = False
            rng = self.scheduler.rng
            self.scheduler.trace("cut", link.client.name, link.server.name)
            for side in (link.client, link.server):
                self.scheduler.after(rng.random() * patience, lambda side=side: side.lost(link))  # type: ignore[misc]


class Link:
    """A connection."""

    def __init__(self, network: Network, client: SimSocket, server: SimSocket) -> None:
        self.number = network.number()
        self.client = client
        self.server = server
        self.whole = True
        self._scheduler = network.scheduler
        self._network = network
        self._latest = {client: 0.0, server: 0.0}
        network.links[self.number] = self

    def send(self, sender: SimSocket, action: Callable[[], None]) -> None:
        """Let the action happen at the other side, after all that this side sent before."""
        rng = self._scheduler.rng
        arrival = max(self._latest[sender], self._scheduler.now + rng.random() * self._network.delay)
        self._latest[sender] = arrival
        self._scheduler.at(arrival, lambda: self._arrive(action))

    def stall(self, seconds: float) -> None:
        """One direction, or both, carries nothing for a while."""
        rng = self._scheduler.rng
        for side in rng.choice(([self.client], [self.server], [self.client, self.server])):
            self._latest[side] = max(self._latest[side], self._scheduler.now + seconds)

    def _arrive(self, action: Callable[[], None]) -> None:
        if self.whole:
            action()


class SimSocket:
    """One end: what the product calls a ``zmq.Socket``, as far as it uses one."""

    def __init__(self, network: Network, kind: int, endpoint: str, options: dict[int, int | bytes]) -> None:
        self.network = network
        process = network.scheduler.current
        assert process is not None
        process.check()
        self.process: Process = process
        self.kind = kind
        self.endpoint = endpoint
        self.options = options
        self.name = f"{process.name}/{_KINDS[zmq.SocketType(kind)]}"
        self.open = True
        self.on_message: Callable[[Parts], None] | None = None
        self.monitor: SimSocket | None = None
        self.topics: dict[bytes, None] = {}
        self.link: Link | None = None
        self._known: dict[bytes, Link] = {}
        self._identities: dict[int, bytes] = {}
        self._subscribers: dict[int, tuple[Link, dict[bytes, None]]] = {}
        self._unsent: deque[Parts] = deque()
        self._backoff = 0.05
        process.on_kill.append(self.vanish)

    # ---- as the product uses it

    def setsockopt(self, option: int, value: int | bytes) -> None:
        """Subscriptions, after the socket was made."""
        self.process.check()
        topic = _bytes(value)
        begins = option == zmq.SUBSCRIBE
        if begins:
            self.topics[topic] = None
        else:
            self.topics.pop(topic, None)
        if self.link is not None:
            self._subscribe(self.link, topic, begins)

    def getsockopt_string(self, _: int) -> str:
        """Where it is bound."""
        return self.endpoint

    def get_monitor_socket(self, _: int) -> SimSocket:
        """A socket that tells when the connection is lost."""
        self.monitor = SimSocket(self.network, zmq.PAIR, "monitor", {})
        return self.monitor

    def disable_monitor(self) -> None:
        """No more of that."""
        self.monitor = None

    def send(self, parts: Parts) -> bool:
        """Queue a message; whether there is somebody for it."""
        self.process.check()
        if not self.open:
            return False
        if self.kind == zmq.DEALER:
            if self.link is None:
                self._unsent.append(parts)
            else:
                self._deliver(self.link, self.link.server, parts)
        elif self.kind == zmq.ROUTER:
            link = self._known.get(parts[0])
            if link is None:
                return not self.options.get(zmq.ROUTER_MANDATORY)
            self._deliver(link, link.client, parts[1:])
        else:
            rng = self.network.scheduler.rng
            # Without any word from the ingester there is no service; of the workers' hints all may be lost (INV-41).
            loss = self.network.hint_loss if self.kind == zmq.XPUB else min(self.network.hint_loss, 0.1)
            for link, topics in self._subscribers.values():
                if any(parts[0].startswith(topic) for topic in topics) and rng.random() >= loss:
                    self._deliver(link, link.client, parts)
        return True

    def close(self) -> None:
        """Nothing more is sent or received."""
        if self.open and self.process.alive:
            self.vanish()

    # ---- the network's side

    def vanish(self) -> None:
        """The socket is gone, perhaps with its process. Its peers notice soon, seldom only after a while."""
        self.open = False
        rng = self.network.scheduler.rng
        patience = 0.05 if rng.random() < 0.9 else 4.0
        for link in [link for link in self.network.links.values() if self in (link.client, link.server)]:
            self.network.cut(link, patience)

    def reconnect(self, delay: float) -> None:
        """Try to connect after a while."""
        self.network.scheduler.after(delay, self._try)

    def lost(self, link: Link) -> None:
        """This side notices that the link is gone."""
        if not self.open:
            return
        if link.client is self:
            if self.link is link:
                self.link = None
                if self.monitor is not None and self.monitor.on_message is not None:
                    self._hand_over(self.monitor, [b"disconnected"])
                self.reconnect(self._backoff)
            return
        identity = self._identities.pop(link.number, None)
        if identity is not None and self._known.get(identity) is link:
            del self._known[identity]
        _, topics = self._subscribers.pop(link.number, (link, {}))
        for topic in topics:
            self._tell_subscription(topic, begins=False)

    def _try(self) -> None:
        if not self.open or not self.process.alive or self.link is not None:
            return
        server = self.network.find(self.endpoint)
        rng = self.network.scheduler.rng
        if server is None or not server.process.alive:
            self._backoff = min(self._backoff * 2, 1.0)
            self.reconnect(self._backoff * (0.5 + rng.random()))
            return
        self._backoff = 0.05
        link = self.link = Link(self.network, self, server)
        link.send(self, lambda: server.accept(link))
        for topic in self.topics:
            self._subscribe(link, topic, True)
        while self._unsent:
            self._deliver(link, server, self._unsent.popleft())

    def accept(self, link: Link) -> None:
        """A peer has connected; one that has this identity already is superseded (ROUTER_HANDOVER)."""
        if self.kind == zmq.ROUTER:
            identity = _bytes(link.client.options.get(zmq.ROUTING_ID, b"\0%d" % link.number))
            self._known[identity] = link
            self._identities[link.number] = identity
        elif self.kind in (zmq.PUB, zmq.XPUB):
            self._subscribers[link.number] = (link, {})

    def _subscribe(self, link: Link, topic: bytes, begins: bool) -> None:
        server = link.server

        def arrive() -> None:
            entry = server._subscribers.get(link.number)
            if entry is None:
                return
            if begins:
                entry[1][topic] = None
            else:
                entry[1].pop(topic, None)
            server._tell_subscription(topic, begins=begins)

        link.send(self, arrive)

    def _tell_subscription(self, topic: bytes, *, begins: bool) -> None:
        # XPUB_VERBOSE: each subscription is told, the end only of the last one.
        if self.kind == zmq.XPUB and (begins or not any(topic in each for _, each in self._subscribers.values())):
            self._hand_over(self, [(b"\1" if begins else b"\0") + topic])

    def _deliver(self, link: Link, receiver: SimSocket, parts: Parts) -> None:
        def arrive() -> None:
            if receiver.kind == zmq.ROUTER:
                identity = receiver._identities.get(link.number)
                if identity is None:
                    return
                self._hand_over(receiver, [identity, *parts])
            else:
                self._hand_over(receiver, parts)

        link.send(self, arrive)

    @staticmethod
    def _hand_over(receiver: SimSocket, parts: Parts) -> None:
        def receive() -> None:
            if receiver.open and receiver.on_message is not None:
                receiver.on_message(parts)

        if receiver.open:
            receiver.process.loop.call_soon(receive)


class SimChannel:
    """``common.sockets.Channel`` over such a socket."""

    def __init__(
        self,
        socket: Any,
        on_message: Callable[[Parts], None] | None,
        limit: int = 0,
        *,
        limit_bytes: int = 0,
        on_turn: Callable[[], None] | None = None,
    ) -> None:
        """The limits do not count: each message comes by itself, and has a turn of its own."""

        def receive(parts: Parts) -> None:
            assert on_message is not None
            on_message(parts)
            if on_turn is not None:
                on_turn()

        self.socket: SimSocket = socket
        self.socket.on_message = None if on_message is None else receive

    def send(self, parts: Parts) -> bool:
        """Queue a message."""
        return self.socket.send(parts)

    def send_all(self, messages: Iterable[Parts]) -> bool:
        """Queue messages, until one is refused; each of them may get lost by itself."""
        return all(self.socket.send(parts) for parts in messages)

    def close(self) -> None:
        """Close the socket."""
        self.socket.close()


_KINDS = {
    zmq.DEALER: "dealer",
    zmq.ROUTER: "router",
    zmq.PUB: "pub",
    zmq.SUB: "sub",
    zmq.XPUB: "xpub",
    zmq.PAIR: "monitor",
}


def _bytes(value: int | bytes) -> bytes:
    assert isinstance(value, bytes)
    return value

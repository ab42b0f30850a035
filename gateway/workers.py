"""The connections to the workers: requests with their replies, and subscriptions to their events.

Each worker has one link, a DEALER and a SUB. A request fails with :class:`WorkerLost` when its worker goes away; it may
then have been carried out or not, which is why every request can be repeated.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Protocol

import msgspec
import structlog
import zmq
from zmq.utils.monitor import parse_monitor_message

from common.messages import (
    APPLIED_TOPIC,
    Drop,
    Reply,
    Request,
    Tail,
    Touched,
    WorkerPlace,
    decode_applied,
    decode_handle_event,
    decode_reply,
    encode,
    handle_topic,
)
from common.sockets import Channel, connected

log = structlog.get_logger(__name__)


class WorkerLost(Exception):
    """The worker went away, or is not known, before it answered: ask again, perhaps another one."""


class Listener(Protocol):
    """Who is told the events. They are hints: they may be lost, repeated or late."""

    def on_tail(self, handle: str) -> None:
        """The log of this handle may have grown."""

    def on_ended(self, handle: str) -> None:
        """The shape with this handle is gone."""

    def on_applied(self, generation: int, lsn: int, partitions: tuple[int, ...]) -> None:
        """All commits up to here are readable in these partitions."""


class Workers:
    """The links to all workers that the ingester knows. Must be used on one running loop."""

    def __init__(self, context: zmq.Context[Any], listener: Listener) -> None:
        self._context = context
        self._listener = listener
        self._links: dict[str, _Link] = {}

    def update(self, places: Mapping[str, WorkerPlace]) -> None:
        """Follow the ingester's list. A worker with new endpoints is a new one; subscriptions move to its new link."""
        for worker, link in list(self._links.items()):
            if places.get(worker) != link.place:
                del self._links[worker]
                link.close()
                if worker in places:
                    self._links[worker] = _Link(self._context, places[worker], self._listener, link.handles)
        for worker, place in places.items():
            if worker not in self._links:
                self._links[worker] = _Link(self._context, place, self._listener, set())

    async def ask(self, worker: str, make: Callable[[int], Request]) -> Reply:
        """Send the request that ``make(id)`` gives and wait for its reply; the caller limits the time.

        Raises :class:`WorkerLost`.
        """
        link = self._links.get(worker)
        if link is None:
            raise WorkerLost(worker)
        return await link.ask(make, link.next_id())

    @asynccontextmanager
    async def hold(self, worker: str, make: Callable[[int], Request]) -> AsyncIterator[Reply]:
        """As :meth:`ask`, for what the worker keeps while the block runs; it is told when that ends, however it does.

        Raises :class:`WorkerLost`.
        """
        link = self._links.get(worker)
        if link is None:
            raise WorkerLost(worker)
        id = link.next_id()
        try:
            yield await link.ask(make, id)
        finally:
            link.drop(id)

    def tell(self, worker: str, message: Touched) -> None:
        """Send what is not answered; unknown workers are ignored."""
        if link := self._links.get(worker):
            link.tell(message)

    def subscribe(self, worker: str, handle: str) -> None:
        """Ask for the events of a handle; the worker answers with the present one. Unknown workers are ignored."""
        if link := self._links.get(worker):
            link.subscribe(handle)

    def unsubscribe(self, worker: str, handle: str) -> None:
        """Stop the events of a handle."""
        if link := self._links.get(worker):
            link.unsubscribe(handle)

    def close(self) -> None:
        """Close all links; requests under way fail."""
        self.update({})


class _Link:
    def __init__(self, context: zmq.Context[Any], place: WorkerPlace, listener: Listener, handles: set[str]) -> None:
        self.place = place
        self.handles = handles
        self._listener = listener
        self._ids = 0
        self._waiting: dict[int, asyncio.Future[Reply]] = {}
        dealer = connected(context, zmq.DEALER, place.requests)
        monitor = dealer.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        self._monitor = Channel(monitor, self._on_monitor)
        self._requests = Channel(dealer, self._on_reply)
        self._events = Channel(
            connected(context, zmq.SUB, place.events, {zmq.SUBSCRIBE: APPLIED_TOPIC}), self._on_event
        )
        for handle in handles:
            self._events.socket.setsockopt(zmq.SUBSCRIBE, handle_topic(handle))

    def next_id(self) -> int:
        self._ids += 1
        return self._ids

    def drop(self, id: int) -> None:
        self._requests.send([encode(Drop(id))])

    async def ask(self, make: Callable[[int], Request], id: int) -> Reply:
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._waiting[id] = future
        try:
            if not self._requests.send([encode(make(id))]):
                raise WorkerLost(self.place.requests)
            return await future
        finally:
            self._waiting.pop(id, None)

    def tell(self, message: Touched) -> None:
        self._requests.send([encode(message)])

    def subscribe(self, handle: str) -> None:
        if handle not in self.handles:
            self.handles.add(handle)
            self._events.socket.setsockopt(zmq.SUBSCRIBE, handle_topic(handle))

    def unsubscribe(self, handle: str) -> None:
        if handle in self.handles:
            self.handles.remove(handle)
            self._events.socket.setsockopt(zmq.UNSUBSCRIBE, handle_topic(handle))

    def close(self) -> None:
        self._fail()
        self._requests.socket.disable_monitor()
        self._monitor.close()
        self._requests.close()
        self._events.close()

    def _fail(self) -> None:
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(WorkerLost(self.place.requests))

    def _on_monitor(self, parts: list[bytes]) -> None:
        # A request that the old process had received is lost with it; the socket reconnects by itself and says nothing.
        if parse_monitor_message(parts)["event"] == zmq.EVENT_DISCONNECTED:
            self._fail()

    def _on_reply(self, parts: list[bytes]) -> None:
        try:
            reply = decode_reply(parts[-1])
        except msgspec.DecodeError as error:
            log.error("unreadable reply from a worker", endpoint=self.place.requests, error=str(error))
            return
        future = self._waiting.get(reply.id)
        if future is not None and not future.done():
            future.set_result(reply)

    def _on_event(self, parts: list[bytes]) -> None:
        try:
            topic, body = parts
            if topic == APPLIED_TOPIC:
                applied = decode_applied(body)
                self._listener.on_applied(applied.generation, applied.lsn, applied.partitions)
                return
            handle = topic[1:-1].decode()
            if isinstance(decode_handle_event(body), Tail):
                self._listener.on_tail(handle)
            else:
                self._listener.on_ended(handle)
        except (ValueError, msgspec.DecodeError) as error:
            log.error("unreadable event from a worker", endpoint=self.place.events, error=str(error))

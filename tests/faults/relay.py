"""Stands between the ingester's status and a gateway, and sends the gateway to the workers through proxies.

Workers tell their endpoints through the ingester's status, so whoever changes the status decides which way a gateway
takes to them.
"""

from __future__ import annotations

import asyncio
import contextlib
from types import TracebackType
from typing import Any, Self

import msgspec
import zmq

from common.messages import STATUS_TOPIC, WorkerPlace, decode_status, encode
from common.sockets import Channel, bound, connected
from tests.faults.proxy import Proxy


class StatusRelay:
    """Forwards each status from ``source`` to ``endpoint``, every worker's place replaced by a proxy in front of it."""

    def __init__(self, source: str) -> None:
        self._source = source
        self.endpoint = ""
        self.proxies: dict[str, Proxy] = {}
        """By the endpoint that a worker told: its requests and its events."""
        self.events: list[Proxy] = []
        """Those of them that carry events."""
        self._context: zmq.Context[Any] = zmq.Context()
        self._exit = contextlib.AsyncExitStack()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        socket = bound(self._context, zmq.PUB, "tcp://127.0.0.1:*")
        self.endpoint = socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self._out = Channel(socket, None)
        options: dict[int, int | bytes] = {zmq.SUBSCRIBE: STATUS_TOPIC}
        self._in = Channel(connected(self._context, zmq.SUB, self._source, options), self._on_status)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await self._exit.aclose()
        self._in.close()
        self._out.close()
        self._context.term()

    def _on_status(self, parts: list[bytes]) -> None:
        task = asyncio.create_task(self._forward(parts[1]))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _forward(self, body: bytes) -> None:
        status = decode_status(body)
        workers = {}
        for name, place in status.workers.items():
            requests = await self._through(place.requests)
            before = len(self.proxies)
            events = await self._through(place.events)
            if len(self.proxies) > before:
                self.events.append(self.proxies[place.events])
            workers[name] = WorkerPlace(requests, events)
        self._out.send([STATUS_TOPIC, encode(msgspec.structs.replace(status, workers=workers))])

    async def _through(self, endpoint: str) -> str:
        if endpoint not in self.proxies:
            proxy = Proxy(int(endpoint.rpartition(":")[2]))
            self.proxies[endpoint] = proxy
            await self._exit.enter_async_context(proxy)
        return f"tcp://127.0.0.1:{self.proxies[endpoint].port}"

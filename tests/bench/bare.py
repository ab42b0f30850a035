"""What live requests are measured against, a program of its own: a slot and clients, and as little as can be between.

It reads a logical replication slot and holds every request that it gets, without looking at it; each commit answers all
of them with the messages of that commit as Postgres sent them. No routing, no log, no offsets, no validation.
"""

from __future__ import annotations

import asyncio
import struct
import time
from typing import Final, cast

import uvloop
from psycopg import pq

from common.process import allow_open_files
from tests.bench.program import Control

_POSTGRES_EPOCH: Final = 946_684_800
_HEAD: Final = (
    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncache-control: no-store\r\ncontent-length: %d\r\n\r\n%b"
)
_STREAM: Final = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


class _Clients:
    """Whoever waits for the next commit, and whoever has a stream open."""

    def __init__(self) -> None:
        self.waiting: list[asyncio.Transport] = []
        self.streams: set[asyncio.Transport] = set()

    def wake(self, body: bytes) -> None:
        waiting, self.waiting = self.waiting, []
        answer = _HEAD % (len(body), body)
        for transport in waiting:
            transport.write(answer)
        event = b"%x\r\n%b\r\n" % (len(body), body)
        for transport in self.streams:
            transport.write(event)


class _Server(asyncio.Protocol):
    def __init__(self, clients: _Clients) -> None:
        self._clients = clients
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's are not derived from it.
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._clients.streams.discard(self._transport)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if not self._buffer.endswith(b"\r\n\r\n"):
            return
        if b"live_sse" in self._buffer:
            self._transport.write(_STREAM)
            self._clients.streams.add(self._transport)
        else:
            self._clients.waiting.append(self._transport)
        self._buffer = b""


class _Slot:
    """The replication stream, read as soon as there is something; commits are acknowledged as they come."""

    def __init__(self, database: str, slot: str, publication: str, clients: _Clients) -> None:
        self._clients = clients
        self._connection = pq.PGconn.connect(f"{database}?replication=database".encode())
        if self._connection.status != pq.ConnStatus.OK:
            raise RuntimeError(self._connection.error_message.decode())
        options = f"(proto_version '1', publication_names '{publication}')"
        result = self._connection.exec_(f"START_REPLICATION SLOT {slot} LOGICAL 0/0 {options}".encode())
        if result.status != pq.ExecStatus.COPY_BOTH:
            raise RuntimeError(result.error_message.decode())
        self._changes: list[bytes] = []
        asyncio.get_running_loop().add_reader(self._connection.socket, self._read)

    def _read(self) -> None:
        self._connection.consume_input()
        while True:
            size, data = self._connection.get_copy_data(1)
            if size == 0:
                return
            if size < 0:
                raise RuntimeError("the replication stream has ended")
            message = bytes(data)
            if message[:1] == b"k":
                if message[17]:
                    self._acknowledge(struct.unpack_from(">Q", message, 1)[0])
            elif message[25:26] == b"I":
                self._changes.append(message[25:])
            elif message[25:26] == b"C":
                if self._changes:
                    self._clients.wake(b"".join(self._changes))
                    self._changes.clear()
                self._acknowledge(struct.unpack_from(">Q", message, 35)[0])

    def _acknowledge(self, lsn: int) -> None:
        now = int((time.time() - _POSTGRES_EPOCH) * 1e6)
        self._connection.put_copy_data(struct.pack(">cQQQqB", b"r", lsn, lsn, lsn, now, 0))
        self._connection.flush()


async def _main() -> None:
    control = await Control.open()
    order = await control.hear()
    clients = _Clients()
    server = await asyncio.get_running_loop().create_server(lambda: _Server(clients), "127.0.0.1", 0, backlog=2048)
    slot = _Slot(order["database"], order["slot"], order["publication"], clients)
    control.say(port=server.sockets[0].getsockname()[1])
    await control.hear()
    del slot


if __name__ == "__main__":
    allow_open_files()
    uvloop.run(_main())

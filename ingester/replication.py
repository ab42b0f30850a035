"""The replication stream over psycopg's libpq binding (psycopg itself has no replication API; performance.md 1).

Non-blocking throughout: the socket is read when the loop says so, many messages at a time, and not at all while paused.
Status updates go out on a timer of their own, so also while paused: a walsender that hears nothing kills us.
"""

from __future__ import annotations

import asyncio
import struct
import time
from typing import Any, Protocol

import psycopg
from psycopg import generators, sql
from psycopg.pq import ExecStatus

from common.lsn import format_lsn

XLOG_DATA = ord("w")
KEEPALIVE = ord("k")
_keepalive = struct.Struct(">QqB").unpack_from
_status = struct.Struct(">cQQQqB").pack

POSTGRES_EPOCH_US = 946_684_800_000_000
"""2000-01-01 as microseconds since 1970."""

BATCH = 2000
"""Messages read before other callbacks of the loop get their turn."""


class StreamLost(Exception):
    """The stream ended without having been asked to."""


class Sink(Protocol):
    """Who receives the stream. Called on the loop, in stream order; must not block."""

    def message(self, payload: bytes) -> None:
        """A pgoutput message. May call :meth:`ReplicationStream.pause`: the next message then waits for ``resume``."""

    def keepalive(self, position: int) -> None:
        """Postgres has sent everything before ``position``."""

    def drained(self) -> None:
        """The socket has no more to give for now, or a batch is full."""

    def flushed(self) -> int:
        """The position to report as durable."""

    def lost(self, error: Exception) -> None:
        """The stream is gone."""


class ReplicationStream:
    """COPY_BOTH on a connection opened with ``replication=database`` and set up by slot.py."""

    def __init__(self, connection: psycopg.AsyncConnection[Any], sink: Sink, status_interval: float) -> None:
        """``status_interval``: seconds between status updates; at most a third of wal_sender_timeout, at most 10."""
        self._connection = connection
        self._pg = connection.pgconn
        self._fd = -1
        self._sink = sink
        self._interval = status_interval
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._running = False
        self._paused = False
        self._received = 0
        self._heard = time.monotonic()
        self._again = False
        self._writing = False
        self.received_bytes = 0
        """Of changes, with their heads."""

    async def start(self, slot: str, publication: str, position: int) -> None:
        """START_REPLICATION from ``position``, or the slot's confirmed one if that is later.

        Raises ``psycopg.Error`` when Postgres refuses at once; it may also refuse a little later (engine.md 2.1).
        """
        # The option's value is a list of identifiers inside a string literal.
        names = sql.Literal(sql.Identifier(publication).as_string(None)).as_string(None)
        self._pg.send_query(
            f"START_REPLICATION SLOT {sql.Identifier(slot).as_string(None)} LOGICAL {format_lsn(position)} "
            f"(proto_version '1', publication_names {names})".encode()
        )
        (result, *_) = await self._connection.wait(generators.execute(self._pg))
        if result.status != ExecStatus.COPY_BOTH:
            raise psycopg.errors.error_from_result(result)
        self._fd = self._pg.socket
        self._running = True
        self._paused = False
        self._loop.add_reader(self._fd, self._on_readable)
        self.send_status()
        self._arm()
        self._loop.call_soon(self._drain)

    def pause(self) -> None:
        """Stop reading; status updates go on. Takes effect before the next message."""
        if not self._paused and self._running:
            self._paused = True
            self._loop.remove_reader(self._fd)

    def resume(self) -> None:
        """Go on reading, first what libpq has in memory already."""
        if self._paused and self._running:
            self._paused = False
            self._heard = time.monotonic()
            self._loop.add_reader(self._fd, self._on_readable)
            self._soon()

    @property
    def silent(self) -> float:
        """For how many seconds nothing has come, although it was waited for."""
        return 0.0 if self._paused or not self._running else time.monotonic() - self._heard

    def send_status(self, *, ask: bool = False) -> None:
        """Report the durable position now, and ask for a sign of life if so told."""
        if not self._running:
            return
        flushed = self._sink.flushed()
        received = max(self._received, flushed)
        now = time.time_ns() // 1000 - POSTGRES_EPOCH_US
        try:
            self._pg.put_copy_data(_status(b"r", received, flushed, flushed, now, ask))
            self._flush()
        except psycopg.Error as error:
            self._fail(error)

    def close(self) -> None:
        """Report the durable position once more and stop; the connection itself is its owner's to close.

        It cannot be used for another stream: once told to leave COPY, a logical walsender ends every later stream of
        its session at once (seen with Postgres 18), so each epoch has a connection of its own.
        """
        self.send_status()
        self._end()

    # ---- reading

    def _on_readable(self) -> None:
        self._heard = time.monotonic()
        try:
            self._pg.consume_input()
        except psycopg.Error as error:
            self._fail(error)
            return
        self._drain()

    def _drain(self) -> None:
        self._again = False
        if not self._running or self._paused:
            return
        get, sink = self._pg.get_copy_data, self._sink
        received = 0
        try:
            for _ in range(BATCH):
                size, data = get(1)
                if size <= 0:
                    break
                if data[0] == XLOG_DATA:
                    received += size
                    sink.message(bytes(data[25:]))
                    if self._paused:
                        break
                elif data[0] == KEEPALIVE:
                    self._on_keepalive(bytes(data))
            else:
                self._soon()
        except psycopg.Error as error:
            self._fail(error)
            return
        finally:
            self.received_bytes += received
        sink.drained()
        if size == -1:
            self._on_copy_end()

    def _on_keepalive(self, data: bytes) -> None:
        position, _, wants_reply = _keepalive(data, 1)
        self._received = max(self._received, position)
        self._sink.keepalive(position)
        if wants_reply:
            self.send_status()

    def _on_copy_end(self) -> None:
        error: Exception = StreamLost("Postgres ended the replication stream")
        try:
            result = None if self._pg.is_busy() else self._pg.get_result()
            if result is not None and result.status == ExecStatus.FATAL_ERROR:
                error = psycopg.errors.error_from_result(result)
        except psycopg.Error as failure:
            error = failure
        self._fail(error)

    def _soon(self) -> None:
        if not self._again:
            self._again = True
            self._loop.call_soon(self._drain)

    # ---- writing

    def _flush(self) -> None:
        if self._pg.flush() == 1:
            if not self._writing:
                self._writing = True
                self._loop.add_writer(self._fd, self._on_writable)
        elif self._writing:
            self._writing = False
            self._loop.remove_writer(self._fd)

    def _on_writable(self) -> None:
        try:
            self._flush()
        except psycopg.Error as error:
            self._fail(error)

    def _arm(self) -> None:
        self._timer = self._loop.call_later(self._interval, self._on_timer)

    def _on_timer(self) -> None:
        self.send_status(ask=True)
        if self._running:
            self._arm()

    # ---- ending

    def _fail(self, error: Exception) -> None:
        if self._running:
            self._end()
            self._sink.lost(error)

    def _end(self) -> None:
        if not self._running:
            return
        self._running = False
        if self._timer is not None:
            self._timer.cancel()
        self._loop.remove_reader(self._fd)
        if self._writing:
            self._writing = False
            self._loop.remove_writer(self._fd)

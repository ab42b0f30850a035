"""The connection a snapshot is read over: libpq without blocking, in a thread that can be stopped at any moment.

The thread waits in ``poll`` and nowhere else, so it holds the GIL only while there are rows to hand on.
"""

from __future__ import annotations

import select
import time
from collections.abc import Iterator, Sequence
from threading import Event
from typing import Final, NamedTuple

import psycopg
from psycopg import pq
from psycopg.errors import error_from_result

BATCH_BYTES: Final = 64 * 1024
BATCH_ROWS: Final = 250
"""Rows are handed on when they are or have so many, or when the server pauses: as many as are worked on in the
processor's cache. A row's item may be many times as long as the row."""

_TICK = 0.1
"""Seconds after which a waiting thread looks whether it is to stop."""

_VISIBLE_SECONDS = 0.25
"""How long rows may lie here, if the server is slow, before they are handed on nevertheless."""

_CONNECT_SECONDS = 10.0
_CANCEL_SECONDS = 5.0
_CANCEL_AGAIN_SECONDS = 0.25

Row = list[bytes | None]


class Stopped(Exception):
    """Whoever wanted the snapshot does not want it any more."""


class DeadlinePassed(Exception):
    """The server did not answer in time."""


class Batch(NamedTuple):
    """Rows of a COPY, each with its newline; ``pause`` says that the server has no more to give at the moment."""

    rows: Sequence[bytes | memoryview]
    pause: bool


class SnapshotConnection:
    """One connection, for one thread. All methods raise Stopped soon after ``stop`` is set, DeadlinePassed when the
    monotonic time ``deadline`` has passed, and ``psycopg.Error``. After any of these, only :meth:`close` is left."""

    def __init__(self, conninfo: str, stop: Event) -> None:
        """Connect. Host names should be resolved already: libpq resolves them with the GIL held."""
        self._stop = stop
        self._connection = pq.PGconn.connect_start(conninfo.encode())
        try:
            deadline = time.monotonic() + _CONNECT_SECONDS
            # libpq: after connect_start, behave as if connect_poll had asked for writing.
            status: int = pq.PollingStatus.WRITING
            while status != pq.PollingStatus.OK:
                self._wait(self._connection.socket, status, deadline)
                status = self._connection.connect_poll()
                if status == pq.PollingStatus.FAILED:
                    raise psycopg.OperationalError(self._connection.get_error_message())
            self._connection.nonblocking = 1
        except DeadlinePassed:
            self._connection.finish()
            raise psycopg.OperationalError("connection timeout expired") from None
        except BaseException:
            self._connection.finish()
            raise

    @property
    def server_version(self) -> int:
        """Numeric, as 180001."""
        return self._connection.server_version

    @property
    def user(self) -> str:
        """The role that the connection is for."""
        return (self._connection.user or b"").decode()

    def lend(self, stop: Event) -> bool:
        """Let it serve somebody else, whom ``stop`` stops; ``False`` if it is of no use any more.

        Between two uses a server says nothing, unless it ends the connection.
        """
        self._stop = stop
        idle = self._connection.transaction_status == pq.TransactionStatus.IDLE
        poll = select.poll()
        poll.register(self._connection.socket, select.POLLIN)
        return idle and not poll.poll(0)

    def query(self, statement: bytes, deadline: float, parameters: Sequence[bytes] | None = None) -> list[Row]:
        """Run and return the rows of the last result, values in text format.

        Without ``parameters`` the statement may be several, separated by semicolons.
        """
        if parameters is None:
            self._connection.send_query(statement)
        else:
            self._connection.send_query_params(statement, parameters)
        self._flush(deadline)
        return self.rest(deadline)

    def copy(self, statement: bytes, first_deadline: float, last_deadline: float | None = None) -> Iterator[Batch]:
        """Run a COPY TO STDOUT in text format and yield its rows in batches; the first as soon as possible.

        ``first_deadline`` holds until there is a first row or the end, ``last_deadline`` from then on.
        """
        self.send(statement, first_deadline)
        yield from self.copied(first_deadline, last_deadline)
        self.rest(last_deadline)

    def send(self, statements: bytes, deadline: float) -> None:
        """Send one statement or several, separated by semicolons; :meth:`rest` is to follow.

        For each COPY TO STDOUT among them, in order, :meth:`copied` comes before that.
        """
        self._connection.send_query(statements)
        self._flush(deadline)

    def rest(self, deadline: float | None) -> list[Row]:
        """The rows of the last of the statements sent, once all are done."""
        rows: list[Row] = []
        while (result := self._next_result(deadline)) is not None:
            columns = range(result.nfields)
            rows = [[result.get_value(row, column) for column in columns] for row in range(result.ntuples)]
        return rows

    def copied(self, first_deadline: float, last_deadline: float | None = None) -> Iterator[Batch]:
        """The rows of the next COPY among the statements that were sent; for the rest see :meth:`copy`."""
        connection = self._connection
        result = self._next_result(first_deadline)
        if result is None or result.status != pq.ExecStatus.COPY_OUT:
            raise psycopg.ProgrammingError("the statement is no COPY TO STDOUT")
        deadline: float | None = first_deadline
        receive = connection.get_copy_data
        rows: list[memoryview] = []
        size = 0
        handed_on = 0.0
        while True:
            count, data = receive(1)
            if count > 0:
                # The server sends each row as one message.
                rows.append(data)
                size += count
                if size >= BATCH_BYTES or len(rows) >= BATCH_ROWS:
                    yield Batch(rows, pause=False)
                    rows, size, deadline, handed_on = [], 0, last_deadline, time.monotonic()
            elif count == 0:
                if rows and time.monotonic() - handed_on > _VISIBLE_SECONDS:
                    yield Batch(rows, pause=True)
                    rows, size, deadline, handed_on = [], 0, last_deadline, time.monotonic()
                idle = _VISIBLE_SECONDS if rows else None
                self._wait(connection.socket, pq.PollingStatus.READING, deadline, idle)
                connection.consume_input()
            else:
                break
        self._next_result(deadline)
        if rows:
            yield Batch(rows, pause=True)

    def close(self) -> None:
        """Close. A running statement is cancelled: the server might not notice for long that nobody listens.

        Again and again, for some seconds: a server that has not begun with the statement yet drops the cancellation.
        """
        self._stop = Event()  # cancelling is what remains to be done once it was set
        until = time.monotonic()
        deadline = until + _CANCEL_SECONDS
        try:
            while not self._is_over(until) and until < deadline:
                self._cancel(deadline)
                until = min(deadline, time.monotonic() + _CANCEL_AGAIN_SECONDS)
        except (psycopg.Error, DeadlinePassed):
            pass  # closing is all that is left to do
        finally:
            self._connection.finish()

    def _is_over(self, until: float) -> bool:
        """Whether no statement runs any more, waited for ``until`` then; what still comes of it is dropped."""
        connection = self._connection
        try:
            while connection.transaction_status == pq.TransactionStatus.ACTIVE:
                if not connection.is_busy():
                    result = connection.get_result()
                    if result is None or result.status != pq.ExecStatus.COPY_OUT:
                        continue
                    while (count := connection.get_copy_data(1)[0]) > 0:
                        pass
                    if count < 0:
                        continue
                self._wait(connection.socket, pq.PollingStatus.READING, until)
                connection.consume_input()
        except DeadlinePassed:
            return False
        return True

    def _cancel(self, deadline: float) -> None:
        try:
            cancel = self._connection.cancel_conn()
        except psycopg.NotSupportedError:  # libpq before 17
            self._connection.get_cancel().cancel()
            return
        cancel.start()
        while (status := cancel.poll()) in (pq.PollingStatus.READING, pq.PollingStatus.WRITING):
            self._wait(cancel.socket, status, deadline)

    def _flush(self, deadline: float | None) -> None:
        while self._connection.flush():
            self._wait(self._connection.socket, pq.PollingStatus.WRITING, deadline)

    def _next_result(self, deadline: float | None) -> pq.abc.PGresult | None:
        while self._connection.is_busy():
            self._wait(self._connection.socket, pq.PollingStatus.READING, deadline)
            self._connection.consume_input()
        result = self._connection.get_result()
        if result is not None and result.status == pq.ExecStatus.FATAL_ERROR:
            raise error_from_result(result)
        return result

    def _wait(self, socket: int, status: int, deadline: float | None, idle: float | None = None) -> None:
        """Until the socket is ready, or for ``idle`` seconds at most."""
        poll = select.poll()
        poll.register(socket, select.POLLIN if status == pq.PollingStatus.READING else select.POLLOUT)
        until = None if idle is None else time.monotonic() + idle
        while True:
            if self._stop.is_set():
                raise Stopped
            now = time.monotonic()
            if deadline is not None and now >= deadline:
                raise DeadlinePassed
            ends = [end - now for end in (deadline, until) if end is not None]
            if poll.poll(1000 * max(0.001, min([_TICK, *ends]))):
                return
            if until is not None and time.monotonic() >= until:
                return

"""Connections to Postgres: how they are opened, which settings they run under, and what their errors mean.

A *direct* connection (``DATABASE_URL``) may keep session state. A *pooled* one may pass through a transaction-mode
pooler: on it everything happens inside transactions, with ``SET LOCAL`` and without named statements (engine.md H-G).
"""

from __future__ import annotations

import asyncio
import enum
import re
import select
import socket
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any, Final, NamedTuple

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.pq import TransactionStatus
from psycopg.rows import TupleRow

Connection = psycopg.AsyncConnection[TupleRow]

CONNECT_SECONDS: Final = 10
"""How long one attempt to connect may take, per address, unless the URL says otherwise."""

# --------------------------------------------------------------------------------------------------------------------
# settings

_DISPLAY: Final = {
    "bytea_output": "hex",
    "DateStyle": "ISO, DMY",
    "TimeZone": "UTC",
    "extra_float_digits": "1",
    "IntervalStyle": "iso_8601",
    "search_path": "pg_catalog",
    "client_encoding": "UTF8",
    "standard_conforming_strings": "on",
    # Changes what regclass and its kin print.
    "quote_all_identifiers": "off",
    # Logical decoding ignores row security, so a snapshot filtered by it would contradict the stream: rather an error.
    "row_security": "off",
}
_TIMEOUTS: Final = {"statement_timeout": "0", "lock_timeout": "0", "idle_in_transaction_session_timeout": "0"}


def _statements(command: str, settings: dict[str, str]) -> str:
    return "; ".join(f"{command} {name} TO '{value}'" for name, value in settings.items())


DISPLAY_SETTINGS: Final = _statements("SET LOCAL", _DISPLAY | _TIMEOUTS)
"""What every snapshot or subset transaction runs first, in one simple query, so that values read as they do in the
stream (http-api.md 14.3, engine.md 5.2). Takes no snapshot and leaves nothing behind in the session."""


def transaction_settings(server_version: int) -> str:
    """DISPLAY_SETTINGS and what servers of this numeric version (170002) have besides: 17's ``transaction_timeout``."""
    return DISPLAY_SETTINGS + ("; SET LOCAL transaction_timeout TO '0'" if server_version >= 170000 else "")


def session_settings(server_version: int) -> str:
    """The same for the whole session of a direct connection, among them the replication connection."""
    extra = {"idle_session_timeout": "0"} | ({"transaction_timeout": "0"} if server_version >= 170000 else {})
    return _statements("SET", _DISPLAY | _TIMEOUTS | extra)


# --------------------------------------------------------------------------------------------------------------------
# errors


class Kind(enum.Enum):
    """What to do about a problem with the database (engine.md 2.3)."""

    RETRY = "retry"
    """It may pass: try again with back-off."""
    FATAL = "fatal"
    """Somebody must change a setting: stop with one loud message."""
    SLOT_LOST = "slot_lost"
    """The slot cannot give the changes any more: make a new one and start a new generation."""


class Problem(NamedTuple):
    """``message`` is one line for operators, without secrets."""

    kind: Kind
    message: str


class DatabaseProblem(Exception):
    """A problem that Galvanic found itself; ``classify`` gives it back unchanged."""

    def __init__(self, kind: Kind, message: str) -> None:
        super().__init__(message)
        self.problem = Problem(kind, message)


class CannotConnect(psycopg.OperationalError):
    """An attempt to connect that failed; ``setting`` is the variable whose URL did not lead anywhere."""

    def __init__(self, message: str, setting: str) -> None:
        super().__init__(message)
        self.setting = setting


class PoolBusy(DatabaseProblem):
    """All connections of a pool stayed in use for as long as the caller was willing to wait."""


DATABASE_ERRORS: Final = (psycopg.Error, DatabaseProblem, OSError)
"""What using a database may raise, for ``except``; :func:`classify` says what it means."""


_TEXTS: Final = tuple(
    (kind, re.compile(pattern, re.IGNORECASE), advice)
    for kind, pattern, advice in (
        (
            Kind.SLOT_LOST,
            r"can no longer (get changes from|access) replication slot|slot .* has been invalidated"
            r"|requested WAL segment \S+ has already been removed",
            "",
        ),
        (Kind.RETRY, r"branch .*does not exist|temporary failure in name resolution", ""),
        (
            Kind.FATAL,
            r"logical decoding requires .*wal_level",
            "set wal_level = logical in the configuration of Postgres and restart it",
        ),
        (
            Kind.FATAL,
            r"to start (a )?wal ?sender|permission denied to use replication slots",
            "the user of DATABASE_URL needs the REPLICATION attribute: ALTER ROLE … WITH REPLICATION",
        ),
        (
            Kind.FATAL,
            r"unsupported startup parameter.*replication",
            "DATABASE_URL must lead to Postgres itself and not to a pooler; give that as ELECTRIC_POOLED_DATABASE_URL",
        ),
        (Kind.FATAL, r"authentication failed|no password supplied", "check user and password of the URL"),
        (
            Kind.FATAL,
            r"pg_hba\.conf.*(no encryption|SSL off)",
            "if the server demands TLS, do not set sslmode=disable; else let pg_hba.conf admit host, user and database",
        ),
        (
            Kind.FATAL,
            r"no pg_hba\.conf entry|pg_hba\.conf rejects",
            "let pg_hba.conf admit this host, user and database",
        ),
        (
            Kind.FATAL,
            r'role "[^"]*" (does not exist|is not permitted to log in)|no such user',
            "check the user of the URL",
        ),
        (Kind.FATAL, r'database "[^"]*" does not exist|no such database', "check the database name of the URL"),
        (
            Kind.FATAL,
            r"could not translate host name|failed to resolve host|name or service not known"
            r"|nodename nor servname|no address associated",
            "check the host of the URL",
        ),
        (
            Kind.FATAL,
            r"server does not support SSL|certificate verify failed|does not match host name|root certificate file"
            r"|could not (read|load) (private|certificate|root)|authentication method .* not supported",
            "check sslmode and ELECTRIC_DATABASE_CA_CERTIFICATE_FILE",
        ),
        (Kind.FATAL, r"exceeded .*quota|endpoint .*(could not be|not) found", "see the console of the provider"),
        (
            Kind.RETRY,
            r"remaining connection slots|too many (clients|connections)|all replication slots are in use"
            r"|max_wal_senders|connection refused|starting up|shutting down|in recovery mode",
            "",
        ),
    )
)
"""Told by text, since libpq gives no SQLSTATE for a connection that failed; the first that matches decides.

A server speaks the language of its ``lc_messages`` until the session has begun, and no startup option changes that
sooner: what a server refuses in another language than English counts as RETRY, with its text as the reason.
"""

_FATAL_STATES: Final = ("28", "3D000", "42501", "42601")
_SECRETS: Final = re.compile(r"(?i)(\bpassword\s*=\s*)('(?:[^'\\]|\\.)*'|\S+)|(://[^\s:/@]*:)[^\s@]*@")


def classify(error: BaseException) -> Problem:
    """What an error from a database connection means (engine.md 2.3). Whatever is not known may pass: RETRY."""
    if isinstance(error, DatabaseProblem):
        return error.problem
    text = _one_line(error)
    if isinstance(error, CannotConnect):
        text = f"{error.setting}: {text}"
    for kind, pattern, advice in _TEXTS:
        if pattern.search(text):
            return Problem(kind, f"{text}; {advice}" if advice else text)
    state = getattr(error, "sqlstate", None) or ""
    return Problem(Kind.FATAL if state.startswith(_FATAL_STATES) else Kind.RETRY, text)


def is_unavailable(error: BaseException) -> bool:
    """Whether there is no connection, as opposed to a statement that failed: nothing is known about the database."""
    state = getattr(error, "sqlstate", None) or ""
    if isinstance(error, psycopg.Error):
        lost = isinstance(error, psycopg.OperationalError) and not state
        return lost or state.startswith(("08", "57P")) or state == "53300"
    return isinstance(error, OSError | PoolBusy)


def _one_line(error: BaseException) -> str:
    parts: Iterable[str | None] = (str(error),)
    if isinstance(error, psycopg.Error) and error.diag.message_primary:
        parts = (error.diag.message_primary, error.diag.message_detail)
    text = ": ".join(line for part in parts if part and (line := " ".join(part.split())))
    text = re.sub(r"^connection (failed|is bad): ", "", text) or type(error).__name__
    return _SECRETS.sub(lambda match: f"{match[1]}***" if match[1] else f"{match[3]}***@", text)


# --------------------------------------------------------------------------------------------------------------------
# connections


def conninfo(url: str, application_name: str, *, replication: bool = False) -> str:
    """A libpq connection string for a URL that ``common.config`` has completed.

    Dead peers are noticed after a minute unless the URL has other keep-alive options. Raises ``ValueError`` without the
    URL, which holds a password, if libpq does not take it.
    """
    try:
        parameters = conninfo_to_dict(url)
    except psycopg.Error:
        raise ValueError("the database URL is not valid") from None
    defaults = {
        "connect_timeout": CONNECT_SECONDS,
        "keepalives_idle": 30,
        "keepalives_interval": 10,
        "keepalives_count": 3,
    }
    ours: dict[str, Any] = {"fallback_application_name": application_name, "client_encoding": "UTF8"}
    if replication:
        ours["replication"] = "database"
    return make_conninfo(**(defaults | parameters | ours))


async def resolve(text: str, prefer_ipv6: bool) -> str:
    """The connection string with all addresses of its host, those of the preferred family first.

    Left alone when there is nothing to choose: several hosts, a socket directory, an address. The host's name stays in
    it, for the check of certificates. Raises ``psycopg.OperationalError`` when the name is not known.
    """
    parameters = conninfo_to_dict(text)
    host = str(parameters.get("host") or "")
    if not host or host.startswith(("/", "@")) or "," in host or parameters.get("hostaddr"):
        return text
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise psycopg.OperationalError(f"failed to resolve host {host!r}: {error.strerror or error}") from None
    wanted = socket.AF_INET6 if prefer_ipv6 else socket.AF_INET
    ordered = sorted(found, key=lambda entry: entry[0] != wanted)
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in ordered))
    several = {"host": ",".join([host] * len(addresses)), "hostaddr": ",".join(addresses)}
    return make_conninfo(text, **several)


_NEVER: Final = 1 << 30
"""After so many executions psycopg would prepare a statement by itself; ``None`` forbids it altogether."""

_PLAN_ONCE: Final = "SET plan_cache_mode TO 'force_generic_plan'"
"""Left to itself, the server may plan a prepared statement anew each time, because it takes an array of unknown length
for a long one. What we prepare reads catalogs through their indexes, however that is planned."""


async def connect(
    url: str,
    application_name: str,
    *,
    replication: bool = False,
    pooled: bool = False,
    prepares: bool = False,
    prefer_ipv6: bool = False,
    setting: str = "DATABASE_URL",
) -> Connection:
    """A new connection in autocommit mode. If it ``prepares``, statements executed with ``prepare=True`` are prepared,
    and no others: it must not go through a pooler.

    Unless ``pooled``, the settings of ``session_settings`` are in force. With ``replication`` it is a walsender that
    also takes SQL, but only through the simple protocol: no parameters in ``execute``. Raises ``psycopg.Error``, for
    ``classify``; ``CannotConnect`` with ``setting``, where the URL comes from, when there is no connection.
    """
    try:
        text = await resolve(conninfo(url, application_name, replication=replication), prefer_ipv6)
        connection = await psycopg.AsyncConnection.connect(
            text, autocommit=True, prepare_threshold=_NEVER if prepares else None
        )
    except psycopg.OperationalError as error:
        raise CannotConnect(str(error), setting) from error
    try:
        settings = [] if pooled else [session_settings(connection.info.server_version)]
        if prepares:
            settings.append(_PLAN_ONCE)
        if settings:
            await connection.execute("; ".join(settings).encode())
    except BaseException:
        await connection.close()
        raise
    return connection


class Pool:
    """At most ``size`` connections, made when needed, handed out first come, first served.

    Not ``psycopg_pool``, which retries failed connections in the background: here a caller gets the true error at once,
    so that it can be classified and reported.
    """

    def __init__(
        self,
        url: str,
        application_name: str,
        size: int,
        *,
        pooled: bool = False,
        prepares: bool = False,
        prefer_ipv6: bool = False,
        setting: str = "DATABASE_URL",
        patience: float = 5.0,
        keep: float = 300.0,
    ) -> None:
        """``patience``: seconds a caller waits for its turn. ``keep``: seconds an unused connection is kept.

        ``setting`` is the variable that the URL comes from; ``prepares`` as for :func:`connect`.
        """
        self._url, self._name, self._pooled, self._prefer_ipv6 = url, application_name, pooled, prefer_ipv6
        self._prepares = prepares
        self._setting = setting
        self._patience, self._keep = patience, keep
        self._turns = asyncio.Semaphore(size)
        self._idle: list[tuple[Connection, float]] = []
        self._closed = False

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """A connection in autocommit mode, for the time of the block; what it leaves open is rolled back.

        Raises ``PoolBusy`` when none became free in time, ``psycopg.Error`` when there is none to be had.
        """
        try:
            async with asyncio.timeout(self._patience):
                await self._turns.acquire()
        except TimeoutError:
            raise PoolBusy(Kind.RETRY, "all connections of the pool to the database are in use") from None
        try:
            connection = await self._take()
            try:
                yield connection
            finally:
                await self._give_back(connection)
        finally:
            self._turns.release()

    async def close(self) -> None:
        """Closes the idle connections; those in use close when they are given back."""
        self._closed = True
        while self._idle:
            await self._idle.pop()[0].close()

    async def _take(self) -> Connection:
        oldest = time.monotonic() - self._keep
        while self._idle:
            connection, since = self._idle.pop()
            if since >= oldest and _still_open(connection):
                return connection
            await connection.close()
        return await connect(
            self._url,
            self._name,
            pooled=self._pooled,
            prepares=self._prepares,
            prefer_ipv6=self._prefer_ipv6,
            setting=self._setting,
        )

    async def _give_back(self, connection: Connection) -> None:
        try:
            if connection.info.transaction_status in (TransactionStatus.INTRANS, TransactionStatus.INERROR):
                await connection.rollback()
        except psycopg.Error:
            pass  # lost, which the status below tells as well
        finally:
            # Also when cancelled: nothing half-done may serve the next caller.
            if self._closed or connection.info.transaction_status != TransactionStatus.IDLE:
                connection.pgconn.finish()
            else:
                self._idle.append((connection, time.monotonic()))
        while self._idle and self._idle[0][1] < time.monotonic() - self._keep:
            await self._idle.pop(0)[0].close()


def _still_open(connection: Connection) -> bool:
    """Notices without a round trip that the server has closed a connection: on an idle one there is nothing to read."""
    if connection.closed:
        return False
    poll = select.poll()
    poll.register(connection.pgconn.socket, select.POLLIN)
    return not poll.poll(0)

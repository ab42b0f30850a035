"""The server that a session talks to: which one it is, and what it allows (engine.md 2.3)."""

from __future__ import annotations

from typing import Final, NamedTuple

import msgspec

from common.lsn import parse_lsn
from common.postgres import Connection, DatabaseProblem, Kind, Problem

OLDEST_SERVER: Final = 140000


class System(NamedTuple):
    """The answer to IDENTIFY_SYSTEM: ``wal_lsn`` is how far the server's WAL is flushed."""

    system_identifier: str
    timeline: int
    wal_lsn: int
    database: str


async def identify(connection: Connection) -> System:
    """Which server and database the replication connection leads to. Raises ``psycopg.Error``."""
    cursor = await connection.execute("IDENTIFY_SYSTEM")
    row = await cursor.fetchone()
    if row is None or row[3] is None:
        raise DatabaseProblem(Kind.FATAL, "the replication connection is not tied to a database")
    return System(str(row[0]), int(row[1]), parse_lsn(row[2]), str(row[3]))


class ServerFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What the server is and allows. ``wal_sender_timeout`` in seconds, 0 for none; ``version`` as 180001.

    ``may_replicate`` knows the attribute, superusers and the role that Amazon RDS uses instead; another provider may
    have another way, so the last word is the replication connection's.
    """

    version: int
    wal_level: str
    wal_sender_timeout: float
    in_recovery: bool
    encoding: str
    may_replicate: bool
    user: str
    database: str
    database_oid: int
    system_identifier: str

    def problem(self) -> Problem | None:
        """Why Galvanic cannot work with this server, ``None`` if it can (engine.md 2.3)."""
        if self.version < OLDEST_SERVER:
            return Problem(Kind.FATAL, f"Postgres {self.version // 10000} is too old; Galvanic needs 14 or newer")
        if self.in_recovery:
            return Problem(Kind.RETRY, "the database is a standby in recovery; Galvanic needs the primary")
        if self.wal_level != "logical":
            advice = "set wal_level = logical in the configuration of Postgres and restart it"
            return Problem(Kind.FATAL, f"wal_level is {self.wal_level!r}; {advice}")
        return None


async def server_facts(admin: Connection) -> ServerFacts:
    """Asks the server what it is, in one round trip. Raises ``psycopg.Error``."""
    cursor = await admin.execute("""
        SELECT current_setting('server_version_num')::int, current_setting('wal_level'),
               (SELECT setting::int / 1000.0 FROM pg_settings WHERE name = 'wal_sender_timeout'),
               pg_is_in_recovery(), pg_encoding_to_char(d.encoding),
               r.rolsuper OR r.rolreplication OR EXISTS (
                   SELECT FROM pg_roles m WHERE m.rolname = 'rds_replication' AND pg_has_role(r.oid, m.oid, 'MEMBER')),
               r.rolname, d.datname, d.oid::bigint, (SELECT system_identifier::text FROM pg_control_system())
        FROM pg_database d, pg_roles r WHERE d.datname = current_database() AND r.rolname = current_user
    """)
    row = await cursor.fetchone()
    if row is None:
        raise DatabaseProblem(Kind.RETRY, "the database was dropped or renamed while it was being looked at")
    return ServerFacts(
        version=row[0],
        wal_level=row[1],
        wal_sender_timeout=float(row[2]),
        in_recovery=row[3],
        encoding=row[4],
        may_replicate=row[5],
        user=row[6],
        database=row[7],
        database_oid=row[8],
        system_identifier=row[9],
    )

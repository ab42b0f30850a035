"""Looks at what Galvanic needs before it starts: directories, ports, and the database. Changes nothing.

A *fatal* finding will not go away by itself, so starting is pointless. A *warning* may: the processes wait and try
again.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psycopg

from common.config import Settings
from common.database_url import describe_database_url
from common.logging import Redaction, known_secrets
from common.sockets import is_listened_on

MINIMUM_SERVER_VERSION = 140_000
_CONNECT_SECONDS = 5

# What libpq and Postgres say when trying again will not help. libpq gives no SQLSTATE for a failed connection.
_LASTING_FAILURES = re.compile(
    "password authentication failed|no password supplied|authentication failed|does not exist|not permitted to log in"
    "|could not translate host name|failed to resolve host|no pg_hba.conf entry|permission denied for database"
    "|not currently accepting connections"
    "|does not support SSL|certificate verify failed|root certificate file|invalid connection option|SCRAM|SASL"
    "|server certificate for",
    re.IGNORECASE,
)
_FACTS = """
SELECT current_setting('wal_level'), current_setting('server_version_num')::int, pg_is_in_recovery(),
       r.rolreplication OR r.rolsuper OR EXISTS (
         SELECT FROM pg_roles m WHERE m.rolname IN ('rds_replication', 'rds_superuser')
            AND pg_has_role(current_user, m.oid, 'MEMBER')),
       has_database_privilege(current_database(), 'CREATE')
         OR EXISTS (SELECT FROM pg_publication WHERE pubname = %s),
       current_user
  FROM pg_roles r WHERE r.rolname = current_user
"""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: `text` is one line for people, without secrets."""

    severity: Literal["fatal", "warning", "ok"]
    text: str


@dataclass(frozen=True)
class DatabaseFacts:
    """What the database says about itself and about the role that is used."""

    wal_level: str
    version: int
    in_recovery: bool
    may_replicate: bool
    may_publish: bool
    role: str


def examine(settings: Settings) -> list[Finding]:
    """All findings, those about this machine first."""
    return [*examine_host(settings), *examine_database(settings)]


def examine_host(settings: Settings) -> list[Finding]:
    """Directories and ports."""
    family = socket.AF_INET6 if settings.listen_on_ipv6 else socket.AF_INET
    findings = [
        examine_directory("ELECTRIC_STORAGE_DIR", settings.storage_dir),
        examine_directory("GALVANIC_RUN_DIR", settings.run_dir),
        *examine_run_directory(settings.run_dir),
        examine_port("ELECTRIC_PORT", settings.port, family),
    ]
    if settings.prometheus_port is not None:
        findings.append(examine_port("ELECTRIC_PROMETHEUS_PORT", settings.prometheus_port, family))
    return findings


def examine_directory(variable: str, path: Path) -> Finding:
    """Whether the directory can be written, or made if it is missing."""
    place = path
    try:
        while not place.exists():
            place = place.parent
        if not place.is_dir():
            return Finding("fatal", f"{variable}: {path} cannot be a directory, because {place} is a file")
        if place == path:
            tempfile.TemporaryFile(dir=path).close()
        elif not os.access(place, os.W_OK | os.X_OK):
            return Finding("fatal", f"{variable}: {path} cannot be created, because {place} is not writable")
    except NotADirectoryError:
        return Finding("fatal", f"{variable}: {path} cannot be a directory, because a file is in its way")
    except OSError as error:
        return Finding("fatal", f"{variable}: {path} is not writable ({error.strerror})")
    return Finding("ok", f"{variable}: {path} is writable")


def examine_run_directory(path: Path) -> list[Finding]:
    """A finding if another living stack has its sockets there: ours would take them away from it."""
    for socket_file in sorted(path.glob("*.sock")):
        if is_listened_on(socket_file):
            return [
                Finding(
                    "fatal",
                    f"GALVANIC_RUN_DIR: {path} is in use by a Galvanic that runs ({socket_file.name} answers); a "
                    "second one needs a run directory of its own",
                )
            ]
    return []


def examine_port(variable: str, port: int, family: socket.AddressFamily = socket.AF_INET) -> Finding:
    """Whether nobody listens on the port yet. The gateways share it by SO_REUSEPORT, so their bind would not tell."""
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return Finding("fatal", f"{variable}: port {port} is already in use by another program")
            return Finding("fatal", f"{variable}: port {port} cannot be used ({error.strerror})")
    return Finding("ok", f"{variable}: port {port} is free")


def examine_database(settings: Settings) -> list[Finding]:
    """Connects to the database and judges what it says."""
    facts = read_facts("DATABASE_URL", settings.database_url, settings)
    if isinstance(facts, Finding):
        return [facts]
    findings = judge_facts(facts, settings)
    if settings.pooled_database_url != settings.database_url:
        pooled = read_facts("ELECTRIC_POOLED_DATABASE_URL", settings.pooled_database_url, settings)
        if isinstance(pooled, Finding):
            findings.append(pooled)
    return findings


def read_facts(variable: str, url: str, settings: Settings) -> DatabaseFacts | Finding:
    """The facts, or the finding why they could not be had."""
    place = describe_database_url(url)
    try:
        with psycopg.connect(url, connect_timeout=_CONNECT_SECONDS, autocommit=True) as connection:
            row = connection.execute(_FACTS, [settings.publication_name]).fetchone()
    except psycopg.Error as error:
        reason = Redaction(known_secrets(settings)).text(str(error))
        return judge_failure(variable, place, reason)
    if row is None:
        return Finding("warning", f"{variable}: the role at {place} is not in pg_roles")
    return DatabaseFacts(*row)


def judge_failure(variable: str, place: str, reason: str) -> Finding:
    """Whether a failed connection may succeed later, with the line of libpq's text that names the cause."""
    lines = [line for line in reason.splitlines() if line.strip()] or ["unknown error"]
    failures = [line for line in lines if "failed: " in line] or lines
    telling = next(filter(_LASTING_FAILURES.search, lines), failures[0])
    cause = re.sub(r"^.*(failed: |FATAL: +)", "", telling).strip()
    if _LASTING_FAILURES.search(reason):
        return Finding("fatal", f"{variable}: cannot connect to {place}: {cause}")
    return Finding("warning", f"{variable}: cannot connect to {place} yet: {cause}; trying again")


def judge_facts(facts: DatabaseFacts, settings: Settings) -> list[Finding]:
    """What the facts mean for Galvanic."""
    if facts.version < MINIMUM_SERVER_VERSION:
        return [
            Finding("fatal", f"DATABASE_URL: Postgres {facts.version // 10000} is too old; version 14 is the oldest")
        ]
    if facts.wal_level != "logical":
        return [
            Finding(
                "fatal",
                f"DATABASE_URL: wal_level is '{facts.wal_level}' and must be 'logical'; run "
                "ALTER SYSTEM SET wal_level = 'logical' and restart Postgres",
            )
        ]
    if not facts.may_replicate:
        return [
            Finding(
                "fatal",
                f"DATABASE_URL: role '{facts.role}' may not replicate; run "
                f'ALTER ROLE "{facts.role}" WITH REPLICATION as a superuser',
            )
        ]
    findings = [Finding("ok", f"DATABASE_URL: Postgres {facts.version // 10000} answers, wal_level is logical")]
    if facts.in_recovery:
        findings.append(Finding("warning", "DATABASE_URL: the server is a standby; waiting until it is promoted"))
    if not facts.may_publish and not settings.manual_table_publishing:
        findings.append(
            Finding(
                "warning",
                f"DATABASE_URL: role '{facts.role}' may not create the publication {settings.publication_name}; grant "
                "CREATE on the database, or create it and set ELECTRIC_MANUAL_TABLE_PUBLISHING=true",
            )
        )
    return findings

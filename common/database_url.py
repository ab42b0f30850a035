"""The rules for a database URL, and its completed form that libpq takes as it is (http-api.md 30, `DATABASE_URL`)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlencode, urlsplit

SSL_MODES = ("disable", "allow", "prefer", "require")
_OPTION_NAMES = (
    "application_name channel_binding client_encoding connect_timeout dbname gssencmode host hostaddr keepalives "
    "keepalives_count keepalives_idle keepalives_interval krbsrvname options passfile password port require_auth "
    "requiressl sslcert sslcompression sslcrl sslkey sslmode sslpassword sslrootcert sslsni ssl_min_protocol_version "
    "ssl_max_protocol_version target_session_attrs tcp_user_timeout user"
)
_OPTIONS = frozenset(_OPTION_NAMES.split())
"""Connection options libpq 14 to 18 know; others are left out, as a driver that does not know them would."""


def complete_database_url(url: str, ca_file: str | None = None, options: Mapping[str, str | None] | None = None) -> str:
    """Checks a URL and returns it as a libpq URI with `options` added where it does not set them itself.

    With `ca_file` the server's certificate and name are verified. Unknown options of the URL are dropped. Raises
    ValueError with a text that follows the variable's name and never contains the URL or its password.
    """
    parts = _split(url)
    given = {name: value for name, value in parse_qsl(parts.query, keep_blank_values=True) if name in _OPTIONS}
    if "replication" in dict(parse_qsl(parts.query, keep_blank_values=True)):
        raise ValueError("must not set replication=; Galvanic opens its replication connection itself")
    if not (parts.username or given.get("user")):
        raise ValueError("has no user name; write postgresql://USER:PASSWORD@HOST:5432/DATABASE")
    if not (parts.hostname or given.get("host") or given.get("hostaddr")):
        raise ValueError("has no host; write postgresql://USER:PASSWORD@HOST:5432/DATABASE")
    _check_ssl(given.get("sslmode"), ca_file)
    if ca_file is not None:
        given |= {"sslmode": "verify-full", "sslrootcert": ca_file}
    for name, value in (options or {}).items():
        if value is not None:
            given.setdefault(name, value)
    database = parts.path.lstrip("/") or quote(unquote(parts.username or ""), safe="")
    path = f"/{database}" if database else ""
    return parts._replace(scheme="postgresql", path=path, query=urlencode(given, quote_via=quote), fragment="").geturl()


def describe_database_url(url: str) -> str:
    """The host, port and database a URL leads to, for messages: nothing that must stay secret."""
    parts = urlsplit(url)
    options = dict(parse_qsl(parts.query))
    host = parts.hostname or options.get("host") or options.get("hostaddr") or "localhost"
    return f"{host}:{parts.port or options.get('port') or 5432}, database {unquote(parts.path.lstrip('/'))!r}"


def _split(url: str) -> SplitResult:
    form = "write postgresql://USER:PASSWORD@HOST:5432/DATABASE with special characters percent-encoded"
    try:
        parts = urlsplit(url.strip())
    except ValueError:
        raise ValueError(f"is not a valid URL; {form}") from None
    if parts.scheme not in ("postgres", "postgresql"):
        raise ValueError("must start with postgresql:// or postgres://")
    try:
        valid_port = parts.port is None or 1 <= parts.port <= 65535
    except ValueError:
        valid_port = False
    if not valid_port:
        raise ValueError(f"has no valid port number; {form}")
    if parts.fragment or re.search(r"[\s\x00-\x1f]|%(?![0-9A-Fa-f]{2})|%00", url.strip()):
        raise ValueError(f"has a character that must be percent-encoded; {form}")
    if "/" in parts.path[1:]:
        raise ValueError(f"names no valid database; {form}")
    return parts


def _check_ssl(mode: str | None, ca_file: str | None) -> None:
    if mode in ("verify-ca", "verify-full"):
        raise ValueError(
            f"must not use sslmode={mode}; to verify the server use sslmode=require and "
            "ELECTRIC_DATABASE_CA_CERTIFICATE_FILE"
        )
    if mode is not None and mode not in SSL_MODES:
        raise ValueError(f"has an unknown sslmode; use one of {', '.join(SSL_MODES)}")
    if mode == "disable" and ca_file is not None:
        raise ValueError("must not use sslmode=disable together with ELECTRIC_DATABASE_CA_CERTIFICATE_FILE")

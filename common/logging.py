"""What a process says: one line per event on standard error, as key=value text or JSON, never with a secret in it."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterable
from typing import Any
from urllib.parse import unquote, urlsplit

import structlog
from setproctitle import setproctitle
from structlog.typing import EventDict, Processor, WrappedLogger

from common.config import Settings

REDACTED = "[redacted]"

_SECRET_KEY = re.compile(
    r"(^|[_.-])(secret|password|passwd|pwd|token|api_?key|authorization|cookie|credentials?)s?$", re.IGNORECASE
)
# http-api.md 3.5 names the query parameters; `password=` also occurs in libpq's key=value form.
_SECRET_PARAMETER = re.compile(
    r"((?<![A-Za-z0-9])(?:api_?secret|secret|access_token|token|api_?key|password)=)('[^']*'|[^\s&'\"#,;)]+)",
    re.IGNORECASE,
)
# Greedy up to the last @ before the path: an unencoded @ in a password must not leave half of it.
_URL_PASSWORD = re.compile(r"(\b[A-Za-z][A-Za-z0-9+.-]*://[^\s/:@]*):[^\s/]*@")
_MIN_LITERAL = 6
"""Shorter secrets are not searched for in texts: they would blot out ordinary words."""


class Redaction:
    """A structlog processor that removes secrets: values of secret-like keys, in URLs, and known ones anywhere."""

    def __init__(self, known: Iterable[str] = ()) -> None:
        literals = sorted({text for text in known if len(text) >= _MIN_LITERAL}, key=len, reverse=True)
        self._known = re.compile("|".join(map(re.escape, literals))) if literals else None

    def __call__(self, logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
        """Returns the event without secrets."""
        return {key: self._value(key, value) for key, value in event.items()}

    def text(self, text: str) -> str:
        """The text with every secret in it replaced."""
        text = _URL_PASSWORD.sub(rf"\1:{REDACTED}@", text)
        text = _SECRET_PARAMETER.sub(rf"\1{REDACTED}", text)
        return self._known.sub(REDACTED, text) if self._known is not None else text

    def _value(self, key: str, value: Any) -> Any:
        if value is None or isinstance(value, bool | int | float):
            return value
        if _SECRET_KEY.search(key):
            return REDACTED
        if isinstance(value, bytes):
            return self.text(value.decode(errors="backslashreplace"))
        if isinstance(value, dict):
            return {name: self._value(str(name), item) for name, item in value.items()}
        if isinstance(value, list | tuple | set | frozenset):
            return [self._value("", item) for item in value]
        return self.text(str(value))


def known_secrets(settings: Settings) -> set[str]:
    """The secrets these settings hold: the API secret and the database passwords, as written and decoded."""
    passwords = {urlsplit(url).password for url in (settings.database_url, settings.pooled_database_url)}
    found = {password for password in passwords if password}
    return found | {unquote(password) for password in found} | ({settings.secret} if settings.secret else set())


def configure_logging(settings: Settings, process_name: str) -> None:
    """Sets up structlog and the standard library's logging for this process, and its title in process lists.

    Every event carries time (UTC), level, the process's name and the event. Libraries are heard from level warning on.
    May be called again.
    """
    setproctitle(f"galvanic: {process_name}")

    def add_process(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
        event["process"] = process_name
        return event

    renderer: Processor = (
        structlog.processors.JSONRenderer()
        if settings.log_format == "json"
        else structlog.processors.LogfmtRenderer(key_order=["time", "level", "process", "event"], bool_as_flag=False)
    )
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
        add_process,
        structlog.processors.format_exc_info,
        Redaction(known_secrets(settings)),
    ]
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared, processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer]
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(max(level, logging.WARNING) if level > logging.DEBUG else logging.INFO)

"""`galvanic explain`: asks a running Galvanic about a clause and prints what it says for people."""

from __future__ import annotations

import json
import re
import textwrap
import urllib.error
import urllib.request
from collections.abc import Mapping
from http.client import HTTPException
from typing import Any, Final
from urllib.parse import urlencode

TIMEOUT: Final = 60.0
"""Seconds to wait for an answer: a gateway gives up long before."""

_STRANGER: Final = "what listens at {url} is no gateway of this version: ELECTRIC_PORT or --url must name one"
_WIDTH: Final = 110
_LONGEST: Final = 1_000
"""Characters of the SQL that are printed; ILIKE has a table of letters in it."""


class ExplainError(Exception):
    """There is no explanation; the text says why, and what to do about it. ``body`` is the gateway's answer if any."""

    def __init__(self, message: str, body: bytes = b"") -> None:
        super().__init__(message)
        self.body = body


def ask(url: str, query: Mapping[str, str]) -> bytes:
    """The answer of the gateway at ``url`` to a query of ``/v1/explain``. Raises :class:`ExplainError`."""
    if not re.fullmatch(r"https?://[^\s/?#]+(/[^\s?#]*)?", url):
        raise ExplainError(f"{url} is no address of a gateway: http://HOST:PORT")
    try:
        with urllib.request.urlopen(f"{url}/v1/explain?{urlencode(query)}", timeout=TIMEOUT) as answer:
            body: bytes = answer.read()
    except urllib.error.HTTPError as error:
        with error:
            body = error.read()
        raise ExplainError(_refusal(url, error.code, body), body) from None
    except OSError as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        raise ExplainError(
            f"no answer from {url} ({reason}): is Galvanic running? 'galvanic up' starts it; ELECTRIC_PORT or --url say"
            " where it listens"
        ) from None
    except (HTTPException, ValueError):
        # Its text may repeat the query, and with it the secret.
        raise ExplainError(_STRANGER.format(url=url)) from None
    if not isinstance(_parsed(body), dict):
        raise ExplainError(_STRANGER.format(url=url))
    return body


def shown(body: bytes) -> str:
    """An answer as lines for people."""
    answer = _parsed(body)
    fields = [("table", answer["table"])]
    if answer["parsed"] is not None:
        fields.append(("parsed", answer["parsed"]))
    if answer["columns"]:
        fields.append(("reads", ", ".join(f"{column['name']} {column['type']}" for column in answer["columns"])))
    fields += [("cost", answer["cost"]), ("access", answer["access"]["summary"])]
    if answer["advice"]:
        fields.append(("advice", answer["advice"]))
    lines = [_field(name, text) for name, text in fields]
    if len(answer["sql"]) <= _LONGEST:
        # In one line, to be copied.
        lines.append(f"{'snapshot':10}EXPLAIN {answer['sql']};")
    return "\n".join(lines)


def _field(name: str, text: str) -> str:
    indent = " " * 10
    return textwrap.fill(
        text,
        _WIDTH,
        initial_indent=f"{name:10}",
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _refusal(url: str, status: int, body: bytes) -> str:
    said = _parsed(body)
    match said:
        case {"errors": dict(errors)}:
            return "; ".join(f"{field}: {text}" for field, texts in errors.items() for text in texts)
        case _ if status == 401:
            return f"{url} has another secret: set ELECTRIC_SECRET to the one that it runs with"
        case {"message": str(message)}:
            return f"{url} answers {status}: {message}"
        case _ if status == 404:
            return _STRANGER.format(url=url)
    return f"{url} answers {status}"


def _parsed(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        return None

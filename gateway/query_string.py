"""The request target: path segments and the query as a map (http-api.md 1.6, 1.7).

Decoded here from the raw bytes and not by the HTTP library, because routing, the secret and the meaning of repeated and
bracketed keys all hang on it.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final, NamedTuple
from urllib.parse import unquote_to_bytes

Value = str | list["Value"] | dict[str, "Value"]
"""A plain parameter is a text, ``k[]=v`` a list, ``k[x]=v`` a map."""

REMEMBERED: Final = 512
"""Decoded texts kept; none is longer than a request line."""

_AUTHORITY = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^/?#]*")
_BRACKETED = re.compile(r"([^\[\]]+)((?:\[[^\[\]]*\])+)", re.DOTALL)
_BRACKET = re.compile(r"\[([^\[\]]*)\]")


class Target(NamedTuple):
    """A request target: the decoded, non-empty path segments and the query, still encoded."""

    segments: tuple[str, ...]
    query: str


def parse_target(raw: str) -> Target:
    """Split the target of a request line, of origin or absolute form.

    Routing and authentication both use the segments, so no spelling of a path can reach a handler around the secret.
    """
    path, _, query = raw.partition("#")[0].partition("?")
    return Target(_segments(path), query)


@lru_cache(maxsize=REMEMBERED)
def _segments(path: str) -> tuple[str, ...]:
    path = _AUTHORITY.sub("", path, count=1)
    return tuple(_decode_bytes(part).decode("utf-8", "replace") for part in path.split("/") if part)


def parse_query(query: str) -> dict[str, Value]:
    """Decode form parameters. A malformed escape stays as it is; of a repeated plain key the last one wins.

    Raises ``UnicodeDecodeError`` when a decoded name or value is not UTF-8.
    """
    values: dict[str, Value] = {}
    for pair in query.split("&"):
        if pair:
            _assign(values, *_decoded(pair))
    return values


@lru_cache(maxsize=REMEMBERED)
def _decoded(pair: str) -> tuple[str, str]:
    """Name and value of a parameter. From one request to the next, a client changes one or two of them."""
    name, _, value = pair.partition("=")
    return _decode(name), _decode(value)


def _decode(text: str) -> str:
    return _decode_bytes(text.replace("+", " ")).decode("utf-8")


def _decode_bytes(text: str) -> bytes:
    # The HTTP library hands over raw bytes above 127 as surrogates; they must fail as UTF-8 if they are none.
    return unquote_to_bytes(text.encode("utf-8", "surrogateescape"))


def _assign(values: dict[str, Value], name: str, value: str) -> None:
    match = _BRACKETED.fullmatch(name) if "[" in name else None
    if match is None:
        values[name] = value
        return
    place: dict[str, Value] = values
    key = match[1]
    for inner in _BRACKET.findall(match[2]):
        below = place.get(key)
        if inner == "":
            # A list ends the path: what follows in further brackets has no meaning for any parameter.
            if not isinstance(below, list):
                below = place[key] = []
            below.append(value)
            return
        if not isinstance(below, dict):
            below = place[key] = {}
        place, key = below, inner
    place[key] = value

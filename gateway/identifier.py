"""SQL identifiers as clients write them: quoted or folded, qualified or listed (http-api.md 7).

Everything here works on text alone; whether a table or a column exists is for the worker to say.
"""

from __future__ import annotations

import unicodedata
from typing import Final

MAX_LENGTH: Final = 63
"""Characters an identifier may have once it is unquoted."""

DEFAULT_SCHEMA: Final = "public"
"""Where unqualified tables live; the database's search_path plays no part."""


class IdentifierError(ValueError):
    """The text is no identifier; the message is the one clients get."""


def parse_identifier(text: str) -> str:
    """The name that ``text`` stands for: unquoted, or folded to lower case in ASCII only.

    Raises :class:`IdentifierError`.
    """
    quoted = len(text) > 1 and text.startswith('"') and text.endswith('"')
    name = _unquote(text[1:-1]) if quoted else text
    if not name:
        raise IdentifierError("Invalid zero-length delimited identifier")
    if "\0" in name:
        raise IdentifierError("Invalid identifier contains a null character")
    if not quoted:
        if not _is_plain(name):
            raise IdentifierError(f"Invalid unquoted identifier contains special characters: {name}")
        name = "".join(char.lower() if char.isascii() else char for char in name)
    if len(name) > MAX_LENGTH:
        raise IdentifierError(f"Identifier is too long (max length is {MAX_LENGTH})")
    return name


def parse_relation(text: str) -> tuple[str, str]:
    """``(schema, table)`` of a possibly qualified table name. Raises :class:`IdentifierError`."""
    parts = _split(text, ".")
    if len(parts) > 2:
        raise IdentifierError(f"Invalid relation identifier, too many delimiters: {text}")
    if len(parts) == 1:
        return DEFAULT_SCHEMA, parse_identifier(parts[0])
    return parse_identifier(parts[0]), parse_identifier(parts[1])


def parse_columns(text: str) -> list[str]:
    """The names of a comma list, in its order, duplicates included. Raises :class:`IdentifierError`."""
    return [parse_identifier(part) for part in _split(text, ",")]


def _unquote(inner: str) -> str:
    if '"' in inner.replace('""', ""):
        raise IdentifierError(f"Invalid identifier with unescaped quote: {inner}")
    return inner.replace('""', '"')


def _is_plain(name: str) -> bool:
    first = name[0]
    return (first == "_" or unicodedata.category(first)[0] == "L") and all(
        char in "_$" or unicodedata.category(char)[0] in "LM" or unicodedata.category(char) == "Nd" for char in name
    )


def _split(text: str, separator: str) -> list[str]:
    """Cut at separators outside quotes: those followed by an even number of quote characters."""
    parts: list[str] = []
    for piece in reversed(text.split(separator)):
        if parts and parts[-1].count('"') % 2:
            parts[-1] = piece + separator + parts[-1]
        else:
            parts.append(piece)
    return parts[::-1]

"""The normal form of a where clause, by which two spellings of it are one shape (http-api.md 10.1).

It is a matter of the text alone, so a gateway can tell it without the table: tokens joined by single blanks, without
comments, words in lower case, parameters numbered as they come, without those that the clause does not use. The clause
means what it meant: only places in error messages differ.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from common.pg_query import GrammarError, tokens

MAX_BYTES: Final = 10_000
"""Longer clauses stay as they are: a request line cannot have them."""

MAX_TOKENS: Final = 2_000
"""The same for clauses of more words: this many take 2 ms, of which the caller's loop is held up."""

CACHED: Final = 512
"""Clauses whose normal form is remembered, up to 20 kB each."""


def normal_form(where: str, params: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    """The clause and its parameters in their normal form; both as they are if they have none, because they are wrong
    or long."""
    found = _scanned(where)
    if found is None:
        return where, params
    text, numbers = found
    if not all(0 < number <= len(params) for number in numbers):
        return where, params
    return text, tuple(params[number - 1] for number in numbers)


@lru_cache(maxsize=CACHED)
def _scanned(where: str) -> tuple[str, tuple[int, ...]] | None:
    """The normal text, and the numbers that its parameters ``$1``, ``$2``… had."""
    try:
        encoded = where.encode()
    except UnicodeEncodeError:
        return None
    if len(encoded) > MAX_BYTES or b"\0" in encoded:
        return None
    try:
        found = tokens(encoded, MAX_TOKENS)
    except GrammarError:
        return None
    if found is None:
        return None
    places: dict[int, int] = {}
    pieces: list[bytes] = []
    for kind, text in found:
        match kind:
            case "word":
                # Of bytes, lower() changes ASCII only, as Postgres does.
                pieces.append(text.lower())
            case "parameter":
                pieces.append(b"$%d" % places.setdefault(int(text[1:]), len(places) + 1))
            case "exact":
                pieces.append(b"<>" if text == b"!=" else text)
    return (b" ".join(pieces).decode(), tuple(places)) if pieces else None

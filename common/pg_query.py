"""Postgres' own scanner and grammar, as libpg_query has them: the only module that knows the library around it.

What is scanned and what is parsed here agree with each other, because both come from one library.
"""

from __future__ import annotations

import ctypes
from typing import Final, Literal

from postgast.native import lib
from postgast.pg_query_pb2 import ScanResult, Token

Kind = Literal["word", "parameter", "comment", "exact"]
"""A word is a keyword or an identifier without quotes: its ASCII letters mean the same in either case. What is exact
means something else with any byte changed: operators, numbers, all that stands in quotes."""

_COMMENTS: Final = frozenset((Token.SQL_COMMENT, Token.C_COMMENT))
_NCHAR: Final = int(Token.NCHAR)
_IDENT: Final = int(Token.IDENT)
_PARAM: Final = int(Token.PARAM)
_QUOTE: Final = ord('"')


class GrammarError(Exception):
    """The text is no SQL. ``position`` counts bytes from its start."""

    def __init__(self, message: str, position: int) -> None:
        super().__init__(message)
        self.position = position


def parse(sql: bytes) -> bytes:
    """The parse tree as JSON: the library's protobuf form ends at some 45 nested operators. Raises GrammarError.

    Its recursion may take 100 bytes of stack for each byte of ``sql``.
    """
    result = lib.pg_query_parse(sql)
    try:
        _check(result)
        tree: bytes = result.parse_tree
        return tree
    finally:
        lib.pg_query_free_parse_result(result)


def tokens(sql: bytes, limit: int) -> list[tuple[Kind, bytes]] | None:
    """The tokens, comments included, without what is between them; None if there are more than ``limit``.

    Joined by blanks, they are read as these tokens again. ``sql`` must not have a zero byte, which would end it. Raises
    GrammarError.
    """
    result = lib.pg_query_scan(sql)
    try:
        _check(result)
        scanned = ScanResult.FromString(ctypes.string_at(result.pbuf.data, result.pbuf.len))
    finally:
        lib.pg_query_free_scan_result(result)
    if len(scanned.tokens) > limit:
        return None
    found: list[tuple[Kind, bytes]] = []
    for token in scanned.tokens:
        text, number = sql[token.start : token.end], token.token
        if number == _NCHAR:
            # N'…' is this keyword and a text; an n by itself would be a column.
            found.append(("word", b"nchar"))
        elif token.keyword_kind or (number == _IDENT and text[0] != _QUOTE):
            found.append(("word", text))
        elif number == _PARAM:
            found.append(("parameter", text))
        else:
            found.append(("comment" if number in _COMMENTS else "exact", text))
    return found


def _check(result: ctypes.Structure) -> None:
    if result.error:
        error = result.error.contents
        raise GrammarError(error.message.decode(errors="replace"), error.cursorpos - 1)

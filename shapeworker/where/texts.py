"""Values that are texts, bytes, truths or identifiers: how Postgres reads, folds, matches and prints them.

Upper and lower case have one meaning here, whatever the database's locale: that of the letters Unicode had in version
3.2, one for one. Databases differ in theirs, and Python's changes with its version. The SQL of a shape says the same
(see :mod:`canonical`).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from functools import lru_cache
from typing import Final

from shapeworker.where.errors import EvaluationError
from shapeworker.where.numbers import SPACE

_TRUE: Final = ("true", "yes", "on", "1")
_FALSE: Final = ("false", "no", "off", "0")


def is_text(text: str) -> bool:
    """Whether Postgres could have it as a text: without NUL, and all of it characters."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in text


def bool_input(text: str) -> bool:
    """The input function of bool: any unambiguous prefix of a word, in any case. Raises ValueError."""
    word = text.strip(SPACE).lower()
    # Of "on" and "off", one letter is not enough.
    if word and word != "o" and word.isascii():
        if any(name.startswith(word) for name in _TRUE):
            return True
        if any(name.startswith(word) for name in _FALSE):
            return False
    raise ValueError(text)


_UUID: Final = re.compile(r"(\{)?((?:[0-9a-fA-F]{4}-?){7}[0-9a-fA-F]{4})(?(1)\})\Z")


def uuid_input(text: str) -> str:
    """The input function of uuid, to its canonical text. Raises ValueError."""
    match = _UUID.match(text)
    if match is None:
        raise ValueError(text)
    digits = match[2].replace("-", "").lower()
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


_ESCAPED: Final = re.compile(rb"\\(\\|[0-3][0-7][0-7])")


def bytea_input(text: str) -> bytes:
    """The input function of bytea, in its hex and its escape format. Raises ValueError."""
    if text.startswith("\\x"):
        digits = text[2:]
        if not re.fullmatch(r"(?:[ \n\t\r]*[0-9a-fA-F]{2})*[ \n\t\r]*", digits):
            raise ValueError(text)
        return bytes.fromhex(digits)
    raw = text.encode()
    if b"\\" in _ESCAPED.sub(b"", raw):
        raise ValueError(text)
    return _ESCAPED.sub(lambda match: b"\\" if match[1] == b"\\" else bytes([int(match[1], 8)]), raw)


def read_bytea(text: bytes) -> bytes:
    """A bytea as Postgres prints it in hex."""
    return bytes.fromhex(text[2:].decode())


def write_bytea(value: bytes) -> str:
    """The output function of bytea, in hex."""
    return "\\x" + value.hex()


def name_input(text: str) -> str:
    """A ``name``: at most 63 bytes, cut at a character."""
    return text.encode()[:63].decode(errors="ignore")


def stripped(text: str) -> str:
    """A bpchar without the blanks that fill it up, which do not count in most places."""
    return text.rstrip(" ")


def cut(length: int) -> Callable[[str], str]:
    """The cast to ``varchar(length)``."""
    return lambda text: text[:length]


def padded(length: int) -> Callable[[str], str]:
    """The cast to ``char(length)``."""
    return lambda text: text[:length].ljust(length)


# --------------------------------------------------------------------------------------------------------------------
# case


_LETTERS_END: Final = 0x10500


def _pairs(mapped: Callable[[str], str]) -> dict[int, int]:
    known = unicodedata.ucd_3_2_0.category
    pairs = {}
    for code in range(_LETTERS_END):
        if 0xD800 <= code < 0xE000:
            continue
        other = mapped(chr(code))
        if len(other) == 1 and ord(other) != code and known(chr(code)) != "Cn" and known(other) != "Cn":
            pairs[code] = ord(other)
    return pairs


@lru_cache(maxsize=2)
def case_map(to: str) -> dict[int, int]:
    """The letters that have a counterpart in ``lower`` or ``upper`` case, by code point."""
    if to == "lower":
        # Alone of its kind, this letter has two in Python's full mapping.
        return _pairs(str.lower) | {0x130: ord("i")}
    # Letters like ᾳ have two in the full mapping, but one that is their title case.
    return _pairs(lambda letter: letter.upper() if len(letter.upper()) == 1 else _single_title(letter))


def _single_title(letter: str) -> str:
    title = letter.title()
    return title if len(title) == 1 and unicodedata.category(letter) == "Ll" else letter


def lower(text: str) -> str:
    """``lower``, for the letters of this module's rule."""
    return text.lower() if text.isascii() else text.translate(case_map("lower"))


def upper(text: str) -> str:
    """``upper``, for the letters of this module's rule."""
    return text.upper() if text.isascii() else text.translate(case_map("upper"))


# --------------------------------------------------------------------------------------------------------------------
# LIKE

Matcher = Callable[[str], bool]
_PARTS: Final = re.compile(r"\\(.)|([%_])|([^\\%_]+)|(\\)\Z", re.DOTALL)


@lru_cache(maxsize=4096)
def like_matcher(pattern: str) -> Matcher:
    """A test for one LIKE pattern. It raises EvaluationError where matching reaches an escape that ends the pattern."""
    segments: list[list[str | None]] = [[]]
    for escaped, wildcard, literal, dangling in _PARTS.findall(pattern):
        if dangling:
            return _dangling(pattern[:-1])
        if wildcard == "%":
            segments.append([])
        elif wildcard:
            segments[-1].append(None)
        else:
            segments[-1].extend(escaped or literal)
    if not any(None in segment for segment in segments):
        return _plain(["".join(part for part in segment if part) for segment in segments])
    first, *rest = [_segment(segment) for segment in segments]
    if not rest:
        return lambda text: first.fullmatch(text) is not None
    *middle, last = rest
    last_length = len(segments[-1])

    def matches(text: str) -> bool:
        found = first.match(text)
        if found is None:
            return False
        at = found.end()
        for segment in middle:
            found = segment.search(text, at)
            if found is None:
                return False
            at = found.end()
        return len(text) - last_length >= at and last.match(text, len(text) - last_length) is not None

    return matches


def _segment(characters: list[str | None]) -> re.Pattern[str]:
    # Without any repetition, such a pattern has nothing to backtrack into.
    return re.compile(
        "".join("." if character is None else re.escape(character) for character in characters), re.DOTALL
    )


def _plain(segments: list[str]) -> Matcher:
    if len(segments) == 1:
        whole = segments[0]
        return lambda text: text == whole
    first, *middle, last = segments
    middle = [segment for segment in middle if segment]
    if not middle:
        shortest = len(first) + len(last)
        if not last:
            return lambda text: text.startswith(first)
        return lambda text: len(text) >= shortest and text.startswith(first) and text.endswith(last)
    if not first and not last and len(middle) == 1:
        infix = middle[0]
        return lambda text: infix in text

    def matches(text: str) -> bool:
        if not text.startswith(first):
            return False
        at = len(first)
        for segment in middle:
            at = text.find(segment, at)
            if at < 0:
                return False
            at += len(segment)
        return len(text) - len(last) >= at and text.endswith(last)

    return matches


def _dangling(pattern: str) -> Matcher:
    # Nothing matches; Postgres fails when text is left as it comes to the escape.
    reaches = like_matcher(pattern + "_%")

    def matches(text: str) -> bool:
        if reaches(text):
            raise EvaluationError("LIKE pattern must not end with escape character")
        return False

    return matches


@lru_cache(maxsize=4096)
def ilike_matcher(pattern: str) -> Matcher:
    """A test for one ILIKE pattern."""
    matcher = like_matcher(lower(pattern))
    return lambda text: matcher(lower(text))


def like_escape(pattern: str, escape: str) -> str:
    """``like_escape``: the pattern with the backslash as escape. Raises EvaluationError."""
    if not escape:
        return pattern.replace("\\", "\\\\")
    if len(escape) > 1:
        raise EvaluationError("invalid escape string")
    if escape == "\\":
        return pattern
    result, escaped = [], False
    for character in pattern:
        if character == escape and not escaped:
            result.append("\\")
            escaped = True
            continue
        if character == "\\" and not escaped:
            result.append("\\")
        result.append(character)
        escaped = False
    return "".join(result)

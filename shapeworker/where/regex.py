"""Regular expressions (``~`` and its kin) by RE2, which takes linear time for any pattern.

Only what Postgres' ARE and RE2 mean alike is let through; each pattern is read and written anew, so nothing reaches RE2
that was not understood here. Classes and case are those of ASCII, as with collation "C", under which our SQL runs them;
letters beyond ASCII have no place in a pattern without regard to case.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import re2

from shapeworker.where.errors import EvaluationError
from shapeworker.where.texts import Matcher

MAX_PATTERN: Final = 1000
"""The longest pattern, in characters."""

_MAX_REPEAT: Final = 255
_MAX_MEMORY: Final = 4 << 20
_MAX_DEPTH: Final = 50

_CLASSES: Final = {
    "d": "0-9",
    "w": "0-9A-Za-z_",
    "s": r" \t-\r",
}
_NAMED: Final = {
    "alpha": "A-Za-z",
    "digit": "0-9",
    "alnum": "0-9A-Za-z",
    "upper": "A-Z",
    "lower": "a-z",
    "space": r" \t-\r",
    "xdigit": "0-9A-Fa-f",
    "punct": r"!-/:-@\[-`{-~",
}
_CONTROLS: Final = {"t": "\t", "n": "\n", "r": "\r", "f": "\f", "v": "\v", "a": "\a", "e": "\x1b"}


class _Refused(Exception):
    pass


@lru_cache(maxsize=1024)
def matcher(pattern: str) -> Matcher:
    """A test for a pattern (``~``). Raises EvaluationError for one that is wrong or beyond the common subset."""
    return _compiled(pattern, caseless=False)


@lru_cache(maxsize=1024)
def caseless_matcher(pattern: str) -> Matcher:
    """A test for a pattern without regard to the case of ASCII letters (``~*``). Raises EvaluationError."""
    return _compiled(pattern, caseless=True)


def _compiled(pattern: str, caseless: bool) -> Matcher:
    options = re2.Options()
    options.max_mem = _MAX_MEMORY
    options.log_errors = False
    options.dot_nl = True
    options.never_capture = True
    try:
        compiled = re2.compile(_Translator(pattern, caseless).translated(), options)
    except _Refused as reason:
        raise EvaluationError(f"regular expression not supported: {reason}") from None
    except re2.error:
        raise EvaluationError("regular expression not supported: it is too large") from None
    search = compiled.search
    return lambda text: search(text) is not None


class _Translator:
    def __init__(self, pattern: str, caseless: bool) -> None:
        if len(pattern) > MAX_PATTERN:
            raise EvaluationError(f"regular expression not supported: it is longer than {MAX_PATTERN} characters")
        self._text = pattern
        self._at = 0
        self._caseless = caseless

    def translated(self) -> str:
        if self._text.startswith("***"):
            raise _Refused("directors")
        result = self._alternatives(0)
        if self._at < len(self._text):
            raise _Refused("unbalanced )")
        return result

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _take(self) -> str:
        character = self._peek()
        if not character:
            raise _Refused("it ends in the middle")
        self._at += 1
        return character

    def _alternatives(self, depth: int) -> str:
        if depth > _MAX_DEPTH:
            raise _Refused("it nests too deeply")
        branches = [self._branch(depth)]
        while self._peek() == "|":
            self._at += 1
            branches.append(self._branch(depth))
        if len(branches) > 1 and "" in branches:
            raise _Refused("an empty branch")
        return "|".join(branches)

    def _branch(self, depth: int) -> str:
        pieces = []
        while self._peek() not in ("", "|", ")"):
            atom, repeatable = self._atom(depth)
            pieces.append(atom + self._quantifier(repeatable))
        return "".join(pieces)

    def _quantifier(self, repeatable: bool) -> str:
        mark = self._peek()
        if mark and mark in "*+?":
            self._at += 1
            result = mark
        elif mark == "{" and self._text[self._at + 1 : self._at + 2].isdecimal():
            result = self._bounds()
        else:
            return ""
        if not repeatable:
            raise _Refused("a repeated constraint")
        # Greed does not matter to whether there is a match.
        if self._peek() == "?":
            self._at += 1
        if self._peek() and (self._peek() in "*+?" or self._peek() == "{"):
            raise _Refused("a repeated repetition")
        return result

    def _bounds(self) -> str:
        end = self._text.find("}", self._at)
        bounds = self._text[self._at + 1 : end].split(",") if end > 0 else []
        if not 1 <= len(bounds) <= 2 or not all(bound.isascii() and bound.isdecimal() for bound in bounds if bound):
            raise _Refused("{ without bounds")
        numbers = [int(bound) for bound in bounds if bound]
        if not bounds[0] or max(numbers) > _MAX_REPEAT or numbers != sorted(numbers):
            raise _Refused("bounds out of range")
        self._at = end + 1
        return "{" + ",".join(bounds) + "}"

    def _atom(self, depth: int) -> tuple[str, bool]:
        character = self._take()
        if character == "(":
            return self._group(depth), True
        if character == "[":
            return self._brackets(), True
        if character == ".":
            return ".", True
        if character in "^$":
            return r"\A" if character == "^" else r"\z", False
        if character == "\\":
            return self._escape(), True
        if character in "*+?":
            raise _Refused("a quantifier without an operand")
        if character == "{" and self._peek().isdecimal():
            raise _Refused("a quantifier without an operand")
        return self._literal(character), True

    def _group(self, depth: int) -> str:
        if self._peek() == "?":
            self._at += 1
            if self._take() != ":":
                raise _Refused("(? other than (?:")
        inner = self._alternatives(depth + 1)
        if self._peek() != ")":
            raise _Refused("unbalanced (")
        self._at += 1
        if not inner:
            raise _Refused("empty parentheses")
        return f"(?:{inner})"

    def _literal(self, character: str) -> str:
        if self._caseless:
            self._refuse_foreign_case(character, character)
            if character.isascii() and character.isalpha():
                return f"[{character.lower()}{character.upper()}]"
        return character if character.isalnum() or not character.isascii() else f"\\x{ord(character):02x}"

    def _refuse_foreign_case(self, low: str, high: str) -> None:
        """Databases differ in which letters beyond ASCII have a case; ``~`` means the same in all of them."""
        if not high.isascii() and (low != high or high.lower() != high or high.upper() != high):
            raise _Refused("letters beyond ASCII without regard to case; use ~ and name both, as in [éÉ]")

    def _escape(self) -> str:
        character = self._take()
        if character in _CLASSES:
            return f"[{_CLASSES[character]}]"
        if character in "DWS":
            return f"[^{_CLASSES[character.lower()]}]"
        if character == "A":
            raise _Refused(r"\A; write ^")
        if character in _CONTROLS:
            return self._literal(_CONTROLS[character])
        if character.isalnum() or not character.isascii():
            raise _Refused(f"\\{character}")
        return self._literal(character)

    def _brackets(self) -> str:
        negated = self._peek() == "^"
        self._at += negated
        ranges: list[str] = []
        first = True
        while True:
            character = self._take()
            if character == "]" and not first:
                break
            if character == "-" and not first and self._peek() != "]":
                raise _Refused("a range in brackets")
            first = False
            if character == "[" and self._peek() in (":", ".", "="):
                ranges.append(self._named_class())
                continue
            if character == "\\":
                escaped = self._take()
                if escaped in _CLASSES:
                    ranges.append(_CLASSES[escaped])
                    continue
                if (escaped.isalnum() and escaped not in _CONTROLS) or not escaped.isascii():
                    raise _Refused(f"\\{escaped} in brackets")
                character = _CONTROLS.get(escaped, escaped)
            ranges.append(self._range(character))
        return f"[{'^' if negated else ''}{''.join(ranges)}]"

    def _named_class(self) -> str:
        end = self._text.find(":]", self._at)
        name = self._text[self._at + 1 : end] if end > 0 else ""
        if self._peek() != ":" or name not in _NAMED or (self._caseless and name in ("upper", "lower")):
            raise _Refused("a class in brackets")
        self._at = end + 2
        return _NAMED[name]

    def _range(self, low: str) -> str:
        if self._peek() != "-" or self._text[self._at + 1 : self._at + 2] == "]":
            return self._within(low, low)
        self._at += 1
        high = self._take()
        if high in "[\\" or ord(high) < ord(low) or low == "-":
            raise _Refused("a range in brackets")
        return self._within(low, high)

    def _within(self, low: str, high: str) -> str:
        span = f"\\x{{{ord(low):x}}}-\\x{{{ord(high):x}}}"
        if not self._caseless:
            return span
        self._refuse_foreign_case(low, high)
        for shift, first, last in ((-32, "a", "z"), (32, "A", "Z")):
            begin, end = max(ord(low), ord(first)), min(ord(high), ord(last))
            if begin <= end:
                span += f"\\x{{{begin + shift:x}}}-\\x{{{end + shift:x}}}"
        return span

"""Literals of a clause's text, taken out as parameters, so that ``name = 'a'`` and ``name = 'b'`` are compiled once.

Where the text leaves any doubt about what is a literal, it is left alone. The text that comes out is used only if it is
a valid clause in which each of these parameters stands where the literal's value could not have changed anything else:
as the other side of a comparison with something that depends on the row (:func:`may_be_lifted`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import lru_cache
from itertools import chain
from typing import Final, NamedTuple

from shapeworker.where import tree
from shapeworker.where.texts import is_text
from shapeworker.where.tree import is_constant

_FIRST: Final = 100_000
"""The number of the first such parameter: no client has so many."""

_MOST: Final = 200
"""Literals; clauses with more are not likely to share their form with others."""

_LONGEST: Final = 10_000
"""Characters. Longer texts have limits of their own, which hold for the literals, too."""

_TOKEN: Final = re.compile(
    r"""
    "(?:[^"]|"")*"                                      # a quoted name
    | (?<![\w$&'])'((?:[^']|'')*)'(?![\w'])             # a string without a prefix
    | (?<![\w.$+-])(?<![+-][ ])(\d{1,9})(?![\w.$'])     # an int4 without a sign
    | (?<=[=<>(,][ ])-[ ]?(\d{1,9})(?![\w.$'])(?!\s*(?:::|[\[.]))   # one whose sign binds closer than all around it
    | ['"\\] | -- | /\* | \$(?!\d) | \$\d{5} | &' | [^\x00-\x7f]['\d]   # what makes it doubtful
    """,
    re.VERBOSE,
)
_ANY: Final = re.compile(r"'|(?<![\w.$])\d")
_COMPARISONS: Final = frozenset(
    (*("=", "<>", "<", "<=", ">", ">="), *("~~", "!~~", "~~*", "!~~*", "^@", "~", "!~", "~*", "!~*"), "@>", "<@", "&&")
)


class Lifted(NamedTuple):
    """A text with parameters in the place of literals, and their values by number, as texts."""

    text: str
    literals: Mapping[int, str]


class _Doubtful(Exception):
    pass


@lru_cache(maxsize=256)
def lift(text: str) -> Lifted | None:
    """The text without its literals; None if it has none that can be told from their surroundings."""
    if _ANY.search(text) is None or len(text) > _LONGEST or not is_text(text):
        return None
    literals: dict[int, str] = {}

    def replace(match: re.Match[str]) -> str:
        string, positive, negative = match.groups()
        number = _FIRST + len(literals)
        if string is not None:
            literals[number] = string.replace("''", "'")
            return f"${number}"
        if positive is not None or negative is not None:
            literals[number] = positive or f"-{negative}"
            return f"(${number}::int4)"
        if match[0][0] == '"' and len(match[0]) > 1:
            return match[0]
        raise _Doubtful

    try:
        without = _TOKEN.sub(replace, text)
    except _Doubtful:
        return None
    return Lifted(without, literals) if 0 < len(literals) <= _MOST else None


def may_be_lifted(expression: tree.Expression) -> bool:
    """Whether a clause without its literals has the same tree, but for their values, as each clause with them.

    Constants are evaluated early. Where a literal is an operand of something else that is constant, what comes out
    could be NULL, a truth that decides, or an error. Where it is compared with what a row has, nothing is known early.
    """
    lifted = Counter(id(part) for part in tree.parts(expression) if _is_lifted(part))
    compared = Counter(id(_without_casts(part)) for node in tree.parts(expression) for part in _compared(node))
    return all(compared[part] == 1 for part in lifted)


def _is_lifted(node: tree.Expression) -> bool:
    return isinstance(node, tree.Param) and node.number >= _FIRST


def _compared(node: tree.Expression) -> Iterator[tree.Expression]:
    """The constants in a node that are compared with what a row has."""
    if isinstance(node, tree.Apply) and node.function.role in _COMPARISONS:
        if not is_constant(node):
            yield from chain.from_iterable(map(_members, node.arguments))
    elif isinstance(node, tree.Quantified) and not is_constant(node):
        yield from _members(node.array)


def _members(node: tree.Expression) -> tuple[tree.Expression, ...]:
    return node.items if isinstance(node, tree.ArrayOf) and not node.nested else (node,)


def _without_casts(node: tree.Expression) -> tree.Expression:
    while isinstance(node, tree.Apply) and node.function.role in ("cast", "relabel"):
        node = node.arguments[0]
    return node

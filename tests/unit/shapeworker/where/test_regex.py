"""Regular expressions: a pattern that is let through means what it means to Postgres."""

from __future__ import annotations

from random import Random

import pytest

from shapeworker.where.errors import EvaluationError
from shapeworker.where.regex import caseless_matcher, matcher
from tests.unit.shapeworker.where.oracle import Oracle

PIECES = (
    *("a", "b", "A", "é", ".", "*", "+", "?", "^", "$", "|", "(", ")", "[", "]", "[^", "-", "\\", "{", "}", "1", ","),
    *("d", "w", "s", "D", ":", "[:punct:]", "[:alpha:]", "\n", " ", "(?:", "a-z", "{1}", "{0,2}", "{2,}", "{,2}"),
    *("\\.", "\\-", "\\]", "\\n", "\\d", "\\W", "[a-", "[]a]", "[^]]", "[a-b-c]"),
)
LETTERS = "abAB%_\\#éÉ.-]^1 \n\t{}|"
PATTERNS = 1_500
TEXTS = 30


@pytest.mark.parametrize("operator", ["~", "~*"])
def test_any_pattern(oracle: Oracle, operator: str) -> None:
    random = Random(8)
    make = matcher if operator == "~" else caseless_matcher
    matchers = {}
    for _ in range(PATTERNS):
        pattern = "".join(random.choice(PIECES) for _ in range(random.randrange(1, 8)))
        try:
            matchers[pattern] = make(pattern)
        except EvaluationError:
            continue
    assert len(matchers) > PATTERNS / 5
    texts = ["", *("".join(random.choice(LETTERS) for _ in range(random.randrange(1, 8))) for _ in range(TEXTS))]
    query = (
        f'SELECT array_agg(x COLLATE "C" {operator} p ORDER BY n)'
        " FROM unnest(%s::text[]) WITH ORDINALITY AS q(p, m), unnest(%s::text[]) WITH ORDINALITY AS r(x, n)"
        " GROUP BY m ORDER BY m"
    )
    expected = oracle.connection.execute(query.encode(), [list(matchers), texts]).fetchall()
    for (pattern, matches), (verdicts,) in zip(matchers.items(), expected, strict=True):
        assert [matches(text) for text in texts] == verdicts, pattern


@pytest.mark.parametrize("pattern", ["é", "[éÉ]", "[^é]", "[a-é]", "[€-₭]", "ǅ"])
def test_letters_beyond_ascii_have_no_case_of_their_own(pattern: str) -> None:
    """Databases differ in it, so it is refused rather than taken for nothing."""
    matcher(pattern)
    with pytest.raises(EvaluationError, match="beyond ASCII"):
        caseless_matcher(pattern)
    assert caseless_matcher("日[€]")("日€")

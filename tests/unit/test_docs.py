"""What the documents name exists: a promise whose test was renamed away is no promise."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
DOCS = TESTS.parent / "docs"
BUGS = 80

_NAMED = re.compile(r"`([\w/]+\.py)(?:::(\w+))?`")


@pytest.mark.parametrize("document", ["faults.md", "guarantees.md"])
def test_every_test_that_is_named_exists(document: str) -> None:
    named = _NAMED.findall((DOCS / document).read_text())
    assert len(named) > 50
    missing = []
    for file, test in named:
        path = TESTS / file
        if not path.is_file() or (test and not re.search(rf"^(async )?def {test}\(", path.read_text(), re.MULTILINE)):
            missing.append(f"{file}::{test}")
    assert not missing


def test_every_former_bug_has_an_answer() -> None:
    rows = re.findall(r"^\| (\d+) \| [^|]+ \| ([^|]+) \|$", (DOCS / "faults.md").read_text(), re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, BUGS + 1))
    for number, answer in rows:
        assert _NAMED.search(answer) or re.search(r"come[s]? later|no decision|none", answer), f"{number}: {answer}"


def test_every_promise_has_a_test() -> None:
    text = (DOCS / "guarantees.md").read_text()
    promises = re.split(r"^(\d+)\. ", text, flags=re.MULTILINE)[1:]
    assert [int(number) for number in promises[::2]] == list(range(1, len(promises) // 2 + 1))
    for number, promise in zip(promises[::2], promises[1::2], strict=True):
        assert _NAMED.search(promise), f"{number}. {promise}"

"""A set of texts to be found in values, against Python's ``in``, while texts come and go."""

from __future__ import annotations

from random import Random

import pytest

from shapeworker.routing.substrings import Substrings


def expected(texts: set[str], value: str) -> set[str]:
    return {text for text in texts if text in value}


@pytest.mark.parametrize("letters", ["ab", "aé\U0001f600", "abcdefghij"])
def test_found_are_those_within(letters: str) -> None:
    random = Random(letters)
    substrings, texts = Substrings(), set[str]()
    most = 0
    for step in range(3000):
        # Long phases of growth and of decline, so that automata are built, joined and thrown away.
        growing = step % 1000 < 600
        for _ in range(random.randrange(4)):
            text = "".join(random.choices(letters, k=random.randrange(1, 6)))
            if growing and text not in texts:
                texts.add(text)
                substrings.add(text)
            elif not growing and texts:
                text = random.choice(sorted(texts))
                texts.remove(text)
                substrings.remove(text)
        if random.random() < 0.3:
            value = "".join(random.choices(letters, k=random.randrange(30)))
            found = substrings.within(value)
            assert len(found) == len(set(found))
            assert set(found) == expected(texts, value)
            most = max(most, len(texts))
        assert len(substrings) == len(texts)
    assert most > 30


def test_a_removed_text_comes_back() -> None:
    substrings = Substrings()
    texts = {f"text{number}" for number in range(100)}
    for text in sorted(texts):
        substrings.add(text)
    assert set(substrings.within("text7")) == {"text7"}
    substrings.remove("text7")
    assert set(substrings.within("text77")) == {"text77"}
    substrings.add("text7")
    assert set(substrings.within("text77")) == {"text7", "text77"}
    assert len(substrings) == 100


def test_growth_in_a_stream_builds_each_text_a_few_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row between any two texts: what is built stays within a small multiple of the texts."""
    built = 0

    class Counting(Substrings):
        def _build(self) -> None:
            nonlocal built
            before = sum(map(len, self._automata))
            kept = list(self._automata)
            super()._build()
            built += sum(len(automaton) for automaton in self._automata if automaton not in kept)
            assert sum(map(len, self._automata)) >= before

    substrings = Counting()
    for number in range(20_000):
        substrings.add(f"text{number}")
        substrings.within("text1")
    assert len(substrings._automata) <= 6
    assert built < 25 * 20_000


def test_a_long_value_that_repeats_itself() -> None:
    substrings = Substrings()
    texts = {"a" * length for length in range(1, 13)} | {f"b{number}" for number in range(50)}
    for text in texts:
        substrings.add(text)
    assert set(substrings.within("a" * 200_000)) == {"a" * length for length in range(1, 13)}


def test_removed_texts_take_no_memory_for_ever() -> None:
    substrings = Substrings()
    for number in range(2000):
        substrings.add(f"text{number}")
    substrings.within("text1")
    for number in range(1990):
        substrings.remove(f"text{number}")
    assert substrings.within("text1995 text5") == {"text1995"}
    assert sum(map(len, substrings._automata)) + len(substrings._removed) < 50
    for number in range(1990, 2000):
        substrings.remove(f"text{number}")
    assert len(substrings) == 0

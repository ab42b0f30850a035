"""Which of many texts a value has in it: Aho–Corasick automata that grow with the texts.

An automaton reads a value once, however many texts it knows, but has to be built anew for each further one. So new
texts wait in a small set, which is searched text by text; what becomes too many is built into an automaton, together
with those automata that are not much larger. So each has several times the texts of the next: there are few of them,
and no text is built into many. All that is done when a value is searched, so that texts that come in masses are built
once.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

import ahocorasick

_WAITING: Final = 32
"""How many texts may be searched one by one: about as long as one more automaton takes."""

_RATIO: Final = 4


class Substrings:
    """A set of texts, none of them empty. Adding and removing takes no longer for there being many."""

    def __init__(self) -> None:
        self._waiting: dict[str, None] = {}
        self._automata: list[ahocorasick.Automaton] = []
        # Still known to an automaton.
        self._removed: set[str] = set()

    def __len__(self) -> int:
        return len(self._waiting) + sum(map(len, self._automata)) - len(self._removed)

    def add(self, text: str) -> None:
        """A text that is not in here."""
        if text in self._removed:
            self._removed.remove(text)
        else:
            self._waiting[text] = None

    def remove(self, text: str) -> None:
        """A text that is in here."""
        if text in self._waiting:
            del self._waiting[text]
        else:
            self._removed.add(text)

    def within(self, value: str) -> Collection[str]:
        """The texts that a value has in it, each once."""
        if len(self._waiting) > _WAITING or (self._removed and self._is_stale()):
            self._build()
        found: set[str] = set()
        for automaton in self._automata:
            # One by one: a long value can have the same text in it millions of times.
            for _, text in automaton.iter(value):
                found.add(text)
        for text in self._waiting:
            if text in value:
                found.add(text)
        return found - self._removed if found and self._removed else found

    def _is_stale(self) -> bool:
        return len(self._removed) > _WAITING + len(self)

    def _build(self) -> None:
        everything = self._is_stale()
        texts = list(self._waiting)
        while self._automata and (everything or len(self._automata[-1]) < _RATIO * len(texts)):
            for text in self._automata.pop():
                if text in self._removed:
                    self._removed.remove(text)
                else:
                    texts.append(text)
        self._waiting.clear()
        if texts:
            automaton = ahocorasick.Automaton()
            for text in texts:
                automaton.add_word(text, text)
            automaton.make_automaton()
            self._automata.append(automaton)

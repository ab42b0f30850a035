"""Which build this is: Python's own, or the one whose hot modules are compiled (docs/operations.md)."""

from __future__ import annotations

from typing import Final

from common import pgoutput

COMPILED: Final = not pgoutput.__file__.endswith(".py")
"""Whether the hot modules are compiled: all are or none is."""

BUILD: Final = "compiled" if COMPILED else "interpreted"
"""For people."""

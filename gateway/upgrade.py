"""Requests for another protocol: nobody is given one, but the parser would take what follows such a request, its body
first, for that protocol. So the header's name is changed before the parser sees it (http-api.md 1).
"""

from __future__ import annotations

import re
from typing import Final

HOLD: Final = 0.5
"""Seconds for which the beginning of such a header at the end of a packet waits for the next one. It may be the end of
a body instead."""

_UPGRADE = re.compile(rb"\r\nu(?=pgrade:)", re.IGNORECASE)

_BEGUN = re.compile(rb"\r\n(u(?:p(?:g(?:r(?:a(?:de?)?)?)?)?)?)\Z", re.IGNORECASE)
"""The beginning of such a header at the end of a packet."""

_LONGEST_BEGINNING: Final = len(b"\r\nupgrade")


class Disguise:
    """Changes the name of the header in the packets of one connection; their length stays, since a body may look like
    it."""

    __slots__ = ("_last", "held")

    def __init__(self) -> None:
        self._last = b""
        self.held = b""
        """What the parser will be given with the next packet, or by :meth:`let_go` after a while."""

    def hide(self, data: bytes) -> bytes:
        """What the parser may see now."""
        known = len(self._last)
        text = _UPGRADE.sub(b"\r\nx", self._last + self.held + data)
        begun = _BEGUN.search(text, max(0, len(text) - _LONGEST_BEGINNING))
        end = len(text) if begun is None else begun.start(1)
        self._last = text[max(0, end - 2) : end]
        self.held = text[end:]
        return text[known:end]

    def let_go(self) -> bytes:
        """What was held back."""
        held, self.held, self._last = self.held, b"", b""
        return held

"""The bytes of server-sent events: each item of a log is one, ``data: <item>`` and a blank line (http-api.md 16.2).

An item never contains a line break, so its separator in the file, a comma and a newline, ends it there and here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from common.lsn import Offset
from common.shapelog.layout import SEPARATOR
from gateway.log import resume_lsn
from gateway.response import up_to_date

KEEP_ALIVE: Final = b": keep-alive\n\n"
"""A comment, which clients skip."""


Read = Callable[[int, int], bytes]
"""``read(start, size)`` gives bytes of a file."""


class Slice(NamedTuple):
    """What one read of a log gives: ``pieces`` to be sent one by one, and where to go on.

    Each piece is a whole event, but for those of an event that is larger than a read; ``begun`` tells that the last
    one is unfinished.
    """

    pieces: list[bytes]
    next: int
    begun: bool


def event(item: bytes) -> bytes:
    """One item as an event."""
    return b"data: %b\n\n" % item


def batch_end(end: Offset) -> bytes:
    """The event that every batch ends with: clients hand over what came before only when they see it, and resume from
    ``<its LSN>_0``; so it speaks of the shape's own last transaction (http-api.md 13.3, 16.8)."""
    return event(up_to_date(resume_lsn(end)))


def events(lines: bytes) -> list[bytes]:
    """The events of whole items with their separators."""
    return [event(item) for item in lines[: -len(SEPARATOR)].split(SEPARATOR)]


def next_slice(read: Read, start: int, end: int, begun: bool, size: int) -> Slice:
    """Read up to ``size`` bytes of a file from ``start``, towards ``end``, which is behind an item's separator.

    ``begun``: whether an event's beginning was in the slice before.
    """
    data = read(start, min(size, end - start))
    whole = data.rfind(SEPARATOR)
    if whole >= 0:
        items = data[:whole].split(SEPARATOR)
        first = items[0] + b"\n\n" if begun else event(items[0])
        return Slice([first, *map(event, items[1:])], start + whole + len(SEPARATOR), False)
    # A comma at the end may be the separator's: the next read shows it again with what follows.
    part = data.removesuffix(b",")
    return Slice([part if begun else b"data: " + part], start + len(part), True)

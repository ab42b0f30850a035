"""Items as server-sent events, whatever the size of what is read (http-api.md 16.2)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.lsn import Offset
from gateway import events

ITEMS = st.lists(st.text(alphabet='a,{}":\\n' + "é", max_size=12).map(str.encode), min_size=1, max_size=20)
"""No item holds a newline: JSON escapes it."""


def sliced(data: bytes, start: int, size: int) -> list[bytes]:
    """All pieces of ``data`` from ``start`` on."""
    reads: list[int] = []

    def read(at: int, length: int) -> bytes:
        reads.append(length)
        return data[at : at + length]

    pieces: list[bytes] = []
    at, begun = start, False
    while at < len(data):
        before = at
        new, at, begun = events.next_slice(read, at, len(data), begun, size)
        assert at > before
        pieces += new
    assert not begun
    assert max(reads) <= size
    return pieces


@given(items=ITEMS, size=st.integers(2, 40), skipped=st.integers(0, 20))
def test_slices_are_the_events_whatever_their_size(items: list[bytes], size: int, skipped: int) -> None:
    data = b"".join(item + b",\n" for item in items)
    kept = items[min(skipped, len(items) - 1) :]
    start = len(data) - sum(len(item) + 2 for item in kept)
    pieces = sliced(data, start, size)
    assert b"".join(pieces) == b"".join(b"data: " + item + b"\n\n" for item in kept)
    for piece in pieces:
        # The blank line that ends an event is never torn, and no piece is empty: that would end the body.
        assert piece
        assert piece.count(b"\n") in (0, 2)
        assert piece.endswith(b"\n\n") == (b"\n" in piece)


@given(ITEMS)
def test_an_event_that_fits_is_one_piece(items: list[bytes]) -> None:
    data = b"".join(item + b",\n" for item in items)
    size = max(map(len, items)) + 2
    assert sliced(data, 0, size) == events.events(data) == [b"data: " + item + b"\n\n" for item in items]


@pytest.mark.parametrize("length", [6, 7, 8])
def test_a_separator_on_the_edge_of_a_read(length: int) -> None:
    item = b"x" * length
    assert b"".join(sliced(item + b",\n", 0, 8)) == b"data: " + item + b"\n\n"


@pytest.mark.parametrize(("op", "named"), [(0, b"26719990"), (1, b"26719991"), (4, b"26719991")])
def test_a_batch_ends_with_the_place_to_resume_from(op: int, named: bytes) -> None:
    assert events.batch_end(Offset(26719990, op)) == (
        b'data: {"headers":{"control":"up-to-date","global_last_seen_lsn":"%b"}}\n\n' % named
    )

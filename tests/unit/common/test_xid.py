"""Widening of transaction ids and visibility in snapshots (engine.md H-B, 26.4)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.xid import Snapshot, widen

FULL = st.integers(3, 1 << 50)


@given(FULL, st.integers(-(1 << 31) + 1, (1 << 31) - 1))
def test_the_nearest_congruent_id_is_found(xid: int, distance: int) -> None:
    anchor = xid + distance
    if anchor >= 0:
        assert widen(xid & 0xFFFFFFFF, anchor) == xid


def test_ids_around_the_end_of_an_epoch() -> None:
    end = 5 << 32
    assert widen(0xFFFFFFFF, end + 10) == end - 1
    assert widen(7, end - 1) == end + 7
    assert widen(3, 1 << 10) == 3


@given(st.sets(st.integers(100, 200)), st.integers(90, 210))
def test_visibility_is_that_of_postgres(running: set[int], xid: int) -> None:
    snapshot = Snapshot(min(running, default=201), 201, frozenset(running))
    assert snapshot.shows(xid) == (xid < 201 and xid not in running)


def test_text_form_round_trips() -> None:
    for text in ("913:913:", "913:920:913,915,919", f"{7 << 32}:{(7 << 32) + 2}:{7 << 32}"):
        assert str(Snapshot.parse(text)) == text


@pytest.mark.parametrize("text", ["", "1:2", "a:b:", "1:2:x"])
def test_other_text_is_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the kind of failure differs, the class does not
        Snapshot.parse(text)

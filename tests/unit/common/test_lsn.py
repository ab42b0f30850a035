"""Offsets: grammar, order, canonical text (http-api.md 9)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.lsn import BEFORE_ALL, MAX_LSN, OP_INFINITE, SNAPSHOT_END, Offset, format_lsn, parse_lsn, parse_offset

LSNS = st.integers(0, MAX_LSN)
OFFSETS = st.builds(Offset, LSNS, st.one_of(st.integers(0, OP_INFINITE - 1), st.just(OP_INFINITE)))


@given(OFFSETS)
def test_text_and_offset_are_the_same_thing(offset: Offset) -> None:
    assert parse_offset(str(offset)) == offset


@given(LSNS)
def test_postgres_notation_round_trips(lsn: int) -> None:
    assert parse_lsn(format_lsn(lsn)) == lsn


@given(OFFSETS, OFFSETS)
def test_order_is_by_transaction_then_operation_with_infinity_last(left: Offset, right: Offset) -> None:
    def key(offset: Offset) -> tuple[int, float]:
        return offset.tx, float("inf") if str(offset).endswith("_inf") else offset.op

    assert (left < right) == (key(left) < key(right)) or (left.op > 1 << 53 and right.op > 1 << 53)
    assert left > BEFORE_ALL


@pytest.mark.parametrize("text", ["-1", "-1_0"])
def test_before_everything(text: str) -> None:
    assert parse_offset(text) == BEFORE_ALL
    assert str(parse_offset(text)) == "-1"


@pytest.mark.parametrize(
    ("text", "canonical"), [("0_inf", "0_inf"), ("+007_+2", "7_2"), ("0_0", "0_0"), ("18446744073709551615_1", None)]
)
def test_tolerated_forms_become_canonical(text: str, canonical: str | None) -> None:
    assert str(parse_offset(text)) == (canonical or text)


@pytest.mark.parametrize(
    "text", ["", "7", "now", "0_-1", "7_1_2", "7_1 ", " 7_1", "-1_inf", "a_1", "-2_0", "18446744073709551616_0", "٣_1"]
)
def test_what_is_no_offset_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="offset"):
        parse_offset(text)


def test_virtual_offsets_lie_in_the_snapshot() -> None:
    assert SNAPSHOT_END.is_virtual
    assert Offset(0, 3).is_virtual
    assert not Offset(1, 0).is_virtual
    assert not BEFORE_ALL.is_virtual

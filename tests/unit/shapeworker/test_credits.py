"""Credits: small ones are told together, none is owed for long, and nothing of the past buys anything."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from common.frames import FRAME_BYTES, frame_head
from common.messages import Credit
from ingester.fanout import CREDIT_BYTES, CREDIT_TOTAL_BYTES
from shapeworker.credits import STEP, Credits


def frame(epoch: int, size: int) -> bytes:
    return frame_head(epoch, 0) + b"x" * (size - 16)


def test_small_frames_are_told_with_the_next_sign_of_life_only() -> None:
    credits = Credits()
    for _ in range(10):
        credits.dealt(frame(1, 100))
        assert credits.due() is None
    assert credits.rest() == Credit(1, 1000)
    assert credits.rest() is None, "nothing is new"
    credits.dealt(frame(1, 100))
    assert credits.rest() == Credit(1, 1100), "a total, which makes up for one that was lost"


def test_much_is_told_at_once() -> None:
    credits = Credits()
    credits.dealt(frame(1, STEP - 16))
    assert credits.due() is None
    credits.dealt(frame(1, 16))
    assert credits.due() == Credit(1, STEP)
    assert credits.due() is None
    credits.dealt(frame(1, 3 * STEP))
    assert credits.due() == Credit(1, 4 * STEP)


def test_each_epoch_counts_for_itself() -> None:
    credits = Credits()
    credits.dealt(frame(1, STEP - 16))
    credits.dealt(frame(2, STEP - 16))
    assert credits.due() is None, "what was dealt with before buys nothing now"
    credits.dealt(frame(1, STEP))
    assert credits.rest() == Credit(2, STEP - 16), "a late frame of the past does not count"
    credits.dealt(frame(3, STEP))
    assert credits.due() == Credit(3, STEP)


@given(st.lists(st.integers(16, 2 * FRAME_BYTES), max_size=40))
def test_an_ingester_never_waits_for_what_is_not_told(sizes: list[int]) -> None:
    credits, told, sent = Credits(), 0, 0
    for size in sizes:
        credits.dealt(frame(1, size))
        sent += size
        if credit := credits.due():
            told = credit.total
        # It stops only with as much under way as the smallest credit that it gives any worker.
        assert sent - told < min(CREDIT_BYTES, CREDIT_TOTAL_BYTES, 4 * FRAME_BYTES)

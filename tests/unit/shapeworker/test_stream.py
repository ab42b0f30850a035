"""Which frames count (INV-6, INV-38)."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from common.frames import frame_head
from shapeworker.stream import Intake, Verdict

COUNTS = {Verdict.PROCESS, Verdict.START}


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(0, 4)), max_size=40))
def test_what_counts_is_a_prefix_of_each_epoch_and_epochs_only_rise(frames: list[tuple[int, int]]) -> None:
    intake = Intake()
    taken: dict[int, list[int]] = {}
    order = []
    for epoch, seq in frames:
        verdict = intake.frame(frame_head(epoch, seq))
        if verdict in COUNTS:
            assert (verdict is Verdict.START) == (seq == 0)
            taken.setdefault(epoch, []).append(seq)
            order.append(epoch)
        elif verdict is Verdict.LOST:
            assert intake.broken
    assert order == sorted(order)
    assert all(seqs == list(range(len(seqs))) for seqs in taken.values())


def test_a_gap_is_told_once_and_ends_with_the_next_epoch() -> None:
    intake = Intake()
    assert intake.frame(frame_head(1, 0)) is Verdict.START
    assert intake.frame(frame_head(1, 2)) is Verdict.LOST
    assert intake.frame(frame_head(1, 3)) is Verdict.IGNORE
    assert intake.frame(frame_head(1, 1)) is Verdict.IGNORE
    assert intake.frame(frame_head(2, 0)) is Verdict.START
    assert not intake.broken


def test_an_epoch_whose_first_frame_is_missing_is_lost() -> None:
    intake = Intake()
    assert intake.frame(frame_head(3, 5)) is Verdict.LOST
    assert intake.frame(frame_head(3, 6)) is Verdict.IGNORE


def test_nothing_more_of_an_epoch_counts_after_it_was_given_up() -> None:
    intake = Intake()
    intake.frame(frame_head(1, 0))
    intake.forget()
    assert intake.frame(frame_head(1, 1)) is Verdict.IGNORE
    assert intake.frame(frame_head(2, 0)) is Verdict.START

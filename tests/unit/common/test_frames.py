"""Frames between the ingester and its workers: what is sent is what arrives."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from common import frames as f
from common.messages import encode

RECORDS = st.lists(st.tuples(st.integers(0, 255), st.integers(0, 2**32 - 1), st.binary(max_size=50)))


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), RECORDS)
def test_frames_carry_their_records(epoch: int, seq: int, records: list[tuple[int, int, bytes]]) -> None:
    frame = f.frame_head(epoch, seq) + b"".join(f.record(*record) for record in records)
    assert f.parse_frame(frame) == (epoch, seq)
    assert list(f.records(frame)) == records


@given(st.integers(0, 2**64 - 1), st.lists(st.integers(0, 1023), unique=True).map(tuple))
def test_positions(lsn: int, partitions: tuple[int, ...]) -> None:
    ((kind, _, payload),) = f.records(f.frame_head(1, 0) + f.position_record(lsn, partitions))
    assert kind == f.POSITION
    assert f.parse_position(payload) == (lsn, partitions)


@given(st.lists(st.integers(0, 2**32 - 1), max_size=5).map(tuple), st.binary())
def test_relations(ancestors: tuple[int, ...], message: bytes) -> None:
    ((kind, _, payload),) = f.records(f.frame_head(1, 0) + f.relation_record(ancestors, message))
    assert kind == f.RELATION
    assert f.parse_relation_record(payload) == (ancestors, message)


def test_transactions() -> None:
    frame = f.frame_head(1, 0) + f.begin_record(2**64 - 1, 2**40, -5) + f.commit_record(7, 8, 9)
    (begin, _, first), (commit, changes, last) = f.records(frame)
    assert (begin, f.parse_begin(first)) == (f.BEGIN, (2**64 - 1, 2**40, -5))
    assert (commit, changes, f.parse_commit(last)) == (f.COMMIT, 9, (7, 8))


def test_answers_round_trip() -> None:
    answer = f.Subscribed(1, 2**64 - 1, (2**40,))
    assert f.decode_answer(encode(answer)) == answer

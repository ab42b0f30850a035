"""Messages between processes: what is sent is what arrives."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from common import messages as m
from common.lsn import SNAPSHOT_END, Offset
from common.shape import ShapeRequest

RECORDS = st.lists(st.tuples(st.integers(0, 255), st.integers(0, 2**32 - 1), st.binary(max_size=50)))


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), RECORDS)
def test_frames_carry_their_records(epoch: int, seq: int, records: list[tuple[int, int, bytes]]) -> None:
    frame = m.frame_head(epoch, seq) + b"".join(m.record(*record) for record in records)
    assert m.parse_frame(frame) == (epoch, seq)
    assert list(m.records(frame)) == records


@given(st.integers(0, 2**64 - 1), st.lists(st.integers(0, 1023), unique=True).map(tuple))
def test_positions(lsn: int, partitions: tuple[int, ...]) -> None:
    ((kind, _, payload),) = m.records(m.frame_head(1, 0) + m.position_record(lsn, partitions))
    assert kind == m.POSITION
    assert m.parse_position(payload) == (lsn, partitions)


@given(st.lists(st.integers(0, 2**32 - 1), max_size=5).map(tuple), st.binary())
def test_relations(ancestors: tuple[int, ...], message: bytes) -> None:
    ((kind, _, payload),) = m.records(m.frame_head(1, 0) + m.relation_record(ancestors, message))
    assert kind == m.RELATION
    assert m.parse_relation_record(payload) == (ancestors, message)


def test_transactions() -> None:
    frame = m.frame_head(1, 0) + m.begin_record(2**64 - 1, 2**40, -5) + m.commit_record(7, 8, 9)
    (begin, _, first), (commit, changes, last) = m.records(frame)
    assert (begin, m.parse_begin(first)) == (m.BEGIN, (2**64 - 1, 2**40, -5))
    assert (commit, changes, m.parse_commit(last)) == (m.COMMIT, 9, (7, 8))


def test_rare_messages_round_trip() -> None:
    request = ShapeRequest(schema="s", table="t", columns=("a", "b"), replica="full")
    hello = m.Hello(worker="w", boot="b", version=1, held=(1, 2), tables=(2**32 - 1,), requests="r", events="e")
    assert m.decode_from_worker(m.encode(hello)) == hello
    assert m.decode_from_worker(m.encode(m.Durable(1, 2**64 - 1))) == m.Durable(1, 2**64 - 1)
    assert m.decode_request(m.encode(m.Ensure(3, request))) == m.Ensure(3, request)
    assert m.decode_request(m.encode(m.Explain(3, request))) == m.Explain(3, request)
    assert m.decode_reply(m.encode(m.NotOwner(3))) == m.NotOwner(3)
    assert m.decode_reply(m.encode(m.Explanation(3, b"{}"))) == m.Explanation(3, b"{}")
    assert m.decode_handle_event(m.encode(m.Tail(SNAPSHOT_END))) == m.Tail(SNAPSHOT_END)
    assert m.decode_handle_event(m.encode(m.Tail(Offset(2**64 - 1, 4)))) == m.Tail(Offset(2**64 - 1, 4))
    answer = m.Subscribed(1, 2**64 - 1, (2**40,))
    assert m.decode_answer(m.encode(answer)) == answer


def test_no_topic_is_the_prefix_of_another() -> None:
    assert not m.handle_topic("1-23").startswith(m.handle_topic("1-2"))
    assert not m.handle_topic("1-2").startswith(m.APPLIED_TOPIC)

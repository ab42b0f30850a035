"""Messages between processes: what is sent is what arrives."""

from __future__ import annotations

from common import messages as m
from common.lsn import SNAPSHOT_END, Offset
from common.shape import ShapeRequest


def test_messages_round_trip() -> None:
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


def test_no_topic_is_the_prefix_of_another() -> None:
    assert not m.handle_topic("1-23").startswith(m.handle_topic("1-2"))
    assert not m.handle_topic("1-2").startswith(m.APPLIED_TOPIC)

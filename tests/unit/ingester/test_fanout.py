"""From messages to frames: who gets what, in which order, within which bounds (architecture.md 3)."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from common import frames as f
from common.frames import FRAME_BYTES, Subscribed, decode_answer
from common.pgoutput import Relation, RelationColumn
from ingester.fanout import CREDIT_BYTES, CREDIT_TOTAL_BYTES, PART_BYTES, Fanout
from tests.unit import pgoutput_messages as build

TABLES = (10, 20, 30)


class Receiver:
    """The frames a worker got, as records; checks their numbering."""

    def __init__(self) -> None:
        self.frames: dict[str, list[bytes]] = {}

    def send(self, worker: str, frame: bytes) -> None:
        self.frames.setdefault(worker, []).append(frame)

    def records(self, worker: str, epoch: int) -> list[tuple[int, int, bytes]]:
        found: list[tuple[int, int, bytes]] = []
        expected = 0
        for frame in self.frames.get(worker, []):
            of, seq = f.parse_frame(frame)
            if of == epoch:
                assert seq == expected, "no gaps"
                expected += 1
                found.extend(f.records(frame))
        return found


def described(oid: int) -> Relation:
    return Relation(oid, "public", f"t{oid}", "f", (RelationColumn("id", 23, -1, True),))


def started(receiver: Receiver, feeds: dict[str, set[int]], epoch: int = 1) -> Fanout:
    fanout = Fanout(receiver.send, 700)
    fanout.start_epoch(epoch, 1000, {worker: ((0, 1), tables) for worker, tables in feeds.items()})
    return fanout


def transaction(fanout: Fanout, lsn: int, xid: int, changes: list[int]) -> None:
    fanout.message(build.begin(lsn, xid))
    for oid in changes:
        fanout.message(build.insert(oid, [b"x"]))
    fanout.message(build.commit(lsn))


@given(
    st.lists(st.lists(st.sampled_from(TABLES), max_size=6), max_size=6),
    st.dictionaries(st.sampled_from(["a", "b"]), st.sets(st.sampled_from(TABLES)), min_size=1),
    st.sets(st.integers(0, 5)),
)
def test_workers_get_their_changes_with_the_indexes_of_the_whole_transaction(
    transactions: list[list[int]], feeds: dict[str, set[int]], flushes: set[int]
) -> None:
    receiver = Receiver()
    fanout = started(receiver, feeds)
    for number, changes in enumerate(transactions):
        transaction(fanout, 2000 + 10 * number, 800 + number, changes)
        if number in flushes:
            fanout.flush()
    fanout.flush()
    for worker, tables in feeds.items():
        expected: list[tuple[int, int]] = [(f.POSITION, 0)]
        for changes in transactions:
            mine = [(f.CHANGE, index) for index, oid in enumerate(changes) if oid in tables]
            expected += [(f.BEGIN, 0), *mine] if mine else []
            expected.append((f.COMMIT, len(changes)))
        assert [(kind, index) for kind, index, _ in receiver.records(worker, 1)] == expected
    assert [lsn for _, lsn in fanout.ring] == [2000 + 10 * number for number in range(len(transactions))]


def test_an_open_transaction_waits_for_more_a_commit_before_it_does_not() -> None:
    receiver = Receiver()
    fanout = started(receiver, {"a": {10}})

    def sent() -> int:
        fanout.flush()
        return len(receiver.records("a", 1))

    before = sent()
    fanout.message(build.begin(2000, 800))
    fanout.message(build.insert(10, [b"x"]))
    assert sent() == before
    fanout.message(build.commit(2000))
    fanout.message(build.begin(2010, 801))
    fanout.message(build.insert(10, [b"x"]))
    assert sent() == before + 5, "with the next transaction's first change"
    fanout.message(build.insert(10, [b"x" * PART_BYTES]))
    assert sent() == before + 6


def test_a_commit_carries_lsn_and_widened_xid() -> None:
    receiver = Receiver()
    fanout = Fanout(receiver.send, (3 << 32) + 5)
    fanout.start_epoch(1, 1000, {"a": ((0,), set())})
    transaction(fanout, 2000, 0xFFFFFFFE, [])
    fanout.flush()
    kind, _, payload = receiver.records("a", 1)[-1]
    assert (kind, f.parse_commit(payload)) == (f.COMMIT, (2000, (3 << 32) - 2))


def test_relations_are_sent_before_the_first_change_and_to_later_subscribers() -> None:
    receiver = Receiver()
    fanout = started(receiver, {"a": {10}, "b": set()})
    fanout.message(build.relation(described(10)))
    fanout.subscribe("b", 10)
    transaction(fanout, 2000, 800, [10])
    fanout.flush()
    for worker in "ab":
        kinds = [kind for kind, _, _ in receiver.records(worker, 1)]
        assert kinds == [f.POSITION, f.RELATION, f.BEGIN, f.CHANGE, f.COMMIT]


def test_changes_of_a_leaf_reach_those_who_want_its_root() -> None:
    receiver = Receiver()
    fanout = started(receiver, {"root": {10}, "leaf": {12}, "other": {20}})
    fanout.set_ancestors(12, (11, 10))
    fanout.message(build.relation(described(12)))
    transaction(fanout, 2000, 800, [12])
    fanout.flush()
    assert fanout.wants(12)
    for worker, gets in (("root", True), ("leaf", True), ("other", False)):
        kinds = [kind for kind, _, _ in receiver.records(worker, 1)]
        assert (f.CHANGE in kinds) == gets
    ancestors = [f.parse_relation_record(p)[0] for k, _, p in receiver.records("root", 1) if k == f.RELATION]
    assert ancestors == [(11, 10)]


def test_truncate_counts_one_change_per_table() -> None:
    receiver = Receiver()
    fanout = started(receiver, {"a": {10}, "b": {20}, "c": {30}})
    fanout.message(build.begin(2000, 800))
    fanout.message(build.truncate([10, 20]))
    fanout.message(build.insert(10, [b"x"]))
    fanout.message(build.commit(2000))
    fanout.flush()
    of = {worker: [(k, i) for k, i, _ in receiver.records(worker, 1)][1:] for worker in "abc"}
    assert of["a"] == [(f.BEGIN, 0), (f.TRUNCATE, 0), (f.CHANGE, 2), (f.COMMIT, 3)]
    assert of["b"] == [(f.BEGIN, 0), (f.TRUNCATE, 0), (f.COMMIT, 3)]
    assert of["c"] == [(f.COMMIT, 3)]


def test_frames_are_cut_and_credits_block_until_they_come_back() -> None:
    receiver = Receiver()
    fanout = started(receiver, {"a": {10}, "b": set()})
    fanout.message(build.begin(2000, 800))
    sent = 0
    while not fanout.blocked:
        fanout.message(build.insert(10, [b"x" * 10_000]))
        sent += 10_000
        assert sent < CREDIT_BYTES + FRAME_BYTES
    assert fanout.starved() == ["a"]
    assert all(len(frame) < FRAME_BYTES + 20_000 for frame in receiver.frames["a"])
    fanout.credit("a", 0, CREDIT_BYTES)
    assert fanout.blocked, "credits of another epoch buy nothing"
    fanout.credit("a", 1, CREDIT_BYTES)
    assert not fanout.blocked
    fanout.credit("a", 1, CREDIT_BYTES)
    fanout.flush()
    assert not fanout.blocked, "a total that is told again is no more than it was"


def test_who_is_sent_nothing_gets_an_empty_frame_at_each_beat() -> None:
    receiver = Receiver()
    fanout = started(receiver, {"a": {10}, "b": set()})
    fanout.beat()
    sent = [len(receiver.frames[worker]) for worker in "ab"]
    transaction(fanout, 2000, 800, [10])
    fanout.flush()
    fanout.beat()
    assert [len(receiver.frames[worker]) for worker in "ab"] == [sent[0] + 1, sent[1] + 1], "both had a frame"
    fanout.beat()
    assert [f.parse_frame(receiver.frames[worker][-1]) for worker in "ab"] == [(1, sent[0] + 1), (1, sent[1] + 1)]
    assert list(f.records(receiver.frames["a"][-1])) == []


def test_a_dead_worker_blocks_nobody() -> None:
    receiver = Receiver()
    fanout = started(receiver, {"a": {10}, "b": {10}})
    fanout.message(build.begin(2000, 800))
    while not fanout.blocked:
        fanout.message(build.insert(10, [b"x" * 100_000]))
    fanout.credit("b", 1, CREDIT_BYTES)
    fanout.forget("a")
    assert not fanout.blocked


def test_a_new_epoch_starts_afresh_and_keeps_answers_for_the_absent() -> None:
    receiver = Receiver()
    fanout = started(receiver, {"a": {10}})
    fanout.message(build.begin(2000, 800))
    fanout.message(build.insert(10, [b"x"]))
    fanout.answer("b", Subscribed(1, 999, ()))
    fanout.start_epoch(2, 1500, {"a": ((0,), {10}), "b": ((1,), set())})
    assert not fanout.open
    assert [kind for kind, _, _ in receiver.records("a", 2)] == [f.POSITION]
    position, answer = receiver.records("b", 2)
    assert f.parse_position(position[2]) == (1500, (1,))
    assert decode_answer(answer[2]) == Subscribed(1, 999, ())


def test_an_unsubscribed_worker_gets_commits_only() -> None:
    receiver = Receiver()
    fanout = started(receiver, {"a": {10}})
    fanout.unsubscribe("a", 10)
    transaction(fanout, 2000, 800, [10])
    fanout.flush()
    assert [kind for kind, _, _ in receiver.records("a", 1)] == [f.POSITION, f.COMMIT]
    assert not fanout.wants(10)


def test_many_workers_share_what_may_be_in_flight() -> None:
    fanout = started(Receiver(), {f"w{number}": {10} for number in range(64)})
    fanout.message(build.begin(2000, 800))
    sent = 0
    while not fanout.blocked:
        fanout.message(build.insert(10, [b"x" * 10_000]))
        sent += 10_000
    assert sent * 64 <= CREDIT_TOTAL_BYTES + 64 * FRAME_BYTES


def test_gaps_are_told_at_once_and_again_at_the_start_of_each_epoch() -> None:
    receiver = Receiver()
    gap = f.Gap(30, 1 << 60, "so")
    fanout = started(receiver, {"a": {10}, "b": set()})
    fanout.message(build.begin(2000, 800))
    fanout.gap(gap)
    assert [f.decode_gap(payload) for _, _, payload in receiver.records("b", 1)[1:]] == [gap]
    fanout.start_epoch(2, 1500, {"a": ((0,), {10}), "b": ((1,), set())}, [gap])
    for worker in ("a", "b"):
        (_, position), (_, told) = ((kind, payload) for kind, _, payload in receiver.records(worker, 2))
        assert f.parse_position(position)[0] == 1500
        assert f.decode_gap(told) == gap

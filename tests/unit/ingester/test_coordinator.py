"""The consumer group under arbitrary comings and goings (INV-39; architecture.md 2)."""

from __future__ import annotations

from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from common.messages import Hello
from ingester.coordinator import Assignment, Coordinator, rendezvous

PARTITIONS = 8
GRACE = 5.0


class FakeWorker:
    """A worker that takes and releases partitions as it is told; the lock table is the truth about ownership."""

    def __init__(self, name: str, boot: int, locks: dict[int, tuple[str, int]]) -> None:
        self.name, self.boot, self.locks = name, boot, locks
        self.version = 0
        self.wanted: Assignment | None = None

    @property
    def me(self) -> tuple[str, int]:
        return self.name, self.boot

    @property
    def peer(self) -> bytes:
        return f"{self.name}:{self.boot}".encode()

    def held(self) -> set[int]:
        return {partition for partition, owner in self.locks.items() if owner == self.me}

    def carry_out(self) -> bool:
        """Release what is not wanted, take what is free; whether everything wanted is held now."""
        if self.wanted is None:
            return False
        for partition in self.held() - set(self.wanted.partitions):
            del self.locks[partition]
        for partition in self.wanted.partitions:
            self.locks.setdefault(partition, self.me)
        return self.held() == set(self.wanted.partitions)

    def hello(self, version: int) -> Hello:
        held = tuple(sorted(self.held())) if version else ()
        return Hello(
            worker=self.name, boot=str(self.boot), version=version, held=held, tables=(), requests="", events=""
        )


class GroupModel(RuleBasedStateMachine):
    """Workers start, stop, die and pause; messages are delivered late; epochs start when they are needed."""

    @initialize()
    def start(self) -> None:
        self.now = 0.0
        self.coordinator = Coordinator(PARTITIONS, grace=GRACE, settle=0.5)
        self.locks: dict[int, tuple[str, int]] = {}
        self.alive: dict[str, FakeWorker] = {}
        self.boots = Counter[str]()
        self.fed: dict[int, tuple[str, int]] = {}

    def deliver(self) -> None:
        for assignment in self.coordinator.assignments():
            worker = self.alive.get(assignment.worker)
            if worker is not None and self.coordinator.members[assignment.worker].peer == worker.peer:
                worker.wanted = assignment

    @rule(name=st.sampled_from("abc"))
    def worker_starts(self, name: str) -> None:
        """Perhaps in place of one that died; its locks went with it."""
        if name in self.alive:
            self.kill(name)
        self.boots[name] += 1
        worker = self.alive[name] = FakeWorker(name, self.boots[name], self.locks)
        self.coordinator.hello(self.now, worker.peer, worker.hello(0))
        self.deliver()

    @rule(name=st.sampled_from("abc"))
    def kill(self, name: str) -> None:
        """kill -9: the kernel lets go of the locks."""
        worker = self.alive.pop(name, None)
        if worker is not None:
            for partition in worker.held():
                del self.locks[partition]

    @rule(name=st.sampled_from("abc"))
    def leave(self, name: str) -> None:
        """SIGTERM."""
        if name in self.alive:
            self.kill(name)
            self.coordinator.leave(self.now, name)
            self.deliver()

    @rule(name=st.sampled_from("abc"))
    def carry_out(self, name: str) -> None:
        """A worker gets round to its assignment and says so."""
        worker = self.alive.get(name)
        if worker is not None and worker.carry_out():
            assert worker.wanted is not None
            self.coordinator.hello(self.now, worker.peer, worker.hello(worker.wanted.version))
            self.deliver()

    @rule(seconds=st.sampled_from([0.1, 0.6, 6.0]), silent=st.sets(st.sampled_from("abc")))
    def time_passes(self, seconds: float, silent: set[str]) -> None:
        """Some live workers may be stopped meanwhile."""
        self.now += seconds
        for name, worker in self.alive.items():
            if name not in silent:
                self.coordinator.heard(self.now, worker.peer)
        self.coordinator.tick(self.now)
        self.deliver()

    @rule()
    def epoch(self) -> None:
        """The ingester rewinds as soon as it must."""
        if self.coordinator.needs_epoch:
            self.coordinator.start_epoch()
            assert not self.coordinator.needs_epoch

    @invariant()
    def no_partition_is_fed_to_two(self) -> None:
        """INV-39."""
        fed = [partition for member in self.coordinator.members.values() for partition in member.fed]
        assert len(fed) == len(set(fed))

    @invariant()
    def only_assigned_partitions_are_fed(self) -> None:
        for member in self.coordinator.members.values():
            assert member.fed <= member.assigned

    def teardown(self) -> None:
        """However it went: let the living carry on, and every partition gets an owner that holds it."""
        if not hasattr(self, "coordinator"):
            return
        for _ in range(20):
            self.time_passes(1.0, set())
            for name in list(self.alive):
                self.carry_out(name)
            self.epoch()
        self.time_passes(1.0, set())
        owners = self.coordinator.owners()
        if self.alive:
            assert set(owners) == set(range(PARTITIONS))
            assert {p: (n, self.alive[n].boot) for p, n in owners.items()} == self.locks
            assert set(owners.values()) <= set(self.alive)
            assert not self.coordinator.needs_epoch
        else:
            assert not owners


TestGroup = GroupModel.TestCase
TestGroup.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def hello(name: str, version: int = 0, held: tuple[int, ...] = (), boot: str = "1", *, lost: bool = False) -> Hello:
    return Hello(worker=name, boot=boot, version=version, held=held, tables=(7,), requests="r", events="e", lost=lost)


def joined(coordinator: Coordinator, *names: str) -> None:
    for name in names:
        coordinator.hello(0.0, f"{name}:1".encode(), hello(name))
    coordinator.tick(1.0)
    for assignment in coordinator.assignments():
        peer = f"{assignment.worker}:1".encode()
        coordinator.hello(1.0, peer, hello(assignment.worker, assignment.version, assignment.partitions))
    coordinator.start_epoch()


def test_a_joining_worker_takes_only_its_share() -> None:
    partitions = range(32)
    before = {p: rendezvous(p, ["a", "b"]) for p in partitions}
    after = {p: rendezvous(p, ["a", "b", "c"]) for p in partitions}
    assert {after[p] for p in partitions if before[p] != after[p]} == {"c"}


def test_workers_that_start_together_move_nothing_twice() -> None:
    coordinator = Coordinator(PARTITIONS, settle=0.5)
    coordinator.hello(0.0, b"a:1", hello("a"))
    coordinator.tick(0.3)
    coordinator.hello(0.4, b"b:1", hello("b"))
    coordinator.tick(0.6)
    assert coordinator.assignments() == []
    coordinator.tick(1.0)
    assert [a.worker for a in coordinator.assignments()] == ["a", "b"]


def test_a_restarted_worker_gets_its_partitions_back_and_nobody_else_moves() -> None:
    coordinator = Coordinator(PARTITIONS)
    joined(coordinator, "a", "b")
    mine = coordinator.members["a"].assigned
    coordinator.hello(2.0, b"a:2", hello("a", boot="2"))
    assert [(a.worker, frozenset(a.partitions)) for a in coordinator.assignments()] == [("a", mine)]
    assert not coordinator.needs_epoch
    version = coordinator.members["a"].version
    coordinator.hello(2.5, b"a:2", hello("a", version, tuple(mine), boot="2"))
    assert coordinator.needs_epoch


def test_what_a_worker_must_give_back_is_no_longer_its_own() -> None:
    coordinator = Coordinator(PARTITIONS)
    joined(coordinator, "a")
    coordinator.hello(2.0, b"b:1", hello("b"))
    coordinator.tick(3.0)
    member = coordinator.members["a"]
    assert member.fed == member.assigned != frozenset(range(PARTITIONS))


def test_lost_frames_need_a_rewind_once() -> None:
    coordinator = Coordinator(PARTITIONS)
    joined(coordinator, "a")
    assert not coordinator.needs_epoch
    member = coordinator.members["a"]
    coordinator.hello(2.0, b"a:1", hello("a", member.version, tuple(member.held), lost=True))
    assert coordinator.needs_epoch
    coordinator.start_epoch()
    assert not coordinator.needs_epoch


def test_a_worker_that_was_given_up_joins_again_holding_nothing() -> None:
    coordinator = Coordinator(PARTITIONS, grace=GRACE)
    joined(coordinator, "a")
    assert coordinator.tick(20.0) == ["a"]
    member = coordinator.heard(21.0, b"a:1")
    assert member is not None
    assert [a.partitions for a in coordinator.assignments()] == [()]
    assert coordinator.heard(21.0, b"a:0") is None, "a superseded incarnation is nobody"


def test_a_lost_stream_needs_a_new_epoch_but_owners_stay() -> None:
    coordinator = Coordinator(PARTITIONS)
    joined(coordinator, "a")
    coordinator.expire_epoch()
    assert coordinator.needs_epoch
    assert coordinator.unowned() == []


def test_another_generation_is_assigned_to_all_anew() -> None:
    coordinator = Coordinator(PARTITIONS)
    joined(coordinator, "a", "b")
    coordinator.assign_anew()
    assert sorted(a.worker for a in coordinator.assignments()) == ["a", "b"]
    assert coordinator.owners() == {}


def test_a_heartbeat_before_the_first_hello_takes_nothing_away() -> None:
    """A worker that outlived the former ingester is heard before it has understood that there is a new one."""
    coordinator = Coordinator(PARTITIONS)
    assert coordinator.heard(0.0, b"a:1") is None
    assert coordinator.assignments() == []
    assert coordinator.members == {}


def test_answers_to_a_former_ingester_are_not_taken_for_answers_to_this_one() -> None:
    coordinator = Coordinator(PARTITIONS, version=1000)
    coordinator.hello(0.0, b"a:1", hello("a"))
    coordinator.tick(1.0)
    (assignment,) = coordinator.assignments()
    coordinator.hello(1.0, b"a:1", hello("a", 1, (0, 1)))
    assert not coordinator.needs_epoch
    assert assignment.version > 1000


def test_an_assignment_that_may_be_lost_is_told_again() -> None:
    coordinator = Coordinator(PARTITIONS)
    coordinator.hello(0.0, b"a:1", hello("a"))
    coordinator.tick(1.0)
    first = coordinator.assignments()
    coordinator.hello(3.5, b"a:1", hello("a"))
    coordinator.tick(4.0)
    assert [again.partitions for again in coordinator.assignments()] == [first[0].partitions]


def test_a_worker_that_waits_for_more_partitions_is_fed_those_it_has() -> None:
    """Another that hangs with its locks must not stop the stream for all (INV-12)."""
    coordinator = Coordinator(PARTITIONS, grace=GRACE)
    joined(coordinator, "a", "b")
    mine = coordinator.members["a"].held
    coordinator.heard(10.0, b"a:1")
    assert coordinator.tick(10.0) == ["b"]
    assert not coordinator.members["a"].ready
    coordinator.expire_epoch()
    assert coordinator.needs_epoch
    assert coordinator.start_epoch() == {"a": mine}
    assert not coordinator.needs_epoch


def test_a_pause_of_the_ingester_is_nobodys_fault() -> None:
    coordinator = Coordinator(PARTITIONS, grace=GRACE)
    joined(coordinator, "a")
    coordinator.excuse(60.0)
    assert coordinator.tick(61.0) == []


def test_a_name_that_zeromq_gave_a_replaced_connection_is_nobody() -> None:
    coordinator = Coordinator(PARTITIONS)
    joined(coordinator, "a")
    assert coordinator.heard(1, b"\x00\x8b\xff\x00\x01") is None

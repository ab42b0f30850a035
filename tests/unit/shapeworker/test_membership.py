"""What a worker and its ingester know of each other (architecture.md 2.1)."""

from __future__ import annotations

from typing import Any, cast

import pytest

from common.messages import Assign, FromWorker, Hello, Status, Subscribe, Unsubscribe, WorkerPlace
from shapeworker import membership
from shapeworker.holdings import Holdings
from shapeworker.lease import CERTAIN, SILENCE
from shapeworker.membership import Membership


class Clock:
    """Stands for ``time``."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


class World:
    """A membership, and the parts that it speaks to."""

    def __init__(self) -> None:
        self.holdings = Holdings()
        self.broken = self.lost = False
        self.epoch = 3
        self.done: list[str] = []
        self.sent: list[FromWorker] = []
        self.assigned: list[Assign] = []
        self.holds = False
        parts = cast(Any, self)
        self.membership = Membership("w", "b", WorkerPlace("r", "e"), self.holdings, parts, parts, self.sent.append)

    def assign(self, assignment: Assign) -> None:
        self.assigned.append(assignment)

    def let_go(self) -> bool:
        held, self.holds = self.holds, False
        return held

    def forget(self) -> None:
        self.done.append("forget")

    def give_up(self) -> None:
        self.done.append("give up")

    def hellos(self) -> list[tuple[int, tuple[int, ...]]]:
        """The versions and partitions of those since the last call."""
        sent = [message for message in self.sent if isinstance(message, Hello)]
        self.sent.clear()
        return [(hello.version, hello.held) for hello in sent]

    def carry_out(self, boot: str, version: int) -> None:
        self.membership.assign(assignment(boot, version))
        self.holdings.partitions = cast(Any, {1: None, 2: None})
        self.holds = True
        self.membership.held(version)


def assignment(boot: str, version: int) -> Assign:
    return Assign(version=version, partitions=(1, 2), total=4, acknowledged=1, generation=1, system="", boot=boot)


def status(boot: str, *, superseded: bool = False) -> Status:
    return Status(
        boot=boot,
        state="active",
        reason="",
        epoch=1,
        generation=1,
        partitions=4,
        lsn=1,
        owners={},
        workers={},
        superseded=superseded,
    )


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(membership, "time", made)
    return made


@pytest.fixture
def world(clock: Clock) -> World:
    return World()


def test_it_introduces_itself_until_it_is_told_what_to_hold(world: World) -> None:
    world.membership.beat()
    world.membership.beat()
    assert world.hellos() == [(0, ()), (0, ())]
    assert world.membership.assign(assignment("i", 7))
    world.membership.beat()
    assert not world.hellos()
    world.holdings.partitions = cast(Any, {2: None, 1: None})
    world.membership.held(7)
    assert world.hellos() == [(7, (1, 2))]
    assert world.membership.version == 7
    assert not world.membership.assign(assignment("i", 8))


def test_that_frames_are_missing_is_repeated(world: World) -> None:
    world.carry_out("i", 7)
    world.broken = world.lost = True
    world.sent.clear()
    world.membership.beat()
    world.membership.beat()
    assert [(hello.lost, hello.epoch) for hello in world.sent if isinstance(hello, Hello)] == [(True, 3)] * 2


def test_another_ingester_hears_from_it_at_once(world: World) -> None:
    world.carry_out("i", 7)
    world.hellos()
    world.membership.status(status("i"))
    assert not world.hellos()
    assert not world.done
    world.membership.status(status("j"))
    world.membership.status(status("j"))
    assert world.hellos() == [(0, ())]
    assert world.done == ["forget"]
    # What the former one had wanted is carried out only now: the new one did not ask for it.
    world.membership.held(8)
    world.hellos()
    world.membership.beat()
    assert world.hellos() == [(0, ())]
    assert world.membership.assign(assignment("j", 9))


@pytest.mark.parametrize("superseded", [False, True])
def test_it_lets_go_when_another_stack_may_need_the_partitions(world: World, clock: Clock, superseded: bool) -> None:
    world.carry_out("i", 7)
    world.hellos()
    if superseded:
        world.membership.status(status("i", superseded=True))
    for _ in range(int(CERTAIN if superseded else SILENCE) - 1):
        clock.now += 1
        world.membership.beat()
    assert not world.hellos()
    clock.now += 1
    world.membership.beat()
    assert world.hellos() == [(0, ())]
    assert world.done == ["give up"]
    # There is nothing more to let go of.
    clock.now += 1
    world.membership.beat()
    assert world.done == ["give up"]
    assert world.membership.assign(assignment("i", 8))


def test_tables_that_nobody_needs_any_more_are_given_up_once(world: World) -> None:
    world.membership.subscribe(Subscribe(1, 5, "public", "t"))
    world.holdings.needs = lambda table: True  # type: ignore[method-assign]
    world.membership.subscribed(5)
    world.membership.drop(5)
    assert world.sent == [Subscribe(1, 5, "public", "t")]
    world.holdings.needs = lambda table: False  # type: ignore[method-assign]
    world.membership.drop(5)
    world.membership.drop(5)
    assert world.sent[1:] == [Unsubscribe(5)]
    # The shape ended while the ingester was asked; it sends the changes from here on.
    world.membership.subscribed(5)
    assert world.sent[2:] == [Unsubscribe(5)]

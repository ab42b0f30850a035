"""Waiters under a virtual clock: http-api.md 15, 12.6; engine.md INV-41."""

from __future__ import annotations

import weakref

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.lsn import SNAPSHOT_END, Offset
from gateway.live import LINGER, LOOK_EVERY, Changed, Expired, Gone, Live, Outcome, Waiter
from gateway.shape import ShapeGone
from gateway.wheel import TICK, Wheel


class Log:
    """A shape whose end the test sets; ``None`` means gone."""

    def __init__(self, handle: str = "h", end: Offset | None = SNAPSHOT_END) -> None:
        self.handle = handle
        self.partition = 0
        self.end = end
        self.looks = 0
        self.written: list[bool] = []

    def last(self, *, written: bool = False) -> Offset:
        self.looks += 1
        self.written.append(written)
        if self.end is None:
            raise ShapeGone(self.handle)
        return self.end


class World:
    """The clock, the subscriptions and the answers of a registry, all recorded."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.subscribed: list[str] = []
        self.made: list[str] = []
        self.too_large = False
        self.live: Live[Log] = Live(self, lambda: self.now)

    def want(self, handle: str, partition: int) -> None:
        self.subscribed.append(handle)

    def drop(self, handle: str) -> None:
        self.subscribed.remove(handle)

    def seen(self, shape: Log) -> int:
        return 77

    def changed(self, shape: Log, offset: Offset) -> str | None:
        self.made.append(f"changed {offset}")
        return None if self.too_large else f"{offset}..{shape.end}"

    def unchanged(self, shape: Log, offset: Offset, last: Offset, seen: int) -> str:
        self.made.append(f"unchanged {offset}")
        return f"nothing after {last}, {seen}"

    def wait(
        self, log: Log, offset: Offset, limit: float = 20.0, ahead: bool = False, answers: World | None = None
    ) -> Waiting:
        assert log.end is not None
        waiting = Waiting()
        waiting.waiter = self.live.wait(log, offset, log.end, limit, answers or self, waiting, ahead=ahead)
        return waiting

    def pass_time(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end:
            self.now = min(end, self.now + TICK)
            self.live.advance(self.now)


class Waiting:
    """A request that waits, and what it was told."""

    def __init__(self) -> None:
        self.waiter: Waiter[Log, str] | None = None
        self.told: list[Outcome[str]] = []

    def __call__(self, outcome: Outcome[str]) -> None:
        self.told.append(outcome)

    def leave(self, world: World) -> None:
        assert self.waiter is not None
        world.live.leave(self.waiter)


def outcome(waiting: Waiting) -> str | None:
    """The outcome in a word; ``None`` while the request waits."""
    assert len(waiting.told) < 2
    if not waiting.told:
        return None
    result = waiting.told[0]
    if isinstance(result, Gone):
        return "gone"
    return f"{type(result).__name__} {result.answer}"


async def test_a_hint_wakes_all_waiters_with_one_answer() -> None:
    world, log = World(), Log()
    waiters = [world.wait(log, SNAPSHOT_END) for _ in range(5)]
    other = world.wait(log, Offset(0, 3))
    assert world.subscribed == ["h"]
    log.end = Offset(9, 0)
    looks = log.looks
    world.live.tail("h")
    assert {outcome(waiter) for waiter in waiters} == {"Changed 0_inf..9_0"}
    assert outcome(other) == "Changed 0_3..9_0"
    assert sorted(world.made) == ["changed 0_3", "changed 0_inf"]
    assert log.looks == looks + 1


async def test_only_a_hint_spares_the_look_at_the_directory() -> None:
    world, log = World(), Log()
    world.wait(log, SNAPSHOT_END, limit=1.5)
    world.live.tail("h")
    world.pass_time(2.0)
    assert log.written[0]
    assert log.written[1:]
    assert not any(log.written[1:])


async def test_a_hint_without_news_wakes_nobody() -> None:
    world, log = World(), Log(end=Offset(9, 0))
    virtual, real = world.wait(Log("v"), Offset(0, 0)), world.wait(log, Offset(9, 0))
    world.live.tail("h")
    world.live.tail("v")
    world.live.tail("unknown")
    assert outcome(virtual) is None
    assert outcome(real) is None


async def test_without_any_hint_a_change_is_found_by_looking() -> None:
    world, log = World(), Log()
    waiter = world.wait(log, SNAPSHOT_END)
    log.end = Offset(9, 0)
    world.pass_time(LOOK_EVERY + 2 * TICK)
    assert outcome(waiter) == "Changed 0_inf..9_0"


async def test_a_change_right_before_the_deadline_is_returned() -> None:
    world, log = World(), Log()
    waiter = world.wait(log, SNAPSHOT_END, limit=0.5)
    world.pass_time(0.45)
    assert outcome(waiter) is None
    log.end = Offset(9, 0)
    world.pass_time(0.15)
    assert outcome(waiter) == "Changed 0_inf..9_0"


async def test_at_the_deadline_nothing_is_told_and_never_before() -> None:
    world, log = World(), Log(end=Offset(9, 0))
    first, second = world.wait(log, Offset(9, 0)), world.wait(log, Offset(9, 0))
    later = world.wait(log, Offset(9, 0), limit=30)
    world.pass_time(19.99)
    assert outcome(first) is None
    world.pass_time(2 * TICK)
    assert outcome(first) == outcome(second) == "Expired nothing after 9_0, 77"
    assert world.made == ["unchanged 9_0"]
    assert outcome(later) is None


async def test_an_answer_too_large_to_share_is_left_to_each() -> None:
    world, log = World(), Log()
    world.too_large = True
    waiters = [world.wait(log, SNAPSHOT_END) for _ in range(3)]
    log.end = Offset(9, 0)
    world.live.tail("h")
    assert {outcome(waiter) for waiter in waiters} == {"Changed None"}
    assert world.made == ["changed 0_inf"]


async def test_whoever_is_ahead_is_woken_by_any_growth_and_expires_alone() -> None:
    world, log = World(), Log(end=Offset(5, 0))
    ahead, normal = world.wait(log, Offset(9, 0), ahead=True), world.wait(log, Offset(6, 0))
    world.live.tail("h")
    assert outcome(ahead) is None
    log.end = Offset(6, 0)
    world.live.tail("h")
    assert outcome(ahead) == "Changed None"
    assert outcome(normal) is None
    again = world.wait(log, Offset(9, 0), limit=10, ahead=True)
    world.pass_time(10.1)
    assert outcome(again) == "Expired None"


@pytest.mark.parametrize("told", [True, False])
async def test_the_end_of_a_shape_wakes_everybody(told: bool) -> None:
    world, log = World(), Log()
    waiters = [world.wait(log, SNAPSHOT_END), world.wait(log, Offset(3, 0), ahead=True)]
    log.end = None
    if told:
        world.live.ended("h")
    else:
        world.pass_time(LOOK_EVERY + 2 * TICK)
    assert [outcome(waiter) for waiter in waiters] == ["gone", "gone"]
    assert world.subscribed == []
    world.live.ended("h")


async def test_a_subscription_outlives_its_waiters_for_a_while() -> None:
    world, log = World(), Log()
    assert world.live.enter(log)
    assert not world.live.enter(log)
    waiter = world.wait(log, SNAPSHOT_END)
    world.pass_time(2 * LINGER)
    assert world.subscribed == ["h"]
    waiter.leave(world)
    world.pass_time(LINGER - 2 * LOOK_EVERY)
    assert world.subscribed == ["h"]
    looks = log.looks
    world.pass_time(4 * LOOK_EVERY)
    assert world.subscribed == []
    assert log.looks == looks
    assert world.live.enter(log)


async def test_who_left_is_not_answered() -> None:
    world, log = World(), Log()
    gone, stays = world.wait(log, SNAPSHOT_END), world.wait(log, SNAPSHOT_END)
    gone.leave(world)
    assert world.live.waiting == 1
    log.end = Offset(9, 0)
    world.live.tail("h")
    assert outcome(stays) == "Changed 0_inf..9_0"
    assert outcome(gone) is None


async def test_an_answer_is_forgotten_once_it_is_sent() -> None:
    """Else each would stay in memory until the deadline of those it went to."""
    world, log = World(), Log()
    waiter = world.wait(log, SNAPSHOT_END)
    log.end = Offset(9, 0)
    world.live.tail("h")
    waiter.leave(world)
    answered = weakref.ref(waiter)
    del waiter
    assert answered() is None


async def test_each_live_mode_makes_its_own_answers() -> None:
    class Other(World):
        def changed(self, shape: Log, offset: Offset) -> str | None:
            return f"other {super().changed(shape, offset)}"

    world, log, other = World(), Log(), Other()
    waiters = [world.wait(log, SNAPSHOT_END) for _ in range(2)]
    others = [world.wait(log, SNAPSHOT_END, answers=other) for _ in range(2)]
    log.end = Offset(9, 0)
    world.live.tail("h")
    assert {outcome(waiter) for waiter in waiters} == {"Changed 0_inf..9_0"}
    assert {outcome(waiter) for waiter in others} == {"Changed other 0_inf..9_0"}
    assert world.made == other.made == ["changed 0_inf"]


async def test_closing_answers_everybody_and_who_comes_later() -> None:
    world, log = World(), Log(end=Offset(9, 0))
    early = world.wait(log, Offset(9, 0))
    world.live.close()
    assert outcome(early) == "Expired nothing after 9_0, 77"
    late = world.wait(log, Offset(9, 0))
    world.pass_time(2 * TICK)
    assert outcome(late) == "Expired nothing after 9_0, 77"


async def test_an_unreadable_log_is_met_by_each_request_itself() -> None:
    class Broken(Log):
        def last(self, *, written: bool = False) -> Offset:
            raise OSError("no such device")

    world, log = World(), Broken()
    waiter = world.wait(log, SNAPSHOT_END, limit=0.5)
    world.pass_time(1.0)
    assert outcome(waiter) == "Changed None"


async def test_outcomes_carry_their_answer() -> None:
    assert Changed("x").answer == Expired("x").answer == "x"


@given(st.lists(st.floats(0, 100), max_size=30), st.lists(st.floats(0, 5), min_size=1, max_size=60))
def test_the_wheel_is_never_early_and_at_most_a_tick_late(deadlines: list[float], steps: list[float]) -> None:
    now = 1000.0
    wheel: Wheel[int] = Wheel(now)
    waiting = {item: now + deadline for item, deadline in enumerate(deadlines)}
    slots = {item: wheel.add(deadline, item) for item, deadline in waiting.items()}
    for item in list(waiting)[::3]:
        del waiting[item]
        wheel.discard(slots[item], item)
        wheel.discard(slots[item], item)
    for step in steps:
        now += step
        for item in wheel.advance(now):
            assert waiting.pop(item) <= now + 1e-6
        assert all(deadline > now - TICK - 1e-6 for deadline in waiting.values())

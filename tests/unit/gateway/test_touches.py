"""What gateways tell workers about the use of shapes."""

from __future__ import annotations

import asyncio
from typing import NamedTuple

import pytest

from common.messages import Touched
from gateway import touches
from gateway.touches import BATCH, EVERY, Touches
from tests.unit.gateway.cluster import cluster, row, until


class Owners(NamedTuple):
    of: dict[int, str]

    def owner(self, partition: int) -> str | None:
        return self.of.get(partition)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_uses_and_waiting_clients_are_told_each_to_the_owner() -> None:
    clock = Clock()
    told: list[tuple[str, dict[str, float]]] = []
    report = Touches(Owners({0: "w0", 1: "w1"}), lambda worker, it: told.append((worker, it.ages)), clock)
    waiting = [("w", 0)]
    for handle, partition in (("a", 0), ("b", 1), ("a", 0), ("lost", 2)):
        clock.now += 1
        report.add(handle, partition)
    report.advance(waiting)
    assert told == []
    clock.now = EVERY
    report.advance(waiting)
    assert told == [("w0", {"a": EVERY - 3, "w": 0}), ("w1", {"b": EVERY - 2})]
    clock.now = 2 * EVERY - 1
    report.advance(waiting)
    clock.now = 2 * EVERY
    report.advance(waiting)
    assert told[2:] == [("w0", {"w": 0})]


def test_very_many_are_told_in_batches() -> None:
    clock = Clock()
    told: list[int] = []
    report = Touches(Owners({0: "w0"}), lambda _, it: told.append(len(it.ages)), clock)
    for number in range(2 * BATCH + 1):
        report.add(str(number), 0)
    clock.now = EVERY
    report.advance(())
    assert told == [BATCH, BATCH, 1]


async def test_a_gateway_tells_what_its_clients_read_and_wait_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(touches, "EVERY", 0.1)
    async with cluster(max_shapes=5, long_poll_timeout_ms=60_000) as world:
        shape = world.worker.shape()
        other = world.worker.shape(columns=("a",))

        def told(handle: str) -> int:
            return sum(isinstance(each, Touched) and handle in each.ages for each in world.worker.asked)

        assert (await world.get("offset=-1&columns=a")).status == 200
        await until(lambda: told(other.handle) == 1)
        waiting = await world.open(f"/v1/shape?table=items&offset=0_inf&handle={shape.handle}&live=true")
        await until(lambda: told(shape.handle) >= 3)
        waiting.close()
        # A use is told once.
        assert told(other.handle) == 1
        # Whoever takes long to read uses it as long.
        world.worker.rows = [row(number, pad=100_000) for number in range(300)]
        large = world.worker.shape(columns=("b",))
        slow = await world.open("/v1/shape?table=items&offset=-1&columns=b")
        slow.reader._transport.pause_reading()  # type: ignore[attr-defined]
        await until(lambda: told(large.handle) >= 3)
        slow.close()


async def test_without_a_limit_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(touches, "EVERY", 0.01)
    async with cluster() as world:
        assert (await world.get("offset=-1")).status == 200
        await asyncio.sleep(0.2)
        assert not any(isinstance(each, Touched) for each in world.worker.asked)

"""How busy a loop is said to be, from given times; and that a real loop's waiting is counted as such."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest
import uvloop

from common.instruments import of_load
from common.loop_meter import LONG, TICK, WINDOW, LoopLoad, LoopMeter, idle_time, unused_time


class Life:
    """A loop's load under a clock of its own."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.waited = self.unused = 0.0
        self.load = LoopLoad(self.now)

    def run(self, seconds: float, busy: float, late: float = 0.0, processor: float | None = None) -> None:
        """So long, busy for this share of the time."""
        end = self.now + seconds
        while self.now < end - TICK / 2:
            self.now += TICK
            self.waited += TICK * (1 - busy)
            self.unused += TICK * (1 - (busy if processor is None else processor))
            self.load.tick(self.now, late, self.waited, self.unused)


def block(seconds: float) -> None:
    """The loop can do nothing else for so long."""
    time.sleep(seconds)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(120):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.05)


def test_the_share_is_that_of_the_last_window() -> None:
    life = Life()
    life.run(WINDOW - 1, 1.0)
    assert life.load.busy == 0
    life.run(1.1, 1.0)
    assert life.load.busy == pytest.approx(1.0)
    life.run(WINDOW + 0.1, 0.25, processor=0.2)
    assert life.load.busy == pytest.approx(0.25, abs=0.02)
    assert life.load.processor == pytest.approx(0.2, abs=0.02)
    assert life.load.busy_seconds == pytest.approx(WINDOW + 0.1 + 0.25 * (WINDOW + 0.1), rel=0.02)


def test_the_longest_lateness_is_that_of_the_last_minute() -> None:
    life = Life()
    life.run(1, 0.5, late=0.7)
    life.run(50, 0.5, late=0.01)
    assert life.load.latest == 0.7
    life.run(20, 0.5, late=0.02)
    assert life.load.latest == 0.02


def test_an_overload_is_told_after_a_minute_and_with_what_helps() -> None:
    life = Life()
    life.run(LONG - WINDOW, 1.0)
    assert of_load("w00", life.load, life.now) == []
    life.run(2 * WINDOW, 0.99)
    (told,) = of_load("w00", life.load, life.now)
    assert "w00 has hardly been idle for" in told.text
    assert "galvanic scale" in told.text
    assert not told.delays
    assert "GALVANIC_GATEWAYS" in of_load("g3", life.load, life.now)[0].text
    assert "changes come" in of_load("ingester", life.load, life.now)[0].text
    life.run(2 * WINDOW + 0.1, 1.0, processor=0.3)
    assert "lacks CPU" in of_load("w00", life.load, life.now)[0].text
    life.run(2 * WINDOW + 0.1, 0.5)
    assert of_load("w00", life.load, life.now) == []


def test_a_pause_between_is_no_overload() -> None:
    life = Life()
    for _ in range(12):
        life.run(WINDOW + 0.1, 1.0)
        life.run(WINDOW + 0.1, 0.1)
        assert of_load("g0", life.load, life.now) == []


def test_uvloop_tells_its_waiting_exactly() -> None:
    async def look() -> None:
        loop = asyncio.get_running_loop()
        waited, unused = idle_time(loop), unused_time()
        # Blocked is not waiting, although it uses no processor.
        block(0.2)
        assert waited() == 0
        assert unused() > 0.1
        await asyncio.sleep(0.05)
        await until(lambda: waited() >= 0.1)

    uvloop.run(look())


def test_another_loop_counts_unused_time() -> None:
    async def look() -> None:
        waited = idle_time(asyncio.get_running_loop())
        await until(lambda: waited() >= 0.1)

    asyncio.run(look())


@pytest.mark.parametrize("interrupted", [False, True])
def test_the_meter_ticks_until_it_is_closed(interrupted: bool) -> None:
    async def look() -> None:
        meter = LoopMeter(lambda: interrupted)
        began = meter.load.ticked
        await until(lambda: meter.load.ticked != began)
        # It stands still for so long, and a timer was due meanwhile.
        before = meter.load.busy_seconds
        block(0.5)
        await until(lambda: meter.load.latest >= 0.3)
        # What blocks is waiting only for who has nothing but the processor's time to go by.
        assert meter.load.busy_seconds - before > 0.4 or interrupted
        meter.close()
        last = meter.load.ticked
        await asyncio.sleep(3 * TICK)
        assert meter.load.ticked == last

    uvloop.run(look())

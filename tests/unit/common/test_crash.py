"""A process works or ends (engine.md 27)."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator

import pytest

from common.crash import CRASHED, CrashOnly


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    """The handlers go with the loop, but the tests' own must be back for the next one."""
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGINT)}
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)


async def fails(error: Exception) -> None:
    raise error


async def test_a_failed_task_ends_the_process() -> None:
    crash = CrashOnly()
    crash.spawn(fails(ValueError("no")))
    assert await asyncio.wait_for(crash.end(), 10) == CRASHED
    assert not crash.stopping


async def test_a_failure_that_is_dealt_with_does_not() -> None:
    crash = CrashOnly()
    dealt: list[Exception] = []
    error = ValueError("no")
    crash.spawn(fails(error), on_failure=dealt.append)
    other = asyncio.get_running_loop().create_task(asyncio.sleep(0.05))
    assert await asyncio.wait_for(crash.end(other), 10) is None
    assert dealt == [error]


async def test_a_callback_that_raises_ends_the_process() -> None:
    crash = CrashOnly()
    asyncio.get_running_loop().call_soon(int, "no number")
    assert await asyncio.wait_for(crash.end(), 10) == CRASHED


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_it_in_good_order(signum: signal.Signals) -> None:
    crash = CrashOnly()
    idle = asyncio.Event()
    crash.spawn(idle.wait())
    os.kill(os.getpid(), signum)
    assert await asyncio.wait_for(crash.end(), 10) is None
    assert crash.stopping
    crash.cancel()
    await asyncio.sleep(0)
    assert not crash._failed.done(), "being cancelled is no failure"

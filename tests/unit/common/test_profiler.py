"""Profiles: what is counted, that it is bounded, and that a real process is seen where its time goes.

The real ones run in processes of their own: the profiler needs SIGALRM, which pytest uses.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from common import profiler
from common.profiler import LOOP, OVERFLOW, Looks, name_of

ROOT = Path(__file__).parents[3]

_SCRIPT = """
import asyncio, json, os, signal, threading, time, uvloop
from common.profiler import Busy, Profiler

null = os.open("/dev/null", os.O_WRONLY)

def think():
    end = time.thread_time() + 0.004
    while time.thread_time() < end:
        for _ in range(2000):
            pass

def write():
    # Lets go of the interpreter again and again, in very little time.
    for _ in range(20):
        os.write(null, b"x")

def blocked(done):
    while not done.is_set():
        time.sleep(0.01)

async def main():
    profiler = Profiler()
    taken, refused = [], []

    def take():
        taken.append(profiler.take(2, 200, time.sleep, all_threads=ALL))

    def take_second():
        try:
            profiler.take(1, 10, time.sleep)
        except Busy:
            refused.append(True)

    done = threading.Event()
    other = threading.Thread(target=blocked, args=(done,), name="other")
    other.start()
    thread = threading.Thread(target=take, name="control")
    thread.start()
    while not profiler.active:
        await asyncio.sleep(0.001)
    second = threading.Thread(target=take_second, name="control")
    second.start()
    while thread.is_alive():
        if BUSY:
            think()
            write()
            await asyncio.sleep(0)
        else:
            await asyncio.sleep(0.05)
    done.set()
    other.join()
    second.join()
    # Signals end with the profile, or come to nothing.
    assert not profiler.active
    os.kill(os.getpid(), signal.SIGALRM)
    await asyncio.sleep(0.1)
    (profile,) = taken
    print(json.dumps({"looks": profile.looks, "seconds": profile.seconds, "main": profile.main,
                      "refused": len(refused), "folded": profile.folded}))

uvloop.run(main())
"""


def run(*, busy: bool, all_threads: bool = False) -> dict[str, Any]:
    script = _SCRIPT.replace("ALL", str(all_threads)).replace("BUSY", str(busy))
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


def share(found: dict[str, Any], text: str) -> float:
    """Of the looks, those whose stack has this in it."""
    return float(sum(count for stack, count in found["folded"].items() if text in stack) / found["looks"])


def test_a_busy_process_is_seen_at_what_keeps_it_busy() -> None:
    found = run(busy=True)
    assert found["looks"] > 100
    assert share(found, ":think") > 0.7
    # A thread that looked would meet it here each time.
    assert share(found, ":write") < 0.2
    assert all(stack.split(";")[0] == LOOP for stack in found["folded"])
    assert found["refused"] == 1


def test_an_idle_process_is_seen_in_its_loop() -> None:
    found = run(busy=False)
    assert found["looks"] > 100
    assert sum(count for stack, count in found["folded"].items() if stack == LOOP) / found["looks"] > 0.7


def test_other_threads_are_seen_if_asked_for() -> None:
    found = run(busy=True, all_threads=True)
    assert share(found, "(thread other);") > 0.5
    assert share(found, "(thread control)") == 0


def here() -> FrameType:
    frame = sys._getframe(1)
    assert frame is not None
    return frame


def test_looks_that_were_left_out_count_for_what_took_so_long() -> None:
    looks = Looks(0.01, 100.0, all_threads=False)
    looks.add(100.01, here())
    looks.add(100.06, here())
    looks.add(100.061, here())
    assert looks.total == 1 + 5 + 1
    ((stack, count),) = looks.folded().items()
    assert count == 7
    assert stack.endswith("test_profiler.py:test_looks_that_were_left_out_count_for_what_took_so_long")


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiler, "MOST_STACKS", 3)
    looks = Looks(1, 0, all_threads=False)
    for number in range(10):
        scope: dict[str, Any] = {"here": here}
        exec(compile(f"def f{number}(): return here()", f"<made {number}>", "exec"), scope)
        looks.add(number, scope[f"f{number}"]())
    folded = looks.folded()
    assert len(folded) == 4
    assert folded[OVERFLOW] == 7


def test_a_deep_stack_is_cut_at_its_outer_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiler, "DEEPEST", 5)

    def deep(levels: int) -> FrameType:
        return deep(levels - 1) if levels else here()

    assert len(profiler.codes_of(deep(20))) == 5


def test_a_function_that_was_only_just_entered_has_taken_no_time() -> None:
    def later() -> Iterator[FrameType]:
        yield here()

    started: Any = later()
    assert profiler.codes_of(started.gi_frame) == ()
    assert profiler.codes_of(next(started))[-1] is started.gi_code


def test_names_have_a_file_that_can_be_found_and_nothing_that_ends_them() -> None:
    assert name_of(name_of.__code__) == "common/profiler.py:name_of"
    assert name_of(json.dumps.__code__) == "json/__init__.py:dumps"
    scope: dict[str, Any] = {}
    exec(compile("def f(): pass", "/a b;c/x y.py", "exec"), scope)
    assert name_of(scope["f"].__code__) == "a_b,c/x_y.py:f"

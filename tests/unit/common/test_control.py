"""The control socket answers whatever the event loop does, and never harms the process."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import pytest

from common.control import (
    SUFFIX,
    Control,
    ProcessStatus,
    ProfileAnswer,
    ProfileQuestion,
    Refused,
    StatusQuestion,
    decode_reply,
)
from common.loop_meter import LoopLoad
from common.profiler import Busy, Profile, Profiler
from deploy.control_client import NoAnswer, ask, own_name, processes


class FakeProfiler:
    """Takes profiles of nothing. The real one needs SIGALRM."""

    def __init__(self) -> None:
        self.asked: list[tuple[float, float, bool]] = []
        self.ended_early = threading.Event()
        self.busy = False

    def take(
        self, seconds: float, rate: float, wait: Callable[[float], object], *, all_threads: bool = False
    ) -> Profile:
        if self.busy:
            raise Busy
        self.asked.append((seconds, rate, all_threads))
        began = time.monotonic()
        wait(seconds)
        if time.monotonic() - began < seconds:
            self.ended_early.set()
        return Profile(seconds, 7, 0.5, 0.0, {"a;b": 7})


@pytest.fixture
def run_dir() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="gv-", dir="/tmp") as directory:
        yield Path(directory)


class Process:
    """A control socket on the running loop."""

    def __init__(self, run_dir: Path, name: str = "w00") -> None:
        self.facts: Callable[[], dict[str, str]] = lambda: {"shapes": "3"}
        self.profiler = FakeProfiler()
        self.control = Control(
            run_dir, name, LoopLoad(time.monotonic()), cast(Profiler, self.profiler), lambda: self.facts()
        )


async def test_status_and_profile_are_answered(run_dir: Path) -> None:
    process = Process(run_dir)
    assert processes(run_dir) == ["w00"]
    status = await asyncio.to_thread(ask, run_dir, "w00", StatusQuestion())
    assert isinstance(status, ProcessStatus)
    assert (status.process, status.facts) == ("w00", {"shapes": "3"})
    assert status.memory > 1_000_000
    assert (run_dir / f"w00{SUFFIX}").stat().st_mode & 0o777 == 0o600

    answer = await asyncio.to_thread(ask, run_dir, "w00", ProfileQuestion(0.05, 1e9, True), 0.05)
    assert isinstance(answer, ProfileAnswer)
    assert answer.profile.folded == {"a;b": 7}
    assert process.profiler.asked == [(0.05, 1000.0, True)]

    process.profiler.busy = True
    with pytest.raises(NoAnswer, match="being taken already"):
        await asyncio.to_thread(ask, run_dir, "w00", ProfileQuestion(0.05, 100))
    process.control.close()
    assert processes(run_dir) == []


async def test_a_loop_that_is_stuck_is_answered_for(run_dir: Path) -> None:
    process = Process(run_dir)
    answers: list[object] = []
    asking = threading.Thread(target=lambda: answers.append(ask(run_dir, "w00", StatusQuestion())))
    asking.start()
    # The loop stands still until the answer is there.
    asking.join(60)
    (status,) = answers
    assert isinstance(status, ProcessStatus)
    assert status.facts == {}
    assert status.still > 1
    process.control.close()


async def test_facts_that_fail_do_not_end_the_process(run_dir: Path) -> None:
    process = Process(run_dir)
    failures: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))

    def facts() -> dict[str, str]:
        raise ValueError("a bug")

    process.facts = facts
    status = await asyncio.to_thread(ask, run_dir, "w00", StatusQuestion())
    assert isinstance(status, ProcessStatus)
    assert "a bug" in status.facts["error"]
    assert failures == []
    process.control.close()


async def test_who_hangs_up_ends_the_profile(run_dir: Path) -> None:
    process = Process(run_dir)
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(run_dir / f"w00{SUFFIX}"))
        connection.sendall(b'{"type": "profile", "seconds": 100, "rate": 10}\n')
        while not process.profiler.asked:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert await asyncio.to_thread(process.profiler.ended_early.wait, 60)
    process.control.close()


async def test_a_process_with_many_connections_is_profiled(run_dir: Path) -> None:
    process = Process(run_dir)
    with contextlib.ExitStack() as connections:
        highest = 0
        while highest <= 1024:
            highest = connections.enter_context(socket.socket()).fileno()
        # Twice: a thread that waits in accept() has the next connection's descriptor already.
        for _ in range(2):
            answer = await asyncio.to_thread(ask, run_dir, "w00", ProfileQuestion(0.01, 100))
            assert isinstance(answer, ProfileAnswer)
    process.control.close()


@pytest.mark.parametrize("text", [b"", b"\n", b"GET / HTTP/1.1\r\n", b'{"type": "stop"}\n', b"x" * 100_000 + b"\n"])
async def test_nonsense_is_refused_and_forgotten(run_dir: Path, text: bytes) -> None:
    process = Process(run_dir)

    def talk() -> bytes:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(60)
            connection.connect(str(run_dir / f"w00{SUFFIX}"))
            try:
                connection.sendall(text)
                connection.shutdown(socket.SHUT_WR)
                return connection.makefile("rb").readline()
            except ConnectionError:
                return b""

    for _ in range(10):  # more than may ask at the same time
        answer = await asyncio.to_thread(talk)
        assert answer == b"" or isinstance(decode_reply(answer), Refused)
    assert isinstance(await asyncio.to_thread(ask, run_dir, "w00", StatusQuestion()), ProcessStatus)
    process.control.close()


async def test_the_socket_of_the_dead_is_taken_over_and_that_of_the_living_is_not(run_dir: Path) -> None:
    path = run_dir / f"w00{SUFFIX}"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with pytest.raises(NoAnswer, match="w00 does not run"):
        ask(run_dir, "w00", StatusQuestion())
    first = Process(run_dir)
    second = Process(run_dir)
    second.facts = lambda: {"shapes": "of the second"}
    second.control.close()
    status = await asyncio.to_thread(ask, run_dir, "w00", StatusQuestion())
    assert isinstance(status, ProcessStatus)
    assert status.facts == {"shapes": "3"}
    first.control.close()


async def test_a_path_that_is_too_long_costs_only_the_answers(run_dir: Path) -> None:
    process = Process(run_dir, "w" * 100)
    assert processes(run_dir) == []
    process.control.close()


def test_who_is_not_there_is_told_with_who_is(run_dir: Path) -> None:
    (run_dir / f"w01{SUFFIX}").touch()
    with pytest.raises(NoAnswer, match=r"no process w07 in .*there are: w01.*GALVANIC_RUN_DIR"):
        ask(run_dir, "w07", StatusQuestion())


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("w00", "w00"),
        ("g0", "g0"),
        ("ingester", "ingester"),
        ("ingester:ingester", "ingester"),
        ("shapeworker_03", "w03"),
        ("shapeworker:shapeworker_03", "w03"),
        ("shapeworker_12:shapeworker_12", "w12"),
        ("gateway:gateway_01", "g01"),
        ("my-worker", "my-worker"),
    ],
)
def test_names_of_supervisord_are_understood(given: str, name: str) -> None:
    assert own_name(given) == name

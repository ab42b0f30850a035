"""A socket on which a process answers operators: how it is, and where its time goes (``galvanic status``, ``profile``).

Answers come from threads, so they come while the event loop is busy or stuck, which is when they are wanted. Nothing
runs until somebody asks. The socket lies in the run directory, and only its owner may connect.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import os
import select
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec
import structlog

from common.loop_meter import LoopLoad
from common.profiler import Busy, Profile, Profiler
from common.sockets import is_listened_on

log = structlog.get_logger()

SUFFIX: Final = ".control.sock"

LONGEST: Final = 600.0
"""Seconds that a profile may take."""

FASTEST: Final = 1000.0
"""Looks per second."""

PATIENCE: Final = 2.0
"""Seconds that the event loop has to say what only it knows."""

MOST_ASKING: Final = 8
"""Who asks at the same time beyond that waits."""

MOST_BYTES: Final = 65_536
"""Of a question."""


class StatusQuestion(msgspec.Struct, tag="status", frozen=True):
    """«How are you?»"""


class ProfileQuestion(msgspec.Struct, tag="profile", frozen=True):
    """«Where does your time go?» For so many ``seconds``, with ``rate`` looks per second."""

    seconds: float
    rate: float
    all_threads: bool = False


class ProcessStatus(msgspec.Struct, tag="status", frozen=True, kw_only=True):
    """``busy``: share of the last 10 s in which its event loop did not wait; ``lag``: most that a timer was late in the
    last minute (s); ``still``: for how long the loop has not turned (s), above some tenths it is stuck or overloaded.

    ``memory`` in bytes; ``processor`` time since it was ``started`` (Unix), in seconds. ``facts``: what there is to say
    about this kind of process; empty if its loop did not find the time.
    """

    process: str
    pid: int
    started: float
    busy: float
    lag: float
    still: float
    processor: float
    memory: int
    facts: dict[str, str]


class ProfileAnswer(msgspec.Struct, tag="profile", frozen=True):
    """The profile."""

    profile: Profile


class Refused(msgspec.Struct, tag="refused", frozen=True):
    """Why there is no answer."""

    reason: str


Question = StatusQuestion | ProfileQuestion
Reply = ProcessStatus | ProfileAnswer | Refused

encode = msgspec.json.Encoder().encode
decode_question = msgspec.json.Decoder(Question).decode
decode_reply = msgspec.json.Decoder(Reply).decode

STARTED: Final = time.time()


class Control:
    """Answers until it is closed. Made and closed on the running loop."""

    def __init__(
        self, run_dir: Path, process: str, load: LoopLoad, profiler: Profiler, facts: Callable[[], dict[str, str]]
    ) -> None:
        """``process`` is its name as operators know it; ``facts`` is called on the loop."""
        self._process = process
        self._load = load
        self._profiler = profiler
        self._facts = facts
        self._loop = asyncio.get_running_loop()
        self._asking = threading.Semaphore(MOST_ASKING)
        self._path = run_dir / f"{process}{SUFFIX}"
        self._socket = self._listen()
        if self._socket is not None:
            threading.Thread(target=self._accept, args=(self._socket,), name="control", daemon=True).start()

    def close(self) -> None:
        """Listen no more."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                # Wakes the thread, which close alone would not.
                self._socket.shutdown(socket.SHUT_RDWR)
            self._socket.close()
            self._socket = None
            self._path.unlink(missing_ok=True)

    def _listen(self) -> socket.socket | None:
        """Without this socket the process works as well, so nothing here is an error."""
        if is_listened_on(self._path):
            log.warning("another process has this name; galvanic status and profile ask that one", path=str(self._path))
            return None
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._path.unlink(missing_ok=True)
            listener.bind(str(self._path))
            self._path.chmod(0o600)
            listener.listen(MOST_ASKING)
        except OSError as error:
            log.warning("galvanic status and profile cannot ask this process", path=str(self._path), reason=str(error))
            listener.close()
            return None
        return listener

    def _accept(self, listener: socket.socket) -> None:
        while True:
            self._asking.acquire()
            try:
                asker, _ = listener.accept()
            except OSError:
                return  # closed
            threading.Thread(target=self._serve, args=(asker,), name="control", daemon=True).start()

    def _serve(self, asker: socket.socket) -> None:
        try:
            with asker, contextlib.suppress(OSError):
                asker.settimeout(PATIENCE)
                with asker.makefile("rb") as lines:
                    question = lines.readline(MOST_BYTES)
                if question:
                    asker.sendall(encode(self._answer(question, asker)) + b"\n")
        finally:
            self._asking.release()

    def _answer(self, text: bytes, asker: socket.socket) -> Reply:
        try:
            question = decode_question(text)
        except msgspec.DecodeError as error:
            return Refused(f"not a question: {error}")
        if isinstance(question, StatusQuestion):
            return self._status()
        seconds, rate = min(question.seconds, LONGEST), min(max(question.rate, 1.0), FASTEST)

        hung_up = select.poll()
        hung_up.register(asker, select.POLLIN)

        def wait(seconds: float) -> None:
            # Who asks hangs up to end it early. Not select(): a gateway has descriptors above 1 024.
            hung_up.poll(seconds * 1000)

        try:
            return ProfileAnswer(self._profiler.take(seconds, rate, wait, all_threads=question.all_threads))
        except Busy:
            return Refused("a profile of this process is being taken already")

    def _status(self) -> ProcessStatus:
        load = self._load
        found: concurrent.futures.Future[dict[str, str]] = concurrent.futures.Future()

        def find() -> None:
            try:
                found.set_result(self._facts())
            except Exception as error:  # noqa: BLE001
                # Raised here it would end the process.
                found.set_exception(error)

        try:
            self._loop.call_soon_threadsafe(find)
            facts = found.result(PATIENCE)
        except TimeoutError:
            facts = {}
        except Exception as error:
            log.exception("galvanic status")
            facts = {"error": repr(error)}
        return ProcessStatus(
            process=self._process,
            pid=os.getpid(),
            started=STARTED,
            busy=load.busy,
            lag=load.latest,
            still=max(0.0, time.monotonic() - load.ticked),
            processor=time.process_time(),
            memory=resident_memory(),
            facts=facts,
        )


def resident_memory() -> int:
    """Bytes of this process in RAM; 0 where the system does not tell."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0

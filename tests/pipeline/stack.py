"""Galvanic's real processes, started and killed one by one, as supervisord would run them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import aiohttp
import zmq

from common.control import ProcessStatus, StatusQuestion
from common.messages import STATUS_TOPIC, Status, decode_status
from common.process import dying_with_this_process
from common.shape import partition_of_handle
from deploy import control_client
from tests.ports import free_port

REPOSITORY: Final = Path(__file__).resolve().parents[2]
LONG_POLL_SECONDS: Final = 4
"""Of every stack: clients notice within this time what no hint told them."""

_HANG_SECONDS: Final = 180.0
_TAIL_BYTES: Final = 6000
_OURS = ("ELECTRIC_", "GALVANIC_", "PG", "DATABASE_URL", "STORAGE_DIR", "PROMETHEUS_")


class _Child:
    """One program under its name; the process behind it changes with each restart."""

    def __init__(self, name: str, arguments: list[str], log: Path) -> None:
        self.name = name
        self.arguments = arguments
        self.log = log
        self.process: subprocess.Popen[bytes] | None = None
        self.wanted = False
        self.killed = False
        """Whether its death was our doing."""
        self.log_start = 0
        """The size of the log when it was started last."""

    @property
    def speaks(self) -> bool:
        """Whether it has come far enough to end in an orderly way when told."""
        return self.log.stat().st_size > self.log_start


class Stack:
    """One ingester, some workers and gateways over one storage directory, on a free port.

    With `keep_alive` a process that dies is started again, as supervisord does. Deaths that nobody asked for, refusals
    to stop and children left behind are gathered in `problems`. Nothing outlives the test process, however it ends.
    """

    def __init__(
        self,
        database_url: str,
        root: Path,
        *,
        workers: int = 1,
        gateways: int = 1,
        environment: Mapping[str, str] | None = None,
        environments: Mapping[str, Mapping[str, str]] | None = None,
        storage: Path | None = None,
        descriptors: int | None = None,
        keep_alive: bool = True,
    ) -> None:
        """``environments``: variables of single processes, by the beginning of their names (``w``, ``g0``).
        ``descriptors``: how many files each may have open."""
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.storage = storage or root / "storage"
        self.problems: list[str] = []
        self._logs = root / "logs"
        self._logs.mkdir(parents=True, exist_ok=True)
        # Sockets live here, and the path of a Unix socket may have 107 bytes only.
        self.run_directory = Path(tempfile.mkdtemp(prefix="gv-", dir="/tmp"))
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
        self.environment = {
            **inherited,
            "PYTHONUNBUFFERED": "1",
            "PYTHONFAULTHANDLER": "1",
            "DATABASE_URL": database_url,
            "ELECTRIC_INSECURE": "true",
            "ELECTRIC_PORT": str(self.port),
            "ELECTRIC_STORAGE_DIR": str(self.storage),
            "ELECTRIC_ENABLE_INTEGRATION_TESTING": "true",
            "ELECTRIC_LONG_POLL_TIMEOUT": str(LONG_POLL_SECONDS * 1000),
            "ELECTRIC_DB_POOL_SIZE": "6",
            "GALVANIC_RUN_DIR": str(self.run_directory),
            **(environment or {}),
        }
        self.environments = environments or {}
        self._children: dict[str, _Child] = {}
        self._limit = [] if descriptors is None else ["sh", "-c", f'ulimit -n {descriptors}; exec "$@"', "sh"]
        self._keep_alive = keep_alive
        self._keeper: asyncio.Task[None] | None = None
        self._declare("ingester", "ingester")
        for number in range(workers):
            self._declare(f"w{number:02}", "shapeworker", "--id", f"w{number:02}")
        for number in range(gateways):
            self._declare(f"g{number}", "gateway", "--id", f"g{number}")

    async def __aenter__(self) -> Self:
        self.start()
        await self.wait_active()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    @property
    def workers(self) -> list[str]:
        """The names of the workers that are meant to run."""
        return [name for name, child in self._children.items() if name.startswith("w") and child.wanted]

    @property
    def gateways(self) -> list[str]:
        """The names of the gateways that are meant to run."""
        return [name for name, child in self._children.items() if name.startswith("g") and child.wanted]

    def start(self, *names: str) -> None:
        """Starts every declared process, or these, if they do not run."""
        for name in names or list(self._children):
            self._launch(self._children[name])
        if self._keep_alive and self._keeper is None:
            self._keeper = asyncio.create_task(self._keep(), name="keeper of the stack")

    async def wait_active(self) -> None:
        """Waits until `/v1/health` says active."""
        answer = "nothing"
        deadline = time.monotonic() + _HANG_SECONDS
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as session:
            while time.monotonic() < deadline:
                with contextlib.suppress(aiohttp.ClientError, TimeoutError, ConnectionError):
                    async with session.get(f"{self.url}/v1/health") as response:
                        answer = f"{response.status} {await response.text()}"
                        if response.status == 200 and '"active"' in answer:
                            return
                await asyncio.sleep(0.05)
        raise AssertionError(f"/v1/health does not become active: {answer}")

    async def wait_balanced(self) -> dict[int, str]:
        """Waits until each partition has an owner and each wanted worker, but no other, some; who owns what."""
        status: Status | None = None
        endpoint = self._environment("ingester").get(
            "GALVANIC_STATUS_ENDPOINT", f"ipc://{self.run_directory}/status.sock"
        )
        with zmq.Context() as context, context.socket(zmq.SUB) as subscriber:
            subscriber.setsockopt(zmq.LINGER, 0)
            subscriber.subscribe(STATUS_TOPIC)
            subscriber.connect(endpoint)
            deadline = time.monotonic() + _HANG_SECONDS
            while time.monotonic() < deadline:
                if not subscriber.poll(0):
                    await asyncio.sleep(0.02)
                    continue
                status = decode_status(subscriber.recv_multipart()[-1])
                if len(status.owners) == status.partitions and set(status.owners.values()) == set(self.workers):
                    return status.owners
        raise AssertionError(f"the partitions do not settle on {self.workers}: {status}")

    def add_worker(self) -> str:
        """Starts one worker more, under a name never used before."""
        number = sum(name.startswith("w") for name in self._children)
        name = f"w{number:02}"
        self._launch(self._declare(name, "shapeworker", "--id", name))
        return name

    async def stop_worker(self, name: str) -> None:
        """SIGTERM, for good: the worker hands its partitions back."""
        await self._terminate([self._children[name]])

    def lose(self, name: str) -> None:
        """`kill -9`, for good."""
        self._children[name].wanted = False
        self.kill9(name)

    def kill9(self, *names: str) -> None:
        """`kill -9` of these processes at once, which must run; afterwards they are dead.

        With `keep_alive` they start again by themselves.
        """
        processes = []
        for name in names:
            child = self._children[name]
            assert child.process is not None
            assert child.process.poll() is None, f"{name} does not run, so it cannot be killed"
            child.killed = True
            _signal_group(child.process.pid, signal.SIGKILL)
            processes.append(child.process)
        for process in processes:
            process.wait(_HANG_SECONDS)

    def pause(self, *names: str) -> None:
        """SIGSTOP: these processes stand still, with all their connections open, until :meth:`resume`."""
        for name in names:
            _signal_group(self.pid(name), signal.SIGSTOP)

    def resume(self, *names: str) -> None:
        """SIGCONT."""
        for name in names:
            _signal_group(self.pid(name), signal.SIGCONT)

    def pid(self, name: str) -> int:
        """The id of the process behind this name, which must have been started."""
        process = self._children[name].process
        assert process is not None
        return process.pid

    def log_of(self, name: str) -> str:
        """Everything the process has said, in all its lives."""
        return self._children[name].log.read_text(errors="replace")

    async def wait_logged(self, name: str, text: str) -> None:
        """Waits until the log of a process contains ``text``."""
        deadline = time.monotonic() + _HANG_SECONDS
        while text not in self.log_of(name):
            assert time.monotonic() < deadline, f"{name} does not log {text!r}:\n{self.log_of(name)[-_TAIL_BYTES:]}"
            await asyncio.sleep(0.05)

    def is_complete(self, handle: str) -> bool:
        """Whether the shape is on the disk as a whole. Its catalog has it in a moment, and then no crash ends it."""
        return any(self.storage.glob(f"partitions/*/shapes/{handle}/shape.json"))

    def are_complete(self, handles: Collection[str]) -> bool:
        """Whether the catalogs have these shapes, each of which was made by this stack: nothing may end them now."""
        logs = "".join(self.log_of(name) for name in self._children if name.startswith("w"))
        said = sum(map(int, re.findall(r'event="shapes are complete" shapes=(\d+)', logs)))
        whole = {path.parent.name for path in self.storage.glob("partitions/*/shapes/*/shape.json")}
        return said >= len(set(handles)) and whole.issuperset(handles)

    async def health(self) -> tuple[int, dict[str, Any]]:
        """Status and body of ``/v1/health``; 0 while no gateway answers."""
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as session:
            try:
                async with session.get(f"{self.url}/v1/health") as response:
                    return response.status, await response.json(content_type=None)
            except (aiohttp.ClientError, TimeoutError, ConnectionError) as error:
                return 0, {"reason": repr(error)}

    async def wait_health(self, text: str) -> dict[str, Any]:
        """Waits until the body of ``/v1/health`` contains ``text``, whatever its status, and returns the body."""
        deadline = time.monotonic() + _HANG_SECONDS
        while True:
            status, body = await self.health()
            if text in json.dumps(body):
                return body
            assert time.monotonic() < deadline, f"/v1/health does not say {text!r}: {status} {body}"
            await asyncio.sleep(0.1)

    async def stop(self, *order: str) -> None:
        """SIGTERM to all; what does not go is killed and noted. Idempotent.

        ``order``: beginnings of names, those first that end first: gateways, workers, ingester unless told otherwise;
        ``""`` is all at once.
        """
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
            self._keeper = None
        for first in order or ("g", "w", "i"):
            await self._terminate([child for name, child in self._children.items() if name.startswith(first)])

    def dispose(self) -> None:
        """Kills what still runs and removes the run directory."""
        for child in self._children.values():
            if child.process is not None and child.process.poll() is None:
                _signal_group(child.process.pid, signal.SIGKILL)
                child.process.wait(120)
        shutil.rmtree(self.run_directory, ignore_errors=True)

    def check(self) -> None:
        """Raises AssertionError if a process died that nobody killed, or something else went wrong."""
        assert not self.problems, "\n".join(self.problems)

    def tails(self) -> list[tuple[str, str]]:
        """The end of each process's log, by name."""
        tails = []
        for child in self._children.values():
            if child.log.exists():
                with child.log.open("rb") as file:
                    file.seek(max(0, child.log.stat().st_size - _TAIL_BYTES))
                    tails.append((child.name, file.read().decode(errors="replace")))
        return tails

    def waiting(self, gateway: str = "g0") -> int:
        """How many live requests wait at a gateway just now."""
        answer = control_client.ask(self.run_directory, gateway, StatusQuestion())
        assert isinstance(answer, ProcessStatus), answer
        return int(answer.facts["waiting"])

    def _declare(self, name: str, *arguments: str) -> _Child:
        child = _Child(name, list(arguments), self._logs / f"{name}.log")
        self._children[name] = child
        return child

    def _launch(self, child: _Child) -> None:
        child.wanted = True
        if child.process is not None and child.process.poll() is None:
            return
        child.killed = False
        with child.log.open("ab") as log:
            child.log_start = log.tell()
            # From the main thread, which lasts: the kernel kills the child when the thread that forked it ends.
            child.process = subprocess.Popen(
                [*self._limit, sys.executable, "-m", "deploy", *child.arguments],
                cwd=REPOSITORY,
                env=self._environment(child.name),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                process_group=0,
                preexec_fn=dying_with_this_process(signal.SIGKILL),
            )

    def _environment(self, name: str) -> dict[str, str]:
        environment = dict(self.environment)
        for prefix, variables in self.environments.items():
            if name.startswith(prefix):
                environment.update(variables)
        return environment

    async def _keep(self) -> None:
        while True:
            for child in list(self._children.values()):
                process = child.process
                if not child.wanted or process is None or process.poll() is None:
                    continue
                if not child.killed:
                    self.problems.append(f"{child.name} ended by itself, exit status {process.returncode}")
                    # A process that cannot start would otherwise fill the log until the test gives up.
                    await asyncio.sleep(0.5)
                if child.wanted:
                    self._launch(child)
            await asyncio.sleep(0.1)

    async def _terminate(self, children: list[_Child]) -> None:
        running = []
        for child in children:
            if child.wanted and not child.killed and child.process is not None and child.process.poll() is not None:
                self.problems.append(f"{child.name} ended by itself, exit status {child.process.returncode}")
            child.wanted = False
            if child.process is not None and child.process.poll() is None:
                running.append((child, child.process))
                child.process.send_signal(signal.SIGTERM)
                child.process.send_signal(signal.SIGCONT)
        deadline = time.monotonic() + _HANG_SECONDS
        while any(process.poll() is None for _, process in running) and time.monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        for child, process in running:
            if process.poll() is None:
                self.problems.append(f"{child.name} does not stop at SIGTERM")
            elif process.returncode == -signal.SIGTERM and not child.speaks:
                pass
            elif process.returncode != 0 and not child.killed:
                self.problems.append(f"{child.name} exits with {process.returncode} at SIGTERM")
            if _signal_group(process.pid, signal.SIGKILL) and process.poll() is not None:
                self.problems.append(f"{child.name} left processes of its own behind")
            process.wait(120)


def owner_of(handle: str | None, owners: Mapping[int, str]) -> str:
    """Which of the owners of all partitions has this shape."""
    number = None if handle is None else partition_of_handle(handle, len(owners))
    assert number is not None
    return owners[number]


def _signal_group(group: int, signum: int) -> bool:
    """Whether there was somebody in the process group to get the signal."""
    try:
        os.killpg(group, signum)
    except ProcessLookupError:
        return False
    return True

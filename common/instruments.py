"""What every process measures of itself, and how it gets to those who want to know.

How busy its loop is, and the control socket, always; reports to the ingester only if ELECTRIC_PROMETHEUS_PORT is set.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Final, Protocol, Self

import zmq

from common.config import Settings
from common.control import STARTED, Control, resident_memory
from common.loop_meter import LoopLoad, LoopMeter
from common.metrics import Increases, Report, Sample, encode_report, one
from common.obstacles import Obstacle
from common.profiler import Profiler
from common.sockets import Channel, connected

REPORT: Final = 5.0
"""Seconds between two reports."""

SHORT_OF_CPU: Final = 0.7
"""Share of the time below which a loop that is always busy is not the one to blame."""

UNREAD: Final = 20
"""Reports that may wait for an ingester that is away; beyond, the increases wait here and come together."""


class Measured(Protocol):
    """A process, as it is asked on its loop. Both must be cheap: nothing that grows with idle shapes or clients."""

    def samples(self) -> Iterable[Sample]:
        """Its metrics."""

    def facts(self) -> dict[str, str]:
        """What operators want to see first."""


class Instruments:
    """Around the life of a process, on its loop: ``async with Instruments(…) as instruments``."""

    def __init__(self, settings: Settings, process: str) -> None:
        """``process``: the name of the process, as in its option ``--id``."""
        self._settings = settings
        self._process = process
        self._profiler = Profiler()
        self._meter = LoopMeter(lambda: self._profiler.active)
        self._control: Control | None = None
        self._context: zmq.Context[Any] | None = None
        self._channel: Channel | None = None
        self._reporting: asyncio.Task[None] | None = None

    def watch(self, measured: Measured, send: Callable[[Report], bool] | None = None) -> None:
        """Begin. ``send`` takes reports and tells whether they are on their way; else they go to the ingester."""
        run_dir, load = self._settings.run_dir, self._meter.load
        self._control = Control(run_dir, self._process, load, self._profiler, measured.facts)
        if self._settings.prometheus_port is None:
            return
        if send is None:
            self._context = zmq.Context()
            options: dict[int, int | bytes] = {zmq.SNDHWM: UNREAD}
            endpoint = connected(self._context, zmq.PUSH, self._settings.metrics_endpoint, options)
            self._channel = Channel(endpoint, None)
            send = self._push
        self._reporting = asyncio.get_running_loop().create_task(self._report(measured, send))

    def obstacles(self) -> list[Obstacle]:
        """That the loop has had more to do than it can for a while."""
        return of_load(self._process, self._meter.load, time.monotonic())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._meter.close()
        if self._reporting is not None:
            self._reporting.cancel()
        if self._control is not None:
            self._control.close()
        if self._channel is not None:
            self._channel.close()
        if self._context is not None:
            self._context.term()

    async def _report(self, measured: Measured, send: Callable[[Report], bool]) -> None:
        increases = Increases()
        while True:
            samples = [*measured.samples(), *of_process(self._process, self._meter.load)]
            report, totals = increases.report(self._process, samples)
            if send(report):
                increases.sent(totals)
            await asyncio.sleep(REPORT)

    def _push(self, report: Report) -> bool:
        assert self._channel is not None
        return self._channel.send([encode_report(report)])


def of_process(process: str, load: LoopLoad) -> list[Sample]:
    """What is measured of every process."""
    return [
        one("galvanic_process_start_time_seconds", STARTED, process),
        one("galvanic_process_cpu_seconds_total", time.process_time(), process),
        one("galvanic_process_resident_memory_bytes", resident_memory(), process),
        one("galvanic_loop_busy_seconds_total", load.busy_seconds, process),
        one("galvanic_loop_busy_ratio", load.busy, process),
        one("galvanic_loop_lag_max_seconds", load.latest, process),
    ]


def of_load(process: str, load: LoopLoad, now: float) -> list[Obstacle]:
    """For operators: the loop has had all it can do for a while, or gets too little of a processor to do it."""
    seconds = load.overloaded(now)
    if not seconds:
        return []
    if load.processor < SHORT_OF_CPU:
        remedy = f"it is on a processor for only {load.processor:.0%} of it: the machine lacks CPU, or a disk is slow"
    elif process.startswith("w"):
        remedy = "more workers share its work (galvanic scale N)"
    elif process.startswith("g"):
        remedy = "more gateways share its clients (GALVANIC_GATEWAYS)"
    else:
        remedy = "changes come as fast as they can be passed on, or faster"
    text = f"{process} has hardly been idle for {seconds:.0f} s: {remedy}; galvanic profile {process} tells more"
    return [Obstacle("the event loop is overloaded", text)]

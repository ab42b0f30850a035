"""The number of shapeworkers of a running Galvanic (`galvanic scale N`).

The first workers belong to the group `shapeworker` of supervisord.conf. Each further one is a group of its own with a
file in the run directory, because changing the size of a group would restart all its processes.
"""

from __future__ import annotations

import configparser
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from deploy.supervision import CONFIGURATION, Supervisor, extra_programs

_GROUP = "shapeworker"
_STOPPED = frozenset({"STOPPED", "STOPPING", "EXITED", "FATAL"})


@dataclass(frozen=True)
class Worker:
    """A worker supervisord knows; `extra` ones have a group of their own."""

    number: int
    extra: bool
    stopped: bool


@dataclass(frozen=True)
class Step:
    """What to do with one worker."""

    action: Literal["start", "stop", "add", "remove"]
    number: int


def worker_name(number: int) -> str:
    """supervisord's name of a worker's process, and of its group if that is its own."""
    return f"{_GROUP}_{number:02d}"


def known_workers(processes: Iterable[Mapping[str, Any]]) -> list[Worker]:
    """The workers among supervisord's processes (as `Supervisor.processes` gives them)."""
    return [
        Worker(
            number=int(process["name"].rsplit("_", 1)[1]),
            extra=process["group"] != _GROUP,
            stopped=process["statename"] in _STOPPED,
        )
        for process in processes
        if process["name"].startswith(f"{_GROUP}_")
    ]


def plan(workers: Iterable[Worker], wanted: int) -> list[Step]:
    """The steps to exactly the workers 0 to `wanted` - 1: the highest numbers go first, the lowest come first."""
    known = {worker.number: worker for worker in workers}
    steps = []
    for number in sorted((number for number in known if number >= wanted), reverse=True):
        if known[number].extra:
            steps.append(Step("remove", number))
        elif not known[number].stopped:
            steps.append(Step("stop", number))
    for number in range(wanted):
        if number not in known:
            steps.append(Step("add", number))
        elif known[number].stopped:
            steps.append(Step("start", number))
    return steps


def extra_program(number: int, configuration: str) -> str:
    """The configuration of one worker more, with all options of the section `[program:shapeworker]`."""
    parser = configparser.RawConfigParser(inline_comment_prefixes=(";",))
    parser.read_string(configuration)
    options = dict(parser.items(f"program:{_GROUP}"))
    del options["numprocs"]
    options["process_name"] = worker_name(number)
    options["command"] = options["command"].replace("%(process_num)02d", f"{number:02d}")
    lines = [f"{key}={value}\n" for key, value in options.items()]
    return f"[program:{worker_name(number)}]\n" + "".join(lines)


def scale(run_dir: Path, wanted: int) -> list[Step]:
    """Brings the running workers to `wanted` and returns what was done. Raises SupervisorError."""
    supervisor = Supervisor(run_dir)
    workers = known_workers(supervisor.processes())
    extra = {worker.number for worker in workers if worker.extra}
    steps = plan(workers, wanted)
    for step in steps:
        name = worker_name(step.number)
        file = extra_programs(run_dir) / f"{name}.conf"
        match step.action:
            case "add":
                file.parent.mkdir(exist_ok=True)
                file.write_text(extra_program(step.number, CONFIGURATION.read_text()))
                supervisor.add_group(name)
            case "remove":
                file.unlink(missing_ok=True)
                supervisor.remove_group(name)
            case "start":
                supervisor.start(f"{name}:{name}" if step.number in extra else f"{_GROUP}:{name}")
            case "stop":
                supervisor.stop(f"{_GROUP}:{name}")
    return steps

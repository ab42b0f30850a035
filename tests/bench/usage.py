"""Processor time and memory of processes, from /proc."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

_TICKS: Final = os.sysconf("SC_CLK_TCK")
RESOLUTION: Final = 1 / _TICKS
"""Seconds; no processor time is told more exactly."""

Processes = Mapping[str, Callable[[], int]]
"""Process ids by name, asked anew each time, since processes are restarted. ``postgres``: and all its children."""

POSTGRES: Final = "postgres"


@dataclass(frozen=True)
class Usage:
    """By name of process: ``cpu``, seconds of processor time; ``peak``, the most memory while it was measured, in MB.

    Memory is what was resident; of Postgres, whose processes share most of theirs, the proportional share at the end.
    """

    cpu: Mapping[str, float] = field(default_factory=dict)
    peak: Mapping[str, float] = field(default_factory=dict)


class Meter:
    """From now on until :meth:`read`."""

    def __init__(self, processes: Processes) -> None:
        self._processes = processes
        for pid in self._pids().values():
            # Resets the peak (proc(5)); of a process that is not ours it stays what it was.
            with contextlib.suppress(OSError):
                Path(f"/proc/{pid}/clear_refs").write_text("5")
        self._before = self._cpu()

    def read(self) -> Usage:
        """What was used since."""
        cpu = {name: seconds - self._before.get(name, 0) for name, seconds in self._cpu().items()}
        peaks = {
            name: sum(map(pss_mb, _family(pid))) if name == POSTGRES else _peak_mb(pid)
            for name, pid in self._pids().items()
        }
        return Usage(cpu, peaks)

    def _pids(self) -> dict[str, int]:
        return {name: pid() for name, pid in self._processes.items()}

    def _cpu(self) -> dict[str, float]:
        return {
            name: _tree_seconds(pid) if name == POSTGRES else cpu_seconds(pid) for name, pid in self._pids().items()
        }


def cpu_seconds(pid: int, children: bool = False) -> float:
    """Processor time of a process so far; with ``children``, also of those that have ended."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return sum(map(int, fields[11 : 15 if children else 13])) / _TICKS


def pss_mb(pid: int) -> float:
    """Memory of a process, in MB; what it shares with others counts in proportion. 0 when it has gone."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0.0
    found = re.search(r"^Pss:\s+(\d+) kB", text, re.MULTILINE)
    return int(found[1]) * 1024 / 1e6 if found else 0.0


def _peak_mb(pid: int) -> float:
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) * 1024 / 1e6 if found else 0.0


def _family(pid: int) -> list[int]:
    return [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]


def _tree_seconds(pid: int) -> float:
    """Of a postmaster and all its children, living and dead."""
    total = cpu_seconds(pid, children=True)
    for child in _family(pid)[1:]:
        with contextlib.suppress(OSError):
            total += cpu_seconds(child)
    return total

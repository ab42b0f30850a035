"""How much memory the processes of a stack have used at most."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from tests.pipeline.stack import Stack

LIMIT_MB: Final = 300
"""What no process may exceed, whatever the size of a transaction, a snapshot, or the number of clients (INV-11)."""


def peak_mb(pid: int) -> int:
    """The most memory that the process ever had resident, in MB."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) * 1024 // 1_000_000


def peaks_mb(stack: Stack) -> dict[str, int]:
    """The same of every process of the stack by name."""
    return {name: peak_mb(stack.pid(name)) for name in ("ingester", *stack.workers, *stack.gateways)}


def check_peaks(stack: Stack, limit_mb: int = LIMIT_MB) -> None:
    """Raises AssertionError when a process has used more, ever since it was started."""
    peaks = peaks_mb(stack)
    print(f"peak memory in MB: {peaks}")
    assert max(peaks.values()) < limit_mb, f"more than {limit_mb} MB: {peaks}"

"""What is in a worker's way: from plain values to lines for operators, no I/O."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from common.obstacles import Obstacle

SLOW_SYNC: Final = 5.0
"""Seconds after which a sync, or recording the end of a shape, is worth a line."""

LONG_TURN: Final = 5.0
"""Seconds that a snapshot may wait for a connection."""

LONG_SNAPSHOT: Final = 300.0
"""Seconds after which a snapshot under way is worth a line: it keeps the server from removing old row versions."""

STOOD_STILL: Final = 2.0
"""Seconds by which the heartbeat may be late."""


def of_disk(full: str, syncing: tuple[str, float] | None, endings: Mapping[str, tuple[float, str]]) -> list[Obstacle]:
    """What keeps written things from becoming durable, or from being written.

    ``full`` says what the storage lacks. ``syncing``: the directory of the log that a sync is at, and for how long (s).
    ``endings``: shapes whose end is being recorded, for how long (s), and why that has failed so far.
    """
    found = []
    if full:
        found.append(Obstacle("the storage is full", f"waits for the storage: {full}", delays=True))
    if syncing is not None and syncing[1] > SLOW_SYNC:
        text = f"the disk has not finished a sync for {syncing[1]:.0f} s, at {syncing[0]}; nothing is acknowledged"
        found.append(Obstacle("a sync is slow", text))
    for handle, (seconds, why) in endings.items():
        if seconds < SLOW_SYNC:
            continue
        problem = why or "the disk has not finished it"
        text = (
            f"the end of shape {handle} is not recorded for {seconds:.0f} s: {problem}; nothing later is acknowledged"
        )
        found.append(Obstacle(f"the end of shape {handle}", text))
    return found


def of_snapshots(turns: int, queued: list[float], running: Mapping[str, float]) -> list[Obstacle]:
    """What new shapes wait for. ``turns``: how many snapshots may run at a time; ``queued``: seconds that others have
    waited for their turn; ``running``: seconds that each has been at it, by shape."""
    found = []
    if queued and max(queued) > LONG_TURN:
        text = (
            f"{len(queued)} snapshots wait for a connection, one for {max(queued):.0f} s, while {turns} are being "
            "read: ELECTRIC_DB_POOL_SIZE allows no more"
        )
        found.append(Obstacle("ELECTRIC_DB_POOL_SIZE", text))
    for shape, seconds in running.items():
        if seconds > LONG_SNAPSHOT:
            text = f"the snapshot of shape {shape} has been read for {seconds:.0f} s"
            found.append(Obstacle(f"the snapshot of {shape}", text))
    return found


def of_loop(late: float) -> list[Obstacle]:
    """The process itself stood still between two heartbeats."""
    if late < STOOD_STILL:
        return []
    text = f"stood still for {late:.0f} s: stopped, swapped out, or short of CPU"
    return [Obstacle("stood still", text)]

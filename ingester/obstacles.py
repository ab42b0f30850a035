"""What holds the stream, the workers or the slot back: from plain values to lines for operators, no I/O."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from common.lsn import format_lsn
from common.obstacles import Lasting, Obstacle

SILENT: Final = 3.0
"""Seconds without a sign of life after which a worker is worth a line; it gives one each second."""

STARVED: Final = 2.0
"""The same without credit, while it is not sent anything."""

BEHIND: Final = 10.0
"""Seconds without progress of what is durable, while there is something to make durable."""

QUIET: Final = 20.0
"""Seconds without a word from Postgres, which is asked for one every 10 s at least."""

LOCKED: Final = 2.0
"""Seconds that a subscription may wait before one looks who is in its way."""

RETAINED: Final = 1 << 30
"""Bytes of WAL that the slot may keep before one asks why."""


class WorkerState(NamedTuple):
    """A worker as the ingester sees it. ``silent``: seconds since it was heard; ``given_up``: too many.

    ``waiting``: how many of its partitions nobody is fed. ``dealt`` counts the bytes of this epoch's frames that it has
    dealt with, ``starved`` tells that it may not get more. ``told`` is what it says itself is in its way.
    """

    name: str
    silent: float
    given_up: bool
    waiting: int
    starved: bool
    dealt: int
    told: Sequence[Obstacle]


class Blocked(NamedTuple):
    """Something that waits for a table's lock: what it wants to do, since when (s), which processes hold the lock, and
    what the first of them does (``idle in transaction`` …)."""

    table: str
    purpose: str
    seconds: float
    holders: Sequence[int]
    state: str


class SlotState(NamedTuple):
    """The slot: what ``wal_status`` says, bytes of WAL kept, and bytes of it that we have not acknowledged.

    ``oldest`` is the oldest transaction of the server, if there is one: process id, state, seconds.
    """

    wal_status: str
    retained: int
    unacknowledged: int
    oldest: tuple[int, str, float] | None


class Backlog(NamedTuple):
    """The partition whose durable bound is lowest, the worker that is fed it, and the last commit dispatched."""

    partition: int
    worker: str
    bound: int
    dispatched: int


class Inspector:
    """Turns states into obstacles; remembers only since when they are as they are."""

    def __init__(self) -> None:
        self._starved: Lasting[tuple[str, int]] = Lasting()
        self._behind: Lasting[tuple[int, int]] = Lasting()

    def workers(self, now: float, states: Iterable[WorkerState]) -> list[Obstacle]:
        """What workers hold back, by their silence, their missing credit, or their own word."""
        found = []
        states = list(states)
        lasting = self._starved.seconds(now, ((each.name, each.dealt) for each in states if each.starved))
        for each in states:
            starved = lasting.get((each.name, each.dealt), 0.0)
            cause = f"worker {each.name}"
            if each.given_up and each.waiting:
                text = (
                    f"worker {each.name} has been silent for {each.silent:.0f} s and still holds {each.waiting} "
                    "partitions, which wait for it: if its process is stopped, continue it or kill it (kill -9)"
                )
                found.append(Obstacle(f"{cause} is silent", text, delays=True))
            elif not each.given_up and each.silent > SILENT:
                text = f"worker {each.name} has been silent for {each.silent:.0f} s"
                found.append(Obstacle(f"{cause} is silent", text, delays=True))
            elif starved > STARVED:
                text = f"worker {each.name} has not dealt with what it was sent for {starved:.0f} s; the stream waits"
                found.append(Obstacle(f"{cause} gives no credit", text, delays=True))
            found += [
                Obstacle(f"{cause}: {told.cause}", f"worker {each.name}: {told.text}", told.delays)
                for told in each.told
            ]
        return found

    def backlog(self, now: float, backlog: Backlog | None) -> list[Obstacle]:
        """What holds back the acknowledgement, if it does so for long."""
        stuck = backlog is not None and backlog.bound <= backlog.dispatched
        lasting = self._behind.seconds(now, [(backlog.partition, backlog.bound)] if stuck and backlog else [])
        if backlog is None or not any(seconds > BEHIND for seconds in lasting.values()):
            return []
        (seconds,) = lasting.values()
        owner = f"worker {backlog.worker}" if backlog.worker else "no worker is fed it; it"
        text = (
            f"partition {backlog.partition} is durable only to {format_lsn(backlog.bound)} for {seconds:.0f} s: "
            f"{owner} holds the slot back"
        )
        return [Obstacle(f"partition {backlog.partition} is behind", text)]


def of_stream(silent: float) -> list[Obstacle]:
    """A walsender that says nothing for ``silent`` seconds, not even that there is nothing."""
    if silent < QUIET:
        return []
    text = (
        f"Postgres has sent nothing for {silent:.0f} s, although it was asked to: its walsender is busy with a large "
        "transaction, or stands still (pg_stat_replication, pg_stat_replication_slots.spill_bytes)"
    )
    return [Obstacle("the replication stream is silent", text, delays=True)]


def of_locks(blocked: Iterable[Blocked]) -> list[Obstacle]:
    """Tables that cannot be published or read because somebody else has locked them."""
    found = []
    for each in blocked:
        if each.seconds < LOCKED:
            continue
        text = f"{each.purpose} table {each.table} has waited {each.seconds:.0f} s"
        if each.holders:
            pids = ", ".join(map(str, each.holders))
            text += (
                f" for a lock that process {pids} holds ({each.state}): end that transaction, or "
                f"SELECT pg_terminate_backend({each.holders[0]})"
            )
        else:
            text += " for older transactions of the server to end (pg_stat_activity.backend_xid)"
        found.append(Obstacle(f"lock on {each.table}", text))
    return found


def of_slot(name: str, slot: SlotState | None) -> list[Obstacle]:
    """Why the slot keeps much WAL, or is about to lose it."""
    if slot is None:
        return []
    found = []
    if slot.wal_status in ("unreserved", "lost"):
        text = f"Postgres may remove WAL that slot {name} needs: raise max_slot_wal_keep_size (all shapes would end)"
        found.append(Obstacle("max_slot_wal_keep_size", text))
    if slot.retained > RETAINED:
        size = f"slot {name} keeps {slot.retained / (1 << 30):.1f} GiB of WAL"
        if slot.unacknowledged > slot.retained // 2:
            text = f"{size}: {slot.unacknowledged / (1 << 30):.1f} GiB of it is not acknowledged yet"
        elif slot.oldest is not None:
            pid, state, seconds = slot.oldest
            text = (
                f"{size} because of a transaction that process {pid} ({state}) began {seconds:.0f} s ago: end it, or "
                f"SELECT pg_terminate_backend({pid})"
            )
        else:
            text = f"{size}, which the next checkpoint or log of running transactions should let go"
        found.append(Obstacle("the slot keeps WAL", text))
    return found

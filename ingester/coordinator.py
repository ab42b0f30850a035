"""Which worker owns which partition, and when the stream must be rewound: decisions only, no I/O.

A consumer group (architecture.md 2.1, 2.2): partitions are spread over the live workers by rendezvous hashing, so a
worker that comes or goes moves no more partitions than it must. A worker is *fed* the partitions that it held when the
present epoch started; as soon as a worker holds one that it is not fed, a new epoch has to start.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import xxhash

from common.messages import Hello

REPEAT = 2.0
"""Seconds after which an assignment that is not carried out yet is told again: the message may have been lost."""


@dataclass
class Member:
    """A worker as the coordinator knows it. ``peer`` is the routing id of its present incarnation."""

    worker: str
    boot: str
    peer: bytes
    requests: str
    events: str
    heard: float
    version: int = 0
    assigned: frozenset[int] = frozenset()
    held: frozenset[int] = frozenset()
    held_version: int = 0
    fed: frozenset[int] = frozenset()
    tables: set[int] = field(default_factory=set)
    lost: bool = False
    told: float = 0.0

    @property
    def ready(self) -> bool:
        """Whether the worker has carried out its present assignment."""
        return self.version > 0 and self.held_version == self.version


@dataclass(frozen=True)
class Assignment:
    """What to tell a worker: hold exactly these partitions."""

    worker: str
    version: int
    partitions: tuple[int, ...]


class Coordinator:
    """The group. Times are seconds of any monotonic clock, passed in.

    ``grace``: silence after which a worker has lost its partitions. ``settle``: how long the membership must be quiet
    before partitions move because somebody joined, so that workers started together cause one move and not many.
    ``version``: above any that an earlier coordinator has used, since what workers answered that one may still arrive.
    """

    def __init__(self, partitions: int, *, grace: float = 5.0, settle: float = 0.5, version: int = 0) -> None:
        self.partitions = partitions
        self.members: dict[str, Member] = {}
        self._grace = grace
        self._settle = settle
        self.given_up: dict[str, Member] = {}
        """Workers that fell silent and have not been heard since, as they were."""
        self._version = version
        self._expired = False
        self._move_at: float | None = None
        self._out: dict[str, Assignment] = {}

    # ---- what happens

    def hello(self, now: float, peer: bytes, hello: Hello) -> None:
        """A worker said what it holds."""
        member = self.members.get(hello.worker)
        if member is None:
            member = Member(hello.worker, hello.boot, peer, hello.requests, hello.events, now)
            self.members[hello.worker] = member
            self.given_up.pop(hello.worker, None)
            self._move_at = now + self._settle
        elif member.boot != hello.boot:
            # The same worker started anew within its grace: it gets its partitions back, nothing else moves.
            fresh = Member(hello.worker, hello.boot, peer, hello.requests, hello.events, now)
            self.members[hello.worker] = fresh
            if member.version:
                self._assign(fresh, member.assigned)
            member = fresh
        member.heard = now
        member.peer = peer
        member.requests = hello.requests
        member.events = hello.events
        if hello.version == 0:
            # It knows of no assignment: it has just started, or has just met this ingester.
            member.fed = member.held = frozenset()
            if member.version and member.version not in (out.version for out in self._out.values()):
                self._assign(member, member.assigned)
        elif hello.version == member.version:
            member.held = frozenset(hello.held)
            member.held_version = hello.version
            member.tables = set(hello.tables)
            member.lost = member.lost or hello.lost
        elif member.version and member.worker not in self._out:
            # It speaks of an older assignment: the present one may not have reached it.
            self._repeat(member)

    def heard(self, now: float, peer: bytes) -> Member | None:
        """Any sign of life of the incarnation ``<worker>:<boot>``; the member it is, or ``None`` if it is superseded.

        One that had been given up (it was stopped, or the machine slept) joins again, holding nothing at first.
        """
        # A connection that was replaced by a newer one of the same peer goes on under a name of ZeroMQ's, in bytes.
        worker, _, boot = peer.decode(errors="replace").rpartition(":")
        member = self.members.get(worker)
        if member is None:
            gone = self.given_up.pop(worker, None)
            if gone is None or gone.peer != peer:
                return None  # never met: its hello will come
            member = Member(worker, boot, peer, gone.requests, gone.events, now)
            self.members[worker] = member
            self._assign(member, frozenset())
            self._move_at = now + self._settle
        if member.peer != peer:
            return None
        member.heard = now
        return member

    def excuse(self, seconds: float) -> None:
        """Nobody listened for so long: silence in that time is nobody's fault."""
        for member in self.members.values():
            member.heard += seconds

    def leave(self, now: float, worker: str) -> None:
        """The worker has released everything and goes: its partitions move at once."""
        if self.members.pop(worker, None) is not None:
            self._out.pop(worker, None)
            self._move_at = now

    def tick(self, now: float) -> list[str]:
        """Let time pass; returns the workers that have just been given up."""
        for member in self.members.values():
            if member.version and not member.ready and now - member.told > REPEAT and member.worker not in self._out:
                self._repeat(member)
                member.told = now
        silent = [name for name, member in self.members.items() if now - member.heard > self._grace]
        for name in silent:
            self.given_up[name] = self.members[name]
            self.leave(now, name)
        if self._move_at is not None and now >= self._move_at:
            self._move_at = None
            self._spread()
        return silent

    # ---- what to do

    def assignments(self) -> list[Assignment]:
        """What has to be told to whom since the last call."""
        out, self._out = list(self._out.values()), {}
        return out

    @property
    def needs_epoch(self) -> bool:
        """Whether a ready worker holds partitions that the present epoch does not feed it, lost frames, or has none."""
        return any(
            (member.ready or bool(member.held)) and (self._expired or member.lost or not member.held <= member.fed)
            for member in self.members.values()
        )

    def start_epoch(self) -> dict[str, frozenset[int]]:
        """A new epoch starts: every worker is fed what it holds, also one that still waits for more partitions.

        Returns who is fed what.
        """
        for member in self.members.values():
            member.fed = member.held & member.assigned
            member.lost = False
        self._expired = False
        return {name: member.fed for name, member in self.members.items() if member.ready or member.held}

    def expire_epoch(self) -> None:
        """The stream is gone. Owners stay who they are: what they have is still served."""
        self._expired = True

    def assign_anew(self) -> None:
        """The shapes have to belong to another generation: every worker must open its partitions again."""
        for member in self.members.values():
            if member.version:
                member.fed = member.held = frozenset()
                self._assign(member, member.assigned)

    def owners(self) -> dict[int, str]:
        """Who is fed each partition; partitions on the move are missing."""
        return {partition: name for name, member in self.members.items() for partition in member.fed}

    def unowned(self) -> list[int]:
        """Partitions that nobody is fed."""
        owned = self.owners()
        return [partition for partition in range(self.partitions) if partition not in owned]

    # ---- how

    def _spread(self) -> None:
        shares: dict[str, set[int]] = {name: set() for name in self.members}
        for partition in range(self.partitions):
            owner = rendezvous(partition, list(self.members))
            if owner is not None:
                shares[owner].add(partition)
        for name, share in shares.items():
            member = self.members[name]
            if member.version == 0 or member.assigned != share:
                self._assign(member, frozenset(share))

    def _repeat(self, member: Member) -> None:
        self._out[member.worker] = Assignment(member.worker, member.version, tuple(sorted(member.assigned)))

    def _assign(self, member: Member, share: frozenset[int]) -> None:
        self._version += 1
        member.version = self._version
        member.assigned = share
        # What it must give back is not its own from here on, whatever it still reports about it.
        member.fed &= share
        member.held &= share
        self._repeat(member)


def rendezvous(partition: int, workers: list[str]) -> str | None:
    """The worker with the highest hash for this partition: stable, and minimal movement when the set changes."""
    return max(
        workers, key=lambda worker: (xxhash.xxh3_64_intdigest(f"{partition}/{worker}".encode()), worker), default=None
    )

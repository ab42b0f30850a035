"""The worker's end of the stream: frames in, their records to who they are for, positions and credits out.

One epoch after the other (architecture.md 2.2): which frames count is for :mod:`stream` to say, what transactions do to
shapes for :mod:`apply`. Here is what an epoch begins with, what ends it early, and what is said about it.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Final, Protocol

import structlog

from common.frames import (
    ANSWER,
    GAP,
    POSITION,
    Answer,
    Gap,
    decode_answer,
    decode_gap,
    parse_position,
    records,
)
from common.messages import Credit
from common.shortage import describe
from shapeworker.apply import RECORDS, Applier, StorageFull
from shapeworker.credits import Credits
from shapeworker.holdings import Holdings
from shapeworker.stream import Intake, Verdict
from shapeworker.sync import Syncer

log = structlog.get_logger()

FULL_DISK_PAUSE: Final = 2.0
"""Seconds before a full disk is tried again, by a rewind."""


class Events(Protocol):
    """What the stream leads to, besides changes of shapes."""

    def started(self) -> None:
        """An epoch begins: answers in frames that were given up are not repeated by themselves."""

    def answered(self, answer: Answer) -> None:
        """The ingester's answer, at its place in the stream."""

    def missed(self, gap: Gap) -> None:
        """Shapes of a table may have missed changes."""

    def rewind(self) -> None:
        """Nothing more of the present epoch can be used: say so, which leads to a new one."""

    def credit(self, credit: Credit) -> None:
        """So many bytes of an epoch's frames are dealt with."""

    def applied(self, generation: int, lsn: int, partitions: Iterable[int]) -> None:
        """All commits up to ``lsn`` are readable in the shapes of these partitions."""

    def turned(self) -> None:
        """All that gateways should know of a turn has been said: it may go out."""


class Feed:
    """What the present epoch is, and how far it is applied."""

    def __init__(
        self,
        storage: Path,
        holdings: Holdings,
        applier: Applier,
        syncer: Syncer,
        unmarked: Counter[int],
        events: Events,
    ) -> None:
        """``unmarked``: per partition, shapes that have ended but cannot be told from living ones yet."""
        self._storage = storage
        self._holdings = holdings
        self._applier = applier
        self._syncer = syncer
        self._unmarked = unmarked
        self._events = events
        self._intake = Intake()
        self.reporting = 0
        """The epoch whose start has been processed. Reports are about that one, not about frames that only announce
        one; 0 if there is nothing to report."""
        self._generation = 0
        self.lost = False
        """Whether frames are missing, and no new epoch has come yet. A full disk is another matter, with a patience of
        its own."""
        self._full = False
        self._shortage = ("", -FULL_DISK_PAUSE)
        self._retry: asyncio.TimerHandle | None = None
        self._credits = Credits()
        # The position that gateways were told last.
        self._published = 0

    # ---- frames

    def frame(self, frame: bytes) -> None:
        """The next frame."""
        verdict = self._intake.frame(frame)
        if verdict is Verdict.PROCESS or verdict is Verdict.START:
            if verdict is Verdict.START:
                self._applier.restart()
                self._full = self.lost = False
                self._events.started()
            try:
                self._records(frame)
            except StorageFull as error:
                self._on_full(error)
        elif verdict is Verdict.LOST:
            self._lose("frames were lost; asking for them again")
        self._credits.dealt(frame)

    def turn(self) -> None:
        """Some frames have been handled: nothing else happens on the loop before what they brought is written and
        told."""
        try:
            self._applier.deliver()
        except StorageFull as error:
            self._on_full(error)
        if self._syncer.applied != self._published:
            self._publish()
        self._events.turned()
        if credit := self._credits.due():
            self._events.credit(credit)

    def beat(self) -> None:
        """With each sign of life: tell what has not been told, and how far shapes can be read in any case."""
        if credit := self._credits.rest():
            self._events.credit(credit)
        self._publish()
        self._events.turned()

    def _records(self, frame: bytes) -> None:
        for kind, index, payload in records(frame):
            if kind in RECORDS:
                self._applier.record(kind, index, payload)
                continue
            # What follows must find the logs as they are at this place of the stream.
            self._applier.deliver()
            if kind == ANSWER:
                self._events.answered(decode_answer(payload))
            elif kind == POSITION:
                self._on_position(*parse_position(payload))
            elif kind == GAP:
                self._events.missed(decode_gap(payload))

    def _on_position(self, position: int, fed: tuple[int, ...]) -> None:
        """A new epoch feeds these partitions, from this position on. It costs nothing for each of their shapes: the
        applier knows them since they were found, and lets them have what comes from here."""
        holdings = self._holdings
        holdings.fed.clear()
        holdings.fed.update(filter(holdings.may_create, fed))
        self._syncer.restart(position)
        self.reporting = self._intake.epoch
        self._generation = holdings.generation
        self._published = 0
        if len(holdings.fed) < len(fed):
            # Our reports would speak for those, too, which we let go while the epoch was on its way.
            self.give_up()
            self._lose("an epoch feeds partitions that are not held any more; asking for another one")

    # ---- what is said

    @property
    def epoch(self) -> int:
        """The newest that is known of."""
        return self._intake.epoch

    @property
    def broken(self) -> bool:
        """Whether nothing more of it can be used: a rewind is needed."""
        return self._intake.broken

    def _publish(self) -> None:
        # A shape that has ended but cannot be told from a living one yet lacks what came after its end.
        fed = self._holdings.open_among(self._holdings.fed) - self._unmarked.keys()
        if fed and not self._full:
            self._published = self._syncer.applied
            self._events.applied(self._generation, self._published, fed)

    def shortage(self, now: float) -> str:
        """What the machine lacks, so that changes cannot be written; empty if nothing. ``now``: monotonic time."""
        reason, tried = self._shortage
        # Between two attempts it is not known whether there is room again.
        return reason if now - tried < 3 * FULL_DISK_PAUSE else ""

    # ---- what ends an epoch early

    def _lose(self, event: str) -> None:
        log.warning(event, epoch=self._intake.epoch)
        self.lost = True
        self._events.rewind()

    def forget(self) -> None:
        """Another ingester: nothing more of the present epoch will come."""
        self._intake.forget()

    def give_up(self) -> None:
        """The partitions go: what is not written is void. What is not synced yet will not be by us, and is not
        reported."""
        self.stop()
        self.reporting = 0

    def stop(self) -> None:
        """Nothing more is applied or tried again; what is synced from now on is still reported."""
        self._intake.forget()
        self._applier.restart()
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None

    def _on_full(self, error: StorageFull) -> None:
        # Nothing more of this epoch counts, so nothing more of it is reported durable: the slot waits with us.
        shortage = describe(error.cause, self._storage)
        log.error("changes cannot be written; waiting", reason=shortage, error=str(error))
        self._full = True
        self._shortage = (shortage, time.monotonic())
        self._intake.forget()
        self._applier.restart()
        if self._retry is None:
            self._retry = asyncio.get_running_loop().call_later(FULL_DISK_PAUSE, self._retry_full)

    def _retry_full(self) -> None:
        self._retry = None
        if self._full:
            self._events.rewind()
            self._retry = asyncio.get_running_loop().call_later(FULL_DISK_PAUSE, self._retry_full)

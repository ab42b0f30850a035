"""Which frames count: the worker's end of the stream as a state machine (INV-6, INV-38).

Frames of an epoch carry consecutive numbers. A gap means loss (a connection was replaced under us): nothing more of
that epoch is used, and the worker asks for a rewind. A higher epoch supersedes everything before it.
"""

from __future__ import annotations

from enum import Enum

from common.frames import parse_frame


class Verdict(Enum):
    """What to do with a frame."""

    PROCESS = "process"
    START = "start"  # process it as the first of a new epoch: what was half-done is void
    IGNORE = "ignore"
    LOST = "lost"  # frames are missing: say so, once


class Intake:
    """Decides frame by frame."""

    def __init__(self) -> None:
        self.epoch = 0
        self._expected = 0
        self._broken = True

    @property
    def broken(self) -> bool:
        """Whether nothing more of the present epoch can be used: a rewind is needed."""
        return self._broken

    def frame(self, data: bytes) -> Verdict:
        """Judge the next frame."""
        epoch, seq = parse_frame(data)
        if epoch < self.epoch:
            return Verdict.IGNORE
        if epoch > self.epoch:
            self.epoch = epoch
            self._expected = 1
            self._broken = seq != 0
            return Verdict.LOST if self._broken else Verdict.START
        if self._broken or seq < self._expected:
            return Verdict.IGNORE
        if seq > self._expected:
            self._broken = True
            return Verdict.LOST
        self._expected += 1
        return Verdict.PROCESS

    def forget(self) -> None:
        """Another ingester: it counts its epochs on from ours, but nothing of the present one will follow."""
        self._broken = True

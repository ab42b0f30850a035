"""When the ingester is told which frames are dealt with, so that it may send more (architecture.md 3)."""

from __future__ import annotations

from common.frames import FRAME_BYTES, parse_frame
from common.messages import Credit

STEP = FRAME_BYTES
"""Bytes that are told at once. Nobody waits for fewer: an ingester has four times as many under way before it stops.
To be told of each small transaction would cost it as much as sending it."""


class Credits:
    """Counts the bytes of frames. What is not told at once is told with the next sign of life, within a second."""

    def __init__(self) -> None:
        # Of which epoch how many bytes are dealt with, and what the ingester was told of that.
        self._dealt = self._told = (0, 0)

    def dealt(self, frame: bytes) -> None:
        """A frame is dealt with, used or not.

        It counts for its own epoch, whichever is the present one: credits of the past must not buy anything now.
        """
        epoch, _ = parse_frame(frame)
        if epoch >= self._dealt[0]:
            before = self._dealt[1] if epoch == self._dealt[0] else 0
            self._dealt = epoch, before + len(frame)

    def due(self) -> Credit | None:
        """What the ingester must be told now, if anything."""
        (epoch, total), (told_epoch, told) = self._dealt, self._told
        return self.rest() if total - (told if epoch == told_epoch else 0) >= STEP else None

    def rest(self) -> Credit | None:
        """All that it has not been told."""
        if self._dealt == self._told:
            return None
        self._told = self._dealt
        return Credit(*self._dealt)

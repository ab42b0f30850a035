"""One sync of the file system in place of many of single files."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path
from typing import Final, Protocol

from common.shapelog.files import REAL, Files

MANY: Final = 16
"""From so many on, to sync the file system costs less than to sync each, although others may have written much."""


class Coverable(Protocol):
    """What has files of its own to be synced."""

    def covered(self) -> contextlib.AbstractContextManager[object]:
        """While the block runs they are synced, however that is done; when it raises, they count as dirty as before.

        Raises ``OSError`` if a sync has failed before, ``ValueError`` once they are closed.
        """


class WholeSync:
    """Syncs of the file system, and whether they can be believed.

    The system tells each asker once that something could not be written, and perhaps about files that he does not ask
    for at that moment. So after the first failure none is believed any more: each file's own sync knows what became of
    it (storage seed 59).
    """

    def __init__(self, directory: Path, asker: str, files: Files = REAL) -> None:
        """``asker`` is unlike that of anybody else in this process who asks about this directory."""
        self._directory = directory
        self._asker = asker
        self._files = files
        self._trusted = True
        self.many = MANY

    def pays(self, count: int) -> bool:
        """Whether to use this for so many."""
        return self._trusted and count >= self.many

    def sync(self) -> bool:
        """Whether all that was written before is on the disk; if not, each file has to be asked.

        Failures are told only to who has asked before: so do that once before anything is written. Blocks.
        """
        return self.cover(())

    def cover(self, items: Iterable[Coverable]) -> bool:
        """The same of these, which then count as synced, but for those that are closed already."""
        try:
            with contextlib.ExitStack() as covered:
                for item in items:
                    with contextlib.suppress(ValueError):
                        covered.enter_context(item.covered())
                self._sync()
        except (OSError, NotImplementedError):
            return False
        return True

    def _sync(self) -> None:
        if not self._trusted:
            raise NotImplementedError("it has failed before")
        try:
            self._files.sync_file_system(self._directory, self._asker)
        except OSError:
            self._trusted = False
            raise

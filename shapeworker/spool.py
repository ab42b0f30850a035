"""A result on its way to a gateway: small ones stay in memory, large ones are a file that is gone afterwards."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from common.shapelog.files import CREATE_NEW, REAL, Files

INLINE_BYTES: Final = 64 * 1024
"""What is no larger is never written to the disk. It is what a client that does not read may pin in a gateway."""


ABANDONED_SECONDS: Final = 300.0
"""What is older has nobody any more: its worker was killed."""


class SpoolFolder:
    """Where the spools of all workers are."""

    def __init__(self, storage: Path, files: Files = REAL) -> None:
        self.name = "subsets"
        self.directory = storage / self.name
        self.files = files

    def make(self) -> None:
        """Make the folder if need be. Raises ``OSError``."""
        with contextlib.suppress(FileExistsError):
            self.files.mkdir(self.directory)

    def sweep(self, now: float) -> None:
        """Remove what a killed worker left behind; ``now`` is Unix time."""
        with contextlib.suppress(OSError):
            for name in self.files.listdir(self.directory):
                path = self.directory / name
                if path.stat().st_mtime < now - ABANDONED_SECONDS:
                    self.files.remove(path)


class Spool:
    """Takes bytes in, in one thread; :attr:`body` or :attr:`file` has them all once there will be no more."""

    def __init__(self, folder: SpoolFolder, inline_bytes: int = INLINE_BYTES) -> None:
        self._folder = folder
        self._files = folder.files
        self._inline_bytes = inline_bytes
        self._name = f"{secrets.token_hex(8)}.json"
        self._pieces: list[bytes] = []
        self._held = 0
        self._written = 0
        self._descriptor: int | None = None
        self._made = False

    @property
    def size(self) -> int:
        """Bytes in all."""
        return self._written + self._held

    @property
    def body(self) -> bytes:
        """All of it, if it is in memory."""
        return b"".join(self._pieces)

    @property
    def file(self) -> str:
        """The file, relative to the storage directory; ``""`` if there is none."""
        return f"{self._folder.name}/{self._name}" if self._made else ""

    def add(self, pieces: Sequence[bytes]) -> None:
        """Take these in. Raises ``OSError``."""
        self._pieces += pieces
        self._held += sum(map(len, pieces))
        if self._held > self._inline_bytes:
            self._write()

    def finish(self) -> None:
        """There is no more. Raises ``OSError``."""
        if self._made:
            self._write()
            self._close()

    def discard(self) -> None:
        """Remove the file, if there is one; who has opened it can read on."""
        self._close()
        if self._made:
            self._made = False
            with contextlib.suppress(OSError):
                self._files.remove(self._folder.directory / self._name)

    def _write(self) -> None:
        if self._descriptor is None:
            self._folder.make()
            self._descriptor = self._files.open(self._folder.directory / self._name, CREATE_NEW)
            self._made = True
        data = self.body
        self._pieces, self._held = [], 0
        while data:
            written = self._files.pwrite(self._descriptor, data, self._written)
            self._written += written
            data = data[written:]

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            self._files.close(descriptor)

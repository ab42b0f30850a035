"""A shape as this gateway reads it: its files, and whether it lives."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType

import structlog

from common.lsn import Offset
from common.messages import Place
from common.shapelog.layout import NEW, DamagedLog, Header, SnapshotState
from common.shapelog.reader import ShapeReader
from gateway.response import schema_header

log = structlog.get_logger(__name__)


class ShapeGone(Exception):
    """The shape has ended, or its files have gone: clients refetch."""


class Shape:
    """A shape that exists. Inside ``with shape as reader`` its files are open; uses nest and may overlap.

    ``seen`` is the header as it was last read: a shape that was just obtained was alive a moment ago.
    """

    __slots__ = (
        "_directory",
        "_reader",
        "generation",
        "handle",
        "partition",
        "request",
        "retired",
        "schema",
        "seen",
        "users",
    )

    def __init__(self, place: Place, partition: int, storage: Path) -> None:
        self.handle = place.handle
        self.request = place.request
        self.schema = schema_header(place.schema)
        self.partition = partition
        self.generation = place.generation
        self.users = 0
        self.retired = False
        self.seen = NEW
        self._directory = storage / place.directory
        self._reader: ShapeReader | None = None

    def take(self) -> ShapeReader:
        """Use its files until :meth:`give_back`. Raises :class:`ShapeGone`."""
        reader = self.open()
        self.users += 1
        return reader

    def give_back(self) -> None:
        """One user less."""
        self.users -= 1
        if self.retired:
            self.close()

    __enter__ = take

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.give_back()

    def open(self) -> ShapeReader:
        """The reader, opened if need be. Raises :class:`ShapeGone`."""
        if self._reader is None:
            try:
                self._reader = ShapeReader(self._directory)
            except (FileNotFoundError, NotADirectoryError):
                raise ShapeGone(self.handle) from None
        return self._reader

    def reader_of_its_own(self) -> ShapeReader:
        """A reader for another thread, to be closed by it. Raises ``FileNotFoundError`` if the shape has ended."""
        return ShapeReader(self._directory)

    def header(self) -> Header:
        """The header of a shape that lives. Raises :class:`ShapeGone` (engine.md INV-33)."""
        header = self._unmarked()
        # The mark in the header survives a move to the trash; a directory that was deleted outright has none. It is
        # looked for with each request: `os.path.exists` takes twice as long.
        if not os.access(self._directory, os.F_OK):
            self.close()
            raise ShapeGone(self.handle)
        return header

    def lives(self) -> bool:
        """Whether the shape has not ended."""
        try:
            self.header()
        except ShapeGone:
            return False
        return True

    def last(self, *, written: bool = False) -> Offset:
        """The offset of the last committed entry of a shape that lives. Raises :class:`ShapeGone`.

        ``written``: its worker has just written to it, so nobody need look whether its directory is there.
        """
        if written:
            self._unmarked()
        else:
            self.header()
        return self.open().last()

    def _unmarked(self) -> Header:
        try:
            header = self.open().header()
        except DamagedLog as error:
            log.error("unreadable shape", handle=self.handle, error=str(error))
            self.close()
            raise ShapeGone(self.handle) from None
        if header.ended or header.snapshot is SnapshotState.FAILED:
            self.close()
            raise ShapeGone(self.handle)
        self.seen = header
        return header

    def close(self) -> None:
        """Close the files if nobody uses them."""
        if self._reader is not None and self.users == 0:
            self._reader.close()
            self._reader = None

    @property
    def is_open(self) -> bool:
        """Whether files are open."""
        return self._reader is not None

"""Finds shapes on the disk, when no worker can be asked: another instance holds the lock, or nobody is there.

While the service is active its workers are the authority. What is found here is true to what was written, and perhaps
old: a shape may have ended without its files telling so yet, when its worker died between the tombstone and the mark.
It is then an early state of a shape that nobody goes on with, and its next owner marks it first of all.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import structlog

from common.messages import Place
from common.shape import ShapeRequest, partition_of
from common.shapelog.description import Description, read_description
from common.shapelog.layout import DamagedLog, SnapshotState
from common.shapelog.reader import ShapeReader
from common.source import StorageState, read_storage_state

log = structlog.get_logger(__name__)


class Finder:
    """Blocks on the disk: for a thread."""

    def __init__(self, storage: Path) -> None:
        self._storage = storage

    def find(self, request: ShapeRequest) -> tuple[Place, int] | None:
        """The shape for a request and its partition, if it is complete, whole, and of the present generation."""
        try:
            state = read_storage_state(self._storage)
            if state is None:
                return None
            hash_ = request.hash()
            number = partition_of(hash_, state.partitions)
            shapes = Path("partitions") / f"{number:02d}" / "shapes"
            place = self._find(request, shapes, f"{hash_}-", state)
        except OSError as error:
            log.warning("the storage directory cannot be searched", error=str(error))
            return None
        return None if place is None else (place, number)

    def _find(self, request: ShapeRequest, shapes: Path, prefix: str, state: StorageState) -> Place | None:
        try:
            handles = [name for name in os.listdir(self._storage / shapes) if name.startswith(prefix)]
        except FileNotFoundError:
            return None
        # The newest first: if that one cannot be served yet, any older one is over (INV-15, INV-33).
        for handle in sorted(handles, key=_age, reverse=True):
            description = read_description(self._storage / shapes / handle)
            if description is None:
                return None
            if description.request == request:
                return self._place(handle, shapes / handle, description, state)
        return None

    def _place(self, handle: str, directory: Path, description: Description, state: StorageState) -> Place | None:
        if description.generation != state.generation:
            return None
        try:
            with contextlib.closing(ShapeReader(self._storage / directory)) as reader:
                header = reader.header()
                if header.ended or header.snapshot is not SnapshotState.COMPLETE:
                    return None
                if not reader.is_whole(state.acknowledged):
                    return None
        except (FileNotFoundError, NotADirectoryError, DamagedLog):
            return None
        return Place(
            id=0,
            handle=handle,
            directory=str(directory),
            schema=description.schema,
            request=description.request,
            generation=description.generation,
        )


def _age(handle: str) -> int:
    made = handle.rpartition("-")[2]
    return int(made) if made.isdigit() else 0

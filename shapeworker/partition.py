"""A partition in the hands of its worker: opening, recovering, ending what must end, giving back.

Functions here block on the disk and run in a thread; what they return is handed to the loop.
"""

from __future__ import annotations

import contextlib
import errno
import sqlite3
from collections.abc import Callable
from pathlib import Path

import structlog

from common.shapelog.files import REAL, Files
from common.shapelog.header import HeaderFile
from common.shapelog.layout import DamagedLog
from common.shapelog.trash import empty_trash, retire
from shapeworker.catalog import ACTIVE, CREATING, Catalog, CatalogDamaged, ShapeRow, set_aside

log = structlog.get_logger()


class Partition:
    """An owned partition: its catalog and where its files are."""

    def __init__(self, number: int, directory: Path, catalog: Catalog, files: Files = REAL) -> None:
        self.number = number
        self.directory = directory
        self.catalog = catalog
        self._files = files
        self.used: dict[str, int] = {}
        """When shapes were last used (Unix time), as far as the catalog does not know it yet."""

    @property
    def trash(self) -> Path:
        """Where dead shapes wait for their removal."""
        return self.directory / "trash"

    def shape_directory(self, handle: str) -> Path:
        """Where a shape's files are."""
        return self.directory / "shapes" / handle

    def mark_ended(self, handle: str) -> None:
        """Tell everybody who reads the shape that it is over; one that cannot be read is over, too."""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError, DamagedLog):
            header = HeaderFile.open(self.shape_directory(handle), self._files)
            try:
                header.mark_ended()
            finally:
                header.close()

    def retire(self, handle: str) -> None:
        """Tell readers and move the files away."""
        self.mark_ended(handle)
        retire(self.shape_directory(handle), self.trash, self._files)

    def bury(self, handle: str) -> None:
        """Second half of a shape's end, after its tombstone: tell readers, move the files away, forget it."""
        self.retire(handle)
        self.catalog.forget(handle)

    def sweep(self) -> int:
        """Remove the files of dead shapes for good. Needs no catalog, so any thread may do it."""
        return empty_trash(self.trash, self._files)

    def close(self) -> None:
        """Give the partition back."""
        with contextlib.suppress(sqlite3.Error, CatalogDamaged):  # a later use is only forgotten
            if self.used:
                self.catalog.remember(self.used)
        self.catalog.close()


def open_partition(
    storage: Path,
    number: int,
    generation: int,
    files: Files = REAL,
    open_catalog: Callable[[Path], Catalog] = Catalog,
) -> tuple[Partition, list[ShapeRow]]:
    """Take the partition and return it with its active shapes; raises ``CatalogLocked`` while somebody else has it.

    Shapes that were being created when their worker died, shapes of another generation, and directories without a
    shape end here (engine.md 3.9, 9.4, INV-16). A damaged catalog is put aside, and all its shapes end. Raises
    ``OSError``, ``sqlite3.OperationalError`` for what may pass.
    """
    path = storage / "partitions" / f"{number:02d}" / "catalog.sqlite3"
    try:
        return _open_partition(storage, number, generation, files, open_catalog)
    except CatalogDamaged as error:
        kept = set_aside(path)
        log.error(
            "a catalog is damaged; the shapes of its partition end", partition=number, reason=str(error), kept=str(kept)
        )
    try:
        return _open_partition(storage, number, generation, files, open_catalog)
    except CatalogDamaged as error:
        # A new file cannot be damaged: it is the disk.
        raise OSError(errno.EIO, f"a new catalog cannot be read: {error}", str(path)) from error


def _open_partition(
    storage: Path, number: int, generation: int, files: Files, open_catalog: Callable[[Path], Catalog]
) -> tuple[Partition, list[ShapeRow]]:
    directory = storage / "partitions" / f"{number:02d}"
    shapes = directory / "shapes"
    for path in (directory.parent, directory, shapes, directory / "trash"):
        with contextlib.suppress(FileExistsError):
            files.mkdir(path)
    # What is in them is durable only if they are. Also if they were there: perhaps their maker died before this.
    for path in (storage, directory.parent, directory):
        files.sync_directory(path)
    partition = Partition(number, directory, open_catalog(directory / "catalog.sqlite3"), files)
    try:
        catalog = partition.catalog
        if catalog.generation != generation:
            catalog.start_generation(generation, "a new generation of the storage began")
        names = files.listdir(shapes)
        rows, present, active = catalog.rows(), set(names), []
        for row in rows:
            if row.state == CREATING:
                catalog.end(row.handle, "its worker stopped before it was complete")
            if row.state == ACTIVE and row.handle in present:
                active.append(row)
                continue
            if row.state == ACTIVE:
                log.warning("a shape's files are missing; it ends", handle=row.handle)
                catalog.end(row.handle, "its files are missing")
            partition.bury(row.handle)
        known = {row.handle for row in rows}
        orphans = [name for name in names if name not in known]
        for name in orphans:
            partition.retire(name)
        if orphans:
            log.warning("shapes that the catalog does not know have ended", partition=number, shapes=len(orphans))
        with contextlib.suppress(OSError):
            partition.sweep()  # what cannot be removed now is tried again every few seconds
    except BaseException:
        partition.close()
        raise
    return partition, active

"""What a shape is, in its own directory: so that its data can be found and served when no worker can be asked.

Written once, when the snapshot and what is in the log are on the disk: that there is a description says so.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from common.shape import ShapeRequest
from common.shapelog.files import CREATE_NEW, READ, REAL, Files, write_all

DESCRIPTION_NAME: Final = "shape.json"
FORMAT: Final = 1


class Description(msgspec.Struct, frozen=True, kw_only=True):
    """``generation`` of the storage directory that the shape belongs to; ``schema`` is the electric-schema header."""

    format: int = FORMAT
    generation: int
    request: ShapeRequest
    schema: str


def write_description(directory: Path, description: Description, files: Files = REAL) -> None:
    """Write it; once it is synced, too, it survives a power cut. Raises ``OSError``, also if there is one already."""
    fd = files.open(directory / DESCRIPTION_NAME, CREATE_NEW)
    try:
        write_all(files, fd, msgspec.json.encode(description) + b"\n", 0)
    finally:
        files.close(fd)


def sync_description(directory: Path, files: Files = REAL) -> None:
    """Return when what :func:`write_description` has written is on the disk. Raises ``OSError``."""
    fd = files.open(directory / DESCRIPTION_NAME, READ)
    try:
        files.fdatasync(fd)
    finally:
        files.close(fd)
    files.sync_directory(directory)


def read_description(directory: Path, files: Files = REAL) -> Description | None:
    """The description in a shape's directory; ``None`` if there is none that was written completely and is understood.

    Raises ``OSError``.
    """
    try:
        fd = files.open(directory / DESCRIPTION_NAME, READ)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        text = files.pread(fd, files.size(fd), 0)
    finally:
        files.close(fd)
    try:
        found = msgspec.json.decode(text, type=Description)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return found if found.format == FORMAT else None

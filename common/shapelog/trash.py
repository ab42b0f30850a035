"""The end of a shape's directory: moved to the trash at once, removed when there is time (engine.md 13.9)."""

from __future__ import annotations

import contextlib
import secrets
from pathlib import Path

from common.shapelog.files import REAL, Files


def retire(directory: Path, trash_directory: Path, files: Files = REAL) -> Path | None:
    """Move a shape's directory into the trash, which is made if missing, under a name that is never used again.

    Returns where it is now, ``None`` if it was gone already. Atomic, on one file system. Readers that have the shape
    open keep it. Not synced: a directory that is back after a power cut has no living row in the catalog and is retired
    again. Raises ``OSError``.
    """
    with contextlib.suppress(FileExistsError):
        files.mkdir(trash_directory)
    target = trash_directory / f"{directory.name}.{secrets.token_hex(8)}"
    try:
        files.rename(directory, target)
    except FileNotFoundError:
        return None
    return target


def empty_trash(trash_directory: Path, files: Files = REAL) -> int:
    """Remove all that is in the trash, the number of shapes removed. Blocks: for a thread.

    What others remove meanwhile is fine. Raises ``OSError`` when something cannot be removed, after trying the rest.
    """
    try:
        names = files.listdir(trash_directory)
    except FileNotFoundError:
        return 0
    removed = 0
    failure: OSError | None = None
    for name in names:
        try:
            _remove(files, trash_directory / name)
            removed += 1
        except OSError as error:
            failure = error
    if failure is not None:
        raise failure
    return removed


def _remove(files: Files, path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        if not files.is_directory(path):
            files.remove(path)
            return
        for name in files.listdir(path):
            _remove(files, path / name)
        files.rmdir(path)

"""What the machine lacks, as opposed to what is wrong with one shape: then nothing ends, the worker waits.

A full or read-only disk, or no more descriptors: whoever repairs that finds everything where it was. Other errors of
the disk (EIO) are about one file, of which nobody knows any more what is in it: its shape ends (engine.md 13.11).
"""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Final

_STORAGE: Final = {
    errno.ENOSPC: "is full",
    errno.EDQUOT: "is full: the quota of this user is used up",
    errno.EROFS: "is read-only: see the kernel's log for errors of the disk, repair it and mount it read-write",
}
_MACHINE: Final = {
    errno.EMFILE: "the process has no file descriptors left: raise its limit (ulimit -n)",
    errno.ENFILE: "the machine has no file descriptors left (sysctl fs.file-max)",
    errno.ENOMEM: "the machine has no memory left",
}


def is_shortage(error: OSError) -> bool:
    """Whether the machine lacks something that it may have again later."""
    return error.errno in _STORAGE or error.errno in _MACHINE


def describe(error: OSError, storage: Path) -> str:
    """One line for operators about a shortage: what is missing, where, and what to do."""
    number = error.errno or 0
    if number in _STORAGE:
        return f"the storage directory {storage} {_STORAGE[number]}"
    return _MACHINE.get(number) or str(error)

"""What makes everything wait, and what ends a shape."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from common.shortage import describe, is_shortage

STORAGE = Path("/data/galvanic")


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "the storage directory /data/galvanic is full"),
        (errno.EDQUOT, "the storage directory /data/galvanic is full: the quota"),
        (errno.EROFS, "the storage directory /data/galvanic is read-only"),
        (errno.EMFILE, "no file descriptors left: raise its limit"),
        (errno.ENFILE, "the machine has no file descriptors left"),
        (errno.ENOMEM, "no memory left"),
    ],
)
def test_a_shortage_says_what_is_missing(number: int, words: str) -> None:
    error = OSError(number, "as the system says it")
    assert is_shortage(error)
    assert words in describe(error, STORAGE)


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.ENOENT])
def test_anything_else_is_about_one_file(number: int) -> None:
    assert not is_shortage(OSError(number, "as the system says it"))

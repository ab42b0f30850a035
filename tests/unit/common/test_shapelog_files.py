"""What is asked of the operating system's file system beyond single calls."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from common.shapelog.files import REAL, write_back


def held(directory: Path) -> list[str]:
    """What this process has open of a directory and all below it."""
    found = []
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            found.append(os.readlink(f"/proc/self/fd/{number}"))
    return [path for path in found if Path(path).is_relative_to(directory)]


def test_what_is_written_back_keeps_no_descriptor_whatever_directories_are_named(tmp_path: Path) -> None:
    """One that is kept takes the report of a failure from whoever it was for, and there is a directory per shape."""
    (tmp_path / "file").write_bytes(b"dirty")
    for number in range(3):
        directory = tmp_path / str(number)
        directory.mkdir()
        write_back(directory)
    assert held(tmp_path) == []


def test_a_directory_that_has_gone_is_no_reason_to_fail(tmp_path: Path) -> None:
    write_back(tmp_path / "gone")


def test_names_are_synced_without_keeping_a_descriptor(tmp_path: Path) -> None:
    REAL.sync_directory(tmp_path)
    assert held(tmp_path) == []
    with (tmp_path / "file").open("wb"):
        assert held(tmp_path) == [str(tmp_path / "file")]

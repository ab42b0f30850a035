"""The trash: shapes leave at once and for ever, whoever else is removing them."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from common.shapelog import LogWriter, empty_trash, retire
from common.shapelog.files import RealFiles


def test_retired_names_never_clash(tmp_path: Path) -> None:
    trash = tmp_path / "trash"
    targets = set()
    for _ in range(3):
        LogWriter.create(tmp_path / "1-2", 100).close()
        target = retire(tmp_path / "1-2", trash)
        assert target is not None
        assert target.name.startswith("1-2.")
        assert (target / "log.index").exists()
        assert not (tmp_path / "1-2").exists()
        targets.add(target)
    assert len(targets) == 3
    assert retire(tmp_path / "1-2", trash) is None
    assert empty_trash(trash) == 3
    assert list(trash.iterdir()) == []
    assert empty_trash(trash) == 0


def test_empty_trash_takes_anything(tmp_path: Path) -> None:
    assert empty_trash(tmp_path / "nothing") == 0
    deep = tmp_path / "trash" / "a" / "b"
    deep.mkdir(parents=True)
    (deep / "file").write_bytes(b"x")
    (tmp_path / "trash" / "file").write_bytes(b"x")
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").write_bytes(b"x")
    (tmp_path / "trash" / "link").symlink_to(tmp_path / "kept")
    assert empty_trash(tmp_path / "trash") == 3
    assert (tmp_path / "kept" / "file").exists()


def test_one_that_cannot_go_does_not_keep_the_others(tmp_path: Path) -> None:
    class Stubborn(RealFiles):
        def remove(self, path: Path, /) -> None:  # type: ignore[override]
            if path.name == "stuck":
                raise OSError(errno.EIO, "Input/output error")
            RealFiles.remove(path)

    trash = tmp_path / "trash"
    trash.mkdir()
    for name in ("a", "stuck", "z"):
        (trash / name).write_bytes(b"x")
    with pytest.raises(OSError, match="Input/output"):
        empty_trash(trash, Stubborn())
    assert [path.name for path in trash.iterdir()] == ["stuck"]

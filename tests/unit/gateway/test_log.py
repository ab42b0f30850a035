"""The bodies that logs make."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from common.lsn import BEFORE_ALL
from common.shapelog import LogWriter, ShapeReader
from gateway import log


@pytest.mark.parametrize("tail", [b"", b'{"headers":{"control":"up-to-date"}}'])
def test_a_body_is_the_same_from_memory_from_a_file_and_in_pieces(tmp_path: Path, tail: bytes) -> None:
    writer = LogWriter.create(tmp_path / "shape", 10 << 20)
    lines = [b'{"value":{"a":"%s"},"headers":{"op_position":%d}}' % (b"x" * 9000, 2 * at) for at in range(100)]
    writer.append(7, [2 * at for at in range(100)], lines)
    writer.commit()
    reader = ShapeReader(tmp_path / "shape")
    everything = log.locate(reader, BEFORE_ALL)[0].range
    body = log.body(reader, everything, tail)
    *_, last = items = json.loads(body)
    assert len(items) == len(lines) + bool(tail)
    assert ("control" in last["headers"]) == bool(tail)
    before, extent, after = log.file_body(reader, everything, tail)
    assert before + extent.read(extent.start, extent.size) + after == body
    assert log.file_body(reader, everything, tail).length == len(body)
    if not tail:
        assert b"".join(log.range_pieces(reader, everything)) == body
        assert log.range_length(everything) == len(body)
    reader.close()
    writer.close()

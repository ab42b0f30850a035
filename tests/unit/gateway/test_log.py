"""The pieces in which a log is sent."""

from __future__ import annotations

from pathlib import Path

from common.lsn import BEFORE_ALL
from common.shapelog import LogWriter, ShapeReader
from gateway import log


async def test_only_so_many_bodies_have_large_slices(tmp_path: Path) -> None:
    """A limited number of clients that do not read may pin more than one small slice."""
    writer = LogWriter.create(tmp_path / "shape", 10 << 20)
    lines = [b'{"value":{"a":"%s"},"headers":{"op_position":%d}}' % (b"x" * 9000, 2 * at) for at in range(100)]
    writer.append(7, [2 * at for at in range(100)], lines)
    writer.commit()
    reader = ShapeReader(tmp_path / "shape")
    everything = log.locate(reader, BEFORE_ALL)[0].range
    bodies = [log.slices(reader, everything, b"") for _ in range(log.LARGE_BODIES + 2)]
    sizes = []
    for body in bodies:
        assert await anext(body) == b"["
        sizes.append(len(await anext(body)))
    assert sizes == [log.LARGE_SLICE] * log.LARGE_BODIES + [log.SLICE] * 2
    await bodies.pop(0).aclose()
    whole = b"".join([piece async for piece in log.slices(reader, everything, b"")])
    assert whole == log.body(reader, everything, b"")
    assert whole.count(b"op_position") == 100
    again = log.slices(reader, everything, b"")
    assert await anext(again) == b"["
    assert len(await anext(again)) == log.LARGE_SLICE, "who is done, or gone, leaves them to others"
    for body in [*bodies, again]:
        await body.aclose()
    reader.close()
    writer.close()

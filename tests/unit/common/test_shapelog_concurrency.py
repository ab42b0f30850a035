"""Readers beside a writer in another process, and a header with two writers: nobody ever sees half of anything."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

from common.lsn import SNAPSHOT_END, Offset
from common.shapelog import LogWriter, ShapeReader, SnapshotState, SnapshotWriter
from tests.unit.common.test_shapelog_model import entry, read_range

ROOT = Path(__file__).parents[3]
TRANSACTIONS = 1500

WRITER = f"""
import sys
from pathlib import Path
from common.shapelog import LogWriter
from tests.unit.common.test_shapelog_model import entry

writer = LogWriter.open(Path(sys.argv[1]), 900, 0)
for lsn in range(1, {TRANSACTIONS} + 1):
    ops = list(range(0, 2 * (lsn % 7 + 1), 2))
    lines = [entry(lsn, op, lsn % 90) for op in ops]
    if lsn % 5 == 0:
        writer.append(lsn, ops, lines)
        writer.flush()
        writer.abort()
    writer.append(lsn, ops[:2], lines[:2])
    if lsn % 3 == 0:
        writer.flush()
    writer.append(lsn, ops[2:], lines[2:])
    writer.commit()
    if lsn % 100 == 0:
        writer.sync()
writer.mark_ended()
writer.close()
"""


def test_reader_follows_a_writer_in_another_process(tmp_path: Path) -> None:
    """Every answer continues the one before at the very next entry, and a tail at rest is a whole transaction."""
    LogWriter.create(tmp_path / "shape", 900).close()
    reader = ShapeReader(tmp_path / "shape")
    child = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path / "shape")], cwd=ROOT)
    try:
        offset, position, seen = SNAPSHOT_END, 0, 0
        expected: list[Offset] = [
            Offset(lsn, op) for lsn in range(1, TRANSACTIONS + 1) for op in range(0, 2 * (lsn % 7 + 1), 2)
        ]
        while True:
            ended = reader.header().ended
            found = reader.after(offset)
            tail = reader.last()
            assert found.start == position
            if found.end == found.start:
                assert found.end_offset == offset
                if ended:
                    break
                assert child.poll() in (None, 0)
                continue
            items = json.loads(b"[" + read_range(reader, found)[:-2] + b"]")
            places = [Offset(int(item["headers"]["lsn"]), item["headers"]["op_position"]) for item in items]
            assert places == expected[seen : seen + len(places)]
            assert places[-1] == found.end_offset
            if found.end_offset == tail:
                assert items[-1]["headers"].get("last") is True
            seen += len(places)
            offset, position = found.end_offset, found.end
        assert seen == len(expected)
        assert child.wait(60) == 0
    finally:
        child.kill()
        child.wait()
        reader.close()


def test_header_written_by_two_threads_and_read_by_a_third(tmp_path: Path) -> None:
    """No change of the one writer is lost to the other's, and a reader sees chunk counts only grow."""
    writer = LogWriter.create(tmp_path / "shape", 10)
    snapshot = SnapshotWriter(tmp_path / "shape", 50, writer.header)
    chunks = 300

    def write_snapshot() -> None:
        for number in range(chunks):
            snapshot.add(entry(1, number) + b",\n", 1)
        snapshot.finish(b'{"headers":{}}')

    thread = threading.Thread(target=write_snapshot)
    thread.start()
    reader = ShapeReader(tmp_path / "shape")
    before = 0
    lsn = 0
    while True:
        lsn += 1
        writer.append(lsn, [0], [entry(lsn, 0)])
        writer.commit()
        if lsn == 20:
            writer.mark_ended()
        header = reader.header()
        assert header.chunks >= before
        assert header.ended == (lsn >= 20)
        assert reader.last() == Offset(lsn, 0)
        before = header.chunks
        if header.snapshot is SnapshotState.COMPLETE and lsn >= 20:
            break
    thread.join(60)
    assert not thread.is_alive()
    assert before == chunks + 1
    reader.close()
    writer.close()

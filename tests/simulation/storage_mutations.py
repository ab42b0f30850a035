"""Does the storage simulation find what it is for? Breaks the product in one place at a time, in a copy, and looks.

Not here, since nothing changes: that the size of the log is looked at (the checksum tells); that the snapshot syncs
header and names (the log's sync does so again before the shape is active); that the catalog refuses to enter a shape
that has ended (no group has one, and no tombstone overtakes a group).

    python -m tests.simulation.storage_mutations [--seeds 2000] [--only WORD] [--look]
"""

from __future__ import annotations

import sys
from typing import Final

from tests.simulation.mutation import Mutation, try_all

WRITER, RECOVERY = "common/shapelog/writer.py", "common/shapelog/recovery.py"
SNAPSHOT, READER = "common/shapelog/snapshot.py", "common/shapelog/reader.py"
PARTITION, CATALOG, ENDINGS = "shapeworker/partition.py", "shapeworker/catalog.py", "shapeworker/endings.py"
SETTLING, SYNC, LOGS = "shapeworker/settling.py", "shapeworker/sync.py", "shapeworker/logs.py"
WHOLE_SYNC = "common/shapelog/whole_sync.py"

MUTATIONS: Final = (
    Mutation(
        "records before bytes",
        WRITER,
        """            write_all(files, log.fd, b"".join(data), self._end)
            write_all(files, index.fd, entries, self._index_end)
""",
        """            write_all(files, index.fd, entries, self._index_end)
            write_all(files, log.fd, b"".join(data), self._end)
""",
    ),
    Mutation(
        "bytes are not synced",
        WRITER,
        "            log.sync()\n        self.header",
        "            pass\n        self.header",
    ),
    Mutation(
        "records are not synced", WRITER, "        self.header.file.sync()\n        if created", "        if created"
    ),
    Mutation(
        "directories are not synced",
        WRITER,
        "        if created != self._created_synced:",
        "        if False:",
    ),
    Mutation(
        "a dead writer's log.json is taken for named",
        WRITER,
        "self._named = end.records > 0",
        "self._named = log is not None",
    ),
    Mutation("recovered records count as synced", RECOVERY, "self.records > self.durable_records", "False"),
    Mutation("no checksum of blocks", RECOVERY, "!= found.block_crc", "!= found.block_crc and False"),
    Mutation(
        "no checksum of records",
        "common/shapelog/layout.py",
        "crc != _crc(data[at : at + RECORD_SIZE - 4]) or not",
        "not",
    ),
    Mutation(
        "what recovery kept is not written again",
        WRITER,
        "                write_again(files, log.fd, end.durable_end, end.end)\n",
        "",
    ),
    Mutation(
        "records that do not commit are kept",
        RECOVERY,
        "        if found.flags & COMMIT:\n            kept",
        "        if True:\n            kept",
    ),
    Mutation("everything is believed", LOGS, "max(self._holdings.acknowledged - 1, shape.closed_at)", "1 << 62"),
    Mutation(
        "the acknowledged position is inclusive",
        LOGS,
        "self._holdings.acknowledged - 1, shape.closed_at)",
        "self._holdings.acknowledged + 20, shape.closed_at)",
    ),
    Mutation(
        "what recovery kept is not synced before it counts",
        LOGS,
        "            self._on_unsynced(shape.log)\n",
        "            pass\n",
    ),
    Mutation("the index is not cut", WRITER, "files.ftruncate(index, record_position(end.records))", "pass"),
    Mutation("the log is not cut", WRITER, "files.ftruncate(log.fd, end.end)", "pass"),
    Mutation(
        "a full disk leaves half a record",
        WRITER,
        "            self._files.ftruncate(self.header.file.fd, self._index_end)\n",
        "",
    ),
    Mutation(
        "a running chunk survives an abort",
        WRITER,
        "        self._open_running = self._running\n        self._open_closed",
        "        self._open_closed",
    ),
    Mutation("chunks are not synced", SNAPSHOT, "                file.sync()\n", "                pass\n"),
    Mutation(
        "a chunk is closed before it is written",
        SNAPSHOT,
        "        self.flush()\n        # Readers",
        "        # Readers",
    ),
    Mutation("a shape is active before its log is synced", SETTLING, "    item.log.sync()\n", "    pass\n"),
    Mutation(
        "a shape counts only once it is active",
        SETTLING,
        "            item.shape.settling = True\n",
        "            pass\n",
    ),
    Mutation(
        "SQLite does not wait for the disk",
        CATALOG,
        'synchronous = FULL")\n            self._db.execute("BEGIN',
        'synchronous = NORMAL")\n            self._db.execute("BEGIN',
    ),
    Mutation(
        "no checkpoint at opening", CATALOG, '            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")\n', ""
    ),
    Mutation(
        "a handle is the time",
        CATALOG,
        "max(self._clock() // 1000, self._created + 1)",
        "self._clock() // 1000",
    ),
    Mutation(
        "what a failed commit may have left counts",
        CATALOG,
        "        if handle in self._doubtful:\n",
        "        if False:\n",
    ),
    Mutation(
        "a partition's directories are not synced", PARTITION, "        files.sync_directory(path)\n", "        pass\n"
    ),
    Mutation(
        "readers of orphans are not told",
        PARTITION,
        "        self.mark_ended(handle)\n        retire",
        "        retire",
    ),
    Mutation(
        "forgotten before it is retired",
        PARTITION,
        "        self.retire(handle)\n        self.catalog.forget(handle)\n",
        "        self.catalog.forget(handle)\n        self.retire(handle)\n",
    ),
    Mutation(
        "orphans stay",
        PARTITION,
        "for name in names if name not in known]",
        "for name in names if False]",
    ),
    Mutation(
        "a shape in creation is taken over",
        PARTITION,
        "if row.state == ACTIVE and row.handle",
        "if row.state in (ACTIVE, CREATING) and row.handle",
    ),
    Mutation(
        "mark before tombstone",
        ENDINGS,
        "        await self._insist(partial(partition.catalog.end, shape.handle, reason), shape)\n",
        "        await self._insist(partial(partition.mark_ended, shape.handle), shape)\n"
        "        await self._insist(partial(partition.catalog.end, shape.handle, reason), shape)\n",
    ),
    Mutation("no mark", ENDINGS, "        await self._insist(marked, shape)\n", ""),
    Mutation("no wait for tombstones", ENDINGS, "        self._syncer.wait_for(tombstone)\n", ""),
    Mutation(
        "durable is what is applied at the end of a batch",
        SYNC,
        "if run == self._run and cut > self.durable:\n",
        "cut = self.applied\n            if run == self._run and cut > self.durable:\n",
    ),
    Mutation("a batch of an older epoch counts", SYNC, "if run == self._run and cut", "if cut"),
    Mutation(
        "a failed sync is no obstacle",
        SYNC,
        "                    self._on_failure(log, error)\n",
        "                    pass\n",
    ),
    Mutation("a failed sync of all is forgotten", WHOLE_SYNC, "            self._trusted = False\n", ""),
    Mutation("two flushes at once", SYNC, "        async with self._turn:\n", "        if True:\n"),
    Mutation(
        "a reader who asks for the end believes the last record",
        READER,
        "if record is not None and record.flags & COMMIT:\n                self._end",
        "if record is not None:\n                self._end",
    ),
    Mutation(
        "a reader believes the last record",
        READER,
        "if record is not None and record.flags & COMMIT:\n                self.count",
        "if record is not None:\n                self.count",
    ),
)


if __name__ == "__main__":
    sys.exit(
        try_all(MUTATIONS, ["tests.simulation.storage", "--jobs", "1", "--until-failure"], seeds=2000, about=__doc__)
    )

"""A client of subsets: merges rows that were asked for with a stream of changes, by the official client's rule.

It knows rows only from subsets and from inserts of the stream; what the stream says of other rows it cannot use, as no
client can. No I/O.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from tests.pipeline.client_view import Row


@dataclass(frozen=True)
class _Snapshot:
    """What a subset showed, and of which rows."""

    xmin: int
    xmax: int
    xip: frozenset[int]
    database_lsn: int
    keys: frozenset[str]

    def xid(self, xids: list[int]) -> int:
        """The newest of these 32-bit ids, as a 64-bit one near `xmax`."""
        return max(self.xmax + ((xid - self.xmax + (1 << 31)) % (1 << 32)) - (1 << 31) for xid in xids)

    def shows(self, xid: int) -> bool:
        """Whether it holds what this transaction did."""
        return xid < self.xmin or (xid < self.xmax and xid not in self.xip)


@dataclass
class SubsetView:
    """The rows that are known, and where in the log the client is."""

    rows: dict[str, Row] = field(default_factory=dict)
    offset: str = "now"
    handle: str | None = None
    lsn: int = 0
    up_to_date: bool = False
    dropped: int = 0
    applied: int = 0
    _snapshots: list[_Snapshot] = field(default_factory=list)

    def query(self) -> dict[str, str]:
        """The parameters that say where the client is."""
        return {"offset": self.offset} | ({} if self.handle is None else {"handle": self.handle})

    def accept_subset(self, headers: Any, body: bytes) -> list[str]:
        """Rows that were asked for. Returns their keys in the order they came in."""
        answer = json.loads(body)
        metadata, keys = answer["metadata"], []
        for item in answer["data"]:
            assert item["headers"]["operation"] == "insert"
            assert item["headers"]["snapshot_mark"] == metadata["snapshot_mark"]
            assert item["key"] not in keys, "a row came twice"
            keys.append(item["key"])
            self.rows[item["key"]] = item["value"]
        self._snapshots.append(
            _Snapshot(
                int(metadata["xmin"]),
                int(metadata["xmax"]),
                frozenset(map(int, metadata["xip_list"])),
                int(metadata["database_lsn"]),
                frozenset(keys),
            )
        )
        self._move(headers)
        return keys

    def accept_log(self, headers: Any, body: bytes) -> None:
        """Changes."""
        self.up_to_date = False
        for item in json.loads(body):
            about = item["headers"]
            if "operation" in about:
                self._change(item, about)
            elif about["control"] == "up-to-date":
                self.up_to_date = True
                self.lsn = int(about["global_last_seen_lsn"])
                self._forget(self.lsn)
        self._move(headers)

    def _move(self, headers: Any) -> None:
        self.offset = headers["electric-offset"]
        self.handle = headers["electric-handle"]

    def _forget(self, lsn: int) -> None:
        self._snapshots = [snapshot for snapshot in self._snapshots if snapshot.database_lsn > lsn]

    def _change(self, item: Any, about: Any) -> None:
        xids = about["txids"]
        self._snapshots = [snapshot for snapshot in self._snapshots if snapshot.xid(xids) < snapshot.xmax]
        key = item["key"]
        if any(key in snapshot.keys and snapshot.shows(snapshot.xid(xids)) for snapshot in self._snapshots):
            self.dropped += 1
            return
        self.applied += 1
        operation = about["operation"]
        if operation == "insert":
            self.rows[key] = item["value"]
        elif operation == "delete":
            self.rows.pop(key, None)
        elif key in self.rows:
            self.rows[key] = {**self.rows[key], **item["value"]}

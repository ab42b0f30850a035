"""What a shape is to its clients: the request that defines it, its hash, its handle, its partition.

Two requests with equal :class:`ShapeRequest` mean the same shape. The handle starts with the hash of the request, so a
handle alone names its partition (architecture.md 2.1, 4.1).
"""

from __future__ import annotations

from typing import Literal

import msgspec
import xxhash

Replica = Literal["default", "full"]
LogMode = Literal["full", "changes_only"]


class ShapeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A shape as asked for, normalised without the database: identifiers unquoted and folded, columns sorted.

    ``columns`` is ``None`` when the client named none: that is another shape than naming all (http-api.md 10.1).
    ``where`` and ``params`` are in their :mod:`common.normal_form`; ``params`` is empty when there is no ``where``.
    """

    schema: str
    table: str
    columns: tuple[str, ...] | None = None
    where: str | None = None
    params: tuple[str, ...] = ()
    replica: Replica = "default"
    log: LogMode = "full"

    def identity(self) -> bytes:
        """The bytes that two requests for the same shape share and no others do."""
        return msgspec.msgpack.encode(
            (self.schema, self.table, self.columns, self.where, self.params, self.replica, self.log)
        )

    def hash(self) -> int:
        """A stable 32-bit hash of the identity: chooses the partition; never trusted as an identity by itself."""
        return xxhash.xxh3_64_intdigest(self.identity()) & 0xFFFFFFFF


def make_handle(request_hash: int, created_us: int) -> str:
    """A new handle: ``<hash>-<creation time in microseconds>``; a catalog never hands out a time twice."""
    return f"{request_hash}-{created_us}"


def created_at(handle: str) -> float:
    """When a shape was made, in Unix time; 0 if the text is no handle of ours."""
    made = handle.rpartition("-")[2]
    return int(made) / 1e6 if made.isdigit() else 0.0


def partition_of(request_hash: int, partitions: int) -> int:
    """The partition that shapes with this hash live in, for ever."""
    return request_hash % partitions


def partition_of_handle(handle: str, partitions: int) -> int | None:
    """The partition that a handle names, or ``None`` if the text is no handle of ours."""
    head, dash, tail = handle.partition("-")
    if not dash or not head.isascii() or not head.isdigit() or not tail.isdigit() or len(head) > 10:
        return None
    return partition_of(int(head), partitions)


def shape_directory(partition: int, handle: str) -> str:
    """Where a shape's files are, relative to the storage directory."""
    return f"partitions/{partition:02d}/shapes/{handle}"

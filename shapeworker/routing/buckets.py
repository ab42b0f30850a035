"""What indexes are, and what they keep under a key: one clause as it is, several in a dict. Most keys have one, and
dicts are large.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from shapeworker.where import Filter


class Clause:
    """A clause in the indexes: its shape, and its predicate unless matching a path says it all."""

    __slots__ = ("filter", "predicate", "shape")

    def __init__(self, shape: Any, filter_: Filter, predicate: Callable[[Any], bool] | None) -> None:
        self.shape = shape
        self.filter = filter_
        self.predicate = predicate


class Index(Protocol):
    """Paths of one kind over the same columns. Its length is 0 when it is empty."""

    def __len__(self) -> int: ...

    def add(self, path: Any, clause: Clause, /) -> None: ...

    def remove(self, path: Any, clause: Clause, /) -> None: ...

    def look_up(self, row: Sequence[bytes | None], found: list[Clause], /) -> None: ...


Bucket = Clause | dict[Clause, None]


def joined(bucket: Bucket | None, clause: Clause) -> Bucket:
    """The bucket with one more clause."""
    if bucket is None:
        return clause
    if isinstance(bucket, dict):
        bucket[clause] = None
        return bucket
    return {bucket: None, clause: None}


def parted(bucket: Bucket, clause: Clause) -> Bucket | None:
    """The bucket without a clause; None if nothing is left."""
    if not isinstance(bucket, dict):
        return None if bucket is clause else bucket
    bucket.pop(clause, None)
    return bucket or None


def gather(bucket: Bucket, found: list[Clause]) -> None:
    """Appends what is in a bucket."""
    if isinstance(bucket, dict):
        found.extend(bucket)
    else:
        found.append(bucket)

"""What an index keeps under a key: one clause as it is, several in a dict. Most keys have one, and dicts are large."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Clause:
    """A clause in the indexes: its shape, and its predicate unless matching a path says it all."""

    __slots__ = ("paths", "predicate", "shape")

    def __init__(self, shape: Any, predicate: Callable[[Any], bool] | None, paths: tuple[Any, ...] | None) -> None:
        self.shape = shape
        self.predicate = predicate
        self.paths = paths


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

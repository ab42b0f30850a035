"""Where the data in the storage directory comes from: ``source.json``, and the decision whether that still holds.

The file ties a storage directory to one database, one slot and one position. When any of it is not what it was, the
shapes must not be continued: a new generation begins (engine.md 3.4, 3.8, INV-1, INV-2; architecture.md 6).
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import threading
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from common.lsn import format_lsn, parse_lsn
from common.source import FILE_NAME, FORMAT
from ingester.standing import Standing

LOCK_NAME: Final = "source.lock"
_POSITIONS: Final = ("consistent_point", "acknowledged")


class CorruptSource(Exception):
    """``source.json`` is there but cannot be what Galvanic wrote; counts as missing."""


class SourceInUse(Exception):
    """Another process writes this storage directory; the text says which."""


class SourceReleased(OSError):
    """The claim on the storage directory was given up: nothing may be written any more."""


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """What the storage directory was fed from, and up to where.

    ``consistent_point`` is where the slot began; ``acknowledged`` the highest LSN up to which Postgres was, or is
    about to be, allowed to forget. ``epoch`` counts the sessions on the replication connection. ``tables`` says of each
    published table since when its shapes miss nothing. ``publication_version`` is that of ``Flags``.
    ``broken`` is not empty when the slot must not be continued, whatever else is found. ``temporary``: the slot was to
    be dropped at the end of its process.
    """

    system_identifier: str
    timeline: int
    database: str
    database_oid: int
    slot: str
    consistent_point: int
    publication_oid: int
    partitions: int
    generation: int
    epoch: int
    acknowledged: int
    tables: dict[int, Standing] = {}
    broken: str = ""
    temporary: bool = False
    publication_version: int = 0


class Observed(NamedTuple):
    """What a session finds before it streams. ``confirmed_flush`` of a slot just made is its consistent point, and
    ``slot_reason`` why it had to be made.

    ``publication_found`` is the version of the publication before we altered it, 0 where it does not matter.
    """

    system_identifier: str
    timeline: int
    database: str
    database_oid: int
    slot: str
    slot_created: bool
    confirmed_flush: int
    publication_oid: int
    slot_reason: str = ""
    publication_version: int = 0
    publication_found: int = 0


class Continue(NamedTuple):
    """All shapes may be continued."""


class NewGeneration(NamedTuple):
    """No shape may be continued; ``reason`` is one line for operators. ``first`` on an empty storage directory."""

    reason: str
    first: bool = False


Decision = Continue | NewGeneration


def decide(stored: Source | None, storage_is_empty: bool, observed: Observed) -> Decision:
    """Whether the shapes in the storage directory may be continued from this slot (engine.md 3.4, 3.8, INV-2)."""
    if stored is None:
        if storage_is_empty:
            return NewGeneration("first start with this storage directory", first=True)
        return NewGeneration(f"{FILE_NAME} is missing or damaged, but the storage directory holds shapes")
    if stored.system_identifier != observed.system_identifier:
        return NewGeneration(
            f"another database server: its system identifier is {observed.system_identifier}, "
            f"was {stored.system_identifier}"
        )
    if stored.timeline != observed.timeline:
        return NewGeneration(
            f"the server is on timeline {observed.timeline}, was {stored.timeline}: a standby was promoted "
            "or a backup restored"
        )
    if stored.database_oid != observed.database_oid:
        return NewGeneration(f"another database: {observed.database!r}, was {stored.database!r}")
    if stored.slot != observed.slot:
        return NewGeneration(f"another replication slot: {observed.slot!r}, was {stored.slot!r}")
    if stored.broken:
        return NewGeneration(stored.broken)
    if observed.slot_created:
        cause = f": {observed.slot_reason}" if observed.slot_reason else ""
        return NewGeneration(f"the replication slot {observed.slot!r} had to be created{cause}")
    if stored.publication_oid != observed.publication_oid:
        return NewGeneration("the publication was dropped and created again by somebody else")
    if 0 not in (stored.publication_version, observed.publication_found) and (
        stored.publication_version != observed.publication_found
    ):
        return NewGeneration("the publication was altered by somebody: meanwhile changes may not have been published")
    if observed.confirmed_flush > stored.acknowledged + 1:
        return NewGeneration(
            f"the replication slot {observed.slot!r} is at {format_lsn(observed.confirmed_flush)}, beyond "
            f"{format_lsn(stored.acknowledged)} that this storage directory acknowledged: somebody else advanced it, "
            "or an older copy of the storage was restored"
        )
    return Continue()


def session(
    stored: Source | None, decision: Decision, observed: Observed, *, partitions: int, now: int, temporary: bool = False
) -> Source:
    """The source to save before the session's first frame: next epoch and, if so decided, next generation (INV-1,
    INV-3).

    ``partitions`` only counts for a storage directory that has no number of its own yet. ``now`` (Unix seconds)
    replaces the counters when the file that held them is lost: it is above anything they can have counted up to.
    """
    if stored is not None and decision == Continue():
        return msgspec.structs.replace(
            stored,
            epoch=stored.epoch + 1,
            database=observed.database,
            temporary=temporary,
            publication_version=observed.publication_version,
        )
    if stored is not None:
        generation, epoch = stored.generation + 1, stored.epoch + 1
    else:
        generation = epoch = 1 if isinstance(decision, NewGeneration) and decision.first else now
    return Source(
        system_identifier=observed.system_identifier,
        timeline=observed.timeline,
        database=observed.database,
        database_oid=observed.database_oid,
        slot=observed.slot,
        consistent_point=observed.confirmed_flush,
        publication_oid=observed.publication_oid,
        publication_version=observed.publication_version,
        partitions=stored.partitions if stored is not None else partitions,
        generation=generation,
        epoch=epoch,
        # The transaction whose commit record starts at the slot's position is still to come (engine.md 3.7).
        acknowledged=max(observed.confirmed_flush - 1, 0),
        temporary=temporary,
    )


class SourceFile:
    """``source.json`` of one storage directory, kept by the one process that writes it. Methods may be called in
    threads.

    The advisory lock in Postgres alone does not make it one: who loses it learns of that only later, and two instances
    with different slots have different locks. Hence :meth:`claim`, which the kernel takes back from a dead process.
    """

    def __init__(self, storage_dir: Path) -> None:
        self._path = storage_dir / FILE_NAME
        self._lock = threading.Lock()
        self._current: Source | None = None
        self._claim: int | None = None

    def claim(self) -> None:
        """Become the only writer of this storage directory. Raises :class:`SourceInUse` at once, ``OSError``."""
        with self._lock:
            if self._claim is not None:
                return
            file = os.open(self._path.with_name(LOCK_NAME), os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.pread(file, 200, 0).decode(errors="replace").strip()
                os.close(file)
                raise SourceInUse(
                    f"another process writes the storage directory {self._path.parent}: {holder or 'unknown'}"
                ) from None
            except OSError:
                os.close(file)
                raise
            self._claim = file
            with contextlib.suppress(OSError):
                # For people only. A full disk must not leave the lock taken by nobody who knows of it.
                os.ftruncate(file, 0)
                os.pwrite(file, f"pid {os.getpid()} on {socket.gethostname()}\n".encode(), 0)

    def release(self) -> None:
        """Let another process write; from now on :meth:`update` raises, and :meth:`poison` does nothing."""
        with self._lock:
            self._current = None
            if self._claim is not None:
                os.close(self._claim)
                self._claim = None

    def load(self) -> Source | None:
        """The stored source, ``None`` if there is no file. Raises ``CorruptSource``, ``OSError``."""
        with self._lock:
            self._current = None
            try:
                text = self._path.read_bytes()
            except FileNotFoundError:
                return None
            self._current = decode(text)
            return self._current

    def save(self, source: Source) -> None:
        """Replaces the file; once this returns, the change survives a power cut. Costs two fsyncs. Raises
        ``OSError``."""
        with self._lock:
            self._write(source)

    def update(self, **changes: Any) -> Source:
        """Changes fields of what was last loaded or saved, durably, and returns the result; writes only real changes.

        Must have returned for ``acknowledged`` before Postgres is told that position (INV-2). Raises ``OSError``;
        ``SourceReleased`` when there is nothing to change yet, or any more.
        """
        with self._lock:
            if self._current is None:
                raise SourceReleased(f"{FILE_NAME} is not this process's to write")
            changed = msgspec.structs.replace(self._current, **changes)
            if changed != self._current:
                self._write(changed)
            return changed

    def poison(self, reason: str) -> None:
        """Makes sure, durably, that no later start continues from the slot, whatever it finds. Raises ``OSError``.

        To be called before a slot is dropped or created. Where no source is stored there is nothing to continue anyway.
        """
        with self._lock:
            if self._current is not None:
                self._write(msgspec.structs.replace(self._current, broken=reason))

    def _write(self, source: Source) -> None:
        try:
            self._replace(source)
        except OSError as error:
            # The system names no file when a write or a sync fails.
            raise OSError(error.errno, error.strerror or str(error), str(self._path)) from error

    def _replace(self, source: Source) -> None:
        temporary = self._path.with_name(FILE_NAME + ".new")
        file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            content = encode(source)
            if os.write(file, content) != len(content):
                raise OSError(f"could not write all of {temporary}")
            os.fsync(file)
        finally:
            os.close(file)
        os.replace(temporary, self._path)
        directory = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
        self._current = source


def storage_is_empty(storage_dir: Path) -> bool:
    """Whether no partition was ever written in this storage directory. A directory that is not there is empty."""
    partitions = storage_dir / "partitions"
    return not any(partitions.glob("*/*"))


def encode(source: Source) -> bytes:
    """The file's text: JSON for people too, LSNs as Postgres writes them since 64 bits are too many for JSON
    numbers."""
    fields = msgspec.to_builtins(source)
    for name in _POSITIONS:
        fields[name] = format_lsn(fields[name])
    for standing in fields["tables"].values():
        standing["since"] = format_lsn(standing["since"])
    return json.dumps({"format": FORMAT} | fields, indent=1).encode() + b"\n"


def decode(text: bytes) -> Source:
    """Reads what ``encode`` wrote. Raises ``CorruptSource`` on anything else."""
    try:
        fields = json.loads(text)
        if fields.pop("format") != FORMAT:
            raise ValueError("it was written by another version of Galvanic")
        for name in _POSITIONS:
            fields[name] = parse_lsn(fields[name])
        for standing in fields.get("tables", {}).values():
            standing["since"] = parse_lsn(standing["since"])
        return msgspec.convert(fields, Source, strict=True, str_keys=True)
    except (ValueError, KeyError, TypeError, AttributeError, msgspec.ValidationError) as error:
        raise CorruptSource(f"{FILE_NAME}: {error}") from None

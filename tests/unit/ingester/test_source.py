"""The decision whether stored shapes may be continued, and the durability of its memory (engine.md 3.4, 3.8, INV-2)."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.lsn import MAX_LSN
from common.source import FILE_NAME, StorageState, read_storage_state
from ingester.source import (
    Continue,
    CorruptSource,
    NewGeneration,
    Observed,
    Source,
    SourceFile,
    SourceInUse,
    SourceReleased,
    decide,
    decode,
    encode,
    session,
    storage_is_empty,
)
from ingester.standing import Standing

OBSERVED = Observed(
    system_identifier="7711083865085797286",
    timeline=1,
    database="app",
    database_oid=16384,
    slot="electric_slot_default",
    slot_created=False,
    confirmed_flush=0x1_0000_1001,
    publication_oid=16400,
)
STANDING = Standing(membership=16500, since=0x1_0000_0800, reason="it was", key=("id",), tree={16390: 700})
STORED = Source(
    system_identifier="7711083865085797286",
    timeline=1,
    database="app",
    database_oid=16384,
    slot="electric_slot_default",
    consistent_point=0x1_0000_0000,
    publication_oid=16400,
    partitions=32,
    generation=3,
    epoch=9,
    acknowledged=0x1_0000_1000,
    tables={16385: STANDING},
)
NOW = 1_800_000_000


def test_an_undisturbed_restart_continues() -> None:
    assert decide(STORED, False, OBSERVED) == Continue()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"system_identifier": "1"}, "another database server"),
        ({"timeline": 2}, "timeline 2, was 1"),
        ({"database_oid": 17000, "database": "other"}, "another database: 'other', was 'app'"),
        ({"slot": "electric_slot_x"}, "another replication slot"),
        ({"slot_created": True, "slot_reason": "it was lost"}, "had to be created: it was lost"),
        ({"publication_oid": 16401}, "publication was dropped"),
        ({"confirmed_flush": 0x1_0000_1002}, "1/1002, beyond 1/1000"),
    ],
)
def test_each_break_of_continuity_starts_a_new_generation(change: dict[str, Any], words: str) -> None:
    decision = decide(STORED, False, OBSERVED._replace(**change))
    assert isinstance(decision, NewGeneration)
    assert words in decision.reason
    assert "\n" not in decision.reason
    assert not decision.first


def test_a_renamed_database_is_the_same_database() -> None:
    observed = OBSERVED._replace(database="renamed")
    assert decide(STORED, False, observed) == Continue()
    assert session(STORED, Continue(), observed, partitions=32, now=NOW).database == "renamed"


def test_a_slot_that_postgres_remembers_late_is_continued() -> None:
    assert decide(STORED, False, OBSERVED._replace(confirmed_flush=0x1_0000_0500)) == Continue()


def test_what_was_recorded_before_a_slot_was_made_ends_all_shapes_even_after_a_crash() -> None:
    poisoned = msgspec.structs.replace(STORED, broken="Postgres invalidated the slot (wal_removed)")
    assert decide(poisoned, False, OBSERVED) == NewGeneration("Postgres invalidated the slot (wal_removed)")
    fresh = session(poisoned, decide(poisoned, False, OBSERVED), OBSERVED, partitions=32, now=NOW)
    assert fresh.broken == ""
    assert decide(fresh, False, OBSERVED) == Continue()


def test_poison_survives_until_a_new_generation(tmp_path: Path) -> None:
    SourceFile(tmp_path).poison("nothing stored, nothing to do")
    assert os.listdir(tmp_path) == []
    SourceFile(tmp_path).save(STORED)
    file = SourceFile(tmp_path)
    file.load()
    file.poison("a new slot is about to be made")
    stored = SourceFile(tmp_path).load()
    assert decide(stored, False, OBSERVED) == NewGeneration("a new slot is about to be made")


def test_a_crash_between_slot_creation_and_its_record_is_noticed_by_the_position_alone() -> None:
    assert isinstance(decide(STORED, False, OBSERVED._replace(confirmed_flush=0x1_0000_2000)), NewGeneration)


def test_the_first_start_is_generation_one() -> None:
    decision = decide(None, True, OBSERVED)
    assert decision == NewGeneration("first start with this storage directory", first=True)
    source = session(None, decision, OBSERVED, partitions=16, now=NOW)
    assert (source.generation, source.epoch, source.partitions) == (1, 1, 16)


def test_a_lost_file_with_shapes_counts_as_changed_and_never_repeats_a_generation() -> None:
    decision = decide(None, False, OBSERVED)
    assert isinstance(decision, NewGeneration)
    assert not decision.first
    source = session(None, decision, OBSERVED, partitions=32, now=NOW)
    assert (source.generation, source.epoch) == (NOW, NOW)


def test_a_session_counts_epochs_and_keeps_the_rest() -> None:
    assert session(STORED, Continue(), OBSERVED, partitions=8, now=NOW) == msgspec.structs.replace(STORED, epoch=10)


def test_a_new_generation_forgets_what_belonged_to_the_old_one() -> None:
    observed = OBSERVED._replace(timeline=2, confirmed_flush=500)
    source = session(STORED, decide(STORED, False, observed), observed, partitions=8, now=NOW)
    assert (source.generation, source.epoch, source.partitions, source.timeline) == (4, 10, 32, 2)
    assert (source.consistent_point, source.acknowledged) == (500, 499)
    assert source.tables == {}


lsns = st.integers(0, MAX_LSN)


@given(confirmed=lsns, acknowledged=lsns)
def test_shapes_are_kept_only_if_no_transaction_can_be_missing(confirmed: int, acknowledged: int) -> None:
    stored = msgspec.structs.replace(STORED, acknowledged=acknowledged)
    decision = decide(stored, False, OBSERVED._replace(confirmed_flush=confirmed))
    assert (decision == Continue()) is (confirmed <= acknowledged + 1)


@given(confirmed=lsns)
def test_a_session_can_be_resumed_from_where_it_began(confirmed: int) -> None:
    observed = OBSERVED._replace(slot_created=True, confirmed_flush=confirmed)
    source = session(STORED, decide(STORED, False, observed), observed, partitions=32, now=NOW)
    assert decide(source, False, observed._replace(slot_created=False)) == Continue()
    # The transaction at the slot's very position is still to be delivered.
    assert source.acknowledged < confirmed or confirmed == 0


oids = st.integers(1, 2**32 - 1)
standings = st.builds(
    Standing, oids, lsns, st.text(), st.lists(st.text(), max_size=3).map(tuple), st.dictionaries(oids, oids, max_size=3)
)


@given(point=lsns, acknowledged=lsns, tables=st.dictionaries(oids, standings, max_size=3))
def test_the_file_gives_back_what_was_saved(point: int, acknowledged: int, tables: dict[int, Standing]) -> None:
    source = msgspec.structs.replace(
        STORED, consistent_point=point, acknowledged=acknowledged, tables=tables, database='a "b"\n', broken="é"
    )
    assert decode(encode(source)) == source


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"format": 2}',
        b'{"format": 1}',
        encode(STORED)[:-20],
        encode(STORED).replace(b"1/1000", b"nonsense"),
        encode(STORED).replace(b'"timeline": 1', b'"timeline": "1"'),
        b"\xff\xfe",
    ],
)
def test_a_damaged_file_is_told_from_a_missing_one(tmp_path: Path, text: bytes) -> None:
    file = SourceFile(tmp_path)
    assert file.load() is None
    (tmp_path / FILE_NAME).write_bytes(text)
    with pytest.raises(CorruptSource, match=r"source\.json"):
        file.load()


def test_saving_replaces_the_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    file = SourceFile(tmp_path)
    file.save(STORED)
    file.update(acknowledged=MAX_LSN)
    assert os.listdir(tmp_path) == [FILE_NAME]
    loaded = SourceFile(tmp_path).load()
    assert loaded == msgspec.structs.replace(STORED, acknowledged=MAX_LSN)


def test_an_update_without_a_change_writes_nothing(tmp_path: Path) -> None:
    file = SourceFile(tmp_path)
    file.save(STORED)
    inode = (tmp_path / FILE_NAME).stat().st_ino
    assert file.update(acknowledged=STORED.acknowledged) == STORED
    assert (tmp_path / FILE_NAME).stat().st_ino == inode


def test_there_is_nothing_to_update_before_a_source_is_known(tmp_path: Path) -> None:
    with pytest.raises(SourceReleased):
        SourceFile(tmp_path).update(acknowledged=1)


def test_one_process_at_a_time_writes(tmp_path: Path) -> None:
    first, second = SourceFile(tmp_path), SourceFile(tmp_path)
    first.claim()
    first.claim()  # already ours
    first.save(STORED)
    with pytest.raises(SourceInUse, match=f"pid {os.getpid()} on "):
        second.claim()
    first.release()
    second.claim()
    second.save(msgspec.structs.replace(STORED, epoch=STORED.epoch + 1))
    # The former holder does not know yet that it is one.
    with pytest.raises(SourceReleased):
        first.update(acknowledged=STORED.acknowledged + 5)
    first.poison("too late")
    loaded = SourceFile(tmp_path).load()
    assert loaded == msgspec.structs.replace(STORED, epoch=STORED.epoch + 1)


def test_others_read_the_part_that_concerns_them(tmp_path: Path) -> None:
    assert read_storage_state(tmp_path) is None
    file = SourceFile(tmp_path)
    file.save(STORED)
    assert read_storage_state(tmp_path) == StorageState(
        partitions=STORED.partitions, generation=STORED.generation, acknowledged=STORED.acknowledged
    )
    file.poison("the slot is gone")
    assert read_storage_state(tmp_path) is None, "its shapes are about to end"
    (tmp_path / FILE_NAME).write_bytes(b'{"format": 1, "partitions"')
    assert read_storage_state(tmp_path) is None


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    file = SourceFile(tmp_path)
    file.save(STORED)

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(OSError, match="No space"):
            file.update(epoch=10)
    assert SourceFile(tmp_path).load() == STORED
    # The failed change must not be taken for written when it comes again.
    assert file.update(epoch=10).epoch == 10
    loaded = SourceFile(tmp_path).load()
    assert loaded is not None
    assert loaded.epoch == 10


def test_a_full_disk_does_not_leave_the_claim_taken_by_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    first = SourceFile(tmp_path)
    with monkeypatch.context() as disk:
        disk.setattr(os, "pwrite", full)
        first.claim()
    first.release()
    SourceFile(tmp_path).claim()


def test_durability_comes_before_visibility(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    for name in ("write", "fsync", "replace"):
        original = getattr(os, name)

        def spy(*args: Any, name: str = name, original: Any = original) -> Any:
            calls.append(name)
            return original(*args)

        monkeypatch.setattr(os, name, spy)
    SourceFile(tmp_path).save(STORED)
    assert calls == ["write", "fsync", "replace", "fsync"]


def test_storage_is_empty_until_a_partition_has_something(tmp_path: Path) -> None:
    assert storage_is_empty(tmp_path / "missing")
    assert storage_is_empty(tmp_path)
    (tmp_path / "partitions" / "07").mkdir(parents=True)
    assert storage_is_empty(tmp_path)
    (tmp_path / "partitions" / "07" / "catalog.sqlite3").touch()
    assert not storage_is_empty(tmp_path)

"""What a worker says is in its way: named, and only when it lasts."""

from __future__ import annotations

from shapeworker.obstacles import LONG_SNAPSHOT, LONG_TURN, SLOW_SYNC, STOOD_STILL, of_disk, of_loop, of_snapshots


def test_a_disk_that_works_is_no_obstacle() -> None:
    assert of_disk("", None, {}) == []
    assert of_disk("", ("partitions/07/shapes/1-2", SLOW_SYNC - 1), {}) == []


def test_a_full_disk_delays_clients() -> None:
    (found,) = of_disk("No space left on device", None, {})
    assert found.delays
    assert found.text == "waits for the storage: No space left on device"


def test_a_slow_sync_and_an_end_that_cannot_be_recorded_name_the_shape() -> None:
    slow, tombstone = of_disk(
        "", ("partitions/07/shapes/1-2", 7.0), {"3-4": (9.0, "Input/output error"), "5-6": (1.0, "")}
    )
    assert slow.text == (
        "the disk has not finished a sync for 7 s, at partitions/07/shapes/1-2; nothing is acknowledged"
    )
    assert "shape 3-4 is not recorded for 9 s: Input/output error" in tombstone.text
    assert not slow.delays
    assert not tombstone.delays


def test_snapshots_that_wait_name_the_setting() -> None:
    assert of_snapshots(4, [LONG_TURN - 1], {"1-2 (items)": LONG_SNAPSHOT - 1}) == []
    (queued,) = of_snapshots(4, [2.0, 9.0], {})
    assert queued.text == (
        "2 snapshots wait for a connection, one for 9 s, while 4 are being read: ELECTRIC_DB_POOL_SIZE allows no more"
    )
    (running,) = of_snapshots(4, [], {"1-2 (items)": 400.0})
    assert running.text == "the snapshot of shape 1-2 (items) has been read for 400 s"


def test_a_process_that_stood_still_says_so() -> None:
    assert of_loop(STOOD_STILL - 1) == []
    assert "stood still for 8 s" in of_loop(8.0)[0].text

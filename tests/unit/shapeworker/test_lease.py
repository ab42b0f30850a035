"""When a worker lets go of its partitions by itself (engine.md 17.4, INV-39)."""

from __future__ import annotations

from shapeworker.lease import CERTAIN, SILENCE, Lease


def look_until(lease: Lease, start: float, end: float) -> float | None:
    """Look every second; when it was lost."""
    now = start
    while now <= end:
        if lease.lost(now):
            return now
        now += 1.0
    return None


def test_silence_ends_it_but_not_a_restart() -> None:
    lease = Lease(100.0)
    assert look_until(lease, 100.0, 100.0 + SILENCE - 1) is None
    lease.status(129.5, superseded=False)
    assert look_until(lease, 130.0, 129.5 + SILENCE - 1) is None
    assert lease.lost(129.5 + SILENCE) == "no word from the ingester for 30 s"


def test_another_instance_ends_it_once_that_is_certain() -> None:
    lease = Lease(0.0)
    lease.status(1.0, superseded=True)
    assert not lease.lost(1.0 + CERTAIN - 0.1)
    # The former session of the same ingester is gone, and it has the lock.
    lease.status(2.0, superseded=False)
    assert not lease.lost(1.0 + CERTAIN + 1)
    lease.status(5.0, superseded=True)
    lease.status(7.0, superseded=True)
    assert not lease.lost(7.5)
    assert lease.lost(5.0 + CERTAIN) == "another instance has the lock"


def test_time_in_which_this_process_stood_still_does_not_count() -> None:
    lease = Lease(0.0)
    assert not lease.lost(1.0)
    assert not lease.lost(1000.0), "what was said meanwhile is still to be read"
    assert look_until(lease, 1001.0, 1000.0 + SILENCE - 2) is None
    assert look_until(lease, 1028.0, 1100.0) is not None

"""What the ingester says is in the way: named, and only when it lasts."""

from __future__ import annotations

from common.obstacles import Obstacle
from ingester.obstacles import (
    BEHIND,
    QUIET,
    RETAINED,
    STARVED,
    Backlog,
    Blocked,
    Inspector,
    SlotState,
    WorkerState,
    of_locks,
    of_slot,
    of_stream,
)

FINE = WorkerState("w00", 0.3, False, 0, False, 7, ())


def texts(found: list[Obstacle]) -> list[str]:
    return [obstacle.text for obstacle in found]


def test_nothing_is_in_the_way_of_workers_that_work() -> None:
    inspector = Inspector()
    # Without credit at each look, but with another frame dealt with in between: that is what credits are for.
    for second in range(20):
        assert inspector.workers(second, [FINE, FINE._replace(name="w01", starved=True, dealt=second)]) == []


def test_a_worker_that_deals_with_nothing_is_named() -> None:
    inspector = Inspector()
    stuck = FINE._replace(name="w01", starved=True)
    assert inspector.workers(0, [FINE, stuck]) == []
    (found,) = inspector.workers(STARVED + 1, [FINE, stuck])
    assert found.text == "worker w01 has not dealt with what it was sent for 3 s; the stream waits"
    assert found.delays


def test_a_silent_worker_is_named_for_as_long_as_it_keeps_its_partitions() -> None:
    inspector = Inspector()
    silent = FINE._replace(silent=3.4)
    (found,) = inspector.workers(0, [silent])
    assert (found.text, found.delays) == ("worker w00 has been silent for 3 s", True)
    gone = FINE._replace(silent=30, given_up=True)
    assert inspector.workers(0, [gone]) == [], "others have taken its partitions over"
    (found,) = inspector.workers(0, [gone._replace(waiting=16)])
    assert found.delays
    assert found.text.startswith("worker w00 has been silent for 30 s and still holds 16 partitions")


def test_what_a_worker_says_is_passed_on_under_its_name() -> None:
    told = (Obstacle("the storage is full", "waits for the storage: no space", delays=True),)
    (found,) = Inspector().workers(0, [FINE._replace(told=told)])
    assert found.text == "worker w00: waits for the storage: no space"
    assert found.delays


def test_a_partition_that_does_not_become_durable_is_named_with_its_worker() -> None:
    inspector = Inspector()
    behind = Backlog(7, "w01", bound=0x1000001, dispatched=0x1000010)
    assert inspector.backlog(0, behind) == []
    (found,) = inspector.backlog(BEHIND + 1, behind)
    assert found.text == "partition 7 is durable only to 0/1000001 for 11 s: worker w01 holds the slot back"
    assert not found.delays
    assert inspector.backlog(BEHIND + 2, behind._replace(bound=0x1000005)) == [], "it moves"
    assert inspector.backlog(100, behind._replace(bound=0x1000011)) == [], "all is durable"
    assert inspector.backlog(200, behind._replace(bound=0x1000011)) == []


def test_whoever_holds_a_lock_is_named_with_what_to_do() -> None:
    assert of_locks([Blocked("public.items", "publishing", 1.0, [42], "active")]) == []
    (text,) = texts(of_locks([Blocked("public.items", "publishing", 9.0, [42, 43], "idle in transaction")]))
    assert text == (
        "publishing table public.items has waited 9 s for a lock that process 42, 43 holds (idle in transaction): "
        "end that transaction, or SELECT pg_terminate_backend(42)"
    )


def test_a_slot_that_keeps_much_wal_says_why() -> None:
    fine = SlotState("reserved", RETAINED // 2, 0, (9, "idle in transaction", 600.0))
    assert of_slot("s", fine) == of_slot("s", None) == []
    (text,) = texts(of_slot("s", fine._replace(retained=3 * RETAINED)))
    assert text == (
        "slot s keeps 3.0 GiB of WAL because of a transaction that process 9 (idle in transaction) began 600 s ago: "
        "end it, or SELECT pg_terminate_backend(9)"
    )
    (text,) = texts(of_slot("s", fine._replace(retained=3 * RETAINED, unacknowledged=2 * RETAINED)))
    assert text == "slot s keeps 3.0 GiB of WAL: 2.0 GiB of it is not acknowledged yet"
    (text,) = texts(of_slot("s", fine._replace(wal_status="unreserved")))
    assert "max_slot_wal_keep_size" in text


def test_a_stream_that_is_silent_although_asked_is_told() -> None:
    assert of_stream(QUIET - 1) == []
    (found,) = of_stream(33)
    assert found.delays
    assert found.text.startswith("Postgres has sent nothing for 33 s")

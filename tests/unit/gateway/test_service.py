"""What the ingester's status means: http-api.md 25, 27; progress: 13.3."""

from __future__ import annotations

import json

import msgspec
import pytest

from common.messages import Status, WorkerPlace
from gateway.progress import Progress
from gateway.service import Service

W0 = WorkerPlace(requests="ipc://a", events="ipc://b")


def status(state: str = "active", reason: str = "", owners: dict[int, str] | None = None, total: int = 2) -> Status:
    return Status(
        boot="b",
        state=state,
        reason=reason,
        epoch=1,
        generation=1,
        partitions=total,
        lsn=0,
        owners={0: "w0", 1: "w0"} if owners is None else owners,
        workers={"w0": W0},
    )


def service_with(*statuses: Status) -> Service:
    service = Service()
    for each in statuses:
        service.update(each, now=100.0)
    return service


def test_active_is_exactly_active() -> None:
    assert service_with(status()).health(now=102.9) == (200, b'{"status":"active"}')


def test_active_with_a_reason_while_something_else_is_held_back() -> None:
    held = msgspec.structs.replace(status(), details=("the slot keeps 3 GiB of WAL", "a snapshot waits"))
    code, body = service_with(held).health(now=100.0)
    assert code == 200
    assert json.loads(body) == {"status": "active", "reason": "the slot keeps 3 GiB of WAL; a snapshot waits"}


def test_delayed_changes_are_not_active_but_shapes_can_be_created() -> None:
    delayed = msgspec.structs.replace(status(), delayed=True, details=("worker w0 is silent",))
    service = service_with(delayed)
    code, body = service.health(now=100.0)
    assert (code, json.loads(body)) == (202, {"status": "starting", "reason": "worker w0 is silent"})
    assert service.can_create(1, now=100.0)


def test_partitions_that_wait_are_told_with_what_they_wait_for() -> None:
    waiting = msgspec.structs.replace(status(owners={0: "w0"}), delayed=True, details=("worker w1 is silent",))
    code, body = service_with(waiting).health(now=100.0)
    assert code == 202
    assert json.loads(body)["reason"] == "1 of 2 partitions have no worker at present; worker w1 is silent"


@pytest.mark.parametrize(
    ("service", "now", "state"),
    [
        (Service(), 0.0, "starting"),
        (service_with(status()), 103.1, "starting"),
        (service_with(status("starting", "creating the slot")), 100.0, "starting"),
        (service_with(status("waiting", "locked")), 100.0, "waiting"),
        (service_with(status("fatal", "no such database")), 100.0, "starting"),
        (service_with(status(owners={0: "w0"})), 100.0, "starting"),
        (service_with(status(owners={}, total=0)), 100.0, "starting"),
    ],
)
def test_everything_else_is_202_with_a_reason(service: Service, now: float, state: str) -> None:
    code, body = service.health(now)
    assert code == 202
    assert json.loads(body)["status"] == state
    assert json.loads(body)["reason"]


def test_a_partition_without_a_fed_owner_can_still_be_looked_up() -> None:
    service = service_with(status(), status(owners={1: "w0"}))
    assert service.owner(0) == "w0"
    assert not service.can_create(0, now=100.0)
    assert service.can_create(1, now=100.0)
    assert not service.can_create(1, now=104.0)


def test_nobody_owns_what_an_unknown_worker_owned() -> None:
    service = service_with(status(), status(owners={0: "w9"}))
    assert service.owner(0) is None
    assert Service().owner(0) is None
    assert Service().partitions is None


def test_another_number_of_partitions_forgets_the_owners() -> None:
    assert service_with(status(), status(owners={}, total=4)).owner(0) is None


@pytest.mark.parametrize(
    ("service", "start"),
    [
        (
            service_with(status("waiting", "held by pid 7")),
            "Timeout waiting for Postgres lock acquisition: held by pid 7",
        ),
        (service_with(status("starting")), "Timeout waiting for replication client to be ready. Check that you"),
        (Service(), "Timeout waiting for stack restart: no word from the ingester"),
    ],
)
def test_the_message_of_a_503_says_what_is_missing(service: Service, start: str) -> None:
    assert service.unready(now=100.0).startswith(start)


def test_progress_never_goes_back_within_a_generation() -> None:
    progress = Progress()
    progress.begin(1)
    progress.applied(1, 50, (0, 1))
    progress.applied(1, 40, (1, 2))
    progress.begin(1)
    assert [progress.seen(partition, 1) for partition in range(4)] == [50, 50, 40, 0]


def test_progress_of_a_generation_is_not_that_of_another() -> None:
    progress = Progress()
    progress.begin(1)
    progress.applied(1, 50, (0,))
    progress.begin(2)
    assert progress.seen(0, 2) == 0
    progress.applied(1, 60, (0,))
    assert progress.seen(0, 2) == 0, "a worker that has not heard of the new generation yet speaks of another database"
    assert progress.seen(0, 1) == 60, "a shape that is over but still answered may not fall back to 0"


def test_a_worker_may_speak_of_a_generation_before_the_ingester_does() -> None:
    progress = Progress()
    progress.begin(1)
    progress.applied(2, 70, (0,))
    progress.begin(2)
    assert progress.seen(0, 2) == 70


def test_a_lower_generation_is_another_storage() -> None:
    progress = Progress()
    progress.begin(5)
    progress.applied(5, 50, (0,))
    progress.applied(1, 40, (0,))
    progress.begin(0)
    assert progress.seen(0, 5) == 50
    progress.begin(1)
    assert [progress.seen(0, 5), progress.seen(0, 1)] == [0, 0]


def test_progress_remembers_a_bounded_number_of_generations() -> None:
    progress = Progress()
    for generation in range(1, 100):
        progress.begin(generation)
        progress.applied(generation, generation * 10, (0,))
    assert sum(progress.seen(0, generation) > 0 for generation in range(100)) <= 8
    assert progress.seen(0, 99) == 990

from __future__ import annotations

import configparser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.scaling import Step, Worker, extra_program, known_workers, plan
from deploy.supervision import CONFIGURATION


def running(*numbers: int, extra_from: int = 2) -> list[Worker]:
    return [Worker(number, extra=number >= extra_from, stopped=False) for number in numbers]


@pytest.mark.parametrize(
    ("workers", "wanted", "steps"),
    [
        (running(0, 1), 2, []),
        (running(0, 1), 4, [Step("add", 2), Step("add", 3)]),
        (running(0, 1, 2, 3), 2, [Step("remove", 3), Step("remove", 2)]),
        (running(0, 1, 2), 1, [Step("remove", 2), Step("stop", 1)]),
        ([*running(0), Worker(1, extra=False, stopped=True)], 3, [Step("start", 1), Step("add", 2)]),
        ([*running(0), Worker(1, extra=False, stopped=True)], 1, []),
    ],
)
def test_plan(workers: list[Worker], wanted: int, steps: list[Step]) -> None:
    assert plan(workers, wanted) == steps


@given(
    st.integers(1, 6), st.lists(st.booleans(), min_size=1, max_size=4), st.sets(st.integers(4, 12)), st.integers(1, 12)
)
def test_a_plan_ends_at_what_is_wanted(base: int, stopped: list[bool], extra: set[int], wanted: int) -> None:
    workers = [Worker(number, extra=False, stopped=is_stopped) for number, is_stopped in enumerate(stopped)]
    workers += [Worker(number, extra=True, stopped=False) for number in extra]
    runs = {worker.number: not worker.stopped for worker in workers}
    for step in plan(workers, wanted):
        match step.action:
            case "add":
                assert step.number not in runs
                runs[step.number] = True
            case "remove":
                del runs[step.number]
            case "start":
                assert not runs[step.number]
                runs[step.number] = True
            case "stop":
                assert runs[step.number]
                runs[step.number] = False
    assert {number for number, on in runs.items() if on} == set(range(wanted))


def test_workers_are_found_among_the_processes() -> None:
    processes = [
        {"name": "ingester", "group": "ingester", "statename": "RUNNING"},
        {"name": "shapeworker_00", "group": "shapeworker", "statename": "RUNNING"},
        {"name": "shapeworker_01", "group": "shapeworker", "statename": "STOPPED"},
        {"name": "shapeworker_12", "group": "shapeworker_12", "statename": "STARTING"},
    ]
    assert known_workers(processes) == [
        Worker(0, extra=False, stopped=False),
        Worker(1, extra=False, stopped=True),
        Worker(12, extra=True, stopped=False),
    ]


def test_an_extra_worker_has_the_options_of_the_others() -> None:
    text = CONFIGURATION.read_text()
    original, copy = configparser.RawConfigParser(), configparser.RawConfigParser()
    original.read_string(text)
    copy.read_string(extra_program(7, text))
    expected = dict(original.items("program:shapeworker"))
    del expected["numprocs"]
    expected |= {"process_name": "shapeworker_07", "command": "galvanic shapeworker --id w07"}
    assert dict(copy.items("program:shapeworker_07")) == expected

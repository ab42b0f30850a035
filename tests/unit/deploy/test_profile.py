"""`galvanic profile` and `galvanic status`: what they print."""

from __future__ import annotations

from common.control import ProcessStatus
from common.profiler import LOOP, Profile
from deploy.profile import IN_C, WAITING, folded, shares, shown
from deploy.status import is_well
from deploy.status import shown as status_shown

PROFILE = Profile(
    seconds=10.0,
    looks=1000,
    main=5.0,
    others=0.1,
    folded={LOOP: 600, f"{LOOP};a;b": 250, f"{LOOP};a": 50, f"{LOOP};b;a;b": 100},
)


def test_a_function_counts_once_for_each_look() -> None:
    own, total = shares(PROFILE.folded)
    assert own == {LOOP: 600, "b": 350, "a": 50}
    assert total == {LOOP: 1000, "a": 400, "b": 350}


def test_processor_time_that_no_function_took_was_the_loops() -> None:
    lines = shown("w00", PROFILE, 10).splitlines()
    assert lines[0] == "w00: 1000 looks in 10.0 s"
    assert "main thread 50%" in lines[1]
    rows = {line.split(maxsplit=2)[2]: line.split()[:2] for line in lines[4:]}
    # 40 % of the looks met functions, 50 % of the time was the processor's.
    assert rows == {
        WAITING: ["50.0%", "50.0%"],
        "b": ["35.0%", "35.0%"],
        IN_C: ["10.0%", "10.0%"],
        "a": ["5.0%", "40.0%"],
    }
    assert len(shown("w00", PROFILE, 1).splitlines()) == 5


def test_a_process_that_was_kept_from_the_processor_only_waited() -> None:
    starved = Profile(10.0, 1000, 1.0, 0.0, PROFILE.folded)
    assert IN_C not in shown("w00", starved, 10)
    assert f"60.0%   60.0%  {WAITING}" in shown("w00", starved, 10)


def test_nothing_seen_is_no_error() -> None:
    assert shown("w00", Profile(0.0, 0, 0.0, 0.0, {}), 10).startswith("w00: 0 looks")


def test_folded_stacks_are_a_line_each() -> None:
    assert folded(PROFILE).splitlines() == [f"{LOOP} 600", f"{LOOP};a 50", f"{LOOP};a;b 250", f"{LOOP};b;a;b 100"]


def status(process: str, *, still: float = 0.05, **facts: str) -> ProcessStatus:
    return ProcessStatus(
        process=process,
        pid=7,
        started=1_000.0,
        busy=0.5,
        lag=0.012,
        still=still,
        processor=30.0,
        memory=80 << 20,
        facts=facts,
    )


def test_all_is_well_if_an_active_ingester_and_everybody_answers() -> None:
    well = [status("g0", waiting="3"), status("ingester", state="active"), status("w00", shapes="12")]
    assert is_well(well)
    assert not is_well([well[0], well[2]])
    assert not is_well([*well, status("ingester", state="starting")][2:])
    assert not is_well([*well, ("w01", "w01 does not run")])
    assert not is_well([*well, status("w01", still=5)])


def test_the_table_has_a_line_for_each_process_and_one_for_each_trouble() -> None:
    answers: list[ProcessStatus | tuple[str, str]] = [
        status("ingester", state="starting", reason="the database is away"),
        status("w00", still=7.4, shapes="12"),
        ("w01", "w01 does not run"),
    ]
    lines = status_shown(answers, now=1_300.0).splitlines()
    assert lines[0].split() == ["process", "pid", "up", "busy", "lag", "cpu", "memory"]
    assert lines[1].split() == ["ingester", "7", "5", "m", "50%", "12", "ms", "10%", "80", "MB", "state", "starting"]
    assert lines[2].strip() == "reason: the database is away"
    assert lines[3].endswith("shapes 12")
    assert "stands still for 7 s" in lines[4]
    assert lines[5].split(maxsplit=1) == ["w01", "w01 does not run"]

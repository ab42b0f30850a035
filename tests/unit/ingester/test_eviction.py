"""Who ends how many shapes: the longest unused of all workers' together, and never the same surplus twice."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from common.messages import Evict, Usage
from ingester.eviction import AGAIN, EVERY, MOST, PATIENCE, Eviction, shares

READY = {"w0": 7, "w1": 8}


def usage(round: int, *idle: float, version: int = 7, shapes: int | None = None) -> Usage:
    return Usage(round, version, len(idle) if shapes is None else shapes, idle)


@given(st.dictionaries(st.sampled_from("abcd"), st.lists(st.integers(0, 50)), min_size=1), st.integers(-5, 40))
def test_the_longest_unused_of_all_end(idle: dict[str, list[int]], excess: int) -> None:
    usages = {name: usage(1, *sorted(seconds, reverse=True)) for name, seconds in idle.items()}
    counts = shares(excess, usages)
    ended = [seconds for name, count in counts.items() for seconds in usages[name].idle[:count]]
    every = sorted((seconds for each in idle.values() for seconds in each), reverse=True)
    assert sorted(ended, reverse=True) == every[: max(0, excess)]
    assert all(count > 0 for count in counts.values())


def excess(limit: int) -> Eviction:
    """One that has just found that there are too many, and wants to know which are used least."""
    eviction = Eviction(limit)
    survey = eviction.survey(-1.0)
    assert survey
    assert survey.most == 0
    assert eviction.answered(-1.0, "w0", usage(survey.round, shapes=limit + 1), {"w0": 7}) == {}
    return eviction


def test_which_shapes_could_end_is_asked_only_while_there_are_too_many() -> None:
    eviction = excess(1)
    second = eviction.survey(-1.0)
    assert second
    assert second.most == MOST
    assert eviction.answered(0.0, "w0", usage(second.round, 90, 20), {"w0": 7})
    third = eviction.survey(AGAIN)
    assert third
    assert third.most == MOST
    assert eviction.answered(AGAIN, "w0", usage(third.round, 90), {"w0": 7}) == {}
    assert eviction.survey(AGAIN + 1) is None
    fourth = eviction.survey(AGAIN + EVERY)
    assert fourth
    assert fourth.most == 0


def test_a_round_is_decided_when_all_have_answered() -> None:
    eviction = excess(3)
    survey = eviction.survey(0.0)
    assert survey
    assert eviction.survey(EVERY - 0.1) is None
    assert eviction.answered(1.0, "w0", usage(survey.round, 90, 20), READY) == {}
    assert eviction.answered(1.0, "w1", usage(survey.round, 80, 70, 60, version=8), READY) == {
        "w0": Evict(survey.round, 1, 5, 3),
        "w1": Evict(survey.round, 1, 5, 3),
    }
    # Once is enough, and the next look comes soon.
    assert eviction.answered(1.0, "w1", usage(survey.round, 80, 70, 60, version=8), READY) == {}
    assert eviction.survey(1.0 + AGAIN)


def test_nothing_ends_within_the_limit() -> None:
    eviction = excess(3)
    survey = eviction.survey(0.0)
    assert survey
    assert eviction.answered(1.0, "w0", usage(survey.round, 90, 20, 10), {"w0": 7}) == {}
    assert eviction.survey(2.0) is None


def test_an_answer_to_an_earlier_round_does_not_count() -> None:
    eviction = excess(1)
    first = eviction.survey(0.0)
    second = eviction.survey(EVERY)
    assert first
    assert second
    assert eviction.answered(EVERY, "w0", usage(first.round, 90, 20), {"w0": 7}) == {}
    assert eviction.answered(EVERY, "w0", usage(second.round, 90, 20), {"w0": 7})


def test_shapes_on_their_way_are_never_counted_twice() -> None:
    """A worker that answered under another assignment may have counted what another one counts, too."""
    eviction = excess(1)
    for versions, version in (({"w0": 9}, 7), ({"w0": 0}, 0), ({"w0": 0}, 7)):
        survey = eviction.survey(1000.0 * (eviction._round + 1))
        assert survey
        assert eviction.answered(0.0, "w0", usage(survey.round, 90, 20, version=version), versions) == {}


def test_a_worker_that_left_is_not_waited_for() -> None:
    eviction = excess(1)
    survey = eviction.survey(0.0)
    assert survey
    assert eviction.answered(0.0, "w1", usage(survey.round, 90, version=8), READY) == {}
    # Nor do its shapes count any more.
    assert eviction.answered(0.0, "w0", usage(survey.round, 80, 70), {"w0": 7}) == {"w0": Evict(survey.round, 1, 2, 1)}


def test_more_shapes_in_use_than_there_may_be_is_told_after_a_while() -> None:
    eviction = excess(2)

    def look(now: float, *idle: float) -> list[str]:
        survey = eviction.survey(now)
        assert survey
        eviction.answered(now, "w0", usage(survey.round, *idle, shapes=5), {"w0": 7})
        return [obstacle.text for obstacle in eviction.obstacles]

    assert look(0) == look(PATIENCE - 1) == []
    assert look(PATIENCE + EVERY) == ["there are 5 shapes, ELECTRIC_MAX_SHAPES is 2, and all are in use: none ends"]
    assert look(PATIENCE + 2 * EVERY, 50) == []
    assert look(PATIENCE + 3 * EVERY) == []

"""What operators can run is said once a minute, not once per request."""

from __future__ import annotations

from common.remedies import PERIOD, Remedies


def test_the_same_is_said_once_a_minute() -> None:
    now = 0.0
    remedies = Remedies(lambda: now)
    assert remedies.offer("reason", "SQL 1")
    assert not remedies.offer("reason", "SQL 1")
    assert remedies.offer("reason", "SQL 2")
    assert remedies.offer("other reason", "SQL 1")
    now = PERIOD - 0.1
    assert not remedies.offer("reason", "SQL 1")
    now = PERIOD
    assert remedies.offer("reason", "SQL 1")
    assert not remedies.offer("reason", "SQL 1")


def test_what_was_said_is_not_remembered_for_ever() -> None:
    remedies = Remedies(lambda: 0.0)
    for number in range(5000):
        assert remedies.offer("reason", f"SQL {number}")
    assert len(remedies._logged) <= 1001
    assert not remedies.offer("reason", "SQL 4999")

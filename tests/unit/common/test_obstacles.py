"""What is told about obstacles, and when."""

from __future__ import annotations

import structlog.testing

from common.obstacles import Lasting, Obstacle, ObstacleLog


def test_an_obstacle_is_told_when_it_comes_each_minute_and_when_it_has_passed() -> None:
    obstacles = ObstacleLog()
    with structlog.testing.capture_logs() as lines:
        for second in range(90):
            obstacles.tell(1000 + second, [Obstacle("a", f"a for {second} s", delays=True)])
        for second in range(90, 100):
            obstacles.tell(1000 + second, [])
    assert [(line["event"], line.get("reason"), line.get("seconds")) for line in lines] == [
        ("held back", "a for 0 s", None),
        ("held back", "a for 60 s", None),
        ("no longer held back", None, 90),
    ]


def test_each_obstacle_has_its_own_time() -> None:
    obstacles = ObstacleLog()
    with structlog.testing.capture_logs() as lines:
        obstacles.tell(0, [Obstacle("a", "a")])
        obstacles.tell(30, [Obstacle("a", "a"), Obstacle("b", "b")])
        obstacles.tell(61, [Obstacle("a", "a"), Obstacle("b", "b")])
    assert [line["reason"] for line in lines] == ["a", "b", "a"]


def test_what_was_away_begins_anew() -> None:
    lasting: Lasting[str] = Lasting()
    assert lasting.seconds(0, ["x"]) == {"x": 0}
    assert lasting.seconds(5, ["x", "y"]) == {"x": 5, "y": 0}
    assert lasting.seconds(6, ["y"]) == {"y": 1}
    assert lasting.seconds(7, ["x"]) == {"x": 0}

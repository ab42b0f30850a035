from __future__ import annotations

import pytest

from deploy.exit_listener import fatal_program


@pytest.mark.parametrize(
    ("expected", "code", "program"),
    [("1", 78, "ingester"), ("1", 0, None), ("0", 1, None), ("0", 78, None)],
)
def test_only_a_fatal_exit_ends_everything(expected: str, code: int, program: str | None) -> None:
    payload = f"processname:ingester groupname:ingester from_state:RUNNING expected:{expected} pid:7"
    assert fatal_program(payload, {"ingester:ingester": code, "gateway:gateway_00": 78}) == program


def test_a_program_that_is_gone_is_not_fatal() -> None:
    payload = "processname:shapeworker_07 groupname:shapeworker_07 from_state:RUNNING expected:1 pid:7"
    assert fatal_program(payload, {}) is None

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from common.config import Settings
from deploy.doctor import (
    DatabaseFacts,
    examine_database,
    examine_directory,
    examine_port,
    examine_run_directory,
    judge_facts,
    judge_failure,
)

GOOD = DatabaseFacts("logical", 180006, in_recovery=False, may_replicate=True, may_publish=True, role="ann")


@pytest.fixture
def settings() -> Settings:
    return Settings(database_url="postgresql://ann:hunter22@h/d", insecure=True, run_dir=Path("/tmp/g"))


@pytest.mark.parametrize(
    "reason",
    [
        'connection failed: connection to server at "::1" failed: FATAL:  password authentication failed for user "a"',
        'connection failed: connection to server at "::1", port 5432 failed: FATAL:  database "d" does not exist',
        'connection failed: connection to server at "::1", port 5432 failed: fe_sendauth: no password supplied',
        "failed to resolve host 'h': [Errno -2] Name or service not known",
        'could not translate host name "h" to address: Name or service not known',
        'connection to server at "h", port 5432 failed: server does not support SSL, but SSL was required',
        'connection to server at "h", port 5432 failed: FATAL:  no pg_hba.conf entry for host "h", user "ann"',
        'connection to server at "h", port 5432 failed: SSL error: certificate verify failed',
    ],
)
def test_failures_that_last(reason: str) -> None:
    finding = judge_failure("DATABASE_URL", "h:5432, database 'd'", reason)
    assert finding.severity == "fatal"
    assert finding.text.startswith("DATABASE_URL: cannot connect to h:5432, database 'd': ")
    assert "\n" not in finding.text


@pytest.mark.parametrize(
    ("reason", "cause"),
    [
        (
            'connection failed: connection to server at "1.2.3.4", port 1 failed: Connection refused\n'
            "\tIs the server running on that host and accepting TCP/IP connections?",
            "Connection refused",
        ),
        (
            "connection failed: … failed: FATAL:  the database system is starting up",
            "the database system is starting up",
        ),
        ("connection failed: … failed: FATAL:  sorry, too many clients already", "sorry, too many clients already"),
        ("connection timeout expired", "connection timeout expired"),
        ("", "unknown error"),
    ],
)
def test_failures_that_may_pass(reason: str, cause: str) -> None:
    finding = judge_failure("DATABASE_URL", "h:5432", reason)
    assert finding.severity == "warning"
    assert finding.text == f"DATABASE_URL: cannot connect to h:5432 yet: {cause}; trying again"


def test_good_facts(settings: Settings) -> None:
    assert [finding.severity for finding in judge_facts(GOOD, settings)] == ["ok"]


@pytest.mark.parametrize(
    ("facts", "part"),
    [
        (DatabaseFacts("replica", 180006, False, True, True, "ann"), "wal_level is 'replica'"),
        (DatabaseFacts("logical", 130010, False, True, True, "ann"), "Postgres 13 is too old"),
        (DatabaseFacts("logical", 180006, False, False, True, "ann"), "role 'ann' may not replicate"),
    ],
)
def test_facts_that_last(settings: Settings, facts: DatabaseFacts, part: str) -> None:
    (finding,) = judge_facts(facts, settings)
    assert finding.severity == "fatal"
    assert part in finding.text


def test_facts_that_are_only_warned_of(settings: Settings) -> None:
    facts = DatabaseFacts("logical", 180006, in_recovery=True, may_replicate=True, may_publish=False, role="ann")
    assert [finding.severity for finding in judge_facts(facts, settings)] == ["ok", "warning", "warning"]
    settings.manual_table_publishing = True
    assert [finding.severity for finding in judge_facts(facts, settings)] == ["ok", "warning"]


def test_a_real_database_is_well(database: str) -> None:
    settings = Settings(database_url=database, insecure=True, run_dir=Path("/tmp/g"))
    assert [finding.severity for finding in examine_database(settings)] == ["ok"]


def test_directories(tmp_path: Path) -> None:
    assert examine_directory("V", tmp_path).severity == "ok"
    assert examine_directory("V", tmp_path / "a" / "b").severity == "ok"
    assert list(tmp_path.iterdir()) == [], "looking leaves nothing behind"
    file = tmp_path / "file"
    file.touch()
    for path in (file, file / "below", file / "far" / "below"):
        finding = examine_directory("V", path)
        assert finding.severity == "fatal"
        assert finding.text.startswith(f"V: {path} ")


@pytest.mark.parametrize("shared", [False, True])
def test_a_port_somebody_listens_on(shared: bool) -> None:
    with socket.socket() as listener:
        if shared:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        finding = examine_port("ELECTRIC_PORT", port)
        assert finding.severity == "fatal"
        assert finding.text == f"ELECTRIC_PORT: port {port} is already in use by another program"
    assert examine_port("ELECTRIC_PORT", port).severity == "ok"


def test_a_run_directory_that_a_living_stack_uses(tmp_path: Path) -> None:
    assert examine_run_directory(tmp_path) == []
    with socket.socket(socket.AF_UNIX) as living:
        living.bind(str(tmp_path / "status.sock"))
        living.listen()
        (finding,) = examine_run_directory(tmp_path)
        assert finding.severity == "fatal"
        assert finding.text.startswith(f"GALVANIC_RUN_DIR: {tmp_path} is in use by a Galvanic that runs (status.sock")
    # Its process is gone, the file is still there.
    assert examine_run_directory(tmp_path) == []

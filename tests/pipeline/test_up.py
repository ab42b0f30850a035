"""`galvanic up` as a newcomer and as an operator know it: it starts from nothing, scales, and goes away entirely."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import psycopg
import pytest

from tests.pipeline.launched import ROOT, Launched, galvanic
from tests.ports import free_port

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")


@pytest.fixture
def started() -> Iterator[Launched]:
    """A development start that has become active."""
    directory = Path(tempfile.mkdtemp(prefix="galvanic-up-"))
    with galvanic("up --workers 1", directory, ELECTRIC_PORT=str(free_port())) as launched:
        launched.wait_for("then changes:")
        yield launched
    shutil.rmtree(directory, ignore_errors=True)


def printed_url(launched: Launched, label: str) -> str:
    found = re.search(rf'{label} +curl -i "(http://[^"]+)"', launched.output)
    assert found is not None, launched.output
    return found.group(1)


def fetch(url: str) -> list[dict[str, object]]:
    with urllib.request.urlopen(url, timeout=60) as answer:
        assert answer.status == 200
        return list(json.load(answer))


def readme_commands() -> list[list[str]]:
    """What a newcomer is told to try at the sample table, as arguments; all that has nothing to be filled in."""
    lines = re.findall(r"^(?:curl|\.venv/bin/galvanic) .*\bitems\b.*$", (ROOT / "README.md").read_text(), re.MULTILINE)
    return [shlex.split(line) for line in lines if "HANDLE" not in line]


def requested(curl: list[str], port: str) -> str:
    """The URL that curl would ask for, at this port."""
    (url,) = [argument for argument in curl if argument.startswith("http://localhost:3000/")]
    parameters = dict(after.split("=", 1) for option, after in pairwise(curl) if option == "--data-urlencode")
    return f"{url}&{urllib.parse.urlencode(parameters)}".replace("localhost:3000", f"localhost:{port}")


def stopped(launched: Launched, signum: signal.Signals) -> None:
    launched.process.send_signal(signum)
    time.sleep(0.2)
    # An impatient second Ctrl-C does no harm.
    launched.process.send_signal(signum)
    assert launched.wait() == 0, launched.output
    assert launched.descendants() == {}
    assert launched.output.splitlines()[-1] == "galvanic: stopped"


def test_from_nothing_to_changes_and_away(started: Launched, tmp_path: Path) -> None:
    rows = fetch(printed_url(started, "first sync:"))
    assert len(rows) >= 50
    changes = fetch(printed_url(started, "then changes:"))
    assert changes, "the sample table changes every second"

    directory = started.output_file.parent
    beside = {
        "ELECTRIC_INSECURE": "true",
        "ELECTRIC_PORT": str(free_port()),
        "GALVANIC_RUN_DIR": str(directory / "run"),
    }
    for command in ("up", "check"):
        with galvanic(command, tmp_path, **beside, DATABASE_URL="postgresql://u:p@127.0.0.1:1/d") as second:
            assert second.wait() == 78, second.output
            assert f"{directory}/run is in use by a Galvanic that runs" in second.output
    for count in (3, 1, 2):
        with galvanic(f"scale {count} --run-dir {directory / 'run'}", tmp_path) as scale:
            assert scale.wait() == 0, scale.output
            assert scale.output.splitlines()[-1] == f"{count} workers"
        deadline = time.monotonic() + 180
        # A worker that was only just spawned is not yet called one.
        while sum("shapeworker" in line for line in started.descendants().values()) != count:
            assert time.monotonic() < deadline, started.descendants()
            time.sleep(0.1)
    stopped(started, signal.SIGINT)


def test_what_the_readme_says_works(started: Launched, tmp_path: Path) -> None:
    port = printed_url(started, "first sync:").split(":")[2].partition("/")[0]
    programs = []
    for command in readme_commands():
        programs.append(Path(command[0]).name)
        if programs[-1] == "curl":
            assert fetch(requested(command, port))
        else:
            environment = {"PYTHONPATH": str(ROOT), "ELECTRIC_PORT": port}
            with Launched([sys.executable, "-m", "deploy", *command[1:]], tmp_path, environment) as explained:
                assert explained.wait() == 0, explained.output
    assert programs == ["curl", "curl", "galvanic"]


def test_nothing_outlives_a_killed_start(started: Launched) -> None:
    assert len(started.descendants()) >= 5
    found = re.search(r"postgresql://\S+", started.output)
    assert found is not None
    started.process.kill()
    started.process.wait()
    started.wait_until_alone()
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(found.group(0), connect_timeout=2)


def test_programs_do_not_outlive_a_killed_supervisord(started: Launched) -> None:
    (supervisord,) = [pid for pid, line in started.descendants().items() if "supervisord" in line]
    os.kill(supervisord, signal.SIGKILL)
    assert started.wait() != 0
    started.wait_until_alone()

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from deploy.embedded_postgres import EmbeddedPostgres, EmbeddedPostgresError
from deploy.postgres_binaries import Account, can_traverse, find_binaries, server_account

PARENT = """
import sys, time
from pathlib import Path
from deploy.embedded_postgres import EmbeddedPostgres
server = EmbeddedPostgres(Path(sys.argv[1]), fsync=False).start()
print(server.pid, server.port, flush=True)
time.sleep(600)
"""


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory of this test's own that the server's account can be given; pytest's own is closed to it."""
    path = Path(tempfile.mkdtemp(prefix="galvanic-test-postgres-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat")
    # A zombie has ended; who reaps it depends on the machine.
    return not state.exists() or state.read_text().rpartition(")")[2].split()[0] != "Z"


def wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + 60
    while is_alive(pid):
        assert time.monotonic() < deadline, f"process {pid} is still alive"
        time.sleep(0.05)


def value(server: EmbeddedPostgres, query: str) -> object:
    with psycopg.connect(server.url) as connection:
        row = connection.execute(query.encode()).fetchone()
        assert row is not None
        return row[0]


def test_it_runs_with_logical_replication_and_keeps_its_data_and_port(directory: Path) -> None:
    server = EmbeddedPostgres(directory, settings={"application_name": "it's"}, fsync=False)
    with server:
        pid, url = server.pid, server.url
        assert pid is not None
        assert value(server, "SHOW wal_level") == "logical"
        assert value(server, "SHOW fsync") == "off"
        assert value(server, "SHOW server_encoding") == "UTF8"
        with psycopg.connect(url) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 7 AS n")
        server.settings["work_mem"] = "1234kB"
        server.restart()
        assert server.url == url
        assert value(server, "SHOW work_mem") == "1234kB"
        server.restart("immediate")
        assert value(server, "SELECT n FROM kept") == 7
        pid = server.pid
        assert pid is not None
    assert not is_alive(pid)
    assert server.pid is None
    server.stop()
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(url, connect_timeout=2)


def test_its_data_are_its_own(directory: Path) -> None:
    with EmbeddedPostgres(directory, fsync=False) as server:
        status = server.data_directory.stat()
        assert status.st_mode & 0o777 == 0o700
        assert status.st_uid == server_account().uid


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal is Linux's")
def test_it_dies_with_its_parent(directory: Path) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(directory)], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[3]
    )
    try:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline().split()[0])
        assert is_alive(pid)
        parent.send_signal(signal.SIGKILL)
        parent.wait(120)
        # Started at once, the next server waits for the one that still shuts down.
        with EmbeddedPostgres(directory, fsync=False) as server:
            assert value(server, "SELECT 1") == 1
        wait_until_gone(pid)
    finally:
        parent.kill()
        parent.wait()
        assert parent.stdout is not None
        parent.stdout.close()


def test_a_thread_that_ends_does_not_take_the_server_with_it(directory: Path) -> None:
    import threading

    server = EmbeddedPostgres(directory, fsync=False)
    thread = threading.Thread(target=server.start)
    thread.start()
    thread.join()
    try:
        time.sleep(0.5)
        assert value(server, "SELECT 1") == 1
    finally:
        server.stop("immediate")


def test_a_wrong_setting_is_told(directory: Path) -> None:
    with pytest.raises(EmbeddedPostgresError, match="no_such_setting"):
        EmbeddedPostgres(directory, settings={"no_such_setting": "1"}, fsync=False).start()


def test_two_servers_do_not_share_a_directory(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploy.embedded_postgres._FAST_STOP_SECONDS", 0.3)
    with (
        EmbeddedPostgres(directory, fsync=False),
        pytest.raises(EmbeddedPostgresError, match="another Postgres"),
    ):
        EmbeddedPostgres(directory, fsync=False).start()


def test_wrong_binaries_are_told(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GALVANIC_PG_BIN", str(directory))
    with pytest.raises(EmbeddedPostgresError, match="GALVANIC_PG_BIN"):
        EmbeddedPostgres(directory, fsync=False).start()


def test_what_an_account_may_enter(directory: Path) -> None:
    stranger = Account(uid=54321, gid=54321)
    inner = directory / "inner"
    inner.mkdir(mode=0o755)
    directory.chmod(0o700)
    assert not can_traverse(inner, stranger)
    directory.chmod(0o711)
    assert can_traverse(inner, stranger)
    assert can_traverse(inner / "not" / "there", stranger)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs the server as somebody else")
def test_root_below_a_closed_directory(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    temporary = directory / "tmp"
    temporary.mkdir(mode=0o755)
    directory.chmod(0o755)
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    closed = directory / "closed"
    closed.mkdir(mode=0o700)
    with EmbeddedPostgres(closed / "database", fsync=False) as server:
        assert server.directory.is_relative_to(temporary)
        assert value(server, "SELECT 1") == 1
        data = server.directory
    shutil.rmtree(closed)
    closed.mkdir(mode=0o700)
    EmbeddedPostgres(closed / "other", fsync=False)
    assert not data.exists(), "data whose origin is gone are swept"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs the server as somebody else")
def test_root_with_a_closed_package_runs_a_copy(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from deploy import postgres_binaries

    temporary = directory / "tmp"
    temporary.mkdir(mode=0o755)
    directory.chmod(0o755)
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    works = postgres_binaries._works
    monkeypatch.setattr(
        postgres_binaries, "_works", lambda folder, account: folder.is_relative_to(temporary) and works(folder, account)
    )
    folder = find_binaries(server_account())
    assert folder.is_relative_to(temporary)
    assert folder == find_binaries(server_account())
    assert [path.name for path in folder.parents[2].parent.iterdir()] == [folder.parents[2].name], "nothing half copied"

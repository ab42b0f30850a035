"""A start that cannot succeed says why in one line, ends with an exit code, and leaves nothing behind."""

from __future__ import annotations

import shutil
import socket
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from deploy.embedded_postgres import EmbeddedPostgres
from tests.pipeline.launched import Launched, galvanic
from tests.ports import free_port

EXIT_CONFIG = 78
ROOT = Path(__file__).parents[2]


@pytest.fixture
def directory() -> Iterator[Path]:
    """A working directory with a short path, because of the sockets in it."""
    path = Path(tempfile.mkdtemp(prefix="galvanic-start-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="module")
def awkward_server() -> Iterator[EmbeddedPostgres]:
    """A server with wal_level=replica that wants passwords of everybody but `postgres`; `ann` has one."""
    path = Path(tempfile.mkdtemp(prefix="galvanic-start-postgres-"))
    server = EmbeddedPostgres(path, settings={"wal_level": "replica"}, fsync=False)
    try:
        server.start()
        with psycopg.connect(server.url) as connection:
            connection.execute("CREATE ROLE ann LOGIN SUPERUSER PASSWORD 'right-horse'")
        hba = server.data_directory / "pg_hba.conf"
        hba.write_text("host all postgres 127.0.0.1/32 trust\nhost all all 127.0.0.1/32 scram-sha-256\n")
        server.restart()
        yield server
    finally:
        server.stop("immediate")
        shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def powerless_role(postgres_server: EmbeddedPostgres) -> Iterator[str]:
    """A role that may log in and nothing else."""
    name = f"powerless_{uuid.uuid4().hex[:8]}"
    with psycopg.connect(postgres_server.url, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {name} LOGIN".encode())
        yield name
        connection.execute(f"DROP ROLE {name}".encode())


def assert_refused(directory: Path, message: str, **environment: str) -> None:
    """Both `up` and `check` name the fault; `up` with exactly one line, and nothing is left of it."""
    environment = {"ELECTRIC_INSECURE": "true", "ELECTRIC_PORT": str(free_port()), **environment}
    with galvanic("up", directory, **environment) as started:
        assert started.wait() == EXIT_CONFIG, started.output
        (line,) = started.output.splitlines()
        assert line.startswith(f"galvanic: {message}")
        assert "horse" not in line
        assert started.descendants() == {}
        left = {path.name for path in directory.iterdir()} - {"output.txt", "in-the-way"}
        assert left == set()
    with galvanic("check", directory, **environment) as checked:
        assert checked.wait() == EXIT_CONFIG
        assert message in checked.output
        assert "horse" not in checked.output


def server_url(server: EmbeddedPostgres, user: str, database: str = "postgres") -> str:
    return f"postgresql://{user}@127.0.0.1:{server.port}/{database}"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("", "DATABASE_URL must not be empty"),
        ("mysql://ann:horse@h/d", "DATABASE_URL must start with postgresql:// or postgres://"),
        ("postgresql://127.0.0.1/d", "DATABASE_URL has no user name"),
        ("postgresql://ann:horse@h/d?sslmode=verify-full", "DATABASE_URL must not use sslmode=verify-full"),
        (
            "postgresql://ann:horse@nowhere.invalid/d",
            "DATABASE_URL: cannot connect to nowhere.invalid:5432, database 'd'",
        ),
    ],
)
def test_a_database_url_that_cannot_work(directory: Path, url: str, message: str) -> None:
    assert_refused(directory, message, DATABASE_URL=url)


def test_a_wrong_password(directory: Path, awkward_server: EmbeddedPostgres) -> None:
    url = server_url(awkward_server, "ann:wrong-horse")
    place = f"127.0.0.1:{awkward_server.port}, database 'postgres'"
    assert_refused(
        directory, f"DATABASE_URL: cannot connect to {place}: password authentication failed", DATABASE_URL=url
    )


def test_a_missing_password(directory: Path, awkward_server: EmbeddedPostgres) -> None:
    assert_refused(directory, "DATABASE_URL: cannot connect to", DATABASE_URL=server_url(awkward_server, "ann"))


def test_a_missing_database(directory: Path, postgres_server: EmbeddedPostgres) -> None:
    url = server_url(postgres_server, "postgres", "nothing_here")
    assert_refused(directory, "DATABASE_URL: cannot connect to", DATABASE_URL=url)


def test_a_server_without_logical_wal(directory: Path, awkward_server: EmbeddedPostgres) -> None:
    url = server_url(awkward_server, "ann:right-horse")
    assert_refused(directory, "DATABASE_URL: wal_level is 'replica' and must be 'logical'", DATABASE_URL=url)


def test_a_role_that_may_not_replicate(directory: Path, postgres_server: EmbeddedPostgres, powerless_role: str) -> None:
    url = server_url(postgres_server, powerless_role)
    assert_refused(directory, f"DATABASE_URL: role '{powerless_role}' may not replicate", DATABASE_URL=url)


def test_neither_secret_nor_insecure(directory: Path, postgres_server: EmbeddedPostgres) -> None:
    assert_refused(
        directory, "ELECTRIC_SECRET must be set", DATABASE_URL=postgres_server.url, ELECTRIC_INSECURE="false"
    )


def test_a_port_in_use(directory: Path, postgres_server: EmbeddedPostgres) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert_refused(
            directory,
            f"ELECTRIC_PORT: port {port} is already in use by another program",
            DATABASE_URL=postgres_server.url,
            ELECTRIC_PORT=str(port),
        )


def test_a_port_in_use_stops_the_development_start_before_it_makes_a_database(directory: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with galvanic("up", directory, ELECTRIC_PORT=str(port)) as started:
            assert started.wait() == EXIT_CONFIG
            assert len(started.output.splitlines()) == 1
            assert [path.name for path in directory.iterdir()] == ["output.txt"]


@pytest.mark.parametrize("variable", ["ELECTRIC_STORAGE_DIR", "GALVANIC_RUN_DIR"])
def test_a_directory_that_cannot_be(directory: Path, postgres_server: EmbeddedPostgres, variable: str) -> None:
    # Below a file: even root, for whom no directory is closed, cannot make that.
    obstacle = directory / "in-the-way"
    obstacle.write_text("a file")
    place = obstacle / "below"
    assert_refused(
        directory,
        f"{variable}: {place} cannot be a directory",
        DATABASE_URL=postgres_server.url,
        **{variable: str(place)},
    )


def test_a_program_with_a_fatal_setting_ends_supervisord(directory: Path) -> None:
    """Without `galvanic up` nobody checks first: the programs refuse, and the exit listener stops the rest."""
    (directory / "run").mkdir()
    environment = {
        "GALVANIC_RUN_DIR": str(directory / "run"),
        "GALVANIC_WORKERS": "1",
        "GALVANIC_GATEWAYS": "1",
        "DATABASE_URL": "mysql://ann@h/d",
        "ELECTRIC_INSECURE": "true",
    }
    command = ["supervisord", "-n", "-c", str(ROOT / "supervisord.conf")]
    with Launched(command, directory, environment, append=True) as started:
        started.wait()
        assert "galvanic: DATABASE_URL must start with postgresql://" in started.output
        assert "cannot run with these settings" in started.output
        assert (directory / "run" / "fatal").read_text().split("_")[0] in ("ingester", "shapeworker", "gateway")
        started.wait_until_alone()

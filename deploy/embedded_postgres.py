"""A private Postgres server, run as a child of this process: for development without a database, and for tests.

Run by root, the server needs another account (see `postgres_binaries`); where that account cannot reach the wanted data
directory, the data live in a private place below the temporary directory instead.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import psycopg

from common.process import dying_with_this_process
from deploy.postgres_binaries import (
    EmbeddedPostgresError,
    can_traverse,
    find_binaries,
    private_root,
    run_as,
    server_account,
    server_environment,
)

__all__ = ["EmbeddedPostgres", "EmbeddedPostgresError", "StopMode"]

StopMode = Literal["fast", "immediate"]

_START_SECONDS = 60.0
_FAST_STOP_SECONDS = 10.0
_QUIT_SECONDS = 5.0
_BASE_SETTINGS = {
    "wal_level": "logical",
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_replication_slots": "20",
    "max_wal_senders": "20",
    "max_connections": "100",
}
# The kernel ties a child to the thread that forked it (see die_with_parent), so one lasting thread does all the
# forking: a caller's thread may end long before the server should.
_spawner = ThreadPoolExecutor(max_workers=1, thread_name_prefix="postgres-spawner")


class EmbeddedPostgres:
    """One Postgres server with its data below `directory`, listening on 127.0.0.1 only, with trust authentication.

    `directory` is created when missing and handed to the account the server runs as. `port` None picks a free one,
    which then stays the same over restarts. `settings` are configuration parameters, read again at each start.
    `fsync=False` is for data nobody needs after a power cut. The server dies with this process, even by SIGKILL.
    """

    def __init__(
        self, directory: Path, port: int | None = None, settings: Mapping[str, str] | None = None, fsync: bool = True
    ) -> None:
        self.port = port
        self.settings = dict(settings or {})
        self.fsync = fsync
        self._account = server_account()
        self.directory = self._reachable_directory(Path(directory).absolute())
        self._bin: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def data_directory(self) -> Path:
        """Where postgresql.conf and pg_hba.conf are, once `start` was called."""
        return self.directory / "data"

    @property
    def log_file(self) -> Path:
        """What the server writes to its standard output and error."""
        return self.directory / "server.log"

    @property
    def url(self) -> str:
        """The connection URL of the database `postgres` for the superuser `postgres`."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    @property
    def pid(self) -> int | None:
        """The postmaster's process id, or None while it is not running."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def start(self) -> Self:
        """Creates the data directory if needed, starts the server and waits until it answers.

        Raises EmbeddedPostgresError with the end of the server's log when it does not.
        """
        if self.pid is not None:
            return self
        self._prepare_directory()
        self._bin = self._bin or find_binaries(self._account)
        if not self.data_directory.exists():
            self._init_database()
        self._wait_for_predecessor()
        picks_port = self.port is None
        for attempt in range(5):
            if picks_port:
                self.port = _free_port()
            self._write_settings()
            try:
                self._launch()
                return self
            except EmbeddedPostgresError as error:
                # Somebody else may take a free port between our look and the server's bind.
                if not (picks_port and attempt < 4 and "Address already in use" in str(error)):
                    raise
        raise AssertionError("unreachable")

    def stop(self, mode: StopMode = "fast") -> None:
        """Stops the server: `fast` ends sessions and checkpoints, `immediate` is a simulated crash. Idempotent."""
        process, self._process = self._process, None
        if process is None:
            return
        steps = [(signal.SIGQUIT, _QUIT_SECONDS), (signal.SIGKILL, _QUIT_SECONDS)]
        if mode == "fast":
            steps.insert(0, (signal.SIGINT, _FAST_STOP_SECONDS))
        for signum, patience in steps:
            if process.poll() is None:
                process.send_signal(signum)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(patience)
                return
        raise EmbeddedPostgresError(f"Postgres (pid {process.pid}) does not stop")

    def restart(self, mode: StopMode = "fast") -> None:
        """Stops and starts the server on the same port, with the present `settings`."""
        self.stop(mode)
        self.start()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _reachable_directory(self, wanted: Path) -> Path:
        wanted.parent.mkdir(parents=True, exist_ok=True)
        if self._account.is_own or can_traverse(wanted.parent, self._account):
            return wanted
        root = private_root(self._account) / "data"
        root.mkdir(mode=0o711, exist_ok=True)
        _sweep(root)
        place = root / hashlib.sha256(os.fsencode(wanted)).hexdigest()[:16]
        # Stays empty: it tells _sweep, which another process may be running now, that the data are still wanted.
        wanted.mkdir(exist_ok=True)
        place.with_suffix(".origin").write_bytes(os.fsencode(wanted))
        return place

    def _prepare_directory(self) -> None:
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not self._account.is_own:
            os.chown(self.directory, self._account.uid, self._account.gid)

    def _init_database(self) -> None:
        new = self.directory / "data.new"
        shutil.rmtree(new, ignore_errors=True)
        command = ["initdb", "-D", str(new), "-U", "postgres", "-A", "trust", "--encoding=UTF8", "--locale=C"]
        if self._major_version() >= 17:
            command += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        if not self.fsync:
            command.append("--no-sync")
        result = self._run(command)
        if result.returncode != 0:
            raise EmbeddedPostgresError(f"initdb failed: {result.stdout.strip()[-2000:]}")
        with (new / "postgresql.conf").open("a") as file:
            file.write("\ninclude 'galvanic.conf'\n")
        # The rename makes it whole or absent: an initdb that was killed is simply done again.
        new.rename(self.data_directory)

    def _write_settings(self) -> None:
        values = {**_BASE_SETTINGS, "fsync": "on" if self.fsync else "off", **self.settings, "port": str(self.port)}
        lines = [f"{name} = '{_escaped(value)}'\n" for name, value in values.items()]
        (self.data_directory / "galvanic.conf").write_text("".join(lines))
        (self.data_directory / "galvanic.conf").chmod(0o644)

    def _launch(self) -> None:
        seen = self.log_file.stat().st_size if self.log_file.exists() else 0
        with self.log_file.open("ab") as log:
            self._process = self._spawn(["postgres", "-D", str(self.data_directory)], log.fileno())
        deadline = time.monotonic() + _START_SECONDS
        while self._process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(psycopg.OperationalError):
                psycopg.connect(self.url, connect_timeout=2).close()
                return
            # A server that wants a password is up, too.
            if b"ready to accept connections" in self._log_since(seen):
                return
            time.sleep(0.05)
        self.stop("immediate")
        tail = self._log_since(seen).decode(errors="replace").strip()[-2000:]
        raise EmbeddedPostgresError(f"Postgres did not start in {self.directory}: {tail}")

    def _log_since(self, position: int) -> bytes:
        with self.log_file.open("rb") as file:
            file.seek(position)
            return file.read()

    def _wait_for_predecessor(self) -> None:
        """Waits for a server that still shuts down after its parent was killed; two on one directory would refuse."""
        deadline = time.monotonic() + _FAST_STOP_SECONDS
        while (pid := _running_postmaster(self.data_directory)) is not None:
            if time.monotonic() > deadline:
                raise EmbeddedPostgresError(f"another Postgres (pid {pid}) already runs in {self.data_directory}")
            time.sleep(0.1)

    def _major_version(self) -> int:
        found = re.search(r"(\d+)", self._run(["postgres", "--version"]).stdout)
        return int(found.group(1)) if found else 0

    def _run(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        assert self._bin is not None
        return run_as(self._account, [str(self._bin / command[0]), *command[1:]])

    def _spawn(self, command: list[str], output: int) -> subprocess.Popen[bytes]:
        assert self._bin is not None
        executable = str(self._bin / command[0])
        account = self._account

        def spawn() -> subprocess.Popen[bytes]:
            return subprocess.Popen(
                [executable, *command[1:]],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd="/",
                env=server_environment(),
                # Its own session: Ctrl-C in the terminal must reach the parent, which stops the server last.
                start_new_session=True,
                preexec_fn=dying_with_this_process(signal.SIGINT),
                user=None if account.is_own else account.uid,
                group=None if account.is_own else account.gid,
                extra_groups=None if account.is_own else [],
            )

        return _spawner.submit(spawn).result()


def _sweep(root: Path) -> None:
    """Removes data whose origin is gone, such as a deleted clone; a running server's data stays."""
    for origin in root.glob("*.origin"):
        place = origin.with_suffix("")
        try:
            named = origin.read_bytes()
        except FileNotFoundError:
            continue  # another process sweeps, too
        if os.path.exists(named) or _running_postmaster(place / "data") is not None:
            continue
        shutil.rmtree(place, ignore_errors=True)
        origin.unlink(missing_ok=True)


def _running_postmaster(data: Path) -> int | None:
    try:
        pid = int((data / "postmaster.pid").read_text().split("\n", 1)[0])
        command = Path(f"/proc/{pid}/cmdline")
        if Path("/proc/self").exists():
            return pid if b"postgres" in command.read_bytes() else None
        os.kill(pid, 0)
    except (OSError, ValueError):
        return None
    return pid


def _escaped(value: str) -> str:
    return str(value).replace("\\", "\\\\").replace("'", "''")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

"""PgBouncer in transaction mode, as an operator would put it between Galvanic's queries and Postgres."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from common.process import dying_with_this_process
from deploy.postgres_binaries import server_account
from tests.ports import free_port

_START_SECONDS = 60.0


def find_pooler() -> str | None:
    """The program, of the Debian package `pgbouncer`."""
    return shutil.which("pgbouncer", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")


class Pooler:
    """PgBouncer before the server at 127.0.0.1:`port`, for the users `postgres` and `poor`; it may be killed."""

    def __init__(self, port: int) -> None:
        program = find_pooler()
        assert program is not None
        # Below /tmp, since PgBouncer does not run as root and the account may not reach the test's own directory.
        self._directory = Path(tempfile.mkdtemp(prefix="gv-pooler-", dir="/tmp"))
        self._directory.chmod(0o755)
        self.port = free_port()
        (self._directory / "users").write_text('"postgres" ""\n"poor" ""\n')
        (self._directory / "pooler.ini").write_text(
            f"""
            [databases]
            * = host=127.0.0.1 port={port}
            [pgbouncer]
            listen_addr = 127.0.0.1
            listen_port = {self.port}
            unix_socket_dir =
            auth_type = trust
            auth_file = {self._directory / "users"}
            pool_mode = transaction
            default_pool_size = 8
            """.replace("\n            ", "\n")
        )
        self._program = program
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The database `postgres` through the pooler."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    @property
    def log(self) -> str:
        """All it has said."""
        return (self._directory / "log").read_text(errors="replace")

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        shutil.rmtree(self._directory, ignore_errors=True)

    def start(self) -> None:
        """Starts it and waits until it answers."""
        account = server_account()
        with (self._directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._program, str(self._directory / "pooler.ini")],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=dying_with_this_process(signal.SIGKILL),
                user=None if account.is_own else account.uid,
                group=None if account.is_own else account.gid,
                extra_groups=None if account.is_own else [],
            )
        deadline = time.monotonic() + _START_SECONDS
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 5).close()
                return
            except OSError:
                assert self._process.poll() is None, self.log
                assert time.monotonic() < deadline, self.log
                time.sleep(0.05)

    def kill(self) -> None:
        """`kill -9`: all connections through it are lost. Idempotent."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait(120)

"""nginx without root, in a directory of its own: with the configuration that operators get, or with any other."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from common.process import dying_with_this_process
from deploy.postgres_binaries import server_account
from tests.ports import free_port

CONFIGURATION: Final = Path(__file__).parents[2] / "deploy" / "nginx" / "galvanic.conf"

_START_SECONDS = 60.0

_MAIN: Final = """
daemon off;
worker_processes 1;
pid {directory}/pid;
error_log {directory}/error.log warn;
events {{ worker_connections {connections}; }}
http {{
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    {http}
}}
"""


def find_nginx() -> str | None:
    """The program, of the Debian package `nginx`."""
    return shutil.which("nginx", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")


def start(program: str, directory: Path, http: str, connections: int = 2048) -> subprocess.Popen[bytes]:
    """The program with one worker that holds so many connections, and with ``http`` in its block of that name.

    All that lies in the directory becomes its account's; what it complains about is in ``error.log`` there.
    """
    (directory / "nginx.conf").write_text(_MAIN.format(directory=directory, connections=connections, http=http))
    account = server_account()
    if not account.is_own:
        for path in (directory, *directory.rglob("*")):
            os.chown(path, account.uid, account.gid)
    return subprocess.Popen(
        [program, "-p", str(directory), "-c", "nginx.conf", "-e", f"{directory}/error.log"],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=dying_with_this_process(signal.SIGTERM),
        user=None if account.is_own else account.uid,
        group=None if account.is_own else account.gid,
        extra_groups=None if account.is_own else [],
    )


class Nginx:
    """The shipped configuration before a gateway at 127.0.0.1:`upstream`; only places and ports differ."""

    def __init__(self, upstream: int) -> None:
        program = find_nginx()
        assert program is not None
        self._program = program
        # Below /tmp, since the account that it runs as may not reach the test's own directory.
        self._directory = Path(tempfile.mkdtemp(prefix="gv-nginx-", dir="/tmp"))
        self.port = free_port()
        (self._directory / "galvanic.conf").write_text(
            _replaced(
                CONFIGURATION.read_text(),
                {
                    "server 127.0.0.1:3000;": f"server 127.0.0.1:{upstream};",
                    "listen 80;": f"listen 127.0.0.1:{self.port};",
                    "/var/cache/nginx/galvanic ": f"{self._directory}/cache ",
                    "/var/log/nginx/galvanic.log": f"{self._directory}/access.log",
                },
            )
        )
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where clients connect."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def errors(self) -> str:
        """What it has complained about."""
        log = self._directory / "error.log"
        return log.read_text(errors="replace") if log.exists() else ""

    @property
    def accesses(self) -> str:
        """Its access log."""
        return (self._directory / "access.log").read_text(errors="replace")

    def __enter__(self) -> Self:
        self._process = start(self._program, self._directory, f"include {self._directory}/galvanic.conf;")
        deadline = time.monotonic() + _START_SECONDS
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 5).close()
                return self
            except OSError:
                assert self._process.poll() is None, self.errors
                assert time.monotonic() < deadline, self.errors
                time.sleep(0.05)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process is not None
        self._process.terminate()
        self._process.wait(120)
        shutil.rmtree(self._directory, ignore_errors=True)


def _replaced(text: str, changes: Mapping[str, str]) -> str:
    for old, new in changes.items():
        assert text.count(old) == 1, f"the configuration has no single {old!r}"
        text = text.replace(old, new)
    return text

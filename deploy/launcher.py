"""`galvanic up`: checks, starts and stops everything, as one foreground process.

What it starts, it stops, in order: supervisord with the three kinds of processes, then the development database.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from common.config import ConfigError, Settings, load_settings
from common.process import EXIT_FATAL, dying_with_this_process
from deploy.development import DevelopmentDatabase, development_directory, prepare_environment
from deploy.doctor import Finding, examine_database, examine_host
from deploy.embedded_postgres import EmbeddedPostgresError
from deploy.sample import TABLE
from deploy.supervision import CONFIGURATION, extra_programs, fatal_mark

_STOP_SECONDS = 20.0
"""More than the sum of the stopwaitsecs in supervisord.conf."""


class StartError(Exception):
    """Starting is pointless; the text is one line that says why."""


class Interruption:
    """Whether a signal asked to stop. Later signals change nothing, so an impatient second Ctrl-C does no harm."""

    def __init__(self) -> None:
        self._event = threading.Event()
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(signum, lambda *_: self._event.set())

    def __bool__(self) -> bool:
        return self._event.is_set()


def run(workers: int | None = None, gateways: int | None = None) -> int:
    """Runs Galvanic until SIGINT, SIGTERM or SIGHUP and returns the exit code."""
    interruption = Interruption()
    if workers is not None:
        os.environ["GALVANIC_WORKERS"] = str(workers)
    if gateways is not None:
        os.environ["GALVANIC_GATEWAYS"] = str(gateways)
    development = prepare_environment(os.environ)
    try:
        settings = load_settings()
        _tell_unused(settings)
        _judge(examine_host(settings))
        with contextlib.ExitStack() as stack:
            if development:
                settings = _start_development(stack)
            if not interruption:
                _judge(examine_database(settings))
            if interruption:
                return 0
            return _supervise(settings, interruption, development)
    except (ConfigError, StartError) as error:
        _complain(str(error))
        return EXIT_FATAL
    except EmbeddedPostgresError as error:
        _complain(f"the development database does not start: {error}")
        return 1


def first_sync_url(settings: Settings, table: str) -> str:
    """The URL that fetches a whole table. A secret is named by its variable, for a shell to fill in, never shown."""
    secret = "&secret=$ELECTRIC_SECRET" if settings.secret else ""
    return f"http://localhost:{settings.port}/v1/shape?table={table}&offset=-1{secret}"


def live_url(settings: Settings, table: str, handle: str = "HANDLE", offset: str = "OFFSET") -> str:
    """The URL that waits for changes after `offset`, which a client takes from the headers of the answer before."""
    secret = "&secret=$ELECTRIC_SECRET" if settings.secret else ""
    place = f"http://localhost:{settings.port}/v1/shape?table={table}"
    return f"{place}&offset={offset}&handle={handle}&live=true{secret}"


def _start_development(stack: contextlib.ExitStack) -> Settings:
    _say("DATABASE_URL is not set: starting a Postgres for development")
    database = stack.enter_context(DevelopmentDatabase(development_directory()))
    _say(f"development database: {database.url} with the table {TABLE}, in which a row changes every second")
    os.environ["DATABASE_URL"] = database.url
    return load_settings()


def _judge(findings: list[Finding]) -> None:
    for finding in findings:
        if finding.severity == "fatal":
            raise StartError(finding.text)
    for finding in findings:
        if finding.severity == "warning":
            _complain(f"warning: {finding.text}")


def _tell_unused(settings: Settings) -> None:
    if settings.ignored:
        _complain(f"warning: these settings have no meaning here and are ignored: {', '.join(settings.ignored)}")
    if settings.unknown:
        _complain(f"warning: nobody reads these settings: {', '.join(settings.unknown)}")


def _supervise(settings: Settings, interruption: Interruption, development: bool) -> int:
    _prepare_run_directory(settings.run_dir)
    table = TABLE if development else "YOUR_TABLE"
    counts = f"{settings.workers} workers, {settings.gateways} gateways"
    with _supervisord(settings) as process:
        _say(f"listening on http://localhost:{settings.port} with {counts}")
        _say(f'first sync:   curl -i "{first_sync_url(settings, table)}"')
        threading.Thread(target=_announce, args=(settings, table, process), daemon=True).start()
        while process.poll() is None and not interruption:
            time.sleep(0.1)
    if interruption:
        _say("stopped")
        return 0
    return _explain_end(settings.run_dir, process.returncode)


def _prepare_run_directory(run_dir: Path) -> None:
    run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    fatal_mark(run_dir).unlink(missing_ok=True)
    # Workers added by hand lasted as long as that run: GALVANIC_WORKERS rules again.
    for file in extra_programs(run_dir).glob("shapeworker_*.conf"):
        file.unlink(missing_ok=True)
    extra_programs(run_dir).mkdir(exist_ok=True)
    # supervisord warns of an include that matches nothing.
    (extra_programs(run_dir) / "none.conf").write_text("; galvanic scale N writes a file for each worker it adds\n")


@contextlib.contextmanager
def _supervisord(settings: Settings) -> Iterator[subprocess.Popen[bytes]]:
    """A running supervisord, stopped at the end if it has not ended by itself."""
    command = [sys.executable, "-m", "supervisor.supervisord", "-n", "-c", str(CONFIGURATION)]
    if os.geteuid() == 0:
        # supervisord warns a root that did not say that root is meant.
        command += ["-u", "root"]
    environment = {
        **os.environ,
        "GALVANIC_WORKERS": str(settings.workers),
        "GALVANIC_GATEWAYS": str(settings.gateways),
        "GALVANIC_RUN_DIR": str(settings.run_dir),
        "ELECTRIC_STORAGE_DIR": str(settings.storage_dir),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
    }
    # supervisord opens /dev/fd/1 anew: of a socket that fails, of a file it would overwrite what is printed here. Hence
    # the pipe. A session of its own keeps the terminal's Ctrl-C from it, which has to come from here, once.
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
        start_new_session=True,
        preexec_fn=dying_with_this_process(signal.SIGTERM),
    )
    assert process.stdout is not None
    relay = threading.Thread(target=_relay, args=(process.stdout,), daemon=True)
    relay.start()
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        relay.join(2)


def _relay(source: IO[bytes]) -> None:
    # An output nobody reads any more must not stop the programs: they would block on a full pipe.
    for line in source:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.buffer.write(line)
            sys.stdout.buffer.flush()


def _explain_end(run_dir: Path, code: int) -> int:
    mark = fatal_mark(run_dir)
    if mark.exists():
        mark.unlink()
        return EXIT_FATAL
    if code != 0:
        _complain(f"supervisord ended with {f'signal {-code}' if code < 0 else f'code {code}'}; see the lines above")
    return code if code >= 0 else 128 - code


def _announce(settings: Settings, table: str, process: subprocess.Popen[bytes]) -> None:
    """Waits until requests are served, then shows how to wait for changes."""
    base = f"http://127.0.0.1:{settings.port}"
    while process.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{base}/v1/health", timeout=2) as answer:
            if answer.status == 200:
                break
        time.sleep(0.2)
    handle, offset = "HANDLE", "OFFSET"
    if table == TABLE and not settings.secret:
        with (
            contextlib.suppress(OSError),
            urllib.request.urlopen(f"{base}/v1/shape?table={table}&offset=-1", timeout=20) as answer,
        ):
            handle, offset = answer.headers["electric-handle"], answer.headers["electric-offset"]
    if process.poll() is None:
        _say("active")
        hint = "" if handle != "HANDLE" else "   (HANDLE and OFFSET: headers of the answer before)"
        _say(f'then changes: curl -i "{live_url(settings, table, handle, offset)}"{hint}')


def _say(text: str) -> None:
    with contextlib.suppress(OSError, ValueError):
        print(f"galvanic: {text}", flush=True)


def _complain(text: str) -> None:
    with contextlib.suppress(OSError, ValueError):
        print(f"galvanic: {text}", file=sys.stderr, flush=True)

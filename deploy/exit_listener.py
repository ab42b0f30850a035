"""Supervisor's event listener: ends everything when a program says that trying again cannot help."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

from supervisor import childutils

from common.process import EXIT_FATAL
from deploy.supervision import Supervisor, SupervisorError, fatal_mark


def fatal_program(payload: str, exit_codes: dict[str, int]) -> str | None:
    """The program a PROCESS_STATE_EXITED event is about, if its exit code says so, else None.

    `exit_codes` maps `group:name` to the last exit code: the event itself does not carry it.
    """
    fields = childutils.get_headers(payload)
    name = f"{fields['groupname']}:{fields['processname']}"
    # An unexpected exit is restarted by supervisord; its code is not of interest.
    return fields["processname"] if fields["expected"] == "1" and exit_codes.get(name) == EXIT_FATAL else None


def listen(run_dir: Path) -> None:
    """Serves supervisord's events on standard input until SIGTERM."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    while True:
        headers, payload = childutils.listener.wait(sys.stdin, sys.stdout)
        if headers["eventname"] == "PROCESS_STATE_EXITED":
            try:
                _handle_exit(run_dir, payload)
            except SupervisorError as error:
                print(f"galvanic: exit listener: {error}", file=sys.stderr, flush=True)
        childutils.listener.ok(sys.stdout)


def _handle_exit(run_dir: Path, payload: str) -> None:
    supervisor = Supervisor(run_dir)
    codes = {f"{process['group']}:{process['name']}": process["exitstatus"] for process in supervisor.processes()}
    name = fatal_program(payload, codes)
    if name is not None:
        fatal_mark(run_dir).write_text(name)
        print(f"galvanic: {name} cannot run with these settings (see above); stopping", file=sys.stderr, flush=True)
        # Our own end is part of the shutdown; supervisord complains of a caller that is gone before the answer.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        supervisor.shutdown()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})

"""Talking to a running supervisord through its Unix socket, and where it keeps things in the run directory."""

from __future__ import annotations

import http.client
import xmlrpc.client
from pathlib import Path
from typing import Any

from supervisor.xmlrpc import SupervisorTransport

CONFIGURATION = Path(__file__).resolve().parent / "supervisord.conf"
"""The programs; the file lies in the project's root, the package has a link to it."""

_USER = _PASSWORD = "galvanic"  # as in supervisord.conf; the socket's mode is the access control


class SupervisorError(Exception):
    """supervisord does not run, or refuses; the text says which."""


def socket_path(run_dir: Path) -> Path:
    """The socket of supervisord's RPC interface."""
    return run_dir / "supervisor.sock"


def extra_programs(run_dir: Path) -> Path:
    """The directory with one file per worker that was added while running."""
    return run_dir / "supervisor.d"


def fatal_mark(run_dir: Path) -> Path:
    """The file that says which program ended with EXIT_FATAL; its absence means none did."""
    return run_dir / "fatal"


class Supervisor:
    """The part of supervisord's RPC interface that is used here (http://supervisord.org/api.html)."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        path = socket_path(run_dir)
        if not path.exists():
            raise SupervisorError(
                f"no supervisord runs in {run_dir}; start it with 'galvanic up', or set GALVANIC_RUN_DIR"
            )
        transport = SupervisorTransport(_USER, _PASSWORD, serverurl=f"unix://{path}")
        # The host name is never used: the transport connects to the socket.
        self._rpc = xmlrpc.client.ServerProxy("http://127.0.0.1", transport=transport)

    def processes(self) -> list[dict[str, Any]]:
        """What supervisord knows of each process: name, group, statename, pid, exitstatus and more."""
        return list(self._call("getAllProcessInfo"))

    def start(self, name: str) -> None:
        """Starts the process `group:name`; returns when it was spawned."""
        self._call("startProcess", name, False)

    def stop(self, name: str) -> None:
        """Stops the process `group:name`; returns when it has ended."""
        self._call("stopProcess", name, True)

    def add_group(self, name: str) -> None:
        """Reads the configuration again and starts the new group."""
        self._call("reloadConfig")
        self._call("addProcessGroup", name)

    def remove_group(self, name: str) -> None:
        """Stops the group and forgets it. Its file must be gone by the next `add_group`."""
        self._call("stopProcessGroup", name, True)
        self._call("removeProcessGroup", name)

    def shutdown(self) -> None:
        """Asks supervisord to stop everything and to end."""
        self._call("shutdown")

    def _call(self, method: str, *arguments: object) -> Any:
        try:
            return getattr(self._rpc.supervisor, method)(*arguments)
        except xmlrpc.client.Fault as fault:
            raise SupervisorError(f"supervisord refuses {method}: {fault.faultString}") from None
        except (OSError, http.client.HTTPException, xmlrpc.client.ProtocolError):
            raise SupervisorError(f"no supervisord answers in {self._run_dir}") from None

"""Asking running processes through the sockets that they have in the run directory (common/control.py)."""

from __future__ import annotations

import re
import socket
from pathlib import Path
from typing import Final

import msgspec

from common.control import SUFFIX, Question, Refused, Reply, decode_reply, encode

PATIENCE: Final = 10.0
"""Seconds that an answer may take beyond what was asked for: the process may be short of CPU, or stopped."""

_SUPERVISED: Final = re.compile(r"(?:(?:shapeworker|gateway)_\d+:)?(shapeworker|gateway)(?::\1)?_(\d+)")
"""A worker or gateway as supervisord calls it: with its group, which may be its own."""


class NoAnswer(Exception):
    """The process does not run, or does not answer; the text says which, and what to do."""


def processes(run_dir: Path) -> list[str]:
    """The names of the processes that have a socket there; those that were killed have one still."""
    return sorted(path.name.removesuffix(SUFFIX) for path in run_dir.glob(f"*{SUFFIX}"))


def own_name(name: str) -> str:
    """The name that a process gives itself, of that or of the one that supervisord gives it."""
    supervised = _SUPERVISED.fullmatch(name.removeprefix("ingester:"))
    return f"{supervised[1][0].replace('s', 'w')}{supervised[2]}" if supervised else name.removeprefix("ingester:")


def ask(run_dir: Path, process: str, question: Question, seconds: float = 0.0) -> Reply:
    """The answer of a process, which takes it so many ``seconds`` to find. Raises :class:`NoAnswer`."""
    path = run_dir / f"{process}{SUFFIX}"
    known = ", ".join(processes(run_dir)) or "none"
    if not path.exists():
        raise NoAnswer(
            f"no process {process} in {run_dir} (there are: {known}); --run-dir or GALVANIC_RUN_DIR names the directory"
        )
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(seconds + PATIENCE)
            connection.connect(str(path))
            connection.sendall(encode(question) + b"\n")
            with connection.makefile("rb") as lines:
                answer: Reply = decode_reply(lines.readline())
    except TimeoutError:
        raise NoAnswer(f"{process} does not answer: it is stopped (SIGSTOP), or has no CPU; kill -9 is safe") from None
    except ConnectionRefusedError:
        raise NoAnswer(f"{process} does not run") from None
    except msgspec.DecodeError:
        raise NoAnswer(f"{process} ended before it answered, or is of another version") from None
    except OSError as error:
        raise NoAnswer(f"{process} cannot be asked ({error.strerror or error}): who started it may") from None
    if isinstance(answer, Refused):
        raise NoAnswer(f"{process}: {answer.reason}")
    return answer

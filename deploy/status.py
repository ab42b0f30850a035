"""`galvanic status`: all processes of a run directory on one page."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from common.control import ProcessStatus, StatusQuestion
from deploy.control_client import NoAnswer, ask, processes

STILL: Final = 2.0
"""Seconds without a turn of the event loop that are worth a line."""

_HEAD: Final = f"{'process':10}{'pid':>8}{'up':>8}{'busy':>7}{'lag':>9}{'cpu':>7}{'memory':>9}  "


def ask_all(run_dir: Path) -> list[ProcessStatus | tuple[str, str]]:
    """What each process says, or its name and why it says nothing."""

    def one(process: str) -> ProcessStatus | tuple[str, str]:
        try:
            answer = ask(run_dir, process, StatusQuestion())
        except NoAnswer as error:
            return process, str(error)
        assert isinstance(answer, ProcessStatus)
        return answer

    with ThreadPoolExecutor(16) as threads:
        return list(threads.map(one, processes(run_dir)))


def is_well(answers: Sequence[ProcessStatus | tuple[str, str]]) -> bool:
    """Whether there is an active ingester, and every process answers and turns its loop."""
    said = [answer for answer in answers if isinstance(answer, ProcessStatus)]
    active = any(answer.facts.get("state") == "active" for answer in said)
    return active and len(said) == len(answers) and all(answer.still < STILL for answer in said)


def shown(answers: Sequence[ProcessStatus | tuple[str, str]], now: float | None = None) -> str:
    """A table; what is wrong has a line of its own. ``now`` is Unix time."""
    now = time.time() if now is None else now
    lines = [_HEAD.rstrip()]
    for answer in answers:
        if not isinstance(answer, ProcessStatus):
            lines.append(f"{answer[0]:10}{answer[1]}")
            continue
        up = max(1e-9, now - answer.started)
        long = [f"{name}: {text}" for name, text in answer.facts.items() if " " in text]
        short = [f"{name} {text}" for name, text in answer.facts.items() if " " not in text]
        lines.append(
            f"{answer.process:10}{answer.pid:>8}{_duration(up):>8}{answer.busy:>7.0%}{answer.lag * 1000:>6.0f} ms"
            f"{answer.processor / up:>7.0%}{answer.memory / (1 << 20):>6.0f} MB  {', '.join(short)}".rstrip()
        )
        if answer.still >= STILL:
            lines.append(f"{'':10}its event loop stands still for {answer.still:.0f} s: galvanic profile says where")
        lines += [f"{'':10}{text}" for text in long]
    return "\n".join(lines)


def _duration(seconds: float) -> str:
    for unit, length in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"

"""The command `galvanic`."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import click

from common.config import ConfigError, Settings, load_settings
from common.process import EXIT_FATAL

_MINIMUM_LIFE_SECONDS = 2.0
"""A program that fails sooner waits before it exits, so that supervisord's restarts do not eat a core."""


_RUN_DIR = click.option(
    "--run-dir", type=click.Path(path_type=Path), envvar="GALVANIC_RUN_DIR", default=Path("run"), show_default=True
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="galvanic", prog_name="galvanic")
def main() -> None:
    """Galvanic syncs tables of a Postgres database over HTTP.

    Settings are environment variables: see docs/settings.md.
    """


@main.command()
@click.option("--workers", type=click.IntRange(1, 64), help="Shapeworkers to start (GALVANIC_WORKERS).")
@click.option("--gateways", type=click.IntRange(1, 64), help="Gateways to start (GALVANIC_GATEWAYS).")
def up(workers: int | None, gateways: int | None) -> None:
    """Run everything in the foreground; without DATABASE_URL also a Postgres to try it with."""
    from setproctitle import setproctitle

    from deploy.launcher import run

    setproctitle("galvanic: up")
    sys.exit(run(workers, gateways))


@main.command()
def check() -> None:
    """Look at settings, directories, ports and the database; exit with 78 if Galvanic could not start."""
    from deploy.doctor import examine

    findings = examine(_settings())
    for finding in findings:
        click.echo(f"{finding.severity:8}{finding.text}")
    sys.exit(EXIT_FATAL if any(finding.severity == "fatal" for finding in findings) else 0)


@main.command()
@click.argument("workers", type=click.IntRange(1, 64))
@_RUN_DIR
def scale(workers: int, run_dir: Path) -> None:
    """Change the number of shapeworkers of the Galvanic that runs."""
    from deploy.scaling import scale as scale_workers
    from deploy.scaling import worker_name
    from deploy.supervision import SupervisorError

    try:
        steps = scale_workers(run_dir.absolute(), workers)
    except SupervisorError as error:
        _fail(str(error), 1)
    for step in steps:
        click.echo(f"{step.action} {worker_name(step.number)}")
    click.echo(f"{workers} workers")


@main.command()
@_RUN_DIR
def status(run_dir: Path) -> None:
    """Show all processes of the Galvanic that runs; exit with 1 unless all is well.

    busy: share of the last 10 s in which the event loop did not wait. lag: most that a timer was late in the last
    minute. cpu: share of a core since the start.
    """
    from deploy.status import ask_all, is_well, shown

    answers = ask_all(run_dir.absolute())
    if not answers:
        _fail(f"no process in {run_dir.absolute()}; --run-dir or GALVANIC_RUN_DIR names the directory", 1)
    click.echo(shown(answers))
    sys.exit(0 if is_well(answers) else 1)


@main.command()
@click.argument("process")
@click.option("--seconds", type=click.FloatRange(0.1, 600), default=10.0, show_default=True)
@click.option("--rate", type=click.IntRange(1, 1000), default=200, show_default=True, help="Looks per second.")
@click.option("--top", type=click.IntRange(1), default=25, show_default=True, help="Functions to show.")
@click.option("--threads", is_flag=True, help="Look at all threads, not only at the one with the event loop.")
@click.option(
    "--folded",
    type=click.Path(path_type=Path, dir_okay=False, writable=True),
    help="Write the stacks to this file, for flame graphs (flamegraph.pl, speedscope.app).",
)
@_RUN_DIR
def profile(
    process: str, seconds: float, rate: int, top: int, threads: bool, folded: Path | None, run_dir: Path
) -> None:
    """Show where the time of a running PROCESS goes: ingester, w00, g00 …, as galvanic status lists them.

    Safe in production: the process goes on, and takes some ten microseconds for each look.
    """
    from common.control import ProfileAnswer, ProfileQuestion
    from deploy import profile as report
    from deploy.control_client import NoAnswer, ask, own_name

    name = own_name(process)
    try:
        answer = ask(run_dir.absolute(), name, ProfileQuestion(seconds, rate, threads), seconds)
    except NoAnswer as error:
        _fail(str(error), 1)
    assert isinstance(answer, ProfileAnswer)
    if folded is not None:
        folded.write_text(report.folded(answer.profile))
    click.echo(report.shown(name, answer.profile, top))


@main.command()
@click.option("--table", required=True, help="The table, as clients name it.")
@click.option("--where", help="The clause. Without one, all rows are meant.")
@click.option("--param", "params", multiple=True, metavar="N=VALUE", help="The value of $N; once for each.")
@click.option("--columns", help="The columns that the shape would have, with commas.")
@click.option("--url", help="A gateway.  [default: http://localhost: and ELECTRIC_PORT]")
@click.option("--json", "as_json", is_flag=True, help="Print the answer of /v1/explain as it is.")
def explain(
    table: str, where: str | None, params: tuple[str, ...], columns: str | None, url: str | None, as_json: bool
) -> None:
    """Say how a where clause is read, how changes find its shape, what that costs, and what would cost less.

    Asks the Galvanic that runs, with its secret from ELECTRIC_SECRET. No shape is made.
    """
    from deploy.development import prepare_environment
    from deploy.explanation import ExplainError, ask, shown

    prepare_environment(os.environ)
    settings = _settings()
    query = {"table": table}
    for param in params:
        number, separator, value = param.partition("=")
        if not separator or not number.isdecimal():
            raise click.BadParameter(f"must be N=VALUE, such as 1=open, not {param!r}", param_hint="'--param'")
        query[f"params[{int(number)}]"] = value
    query |= {name: text for name, text in (("where", where), ("columns", columns)) if text is not None}
    if settings.secret:
        query["secret"] = settings.secret
    try:
        answer = ask((url or f"http://localhost:{settings.port}").rstrip("/"), query)
    except ExplainError as error:
        if as_json and error.body:
            click.echo(error.body)
        _fail(str(error), 1)
    click.echo(answer if as_json else shown(answer))


@main.command()
def ingester() -> None:
    """Run the ingester."""

    def start(settings: Settings) -> int:
        from ingester.main import main as run

        return run(settings)

    _run_program("ingester", start)


@main.command()
@click.option("--id", "worker_id", required=True, help="A name that no other worker has, the same at each start.")
def shapeworker(worker_id: str) -> None:
    """Run one shapeworker."""

    def start(settings: Settings) -> int:
        from shapeworker.main import main as run

        return run(settings, worker_id)

    _run_program(f"shapeworker {worker_id}", start)


@main.command()
@click.option("--id", "gateway_id", required=True, help="A name for logs and metrics.")
def gateway(gateway_id: str) -> None:
    """Run one gateway."""

    def start(settings: Settings) -> int:
        from gateway.main import main as run

        return run(settings, gateway_id)

    _run_program(f"gateway {gateway_id}", start)


@main.command(hidden=True)
@click.option("--run-dir", type=click.Path(path_type=Path), envvar="GALVANIC_RUN_DIR", required=True)
def exit_listener(run_dir: Path) -> None:
    """Serve supervisord's events (started by supervisord.conf)."""
    from setproctitle import setproctitle

    from common.process import die_with_parent
    from deploy.exit_listener import listen

    die_with_parent()
    setproctitle("galvanic: exit-listener")
    listen(run_dir.absolute())


def _run_program(name: str, start: Callable[[Settings], int]) -> NoReturn:
    """Runs one long-lived process: settings, logs, life and exit code are the same for all kinds."""
    import structlog

    from common.logging import configure_logging
    from common.process import allow_open_files, die_with_parent, keep_freed_memory
    from common.sockets import EndpointInUse

    started = time.monotonic()
    if "SUPERVISOR_ENABLED" in os.environ:
        die_with_parent()
    settings = _settings()
    allow_open_files()
    keep_freed_memory()
    configure_logging(settings, name)
    faulthandler.enable()
    # For an operator who wonders what a process is doing: kill -USR1.
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    try:
        code = start(settings)
    except (ConfigError, EndpointInUse) as error:
        structlog.get_logger().error("fatal setting", reason=str(error))
        code = EXIT_FATAL
    except KeyboardInterrupt:
        code = 0
    except Exception:  # noqa: BLE001
        structlog.get_logger().exception("crashed")
        code = 1
    if code not in (0, EXIT_FATAL):
        time.sleep(max(0.0, _MINIMUM_LIFE_SECONDS - (time.monotonic() - started)))
    sys.exit(code)


def _settings() -> Settings:
    try:
        return load_settings()
    except ConfigError as error:
        _fail(str(error), EXIT_FATAL)


def _fail(text: str, code: int) -> NoReturn:
    click.echo(f"galvanic: {text}", err=True)
    sys.exit(code)

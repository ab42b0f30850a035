"""What operators can ask a running stack: /metrics, `galvanic status`, `galvanic profile`; also after `kill -9`."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import aiohttp
import psycopg
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.pipeline.fixtures import StartStack
from tests.pipeline.fleet import Fleet
from tests.pipeline.schema import create_schema
from tests.pipeline.stack import REPOSITORY, Stack
from tests.pipeline.workload import Workload
from tests.ports import free_port

pytestmark = pytest.mark.timeout(600)

_HANG_SECONDS = 120

PROCESSES = ("ingester", "w00", "w01", "g0", "g1")

Values = dict[str, float]


def read(text: str) -> Values:
    """Samples by name, of all labels together, and by name and each label's value."""
    values: Values = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            for key in (sample.name, *(f"{sample.name} {value}" for value in sample.labels.values())):
                values[key] = values.get(key, 0.0) + sample.value
    return values


def started(values: Values, process: str) -> float:
    """When the process was started that reports under this name; 0 if none does."""
    return values.get(f"galvanic_process_start_time_seconds {process}", 0.0)


async def scrape(port: int, wanted: Callable[[Values], bool]) -> Values:
    """The metrics, once they are as wanted."""
    values: Values = {}
    try:
        async with aiohttp.ClientSession() as session, asyncio.timeout(_HANG_SECONDS):
            while True:
                try:
                    async with session.get(f"http://127.0.0.1:{port}/metrics") as answer:
                        assert answer.status == 200
                        values = read(await answer.text())
                except aiohttp.ClientConnectionError:
                    values = {}
                if values and wanted(values):
                    return values
                await asyncio.sleep(0.2)
    except TimeoutError:
        told = {name: value for name, value in values.items() if "_bucket" not in name}
        raise AssertionError(f"the metrics do not become what they should be: {told}") from None


async def galvanic(stack: Stack, *arguments: str) -> tuple[int, str]:
    """A command beside the stack: its exit code, and what it printed."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "deploy", *arguments, "--run-dir", str(stack.run_directory)),
        cwd=REPOSITORY,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await asyncio.wait_for(process.communicate(), _HANG_SECONDS)
    assert process.returncode is not None
    return process.returncode, output.decode()


async def test_metrics_tell_what_happened_and_survive_kills(database: str, start_stack: StartStack) -> None:
    port = free_port()
    stack = await start_stack(
        database,
        workers=2,
        gateways=2,
        environment={"ELECTRIC_PROMETHEUS_PORT": str(port), "ELECTRIC_DATABASE_ID": "blue"},
    )
    async with await psycopg.AsyncConnection.connect(database, autocommit=True) as connection:
        await connection.execute("CREATE TABLE things (id int PRIMARY KEY, n int)")
        await connection.execute("INSERT INTO things SELECT i, i FROM generate_series(1, 100) i")
        async with aiohttp.ClientSession() as session:
            for n in range(8):
                url = f"{stack.url}/v1/shape?table=things&offset=-1&where=n%3E{n}"
                async with session.get(url) as answer:
                    assert answer.status == 200
            async with session.get(f"{stack.url}/v1/shape?table=no_such_table&offset=-1") as answer:
                assert answer.status == 400
            await connection.execute("UPDATE things SET n = n + 1000 WHERE id <= 10")
            before = await scrape(
                port,
                lambda values: (
                    values.get("electric_shapes_total_shapes_count") == 8
                    and values.get("electric_plug_serve_shape_requests_count_total 200") == 8
                    and values.get("electric_plug_serve_shape_requests_count_total 400") == 1
                    and values.get("electric_storage_transaction_stored_count_total") == 8
                    and values.get("electric_storage_snapshot_stored_operations_total") == sum(range(93, 101))
                    # Each worker has each transaction.
                    and values.get("electric_storage_transaction_stored_replication_lag_count")
                    == 2 * values.get("electric_postgres_replication_transaction_received_count_total", 0)
                    and "electric_postgres_replication_slot_retained_wal_size" in values
                    and "electric_postgres_replication_slot_confirmed_flush_lsn_lag" in values
                ),
            )
            assert before["electric_shapes_active_shapes_count"] == 8
            assert before["galvanic_active"] == 1
            assert before["galvanic_info blue"] == 1
            assert before["galvanic_workers"] == 2
            assert before["electric_postgres_replication_transaction_received_receive_lag_count"] >= 1
            assert before["electric_admission_control_acquire_limit existing"] == 20_000
            assert before["electric_admission_control_acquire_current existing"] == 0
            assert before["electric_admission_control_reject_count_total initial"] == 0
            for process in PROCESSES:
                assert before[f"galvanic_process_resident_memory_bytes {process}"] > 1e6
                assert before[f"galvanic_loop_busy_seconds_total {process}"] > 0

            stack.kill9("w00", "g0")
            after = await scrape(
                port,
                lambda values: (
                    all(started(values, name) > started(before, name) for name in ("w00", "g0"))
                    and values.get("electric_shapes_total_shapes_count") == 8
                    and values.get("galvanic_active") == 1
                ),
            )
            grown = {name: value for name, value in before.items() if name.endswith(("_total", "_bucket", "_count"))}
            assert [name for name, value in grown.items() if "shapes_count" not in name and after[name] < value] == []

            # The ingester counts anew, and the others go on telling it what comes.
            stack.kill9("ingester")
            await scrape(
                port,
                lambda values: (
                    started(values, "ingester") > started(before, "ingester")
                    and all(started(values, name) for name in PROCESSES)
                ),
            )
            await stack.wait_active()
            async with session.get(url) as answer:
                assert answer.status == 200
            await scrape(
                port,
                lambda values: (
                    values.get("electric_plug_serve_shape_requests_count_total 200") == 1
                    and values.get("electric_shapes_total_shapes_count") == 8
                    and values.get("galvanic_workers") == 2
                ),
            )
    stack.check()


async def test_a_metrics_port_that_is_taken_holds_nothing_back(database: str, start_stack: StartStack) -> None:
    port = free_port()
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("0.0.0.0", port))
        other.listen()
        stack = await start_stack(database, environment={"ELECTRIC_PROMETHEUS_PORT": str(port)})
        body = await stack.wait_health(f"ELECTRIC_PROMETHEUS_PORT: port {port} cannot be used")
        assert body["status"] == "active"
        assert "metrics are not served" in stack.log_of("ingester")
    await scrape(port, lambda values: values.get("galvanic_workers") == 1)
    stack.check()


async def test_processes_tell_how_they_are_and_what_they_do(
    database: str, start_stack: StartStack, tmp_path: Path
) -> None:
    stack = await start_stack(database)
    code, output = await galvanic(stack, "status")
    assert code == 0, output
    assert [line.split()[0] for line in output.splitlines()[1:] if not line.startswith(" ")] == [
        "g0",
        "ingester",
        "w00",
    ]
    assert "state active" in output
    assert not list(stack.run_directory.glob("metrics.sock"))

    folded = tmp_path / "stacks"
    code, output = await galvanic(stack, "profile", "shapeworker_00", "--seconds", "1", "--folded", str(folded))
    assert code == 0, output
    assert output.startswith("w00: ")
    assert "(waiting for events)" in output
    assert all(line.rsplit(" ", 1)[1].isdecimal() for line in folded.read_text().splitlines())

    stack.lose("w00")
    code, output = await galvanic(stack, "status")
    assert (code, "w00       w00 does not run" in output) == (1, True)
    code, output = await galvanic(stack, "profile", "w01")
    assert (code, "there are: g0, ingester, w00" in output) == (1, True)


async def test_profiles_at_the_highest_rate_disturb_nobody(database: str, start_stack: StartStack, seed: int) -> None:
    """A thousand signals a second to every process, while shapes are made, written and read."""
    await create_schema(database)
    stack = await start_stack(database, workers=2)
    workload = Workload(database, seed, writers=2)
    async with Fleet(stack, workload) as fleet:
        fleet.add_every_kind()
        workload.start()
        profiles = [
            asyncio.create_task(galvanic(stack, "profile", process, "--rate", "1000", "--seconds", "3", "--threads"))
            for process in ("ingester", "w00", "w01", "g0")
        ]
        large = asyncio.create_task(workload.large(5_000))
        while not all(profile.done() for profile in profiles):
            await fleet.run(0.5)
            if len(fleet.readers) < 20:
                fleet.add("bulk", columns=["id", "batch"], events=True)
        for profile in profiles:
            code, output = await profile
            assert code == 0, output
        await large
        await fleet.rest()
    stack.check()

"""Generated clauses over a table with columns of all types: under load, and after `kill -9`, each shape equals what
Postgres says about its clause."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator

import psycopg
import pytest

from deploy.embedded_postgres import EmbeddedPostgres
from tests.conftest import drop_replication_slots
from tests.pipeline.fixtures import StartStack
from tests.pipeline.fleet import Fleet
from tests.pipeline.generated_rows import TABLE, Clause, PoolWriter, clauses, create_everything
from tests.pipeline.reader import HANG_SECONDS
from tests.pipeline.workload import SCALE, Workload

pytestmark = pytest.mark.timeout(900 * max(1, SCALE))


@pytest.fixture
def plain_database(postgres_server: EmbeddedPostgres) -> Iterator[str]:
    """A database whose order and letters are those of the filter language: the client's own text can be the judge."""
    name = "test_generated"
    with psycopg.connect(postgres_server.url, autocommit=True) as admin:
        locale = "LOCALE_PROVIDER builtin BUILTIN_LOCALE 'C.UTF-8'"
        admin.execute(f"CREATE DATABASE {name} {locale} TEMPLATE template0 ENCODING 'UTF8'".encode())
    yield postgres_server.url.rsplit("/", 1)[0] + "/" + name
    with psycopg.connect(postgres_server.url, autocommit=True) as admin:
        drop_replication_slots(admin, name)
        admin.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


def follow(fleet: Fleet, choice: random.Random, found: list[Clause]) -> None:
    """A reader for each clause."""
    for where, params in found:
        columns = choice.choice([None, ["id"], ["id"], ["id", "i4", "t"], ["id", "ri", "ip", "js", "by"]])
        fleet.add(TABLE, columns, choice.choice(["default", "default", "full"]), where, params)


async def run(url: str, start_stack: StartStack, seed: int, *, count: int, rounds: int, victims: int) -> None:
    """``count`` clauses, a third of them while it is written; ``rounds`` times ``victims`` processes are killed."""
    await create_everything(url, seed)
    found = await clauses(url, seed, count)
    stack = await start_stack(url, workers=2)
    choice = random.Random(seed)
    workload = Workload(url, seed, writer=PoolWriter)
    async with Fleet(stack, workload, monotone_lsn=False) as fleet:
        fleet.add(TABLE)
        follow(fleet, choice, found[: count * 2 // 3])
        await fleet.current()
        workload.start()
        await fleet.run(1)
        follow(fleet, choice, found[count * 2 // 3 :])
        await fleet.complete()
        await fleet.run(1)
        for _ in range(rounds):
            stack.kill9(*choice.sample([*stack.workers, "ingester"][-victims - 1 :], victims))
            await fleet.run(2)
        async with asyncio.timeout(HANG_SECONDS):
            while min(fleet.moves().values()) <= 5 * count:
                await fleet.run(1)
        await fleet.rest()
        print(f"messages: {fleet.moves()}")


async def test_generated_clauses(plain_database: str, start_stack: StartStack, seed: int) -> None:
    await run(plain_database, start_stack, seed, count=60, rounds=1, victims=1)


@pytest.mark.faults
async def test_many_generated_clauses(plain_database: str, start_stack: StartStack, seed: int) -> None:
    await run(plain_database, start_stack, seed, count=300, rounds=6, victims=2)

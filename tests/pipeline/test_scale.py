"""Workers come and go under load: clients see no error, refetch or duplicate (issue 2, test 4; architecture.md 2.1)."""

from __future__ import annotations

import pytest

from tests.pipeline.fixtures import StartStack
from tests.pipeline.fleet import Fleet
from tests.pipeline.schema import create_schema
from tests.pipeline.workload import SCALE, Workload

pytestmark = pytest.mark.timeout(600 * max(1, SCALE))


async def test_workers_from_one_to_three_to_two(database: str, start_stack: StartStack, seed: int) -> None:
    await create_schema(database)
    stack = await start_stack(database, workers=1)
    workload = Workload(database, seed, writers=3)
    async with Fleet(stack, workload) as fleet:
        workload.start()
        fleet.add_every_kind()
        await fleet.complete()
        before = await stack.wait_balanced()
        stack.add_worker()
        stack.add_worker()
        after = await stack.wait_balanced()
        moved = [partition for partition in before if before[partition] != after[partition]]
        assert moved, "no partition moved to the new workers"
        fleet.add("late_0")
        await fleet.run(3)
        await stack.stop_worker("w00")
        await stack.wait_balanced()
        fleet.add("late_1")
        await fleet.run(3)
        await fleet.rest()
        for reader in fleet.readers[:-2]:
            assert not reader.losses, f"{reader.name}: {reader.losses}"
            assert not reader.refusals, f"{reader.name}: {reader.refusals}"
        assert not any(reader.view.ended for reader in fleet.readers)


async def test_worker_lost_for_good(database: str, start_stack: StartStack, seed: int) -> None:
    """Its partitions wait for it, then move; shapes that were complete live on elsewhere."""
    await create_schema(database)
    stack = await start_stack(database, workers=3)
    workload = Workload(database, seed, writers=3)
    async with Fleet(stack, workload, monotone_lsn=False) as fleet:
        await fleet.established()
        stack.lose("w01")
        fleet.add("late_2")
        after = await stack.wait_balanced()
        assert set(after.values()) == {"w00", "w02"}
        await fleet.run(2)
        await fleet.rest()
        for reader in fleet.readers[:-1]:
            assert not reader.losses, f"{reader.name}: {reader.losses}"

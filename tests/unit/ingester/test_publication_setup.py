"""The publication itself: how it is made, what is repaired, who may do that."""

from __future__ import annotations

import pytest

from common.postgres import DatabaseProblem, Kind, connect
from ingester.publication_setup import PublicationState, ensure_publication
from tests.unit.ingester.publishing import NAME, Bench, as_role


async def test_a_publication_is_made_once_with_all_operations(bench: Bench) -> None:
    again = await ensure_publication(bench.admin, NAME, manual=False)
    generated = bench.admin.info.server_version >= 180000
    assert again == PublicationState(
        again.oid, fresh=False, owned=True, generated_columns=generated, version=again.version, found=again.version
    )
    assert again.version
    told: list[str] = []

    async def record(reason: str) -> None:
        assert await bench.one("SELECT count(*) FROM pg_publication") == 1
        told.append(reason)

    assert (await ensure_publication(bench.admin, NAME, manual=False, before_change=record)).oid == again.oid
    assert told == []
    made = await ensure_publication(bench.admin, "other", manual=True, before_change=record)
    assert len(told) == 1
    assert made.fresh
    assert made.oid != again.oid
    assert await bench.one(
        "SELECT pubinsert AND pubupdate AND pubdelete AND pubtruncate AND NOT pubviaroot AND NOT puballtables "
        "FROM pg_publication WHERE pubname = 'other'"
    )


@pytest.mark.parametrize("flaw", ["publish = 'insert'", "publish_via_partition_root = true"])
async def test_wrong_flags_are_repaired_and_count_as_a_new_publication(bench: Bench, flaw: str) -> None:
    await bench.run(f"CREATE PUBLICATION flawed WITH ({flaw})")
    with pytest.raises(DatabaseProblem, match="ALTER PUBLICATION") as caught:
        await ensure_publication(bench.admin, "flawed", manual=True)
    assert caught.value.problem.kind is Kind.FATAL
    told: list[str] = []

    async def record(reason: str) -> None:
        assert await bench.one("SELECT NOT pubdelete OR pubviaroot FROM pg_publication WHERE pubname = 'flawed'")
        told.append(reason)

    assert (await ensure_publication(bench.admin, "flawed", manual=False, before_change=record)).fresh
    assert len(told) == 1
    assert not (await ensure_publication(bench.admin, "flawed", manual=True)).fresh


async def test_who_may_not_create_the_publication_is_told_the_statement(role: str, bench: Bench) -> None:
    poor = await connect(as_role(bench.url, role), "galvanic test")
    try:
        with pytest.raises(DatabaseProblem, match='CREATE PUBLICATION "mine"') as caught:
            await ensure_publication(poor, "mine", manual=False)
        assert caught.value.problem.kind is Kind.FATAL
        state = await ensure_publication(poor, NAME, manual=False)
        assert not state.owned
        assert not state.fresh
        await bench.run("CREATE PUBLICATION flawed WITH (publish = 'insert')")
        with pytest.raises(DatabaseProblem, match="not owned"):
            await ensure_publication(poor, "flawed", manual=False)
    finally:
        await poor.close()

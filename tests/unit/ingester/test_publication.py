"""The tables of the publication: as others have set them up, looked at again, and released (engine.md 28)."""

from __future__ import annotations

import asyncio

import pytest
from psycopg import sql

import ingester.enrolment
from common.frames import Gap
from common.postgres import connect
from ingester.membership import NotPublished, Relation
from ingester.membership import add_table as membership_add_table
from ingester.publication import Published
from tests.unit.ingester.publishing import NAME, PARTITIONED, PLAIN, Bench, as_role, backend_waits, refused


async def test_publications_for_all_tables_and_schemas_count(bench: Bench) -> None:
    await bench.run(PLAIN, 'CREATE SCHEMA "s p"', 'CREATE TABLE "s p".t (id int)')
    await bench.run("CREATE PUBLICATION everything FOR ALL TABLES")
    made = bench.publication(name="everything")
    assert await bench.ensure(made, "items") == Published()
    assert await bench.identity("items") == "f"
    assert await bench.members() == []
    if bench.admin.info.server_version >= 150000:
        await bench.run('CREATE PUBLICATION one_schema FOR TABLES IN SCHEMA "s p"')
        assert await bench.ensure(bench.publication(name="one_schema"), "t", "s p") == Published()
        assert await bench.members() == []
        assert await bench.ensure(bench.publication(name="one_schema"), "items") == Published()
        assert await bench.members() == ["items"]


async def test_row_filters_and_column_lists_are_refused(bench: Bench) -> None:
    if bench.admin.info.server_version < 150000:
        pytest.skip("before 15 there are none")
    await bench.run(PLAIN, "CREATE TABLE public.other (id int PRIMARY KEY, v text)")
    await bench.run("CREATE PUBLICATION partial FOR TABLE public.items WHERE (id > 5), public.other (id)")
    for name in ("items", "other"):
        answer = refused(await bench.ensure(bench.publication(name="partial"), name))
        assert "row filter or column list" in answer.reason
        await bench.run(bench.remedies[-1])
        assert await bench.ensure(bench.publication(name="partial"), name) == Published()


async def test_identity_that_somebody_changed_is_set_again(bench: Bench) -> None:
    await bench.run(PLAIN)
    made = bench.publication()
    await bench.ensure(made, "items")
    await bench.run("ALTER TABLE public.items REPLICA IDENTITY DEFAULT")
    assert await bench.ensure(made, "items") == Published()
    assert await bench.identity("items") == "f"


async def test_a_publication_that_went_wrong_meanwhile_is_named(bench: Bench) -> None:
    await bench.run(PLAIN, "CREATE PUBLICATION p")
    made = bench.publication(name="p")
    await bench.run("ALTER PUBLICATION p SET (publish = 'insert, update')")
    assert refused(await bench.ensure(made, "items")).reason == (
        'Publication "p" does not publish all required operations: INSERT, UPDATE, DELETE, TRUNCATE'
    )
    await bench.run(bench.remedies[-1], "ALTER PUBLICATION p SET (publish_via_partition_root = true)")
    assert "root" in refused(await bench.ensure(made, "items")).reason
    await bench.run(bench.remedies[-1])
    assert await bench.ensure(made, "items") == Published()
    await bench.run("DROP PUBLICATION p")
    assert refused(await bench.ensure(made, "items")) == NotPublished('Publication "p" not found in the database')


async def test_manual_mode_alters_nothing_and_says_what_to_run(bench: Bench) -> None:
    await bench.run(*PARTITIONED)
    made = bench.publication(manual=True)
    answer = refused(await bench.ensure(made, "root"))
    assert answer.reason == (
        f'Database table "public.root" is missing from the publication "{NAME}" and the '
        "ELECTRIC_MANUAL_TABLE_PUBLISHING setting prevents Electric from adding it"
    )
    assert (answer.status, answer.retry_after) == (503, 10)
    assert await bench.members() == []
    await bench.run(bench.remedies[-1])
    assert await bench.members() == ["root"]
    assert await bench.ensure(made, "root") == Published()
    await bench.run('ALTER TABLE public."mid a" REPLICA IDENTITY DEFAULT')
    answer = refused(await bench.ensure(made, "root"))
    assert answer.reason == 'Database table "public.mid a" does not have its replica identity set to FULL'
    assert await bench.identity("mid a") == "d"
    await bench.run(bench.remedies[-1])
    assert await bench.ensure(made, "root") == Published()


async def test_lacking_privileges_are_told_with_the_remedy(role: str, bench: Bench) -> None:
    await bench.run(PLAIN)
    url = as_role(bench.url, role)
    answer = refused(await bench.ensure(bench.publication(url=url), "items"))
    assert answer.reason == (
        f'Database table "public.items" is missing from the publication "{NAME}" and Electric lacks '
        "privileges to add it"
    )
    await bench.run(bench.remedies[-1])
    assert await bench.ensure(bench.publication(url=url), "items") == Published()
    # Owner of the publication, but not of the table.
    await bench.run("CREATE TABLE public.other ()", "CREATE PUBLICATION theirs")
    await bench.run(f"ALTER PUBLICATION theirs OWNER TO {role}")
    answer = refused(await bench.ensure(bench.publication(url=url, name="theirs"), "other"))
    assert answer.reason == "Unable to create initial snapshot: must be owner of table other"
    assert answer.status == 503
    await bench.run(bench.remedies[-1])
    assert await bench.ensure(bench.publication(url=url, name="theirs"), "other") == Published()


async def test_without_a_database_the_answer_says_so(bench: Bench) -> None:
    await bench.run(PLAIN)
    made = bench.publication(url="postgresql://u@127.0.0.1:1/d")
    answer = NotPublished("Database connection not available", 503, 10)
    assert await bench.ensure(made, "items") == answer
    assert await made.adopt_leaf(await bench.oid("items")) == answer


# --------------------------------------------------------------------------------------------------------------------
# looking again


async def position(bench: Bench) -> int:
    return int(await bench.one("SELECT (pg_current_wal_insert_lsn() - '0/0'::pg_lsn)::int8"))


async def test_a_look_tells_gaps_once_and_after_what_it_saw(bench: Bench) -> None:
    await bench.run(PLAIN, "CREATE TABLE public.other (id int PRIMARY KEY)")
    made = bench.publication()
    for name in ("items", "other"):
        assert await bench.ensure(made, name) == Published()
    oid = await bench.oid("items")
    bench.gaps.clear()
    await made.check()
    assert bench.gaps == []
    before = await position(bench)
    await bench.run("ALTER TABLE public.items DROP CONSTRAINT items_pkey")
    after = await position(bench)
    await made.check()
    (gap,) = bench.gaps
    assert gap.table == oid
    assert before < after <= gap.since
    assert made.gaps()[0] == gap
    assert bench.standings[-1][oid].since == gap.since
    await made.check()
    assert bench.gaps == [gap]


@pytest.mark.parametrize("by", ["root", "mid", "schema", "leaf"])
async def test_a_leaf_that_was_detached_for_a_moment_has_a_gap_unless_it_was_published_all_the_while(
    by: str, bench: Bench
) -> None:
    """What it was told while detached is in no stream, and neither look at the catalog saw it detached."""
    await bench.run(*PARTITIONED)
    publication = sql.Identifier(NAME).as_string(None)
    named = {"root": "TABLE public.root", "mid": "TABLE public.mid", "leaf": 'TABLE public."mid a"'}
    await bench.run(f"ALTER PUBLICATION {publication} ADD {named.get(by, 'TABLES IN SCHEMA public')}")
    made = bench.publication()
    for name in ("root", "mid a") if by == "root" else ("mid a",):
        assert await bench.ensure(made, name) == Published()
    assert await bench.ensure(made, "low") == Published()
    await made.check()
    for parent, child, end in (("mid", '"mid a"', 15), ("root", "mid", 20)):
        bench.gaps.clear()
        await bench.run(
            f"BEGIN; ALTER TABLE public.{parent} DETACH PARTITION public.{child}; "
            f"ALTER TABLE public.{parent} ATTACH PARTITION public.{child} FOR VALUES FROM (10) TO ({end}); COMMIT"
        )
        before = await position(bench)
        await made.check()
        gaps = {gap.table: gap for gap in bench.gaps}
        leaf = gaps.pop(await bench.oid("mid a"), None)
        assert (leaf is not None) is (by == "root" or (by == "mid" and parent == "mid"))
        if leaf is not None:
            assert "detached for a while" in leaf.reason
            assert leaf.since >= before
        assert await bench.oid("low") not in gaps
        bench.gaps.clear()
        await made.check()
        assert bench.gaps == []


async def test_a_table_that_was_taken_out_is_added_again_after_its_gap_is_known(bench: Bench) -> None:
    await bench.run(PLAIN)
    made = bench.publication()
    await bench.ensure(made, "items")
    first = bench.gaps[-1]
    publication = sql.Identifier(NAME).as_string(None)
    for looked in (True, False):
        await bench.run(f"ALTER PUBLICATION {publication} DROP TABLE public.items")
        if looked:
            await made.check()
            assert bench.gaps[-1].since > first.since
        before = await position(bench)
        assert await bench.ensure(made, "items") == Published()
        assert await bench.members() == ["items"]
        assert bench.gaps[-1].since > before
        standing = bench.standings[-1][bench.gaps[-1].table]
        assert standing.since == bench.gaps[-1].since
        assert standing.membership == await bench.one("SELECT oid::int8 FROM pg_publication_rel")


@pytest.mark.parametrize(("shape", "wanted"), [("low", "low"), ("low", "root"), ("root", "low")])
async def test_shapes_that_missed_something_end_before_their_table_is_published_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, shape: str, wanted: str
) -> None:
    await bench.run(*PARTITIONED)
    made = bench.publication()
    for name in dict.fromkeys(("root", shape)):
        assert await bench.ensure(made, name) == Published()
    await bench.run(f"ALTER PUBLICATION {sql.Identifier(NAME).as_string(None)} DROP TABLE public.root")
    bench.gaps.clear()
    missed: list[list[Gap]] = []

    def add_table(publication: str, relation: Relation) -> sql.Composed:
        missed.append(list(bench.gaps))
        return membership_add_table(publication, relation)

    monkeypatch.setattr(ingester.enrolment, "add_table", add_table)
    assert await bench.ensure(made, wanted) == Published()
    assert await bench.oid(shape) in [gap.table for gap in missed[0]]


async def test_a_released_table_leaves_the_publication(bench: Bench) -> None:
    await bench.run(*PARTITIONED)
    made = bench.publication()
    assert await bench.ensure(made, "root") == Published()
    assert await bench.ensure(made, "low") == Published()
    await made.release(await bench.oid("low"))  # has no entry of its own
    assert await bench.members() == ["root"]
    await made.release(await bench.oid("root"))
    assert await bench.members() == []
    assert bench.standings[-1] == {}
    manual = bench.publication(manual=True, standings=bench.standings[0])
    await bench.run(f"ALTER PUBLICATION {sql.Identifier(NAME).as_string(None)} ADD TABLE public.root")
    await manual.release(await bench.oid("root"))
    assert await bench.members() == ["root"]


async def test_who_wants_a_table_that_is_being_released_gets_it_back(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingester.enrolment, "LOCK_SECONDS", 30.0)
    await bench.run(PLAIN)
    made = bench.publication()
    await bench.ensure(made, "items")
    oid = await bench.oid("items")
    async with await connect(bench.url, "galvanic test writer") as other:
        async with other.transaction():
            await other.execute("LOCK TABLE public.items IN SHARE ROW EXCLUSIVE MODE")
            release = asyncio.create_task(made.release(oid))
            await backend_waits(bench)
            ensure = asyncio.create_task(bench.ensure(made, "items"))
            await asyncio.sleep(0.2)
        await release
        assert await ensure == Published()
    assert await bench.members() == ["items"]
    assert made.standings[oid].membership == await bench.one("SELECT oid::int8 FROM pg_publication_rel")
    # The other way round nothing happens: who asks now has the table at heart.
    standing = made.standings[oid]
    ensure = asyncio.create_task(made.ensure_table(oid, "public", "items"))
    await asyncio.sleep(0)
    await made.release(oid)
    assert await ensure == Published()
    assert made.standings[oid] is standing

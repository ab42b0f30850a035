"""Publishing tables: what is altered, what is refused, what is waited for (engine.md 4, INV-4)."""

from __future__ import annotations

import asyncio
import random
import uuid

import pytest
from psycopg import sql

import ingester.enrolment
from common.pgoutput import parse_insert
from common.postgres import Connection, connect
from ingester.membership import Family, Look, NotPublished
from ingester.membership import look as membership_look
from ingester.publication import Published
from tests.unit.ingester.publishing import NAME, PARTITIONED, PLAIN, Bench, backend_waits, refused


async def test_a_table_is_added_with_full_identity(bench: Bench) -> None:
    await bench.run(PLAIN)
    made = bench.publication()
    assert await bench.ensure(made, "items") == Published()
    assert await bench.members() == ["items"]
    assert await bench.identity("items") == "f"
    membership = await bench.one("SELECT oid::int8 FROM pg_publication_rel")
    (standings,) = bench.standings
    standing = standings[await bench.oid("items")]
    assert (standing.membership, standing.key, standing.tree) == (membership, ("id",), {})
    assert await bench.ensure(made, "items") == Published()
    assert len(bench.standings) == 1
    assert bench.remedies == []


async def test_any_name_will_do(bench: Bench) -> None:
    made = bench.publication()
    names = ['a"b', "a.b", "a b", "Ünïcode", "a/b", "select", "%s {}"]
    for schema in ("public", "we.ird", 'quo"ted', "Up Per"):
        await bench.admin.execute(sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(sql.Identifier(schema)))
        for name in names:
            await bench.admin.execute(sql.SQL("CREATE TABLE {} ()").format(sql.Identifier(schema, name)))
            assert await bench.ensure(made, name, schema) == Published()
    assert await bench.members() == sorted(names * 4)
    assert await bench.one("SELECT count(*) FROM pg_class WHERE relreplident = 'f'") == len(names) * 4


async def test_all_leaves_of_a_partitioned_table_get_full_identity(bench: Bench) -> None:
    await bench.run(*PARTITIONED)
    made = bench.publication()
    assert await bench.ensure(made, "root") == Published()
    assert await bench.members() == ["root"]
    assert [await bench.identity(name) for name in ("root", "low", "mid", "mid a")] == ["f"] * 4
    root, low, mid, leaf = [await bench.oid(name) for name in ("root", "low", "mid", "mid a")]
    assert await made.announced(root) == Family((), (low, leaf))
    assert await made.announced(mid) == Family((root,), (leaf,))
    assert await made.announced(leaf) == Family((mid, root), ())
    assert await made.announced(4_000_000_000) == Family((), ())


async def test_a_leaf_that_joins_later_is_adopted_without_another_barrier(bench: Bench) -> None:
    await bench.run(*PARTITIONED, "CREATE TABLE public.other (v int)")
    made = bench.publication(barrier_patience=0.0)
    assert await bench.ensure(made, "root") == Published()
    writer = await connect(bench.url, "galvanic test writer")
    await writer.execute("BEGIN")
    await writer.execute("INSERT INTO public.other VALUES (1)")
    await bench.run("CREATE TABLE public.high PARTITION OF public.root FOR VALUES FROM (20) TO (30)")
    assert await bench.identity("high") == "d"
    assert await made.adopt_leaf(await bench.oid("high")) == Published()
    assert await bench.identity("high") == "f"
    assert await bench.members() == ["root"]
    assert await made.adopt_leaf(await bench.oid("low")) == Published()
    assert refused(await made.adopt_leaf(4_000_000_000)).status == 409
    await writer.close()


async def test_a_shape_on_a_leaf_of_a_published_root_adds_nothing(bench: Bench) -> None:
    await bench.run(*PARTITIONED)
    made = bench.publication()
    await bench.ensure(made, "root")
    assert await bench.ensure(made, "mid a") == Published()
    assert await bench.members() == ["root"]


async def test_tables_that_inherit_are_left_alone(bench: Bench) -> None:
    await bench.run(PLAIN, "CREATE TABLE public.child () INHERITS (public.items)")
    assert await bench.ensure(bench.publication(), "items") == Published()
    assert await bench.members() == ["items"]
    assert await bench.identity("child") == "d"


@pytest.mark.parametrize(
    ("statement", "name", "words"),
    [
        ("CREATE UNLOGGED TABLE public.x ()", "x", "unlogged"),
        ("CREATE VIEW public.x AS SELECT 1 AS a", "x", "a view"),
        ("CREATE MATERIALIZED VIEW public.x AS SELECT 1 AS a", "x", "a materialized view"),
        ("CREATE SEQUENCE public.x", "x", "a sequence"),
        (
            "CREATE TABLE public.x (id int) PARTITION BY LIST (id); "
            "CREATE UNLOGGED TABLE public.x1 PARTITION OF public.x DEFAULT",
            "x",
            "its partition public.x1 is unlogged",
        ),
        (
            "CREATE FOREIGN DATA WRAPPER w; CREATE SERVER s FOREIGN DATA WRAPPER w; "
            "CREATE FOREIGN TABLE public.x (id int) SERVER s",
            "x",
            "a foreign table",
        ),
    ],
)
async def test_what_cannot_be_replicated_is_refused_for_good(
    bench: Bench, statement: str, name: str, words: str
) -> None:
    await bench.run(statement)
    answer = refused(await bench.ensure(bench.publication(), name))
    assert (answer.status, answer.retry_after) == (400, None)
    assert words in answer.reason
    assert await bench.members() == []


async def test_system_and_temporary_tables_are_refused(bench: Bench) -> None:
    made = bench.publication()
    answer = refused(await bench.ensure(made, "pg_class", "pg_catalog"))
    assert (answer.status, answer.reason) == (
        400,
        'cannot add relation "pg_class" to publication: it is a system table',
    )
    await bench.run("CREATE TEMP TABLE x ()")
    schema = await bench.one("SELECT nspname FROM pg_namespace WHERE oid = pg_my_temp_schema()")
    assert refused(await bench.ensure(made, "x", schema)).status == 400


async def test_an_oid_whose_name_has_changed_is_refused(bench: Bench) -> None:
    await bench.run(PLAIN)
    oid = await bench.oid("items")
    made = bench.publication()
    for schema, name, wanted in (("public", "old", oid), ("other", "items", oid), ("public", "items", 4_000_000_000)):
        assert refused(await made.ensure_table(wanted, schema, name)).status == 409
    assert await bench.members() == []


# --------------------------------------------------------------------------------------------------------------------
# waiting for others (INV-4)


@pytest.mark.parametrize("full", [True, False])
async def test_adding_a_table_waits_for_its_writers(bench: Bench, full: bool) -> None:
    await bench.run(PLAIN, f"ALTER TABLE public.items REPLICA IDENTITY {'FULL' if full else 'DEFAULT'}")
    writer = await connect(bench.url, "galvanic test writer")
    await writer.execute("BEGIN")
    await writer.execute("INSERT INTO public.items VALUES (1)")
    task = asyncio.create_task(bench.ensure(bench.publication(), "items"))
    await backend_waits(bench)
    assert not task.done()
    await writer.execute("COMMIT")
    assert await task == Published()
    await writer.close()


async def test_readers_do_not_delay_a_table_whose_identity_is_full(bench: Bench) -> None:
    await bench.run(PLAIN, "ALTER TABLE public.items REPLICA IDENTITY FULL")
    reader = await connect(bench.url, "galvanic test reader")
    await reader.execute("BEGIN")
    await reader.execute("SELECT * FROM public.items")
    assert await bench.ensure(bench.publication(patience=0.0), "items") == Published()
    await reader.close()


async def test_a_transaction_that_reads_then_writes_is_never_the_victim_of_a_deadlock(bench: Bench) -> None:
    await bench.run(PLAIN)
    user = await connect(bench.url, "galvanic test user")
    await user.execute("BEGIN")
    await user.execute("SELECT * FROM public.items")
    task = asyncio.create_task(bench.ensure(bench.publication(), "items"))
    await backend_waits(bench)
    async with asyncio.timeout(120):
        await user.execute("INSERT INTO public.items VALUES (1)")
        await user.execute("COMMIT")
    assert await task == Published()
    await user.close()


async def test_a_root_that_leaves_the_publication_while_its_leaf_is_prepared_is_looked_at_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    await bench.run(*PARTITIONED)
    made = bench.publication()
    assert await bench.ensure(made, "root") == Published()
    await bench.run("ALTER TABLE public.low REPLICA IDENTITY DEFAULT")
    taken_out = False

    async def look(connection: Connection, name: str, oid: int) -> Look:
        nonlocal taken_out
        found = await membership_look(connection, name, oid)
        if found.relations and found.relations[0].identity == "f" and not taken_out:
            taken_out = True
            await bench.run(f"ALTER PUBLICATION {sql.Identifier(NAME).as_string(None)} DROP TABLE public.root")
            found = await membership_look(connection, name, oid)
            assert not found.memberships
        return found

    monkeypatch.setattr(ingester.enrolment, "look", look)
    assert await bench.ensure(made, "low") == Published()
    assert taken_out
    assert await bench.members() == ["low"]


async def test_patience_with_a_lock_ends(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingester.enrolment, "LOCK_SECONDS", 0.05)
    await bench.run(PLAIN)
    writer = await connect(bench.url, "galvanic test writer")
    await writer.execute("BEGIN")
    await writer.execute("INSERT INTO public.items VALUES (1)")
    made = bench.publication(patience=0.3)
    answer = refused(await bench.ensure(made, "items"))
    assert answer == NotPublished("Snapshot timed out while waiting for a table lock", 503, 10)
    assert await bench.members() == []
    await writer.execute("COMMIT")
    assert await bench.ensure(made, "items") == Published()
    await writer.close()


async def test_a_membership_of_others_is_trusted_only_after_their_writers_have_ended(bench: Bench) -> None:
    await bench.run(PLAIN, "ALTER TABLE public.items REPLICA IDENTITY FULL", "CREATE TABLE public.other (v int)")
    writer = await connect(bench.url, "galvanic test writer")
    await writer.execute("BEGIN")
    await writer.execute("INSERT INTO public.items VALUES (1)")
    await bench.run(f"ALTER PUBLICATION {sql.Identifier(NAME).as_string(None)} ADD TABLE public.items")
    for manual in (True, False):
        answer = refused(await bench.ensure(bench.publication(manual=manual, barrier_patience=0.1), "items"))
        assert (answer.status, answer.retry_after) == (503, 10)
    made = bench.publication(manual=True)
    task = asyncio.create_task(bench.ensure(made, "items"))
    await asyncio.sleep(0.1)
    assert not task.done()
    await writer.execute("COMMIT")
    assert await task == Published()
    standings = bench.standings[-1]
    # Once is enough, also for a later incarnation that was told; but another membership of the table is another matter.
    await writer.execute("BEGIN")
    await writer.execute("INSERT INTO public.other VALUES (1)")
    assert await bench.ensure(made, "items") == Published()
    later = bench.publication(manual=True, standings=standings, barrier_patience=0.1)
    assert await bench.ensure(later, "items") == Published()
    publication = sql.Identifier(NAME).as_string(None)
    await bench.run(f"ALTER PUBLICATION {publication} DROP TABLE public.items")
    await bench.run(f"ALTER PUBLICATION {publication} ADD TABLE public.items")
    assert refused(await bench.ensure(later, "items")).status == 503
    await writer.close()


@pytest.mark.parametrize("manual", [False, True])
async def test_every_row_is_in_the_snapshot_or_in_the_stream(bench: Bench, manual: bool) -> None:
    await bench.run("CREATE TABLE public.items (id serial, v int)", "ALTER TABLE public.items REPLICA IDENTITY FULL")
    slot = f"slot_{uuid.uuid4().hex[:12]}"
    await bench.one("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')::text", slot)
    made = bench.publication(manual=manual)
    publication = sql.Identifier(NAME).as_string(None)
    stop = asyncio.Event()

    async def write(seed: int) -> None:
        rng = random.Random(seed)
        writer = await connect(bench.url, "galvanic test writer")
        while not stop.is_set():
            async with writer.transaction():
                for _ in range(rng.randint(1, 3)):
                    await writer.execute("INSERT INTO public.items (v) VALUES (0)")
                    await asyncio.sleep(rng.uniform(0, 0.02))
        await writer.close()

    async def ids() -> set[int]:
        return {int(row[0]) async for row in await bench.admin.execute("SELECT id FROM public.items")}

    writers = [asyncio.create_task(write(seed)) for seed in range(4)]
    for _ in range(4):
        await asyncio.sleep(0.05)
        if manual:
            await bench.run(f"ALTER PUBLICATION {publication} ADD TABLE public.items")
        assert await bench.ensure(made, "items") == Published()
        snapshot = await ids()
        await asyncio.sleep(0.05)
        stop.set()
        await asyncio.gather(*writers)
        rows = await bench.admin.execute(
            "SELECT data FROM pg_logical_slot_get_binary_changes("
            "%s, NULL, NULL, 'proto_version', '1', 'publication_names', %s)",
            (slot, publication),
        )
        messages = [bytes(row[0]) async for row in rows]
        streamed = {int(parse_insert(m)[0] or 0) for m in messages if m[:1] == b"I"}
        assert await ids() == snapshot | streamed
        assert streamed - snapshot
        stop.clear()
        writers = [asyncio.create_task(write(seed)) for seed in range(4)]
        await bench.run(f"ALTER PUBLICATION {publication} DROP TABLE public.items")
    stop.set()
    await asyncio.gather(*writers)


async def test_callers_at_the_same_time_share_one_attempt(bench: Bench) -> None:
    await bench.run(PLAIN)
    writer = await connect(bench.url, "galvanic test writer")
    await writer.execute("BEGIN")
    await writer.execute("INSERT INTO public.items VALUES (1)")
    made = bench.publication()
    tasks = [asyncio.create_task(bench.ensure(made, "items")) for _ in range(8)]
    await backend_waits(bench)
    tasks.pop().cancel()
    waiting = await bench.one("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'galvanic test pool'")
    assert waiting == 1
    await writer.execute("COMMIT")
    assert await asyncio.gather(*tasks) == [Published()] * 7
    assert len(bench.standings) == 1
    await writer.close()


async def test_a_burst_of_tables_on_two_instances_ends_well(bench: Bench) -> None:
    names = [f"t{number}" for number in range(40)]
    await bench.run(*(f"CREATE TABLE public.{name} (id int PRIMARY KEY)" for name in names))
    first, second = bench.publication(), bench.publication()
    oids = {name: await bench.oid(name) for name in names}
    outcomes = await asyncio.gather(
        *(made.ensure_table(oids[name], "public", name) for name in names for made in (first, second))
    )
    assert set(outcomes) == {Published()}
    assert await bench.members() == sorted(names)

"""Publishing tables: what is altered, what is refused, what is waited for (engine.md 4, 28, INV-4)."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import AsyncIterator, Iterator
from typing import Any

import psycopg
import pytest
from psycopg import sql

import ingester.publication as publication_module
from common.frames import Gap
from common.pgoutput import parse_insert
from common.postgres import Connection, DatabaseProblem, Kind, Pool, connect
from deploy.embedded_postgres import EmbeddedPostgres
from ingester.membership import Family, Look, NotPublished, Relation
from ingester.membership import add_table as membership_add_table
from ingester.membership import look as membership_look
from ingester.publication import (
    Publication,
    Published,
    current_snapshot,
    full_xid,
)
from ingester.publication_setup import PublicationState, ensure_publication
from ingester.standing import Standing

NAME = 'Pub "of" d.tests'
Outcome = Published | NotPublished


class Bench:
    """One database with its publication, and what the Publication under test told its owner."""

    def __init__(self, url: str, admin: Connection) -> None:
        self.url, self.admin = url, admin
        self.standings: list[dict[int, Standing]] = []
        self.gaps: list[Gap] = []
        self.remedies: list[str] = []
        self._pools: list[Pool] = []
        self._publications: list[Publication] = []

    async def run(self, *statements: str) -> None:
        for statement in statements:
            await self.admin.execute(statement.encode())

    async def one(self, query: str, *parameters: Any) -> Any:
        row = await (await self.admin.execute(query.encode(), parameters)).fetchone()
        return row[0] if row else None

    async def oid(self, name: str, schema: str = "public") -> int:
        query = "SELECT c.oid::int8 FROM pg_class c WHERE relname = %s AND relnamespace = %s::text::regnamespace"
        return int(await self.one(query, name, sql.Identifier(schema).as_string(None)))

    async def identity(self, name: str) -> str:
        return str(await self.one("SELECT relreplident::text FROM pg_class WHERE relname = %s", name))

    async def members(self) -> list[str]:
        cursor = await self.admin.execute(
            "SELECT c.relname FROM pg_publication_rel r JOIN pg_class c ON c.oid = r.prrelid"
        )
        return sorted([row[0] async for row in cursor])

    async def save(self, standings: dict[int, Standing]) -> None:
        self.standings.append(standings)

    def publication(self, *, url: str | None = None, manual: bool = False, **options: Any) -> Publication:
        pool = Pool(url or self.url, "galvanic test pool", 4)
        made = Publication(
            pool,
            options.pop("name", NAME),
            manual=manual,
            standings=options.pop("standings", {}),
            on_standings=self.save,
            on_gap=self.gaps.append,
            on_remedy=lambda _, script: self.remedies.append(script),
            **options,
        )
        self._pools.append(pool)
        self._publications.append(made)
        return made

    async def ensure(self, made: Publication, name: str, schema: str = "public") -> Outcome:
        async with asyncio.timeout(30):
            return await made.ensure_table(await self.oid(name, schema), schema, name)

    async def close(self) -> None:
        for made in self._publications:
            await made.close()
        for pool in self._pools:
            await pool.close()


@pytest.fixture
async def bench(database: str) -> AsyncIterator[Bench]:
    admin = await connect(database, "galvanic test admin")
    await ensure_publication(admin, NAME, manual=False)
    made = Bench(database, admin)
    yield made
    await made.close()
    await admin.close()


@pytest.fixture
def role(postgres_server: EmbeddedPostgres) -> Iterator[str]:
    """A role without any privileges; goes after the database that may hold things of its own."""
    name = f"role_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(postgres_server.url, autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(name)))
    yield name
    with psycopg.connect(postgres_server.url, autocommit=True) as admin:
        admin.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))


def as_role(url: str, role: str) -> str:
    return url.replace("postgres@", f"{role}@")


def refused(outcome: Outcome) -> NotPublished:
    assert isinstance(outcome, NotPublished), outcome
    return outcome


async def backend_waits(bench: Bench) -> None:
    """Returns when one of the pool's backends waits for a lock."""
    async with asyncio.timeout(20):
        while True:
            if await bench.one(
                "SELECT true FROM pg_stat_activity WHERE application_name = 'galvanic test pool' "
                "AND datname = current_database() AND wait_event_type = 'Lock' LIMIT 1"
            ):
                return
            await asyncio.sleep(0.02)


# --------------------------------------------------------------------------------------------------------------------
# the publication itself


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


# --------------------------------------------------------------------------------------------------------------------
# adding tables

PLAIN = "CREATE TABLE public.items (id int PRIMARY KEY, v text)"


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


PARTITIONED = (
    "CREATE TABLE public.root (id int PRIMARY KEY) PARTITION BY RANGE (id)",
    "CREATE TABLE public.low PARTITION OF public.root FOR VALUES FROM (0) TO (10)",
    "CREATE TABLE public.mid PARTITION OF public.root FOR VALUES FROM (10) TO (20) PARTITION BY RANGE (id)",
    'CREATE TABLE public."mid a" PARTITION OF public.mid FOR VALUES FROM (10) TO (15)',
)


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
    async with asyncio.timeout(20):
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

    monkeypatch.setattr(publication_module, "look", look)
    assert await bench.ensure(made, "low") == Published()
    assert taken_out
    assert await bench.members() == ["low"]


async def test_patience_with_a_lock_ends(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publication_module, "LOCK_SECONDS", 0.05)
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


# --------------------------------------------------------------------------------------------------------------------
# what others have set up


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
# what snapshots show


@pytest.mark.parametrize("end", ["COMMIT", "ROLLBACK"])
async def test_open_transactions_are_unseen(bench: Bench, end: str) -> None:
    await bench.run(PLAIN)
    writer = await connect(bench.url, "galvanic test writer")
    await writer.execute("BEGIN")
    await writer.execute("INSERT INTO public.items VALUES (1)")
    row = await (await writer.execute("SELECT pg_current_xact_id()::text::int8")).fetchone()
    assert row is not None
    xid = row[0]
    snapshot = await current_snapshot(bench.admin)
    assert [snapshot.shows(each) for each in (xid - 1, xid, xid + 1000)] == [True, False, False]
    await writer.execute(end.encode())
    assert (await current_snapshot(bench.admin)).shows(xid)
    assert xid < await full_xid(bench.admin) < xid + 1000
    await writer.close()


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

    monkeypatch.setattr(publication_module, "add_table", add_table)
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
    monkeypatch.setattr(publication_module, "LOCK_SECONDS", 30.0)
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

"""Every change of a table, while it is written and while nobody writes: which shapes end, and that others are right.

All changes happen in one database with one stack, each on tables of its own. The shapes that must end do, also where
no change will ever show why; all others live, and in the end every reader holds what Postgres does.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Sequence
from typing import Final, NamedTuple

import psycopg
import pytest

from tests.faults.mortal import IN_THE_WAY, Mortal, compare, stopped_at_last, until, written
from tests.pipeline.fixtures import StartStack
from tests.pipeline.reader import Reader
from tests.pipeline.stack import Stack, owner_of
from tests.pipeline.workload import SCALE

PUBLICATION: Final = "electric_publication_default"
PERIOD: Final = {"ELECTRIC_TWEAKS_PUBLICATION_REFRESH_PERIOD": "1s"}

TABLE: Final = """
CREATE TABLE {t} (id int PRIMARY KEY, keep text NOT NULL DEFAULT 'k', b varchar(10) DEFAULT 'b', n int DEFAULT 1);
INSERT INTO {t} (id) SELECT generate_series(1, 5);
"""
TREE: Final = """
CREATE TABLE {t} (id int PRIMARY KEY, keep text NOT NULL DEFAULT 'k') PARTITION BY RANGE (id);
CREATE TABLE {t}_low PARTITION OF {t} FOR VALUES FROM (0) TO (100);
CREATE TABLE {t}_high PARTITION OF {t} FOR VALUES FROM (100) TO (200);
INSERT INTO {t} (id) VALUES (1), (2), (101), (102);
"""
MOODY: Final = (
    "CREATE TYPE {t}_mood AS ENUM ('sad', 'happy');" + TABLE + "ALTER TABLE {t} ADD mood {t}_mood DEFAULT 'sad';"
)
WRITES: Final = (
    "INSERT INTO {t} (id) SELECT max(id) + 1 FROM {t}",
    "UPDATE {t} SET keep = keep || '.' WHERE id = 1",
    "DELETE FROM {t} WHERE id = (SELECT max(id) FROM {t} WHERE id > 6)",
)
TREE_WRITES: Final = (
    "UPDATE {t} SET keep = keep || '.' WHERE id IN (1, 101)",
    "UPDATE {t} SET id = 103 - id WHERE id IN (2, 101)",  # moves rows between the leaves and back
    "INSERT INTO {t} VALUES (50), (150)",
    "DELETE FROM {t} WHERE id IN (50, 150)",
)

ALL: Final = None
FEW: Final = ("id", "keep")
WITH_B: Final = ("id", "b")


class Shape(NamedTuple):
    """A shape on ``{t}`` + ``suffix``."""

    suffix: str = ""
    columns: Sequence[str] | None = ALL


class Case(NamedTuple):
    """A change, and which shapes it ends and which it must not.

    ``either``: these may do both, as long as they are right; so may ``silent_lives`` if the table is written.
    """

    name: str
    change: str
    ends: tuple[Shape, ...] = ()
    lives: tuple[Shape, ...] = ()
    silent_lives: tuple[Shape, ...] = ()
    either: tuple[Shape, ...] = ()
    setup: str = TABLE
    writes: tuple[str, ...] = WRITES


def plain(name: str, change: str, *, ends: tuple[Shape, ...] = (), lives: tuple[Shape, ...] = ()) -> Case:
    return Case(name, change, ends, lives)


def tree(
    name: str,
    change: str,
    *,
    ends: tuple[Shape, ...] = (),
    lives: tuple[Shape, ...] = (),
    either: tuple[Shape, ...] = (),
) -> Case:
    return Case(name, change, ends, lives, either=either, setup=TREE, writes=TREE_WRITES)


WHOLE, SOME, SECOND = Shape(), Shape(columns=FEW), Shape(columns=WITH_B)
LOW, HIGH = Shape("_low"), Shape("_high")

CASES: Final = (
    plain("added", "ALTER TABLE {t} ADD c text", ends=(WHOLE,), lives=(SOME, SECOND)),
    plain("dropped", "ALTER TABLE {t} DROP b", ends=(WHOLE, SECOND), lives=(SOME,)),
    plain("renamed_column", "ALTER TABLE {t} RENAME b TO z", ends=(WHOLE, SECOND), lives=(SOME,)),
    plain("retyped", "ALTER TABLE {t} ALTER b TYPE text", ends=(WHOLE, SECOND), lives=(SOME,)),
    plain("longer", "ALTER TABLE {t} ALTER b TYPE varchar(20)", ends=(WHOLE, SECOND), lives=(SOME,)),
    plain("not_null", "ALTER TABLE {t} ALTER b SET NOT NULL", ends=(WHOLE, SECOND), lives=(SOME,)),
    plain("nullable", "ALTER TABLE {t} ALTER keep DROP NOT NULL", ends=(WHOLE, SOME), lives=(SECOND,)),
    plain(
        "other_key",
        "ALTER TABLE {t} DROP CONSTRAINT {t}_pkey, ADD PRIMARY KEY (id, keep)",
        ends=(WHOLE, SOME, SECOND),
    ),
    plain("new_default", "ALTER TABLE {t} ALTER n SET DEFAULT 7", lives=(WHOLE, SOME)),
    plain("harmless", "CREATE INDEX ON {t} (n); ALTER TABLE {t} ADD CHECK (id > 0); ANALYZE {t}", lives=(WHOLE,)),
    plain("rewritten", "VACUUM FULL {t}", lives=(WHOLE, SOME)),
    plain("in_a_transaction", "BEGIN; INSERT INTO {t} (id) VALUES (-1); ALTER TABLE {t} ADD c text; "
          "INSERT INTO {t} (id) VALUES (-2); COMMIT", ends=(WHOLE,), lives=(SOME,)),
    plain("undone", "BEGIN; ALTER TABLE {t} ADD c text; INSERT INTO {t} (id) VALUES (-3); ROLLBACK", lives=(WHOLE,)),
    plain("there_and_back", "BEGIN; ALTER TABLE {t} RENAME b TO z; INSERT INTO {t} (id) VALUES (-4); "
          "ALTER TABLE {t} RENAME z TO b; COMMIT", ends=(), lives=(SOME,)),
    plain("gone", "DROP TABLE {t}", ends=(WHOLE, SOME)),
    plain("replaced", "BEGIN; DROP TABLE {t}; " + TABLE + "COMMIT", ends=(WHOLE, SOME)),
    plain("swapped", "BEGIN; ALTER TABLE {t} RENAME TO {t}_old; CREATE TABLE {t} (LIKE {t}_old INCLUDING ALL); COMMIT",
          ends=(WHOLE, SOME)),
    plain("renamed", "ALTER TABLE {t} RENAME TO {t}_other", ends=(WHOLE, SOME)),
    plain("elsewhere", "CREATE SCHEMA IF NOT EXISTS s; ALTER TABLE {t} SET SCHEMA s", ends=(WHOLE,)),
    plain("truncated", "TRUNCATE {t}", ends=(WHOLE, SOME)),
    plain("filled_anew", "BEGIN; INSERT INTO {t} (id) VALUES (-5); TRUNCATE {t}; INSERT INTO {t} (id) VALUES (1), (2); "
          "COMMIT", ends=(WHOLE,)),
    Case("cascade", "TRUNCATE {t} CASCADE", ends=(WHOLE, Shape("_ref")), lives=(Shape("_kin"),),
         setup=TABLE + "CREATE TABLE {t}_ref (id int PRIMARY KEY REFERENCES {t}); INSERT INTO {t}_ref VALUES (1);"
         "CREATE TABLE {t}_kin (id int PRIMARY KEY); INSERT INTO {t}_kin VALUES (1);"),
    Case("identity", "ALTER TABLE {t} REPLICA IDENTITY DEFAULT; UPDATE {t} SET n = 5 WHERE id = 1", ends=(WHOLE, SOME)),
    Case("identity_only", "ALTER TABLE {t} REPLICA IDENTITY DEFAULT", silent_lives=(WHOLE,)),
    plain("unpublished", "ALTER PUBLICATION {p} DROP TABLE {t}", ends=(WHOLE, SOME)),
    plain("republished", "ALTER PUBLICATION {p} DROP TABLE {t}; UPDATE {t} SET n = 6; "
          "ALTER PUBLICATION {p} ADD TABLE {t}", ends=(WHOLE, SOME)),
    plain("filtered", "BEGIN; ALTER PUBLICATION {p} DROP TABLE {t}; ALTER PUBLICATION {p} ADD TABLE {t} "
          "WHERE (n > 5); COMMIT", ends=(WHOLE, SOME)),
    plain("narrowed", "BEGIN; ALTER PUBLICATION {p} DROP TABLE {t}; ALTER PUBLICATION {p} ADD TABLE {t} (id); COMMIT",
          ends=(WHOLE, SOME)),
    plain("recalculated", "ALTER TABLE {t} ALTER b TYPE varchar(10) USING upper(b)", ends=(WHOLE, SECOND),
          lives=(SOME,)),
    plain("tuned", "ALTER TABLE {t} ALTER b SET STATISTICS 5; ALTER TABLE {t} ALTER b SET DEFAULT 'c'",
          lives=(WHOLE, SECOND)),
    Case("expressed_anew", "ALTER TABLE {t} ALTER twice SET EXPRESSION AS (n * 3)",
         ends=(WHOLE, Shape(columns=("id", "twice"))), lives=(SOME,),
         setup=TABLE + "ALTER TABLE {t} ADD twice int GENERATED ALWAYS AS (n * 2) STORED;"),
    Case("relabelled", "ALTER TYPE {t}_mood RENAME VALUE 'sad' TO 'blue'", ends=(WHOLE, Shape(columns=("id", "mood"))),
         lives=(SOME,), setup=MOODY),
    Case("one_more_label", "ALTER TYPE {t}_mood ADD VALUE 'calm' BEFORE 'happy'; "
         "INSERT INTO {t} (id, mood) VALUES (-1, 'calm')", lives=(WHOLE, SOME), setup=MOODY),
    Case("more_attributes", "ALTER TYPE {t}_point ADD ATTRIBUTE z int", ends=(WHOLE, Shape(columns=("id", "at"))),
         lives=(SOME,), setup="CREATE TYPE {t}_point AS (x int, y int);" + TABLE +
         "ALTER TABLE {t} ADD at {t}_point; UPDATE {t} SET at = ROW(id, n);"),
    tree("root_recalculated", "ALTER TABLE {t} ALTER keep TYPE text USING upper(keep)", ends=(WHOLE, LOW, HIGH)),
    tree("leaf_added", "CREATE TABLE {t}_more PARTITION OF {t} FOR VALUES FROM (200) TO (300); "
         "INSERT INTO {t} VALUES (201)", lives=(WHOLE, LOW, HIGH)),
    tree("branch_added", "CREATE TABLE {t}_more PARTITION OF {t} FOR VALUES FROM (200) TO (300) PARTITION BY "
         "RANGE (id); CREATE TABLE {t}_most PARTITION OF {t}_more FOR VALUES FROM (200) TO (250); "
         "INSERT INTO {t} VALUES (202)", lives=(WHOLE, LOW)),
    tree("full_leaf_attached", "CREATE TABLE {t}_more (LIKE {t} INCLUDING ALL); INSERT INTO {t}_more VALUES (203); "
         "ALTER TABLE {t} ATTACH PARTITION {t}_more FOR VALUES FROM (200) TO (300)", ends=(WHOLE,), lives=(LOW, HIGH)),
    tree("full_leaf_at_once", "BEGIN; CREATE TABLE {t}_more (LIKE {t} INCLUDING ALL); "
         "INSERT INTO {t}_more VALUES (204); "
         "ALTER TABLE {t} ATTACH PARTITION {t}_more FOR VALUES FROM (200) TO (300); COMMIT",
         ends=(WHOLE,), lives=(LOW, HIGH)),
    tree("detached", "ALTER TABLE {t} DETACH PARTITION {t}_high", ends=(WHOLE,), lives=(LOW,),
         either=(HIGH,)),  # whether it is published by itself depends on which shape came first
    tree("detached_slowly", "ALTER TABLE {t} DETACH PARTITION {t}_high CONCURRENTLY", ends=(WHOLE,), lives=(LOW,)),
    tree("detached_at_once", "BEGIN; ALTER TABLE {t} DETACH PARTITION {t}_high; UPDATE {t}_high SET keep = 'alone'; "
         "ALTER TABLE {t} ATTACH PARTITION {t}_high FOR VALUES FROM (100) TO (200); COMMIT",
         ends=(WHOLE,), lives=(LOW,), either=(HIGH,)),  # the leaf lives if it was published before the root
    tree("detached_and_back", "ALTER TABLE {t} DETACH PARTITION {t}_high; DELETE FROM {t}_high WHERE id = 102; "
         "ALTER TABLE {t} ATTACH PARTITION {t}_high FOR VALUES FROM (100) TO (200)", ends=(WHOLE,), lives=(LOW,),
         either=(HIGH,)),
    tree("leaf_dropped", "DROP TABLE {t}_high", ends=(WHOLE, HIGH), lives=(LOW,)),
    tree("root_renamed", "ALTER TABLE {t} RENAME TO {t}_other", ends=(WHOLE,), lives=(LOW,)),
    tree("leaf_renamed", "ALTER TABLE {t}_low RENAME TO {t}_lower", ends=(LOW,), lives=(WHOLE, HIGH)),
    tree("root_truncated", "TRUNCATE {t}", ends=(WHOLE, LOW, HIGH)),
    tree("leaf_truncated", "TRUNCATE {t}_low", ends=(WHOLE, LOW), lives=(HIGH,)),
    tree("leaf_identity", "ALTER TABLE {t}_low REPLICA IDENTITY DEFAULT; UPDATE {t} SET keep = 'u' WHERE id = 1",
         ends=(WHOLE, LOW), lives=(HIGH,)),
    tree("root_column", "ALTER TABLE {t} ADD c text", ends=(WHOLE, LOW, HIGH),
         lives=(SOME, Shape("_low", FEW))),
    Case("moved", "BEGIN; ALTER TABLE {t} DETACH PARTITION {t}_high; ALTER TABLE {t}_too ATTACH PARTITION {t}_high "
         "FOR VALUES FROM (100) TO (200); COMMIT", ends=(WHOLE, Shape("_too")), lives=(LOW,), setup=TREE +
         "CREATE TABLE {t}_too (id int PRIMARY KEY, keep text NOT NULL DEFAULT 'k') PARTITION BY RANGE (id);",
         writes=TREE_WRITES),
)  # fmt: skip

QUICK: Final = (
    "added", "not_null", "other_key", "replaced", "renamed", "truncated", "identity", "unpublished", "republished",
    "new_default", "leaf_added", "full_leaf_attached", "full_leaf_at_once", "detached", "detached_at_once",
    "leaf_dropped", "root_renamed", "recalculated", "relabelled",
)  # fmt: skip
"""What every run of the tests sees; the others take a minute."""


def statements(text: str, table: str) -> list[str]:
    """The statements one by one, since some may not run in a transaction."""
    named = text.replace("{t}", table).replace("{p}", PUBLICATION)
    return [statement.strip() for statement in named.split(";") if statement.strip()]


@pytest.mark.parametrize("load", ["written", "silent"])
@pytest.mark.parametrize(
    "cases",
    [
        pytest.param([case for case in CASES if case.name in QUICK], id="quick"),
        pytest.param([case for case in CASES if case.name not in QUICK], id="others", marks=pytest.mark.faults),
    ],
)
async def test_a_change_of_a_table_ends_the_shapes_it_concerns_and_no_others(
    database: str, start_stack: StartStack, cases: list[Case], load: str
) -> None:
    readers: list[Reader] = []
    async with (
        await psycopg.AsyncConnection.connect(database, autocommit=True) as connection,
        stopped_at_last(readers),
    ):
        await connection.execute("CREATE TABLE marker (id bigserial PRIMARY KEY)")
        for case in cases:
            for statement in statements(case.setup, case.name):
                await connection.execute(statement.encode())
        stack = await start_stack(database, workers=2, environment=PERIOD)
        mortal: dict[str, Mortal] = {}
        immortal: list[Reader] = [Reader(stack.url, "marker")]
        for case in cases:
            for shape in case.ends + case.either + (case.silent_lives if load == "written" else ()):
                doomed = Mortal(stack.url, case.name + shape.suffix, columns=shape.columns)
                readers.append(doomed)
                if shape in case.ends:
                    mortal[doomed.name] = doomed
            for shape in case.lives + (case.silent_lives if load == "silent" else ()):
                immortal.append(Reader(stack.url, case.name + shape.suffix, columns=shape.columns))
        readers += immortal
        for reader in readers:
            reader.start()
        for reader in readers:
            await reader.current()
        await asyncio.sleep(1)  # a complete shape is made durable within moments
        for reader in immortal:
            reader.protected = True
        early = [name for name, reader in mortal.items() if reader.over]
        assert not early, f"ended although nothing has changed: {early}"
        async with contextlib.AsyncExitStack() as load_on:
            if load == "written":
                for case in cases:
                    writes = [write.replace("{t}", case.name) for write in case.writes]
                    await load_on.enter_async_context(written(database, writes, pause=0.2))
            for case in cases:
                for statement in statements(case.change, case.name):
                    try:
                        await connection.execute(statement.encode())
                    except psycopg.Error as error:
                        raise AssertionError(f"{case.name}: {statement}: {error}") from error
            await until(
                lambda: all(reader.over for reader in mortal.values()),
                readers,
                lambda: [name for name, reader in mortal.items() if not reader.over],
            )
        # What stands in the way of new shapes goes; the table is published anew by the next request.
        for case in cases:
            if case.name in ("filtered", "narrowed"):
                await connection.execute(f"ALTER PUBLICATION {PUBLICATION} DROP TABLE {case.name}".encode())
        await compare(database, readers)
        cursor = await connection.execute(
            "SELECT c.relname FROM pg_publication_rel r JOIN pg_class c ON c.oid = r.prrelid "
            "WHERE c.relkind = 'r' AND c.relreplident <> 'f'"
        )
        assert await cursor.fetchall() == []
    stack.check()


CHURN: Final = (
    "ALTER TABLE t ADD c text",
    "ALTER TABLE t DROP c",
    "ALTER TABLE t RENAME b TO z",
    "ALTER TABLE t RENAME z TO b",
    "ALTER TABLE t ALTER b TYPE text",
    "ALTER TABLE t DROP CONSTRAINT t_pkey, ADD PRIMARY KEY (id, keep)",
    "ALTER TABLE t DROP CONSTRAINT t_pkey, ADD PRIMARY KEY (id)",
    "BEGIN; TRUNCATE t; INSERT INTO t (id) VALUES (1), (2); COMMIT",
    "BEGIN; INSERT INTO t (id) SELECT max(id) + 1 FROM t; ALTER TABLE t ADD d int; UPDATE t SET d = id; "
    "ALTER TABLE t DROP d; COMMIT",
    "BEGIN; DROP TABLE t; " + TABLE.replace("{t}", "t") + "COMMIT",
    "BEGIN; ALTER PUBLICATION {p} DROP TABLE t; UPDATE t SET n = n + 1; ALTER PUBLICATION {p} ADD TABLE t; COMMIT",
    "ALTER PUBLICATION {p} DROP TABLE t",
    "ALTER TABLE t REPLICA IDENTITY DEFAULT",
    "BEGIN; ALTER TABLE r DETACH PARTITION r_high; UPDATE r_high SET keep = 'alone'; "
    "ALTER TABLE r ATTACH PARTITION r_high FOR VALUES FROM (100) TO (200); COMMIT",
    "BEGIN; DROP TABLE r_high; CREATE TABLE r_high PARTITION OF r FOR VALUES FROM (100) TO (200); "
    "INSERT INTO r VALUES (101), (102); COMMIT",
    "TRUNCATE r_low",
    "INSERT INTO r VALUES (1), (2) ON CONFLICT DO NOTHING",
    "ALTER TABLE r_low REPLICA IDENTITY DEFAULT",
    "ALTER PUBLICATION {p} DROP TABLE r",
)


async def _looked(stack: Stack, connection: psycopg.AsyncConnection) -> None:
    """Waits until all is known that has happened on tables that are silent now.

    Workers look at the tables, the ingester at the publication, each at all of them at a time: so when they have
    noticed what happens to two more tables, they have noticed what happened before.
    """
    owners = await stack.wait_balanced()
    opened: list[Mortal] = []
    async with stopped_at_last(opened):
        for table in ("renamed_at_last", "unpublished_at_last"):
            await connection.execute(f"CREATE TABLE {table} (id int PRIMARY KEY)".encode())
            met: set[str] = set()
            while met != set(stack.workers):
                reader = Mortal(stack.url, table, where=f"id > {len(opened)}").start()
                opened.append(reader)
                await reader.current()
                met.add(owner_of(reader.view.handle, owners))
        await connection.execute(b"ALTER TABLE renamed_at_last RENAME TO renamed")
        await connection.execute(f"ALTER PUBLICATION {PUBLICATION} DROP TABLE unpublished_at_last".encode())
        await until(lambda: all(reader.over for reader in opened), opened, lambda: "a look of each process")


@pytest.mark.faults
async def test_changes_in_any_order_while_shapes_are_made_and_processes_die(
    database: str, start_stack: StartStack, seed: int
) -> None:
    """However the changes meet snapshots, replays and each other: in the end every reader holds what Postgres does."""
    chance = random.Random(seed)
    readers: list[Mortal] = []
    async with (
        await psycopg.AsyncConnection.connect(database, autocommit=True) as connection,
        stopped_at_last(readers),
    ):
        await connection.execute("CREATE TABLE marker (id bigserial PRIMARY KEY)")
        for statement in (*statements(TABLE, "t"), *statements(TREE, "r")):
            await connection.execute(statement.encode())
        stack = await start_stack(database, workers=2, environment=PERIOD)
        for table, columns in (
            ("t", ALL),
            ("t", FEW),
            ("t", WITH_B),
            ("r", ALL),
            ("r_low", ALL),
            ("r_high", FEW),
            ("marker", ALL),
        ):
            readers.append(Mortal(stack.url, table, columns=columns, monotone_lsn=False).start())
        writes = [write.replace("{t}", table) for table, of in (("t", WRITES), ("r", TREE_WRITES)) for write in of]
        async with written(database, writes, pause=0.01):
            for number in range(int(60 * SCALE)):
                for statement in statements(chance.choice(CHURN), ""):
                    # What does not apply just now undoes its transaction, if it is in one.
                    with contextlib.suppress(*IN_THE_WAY):
                        await connection.execute(statement.encode())
                if connection.info.transaction_status is not psycopg.pq.TransactionStatus.IDLE:
                    await connection.execute("ROLLBACK")
                if number % 20 == 10:
                    stack.kill9(chance.choice(["ingester", *stack.workers]))
                await asyncio.sleep(chance.choice([0.0, 0.05, 0.2, 0.5]))
                for reader in readers:
                    reader.check()
        # So that each reader may have its columns again.
        await connection.execute("ALTER TABLE t DROP CONSTRAINT t_pkey, ADD PRIMARY KEY (id)")
        with contextlib.suppress(psycopg.ProgrammingError):
            await connection.execute("ALTER TABLE t RENAME z TO b")
        await stack.wait_active()
        await _looked(stack, connection)
        await until(lambda: not any(reader.gone for reader in readers), readers, lambda: "all tables")
        for reader in readers:
            await reader.current()
        await compare(database, readers)
        print(f"ended: {[len(reader.view.ended) for reader in readers]}")

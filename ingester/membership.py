"""Whether a table is published as shapes need it, and what it takes to get there: one look at the catalog, one verdict.

Needed are membership in the publication without row filter or column list, and REPLICA IDENTITY FULL on every table
that stores rows: for a partitioned table these are its leaves, which do not inherit it (engine.md 4.7).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from typing import Final, NamedTuple

import msgspec
from psycopg import sql

from common.postgres import Connection

NO_TABLE: Final = 0
"""An oid to look at the publication alone with."""

LEAF_KIND: Final = "r"
PARTITIONED_KIND: Final = "p"
_FULL: Final = "f"
_SYSTEM_SCHEMAS: Final = ("pg_catalog", "information_schema", "pg_toast")
_KINDS: Final = {
    "v": "a view",
    "m": "a materialized view",
    "f": "a foreign table",
    "S": "a sequence",
    "i": "an index",
    "I": "an index",
    "c": "a composite type",
    "t": "a TOAST table",
}


class Flags(msgspec.Struct, frozen=True):
    """The publication itself. ``generated`` is ``s`` where stored generated columns are published (18 and later).

    ``version`` changes whenever any of it is altered, by anybody; its tables are no part of it.
    """

    oid: int
    owned: bool
    operations: bool
    via_root: bool
    all_tables: bool
    generated: str
    version: int = 0


class Relation(msgspec.Struct, frozen=True):
    """A table of a partition tree; ``level`` 0 is the table asked for. ``entry`` is its own row in pg_publication_rel.

    ``created`` and ``attached`` are the ids of the transactions that made the table and put it where it is in the tree.
    """

    oid: int
    schema: str
    name: str
    kind: str
    persistence: str
    identity: str
    level: int
    entry: int | None
    restricted: bool
    created: int = 0
    attached: int = 0

    @property
    def text(self) -> str:
        """The qualified name as the messages of http-api.md 25 have it."""
        return f"{self.schema}.{self.name}"

    @property
    def identifier(self) -> sql.Identifier:
        """The qualified name, quoted."""
        return sql.Identifier(self.schema, self.name)


class Look(msgspec.Struct, frozen=True):
    """The catalog at one moment: the tree from its top downwards, and the catalog rows by which it is published.

    ``ancestors`` are the partitioned tables above, nearest first. ``memberships`` holds rows of pg_publication_rel for
    the table or an ancestor, of pg_publication_namespace, or of pg_publication: none means that the table is not
    published. Each comes with its links: the transactions by which the table is attached, over those between, to the
    one that the row is for. ``key`` names the columns of the primary key, in its order.
    """

    publication: Flags | None
    relations: tuple[Relation, ...]
    ancestors: tuple[int, ...]
    memberships: dict[int, tuple[int, ...]]
    key: tuple[str, ...] = ()


_LOOK: Final = """
SELECT asked.oid, (
WITH RECURSIVE tree(oid, level, attached) AS (
    SELECT asked.oid::oid, 0, 0::bigint
    UNION ALL
    SELECT i.inhrelid, t.level + 1, i.xmin::text::bigint
    FROM tree t JOIN pg_inherits i ON i.inhparent = t.oid JOIN pg_class c ON c.oid = i.inhrelid
    WHERE c.relispartition AND NOT i.inhdetachpending
), above(oid, level, links) AS (
    SELECT asked.oid::oid, 0, '{{}}'::bigint[]
    UNION ALL
    SELECT i.inhparent, a.level + 1, a.links || i.xmin::text::bigint
    FROM above a JOIN pg_inherits i ON i.inhrelid = a.oid JOIN pg_class c ON c.oid = i.inhrelid
    WHERE c.relispartition AND NOT i.inhdetachpending
), publication AS (SELECT *, xmin AS version FROM pg_publication WHERE pubname = %(publication)s
), entries AS NOT MATERIALIZED (
    SELECT to_jsonb(r) AS row, r.oid, r.prrelid FROM pg_publication_rel r JOIN publication p ON p.oid = r.prpubid
) SELECT json_build_object(
    'publication', (
        SELECT json_build_object(
            'oid', p.oid::bigint, 'owned', pg_has_role(p.pubowner, 'USAGE'), 'via_root', p.pubviaroot,
            'operations', p.pubinsert AND p.pubupdate AND p.pubdelete AND p.pubtruncate,
            'all_tables', p.puballtables, 'generated', coalesce(to_jsonb(p) ->> 'pubgencols', 'n'),
            'version', p.version::text::bigint)
        FROM publication p),
    'relations', (
        SELECT coalesce(json_agg(json_build_object(
            'oid', c.oid::bigint, 'schema', n.nspname, 'name', c.relname, 'kind', c.relkind,
            'persistence', c.relpersistence, 'identity', c.relreplident, 'level', t.level, 'entry', e.oid::bigint,
            'restricted', e.row ->> 'prqual' IS NOT NULL OR e.row ->> 'prattrs' IS NOT NULL,
            'created', coalesce(
                (SELECT a.xmin::text::bigint FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum = -1), 0),
            'attached', t.attached)
            ORDER BY t.level, c.oid), '[]')
        FROM tree t JOIN pg_class c ON c.oid = t.oid JOIN pg_namespace n ON n.oid = c.relnamespace
        LEFT JOIN entries e ON e.prrelid = c.oid),
    'ancestors', (SELECT coalesce(json_agg(oid::bigint ORDER BY level), '[]') FROM above WHERE level > 0),
    'memberships', (
        SELECT coalesce(json_object_agg(m.oid, m.links ORDER BY m.rank, cardinality(m.links)), '{{}}') FROM (
            SELECT e.oid, 0 AS rank, a.links FROM entries e JOIN above a ON a.oid = e.prrelid
            {schemas}
            UNION ALL SELECT p.oid, 2, '{{}}' FROM publication p WHERE p.puballtables) AS m),
    'key', (
        SELECT coalesce(json_agg(a.attname ORDER BY k.place), '[]')
        FROM pg_index i CROSS JOIN LATERAL generate_series(0, i.indnkeyatts - 1) AS k(place)
        JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[k.place]
        WHERE i.indrelid = asked.oid::oid AND i.indisprimary)))
FROM unnest(%(oids)s::bigint[]) AS asked(oid)
"""
# Not pg_partition_tree(), which locks every table of the tree and could so wait for one that we are about to alter. A
# table's row for its system column is written once, so it tells which transaction made the table.

_SCHEMAS: Final = """
            UNION ALL (
                SELECT DISTINCT ON (s.oid) s.oid, 1, a.links
                FROM pg_publication_namespace s JOIN publication p ON p.oid = s.pnpubid
                JOIN pg_class c ON c.relnamespace = s.pnnspid JOIN above a ON a.oid = c.oid ORDER BY s.oid, a.level)
"""
"""``FOR TABLES IN SCHEMA`` exists since 15."""


async def look(connection: Connection, publication: str, oid: int) -> Look:
    """Looks a table up, in one statement that takes no locks on user tables. Raises ``psycopg.Error``."""
    return (await look_all(connection, publication, (oid,)))[oid]


async def look_all(connection: Connection, publication: str, oids: Iterable[int]) -> dict[int, Look]:
    """Looks tables up, all at the same moment. Raises ``psycopg.Error``."""
    schemas = _SCHEMAS if connection.info.server_version >= 150000 else ""
    parameters = {"oids": list(oids), "publication": publication}
    # To plan it takes three times as long as to execute it.
    cursor = await connection.execute(_LOOK.format(schemas=schemas).encode(), parameters, prepare=True)
    return {row[0]: msgspec.convert(row[1], Look, str_keys=True) for row in await cursor.fetchall()}


# --------------------------------------------------------------------------------------------------------------------
# verdicts


class NotPublished(NamedTuple):
    """Why the table cannot be published, for clients (http-api.md 25), and what an operator may run about it.

    ``retry_after`` in seconds; ``None`` where asking again is no use.
    """

    reason: str
    status: int = 503
    retry_after: int | None = 10
    remedy: str = ""


class Member(NamedTuple):
    """The table is published with full identity, by these catalog rows."""

    memberships: tuple[int, ...]


class Steps(NamedTuple):
    """What is missing: an entry in the publication, and REPLICA IDENTITY FULL on these tables."""

    add: bool
    full: tuple[Relation, ...]


Verdict = Member | Steps | NotPublished


def examine(found: Look, publication: str, *, schema: str, name: str, manual: bool) -> Verdict:
    """What the catalog says about publishing the table that was called ``schema.name`` when its oid was looked up.

    With ``manual``, or if the publication belongs to another role, nothing may be altered (engine.md 4.5).
    """
    flags = found.publication
    if flags is None:
        return NotPublished(f'Publication "{publication}" not found in the database')
    if not flags.operations:
        return NotPublished(
            f'Publication "{publication}" does not publish all required operations: INSERT, UPDATE, DELETE, TRUNCATE',
            remedy=_script([set_operations(publication)]),
        )
    if flags.via_root:
        return NotPublished(
            f'Publication "{publication}" publishes changes of partitions under the name of their root',
            remedy=_script([set_operations(publication)]),
        )
    if not found.relations or (found.relations[0].schema, found.relations[0].name) != (schema, name):
        return NotPublished(f'Database table "{schema}.{name}" was dropped or renamed', 409, None)
    for relation in found.relations:
        if obstacle := _obstacle(relation):
            return NotPublished(f'cannot add relation "{name}" to publication: {obstacle}', 400, None)
    full = tuple(relation for relation in found.relations if relation.identity != _FULL)
    stored = [relation for relation in full if relation.kind == LEAF_KIND]
    top = found.relations[0]
    verify_only = manual or not flags.owned
    if not found.memberships:
        if not verify_only:
            return Steps(True, full)
        cause = (
            "the ELECTRIC_MANUAL_TABLE_PUBLISHING setting prevents Electric from adding it"
            if manual
            else "Electric lacks privileges to add it"
        )
        return NotPublished(
            f'Database table "{top.text}" is missing from the publication "{publication}" and {cause}',
            remedy=_script([add_table(publication, top), *map(set_identity, stored)]),
        )
    for relation in found.relations:
        if relation.restricted:
            return NotPublished(
                f'Database table "{relation.text}" has a row filter or column list in the publication "{publication}"',
                remedy=_script([drop_table(publication, relation), add_table(publication, relation)]),
            )
    if not stored:
        return Member(tuple(found.memberships))
    if not verify_only:
        return Steps(False, full)
    return NotPublished(
        f'Database table "{stored[0].text}" does not have its replica identity set to FULL',
        remedy=_script(map(set_identity, stored)),
    )


def _obstacle(relation: Relation) -> str | None:
    if relation.schema in _SYSTEM_SCHEMAS:
        return "it is a system table"
    what = "it" if relation.level == 0 else f"its partition {relation.text}"
    if relation.kind not in (LEAF_KIND, PARTITIONED_KIND):
        return f"{what} is {_KINDS.get(relation.kind, 'not a table')}"
    if relation.persistence != "p":
        kind = "unlogged" if relation.persistence == "u" else "temporary"
        return f"{what} is {kind}, so its changes are not in the WAL"
    return None


def settled(memberships: Mapping[int, int], oid: int, found: Look) -> int | None:
    """The row by which the table is published and for which the barrier of engine.md 4.8 is behind us, if there is one.

    ``memberships`` are those settled so far, by table. What holds for a partitioned table holds for its later leaves:
    attaching one waits for all that write to it.
    """
    known = (memberships.get(table) for table in (oid, *found.ancestors))
    return next((membership for membership in known if membership in found.memberships), None)


def lacks_identity(found: Look) -> bool:
    """Whether some table that stores rows would send changes without their old rows."""
    return any(relation.kind == LEAF_KIND and relation.identity != _FULL for relation in found.relations)


# --------------------------------------------------------------------------------------------------------------------
# statements


def add_table(publication: str, relation: Relation) -> sql.Composed:
    """ONLY, since shapes of a table do not hold the rows of tables that inherit from it; partitions come along
    anyway."""
    return sql.SQL("ALTER PUBLICATION {} ADD TABLE ONLY {}").format(sql.Identifier(publication), relation.identifier)


def drop_table(publication: str, relation: Relation) -> sql.Composed:
    """Takes the table's own entry out of the publication."""
    return sql.SQL("ALTER PUBLICATION {} DROP TABLE ONLY {}").format(sql.Identifier(publication), relation.identifier)


def set_identity(relation: Relation) -> sql.Composed:
    """Makes updates and deletes carry the whole old row."""
    return sql.SQL("ALTER TABLE ONLY {} REPLICA IDENTITY FULL").format(relation.identifier)


def publish_generated(publication: str) -> sql.Composed:
    """Makes the publication publish stored generated columns (18 and later)."""
    return sql.SQL("ALTER PUBLICATION {} SET (publish_generated_columns = stored)").format(sql.Identifier(publication))


def set_operations(publication: str) -> sql.Composed:
    """Makes the publication publish what shapes need."""
    return sql.SQL(
        "ALTER PUBLICATION {} SET (publish = 'insert, update, delete, truncate', publish_via_partition_root = false)"
    ).format(sql.Identifier(publication))


def lock_tables(relations: Iterable[Relation], full: Iterable[Relation]) -> Iterator[sql.Composed]:
    """Locks that exclude writers, in the given order, which must be from the top of the tree downwards as writers have
    it.

    Tables whose identity is to change get the lock of that change at once: to take a weaker one first would deadlock
    with a transaction that has read the table and then writes to it.
    """
    exclusive = {relation.oid for relation in full}
    for is_exclusive, group in groupby(relations, key=lambda relation: relation.oid in exclusive):
        yield sql.SQL("LOCK TABLE ONLY {} IN {} MODE").format(
            sql.SQL(", ONLY ").join(relation.identifier for relation in group),
            sql.SQL("ACCESS EXCLUSIVE" if is_exclusive else "SHARE ROW EXCLUSIVE"),
        )


def _script(statements: Iterable[sql.Composed]) -> str:
    return " ".join(f"{statement.as_string(None)};" for statement in statements)


class Family(NamedTuple):
    """The partitioned tables above a table, nearest first, and the tables below it that store rows."""

    ancestors: tuple[int, ...]
    leaves: tuple[int, ...]


def family(found: Look) -> Family:
    """How changes of one table concern others of its partition tree (engine.md 4.7)."""
    return Family(found.ancestors, tuple(r.oid for r in found.relations if r.level > 0 and r.kind == LEAF_KIND))

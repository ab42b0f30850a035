"""A database, its publication, and what the product tells of both: for the tests of publishing."""

from __future__ import annotations

import asyncio
from typing import Any

from psycopg import sql

from common.frames import Gap
from common.postgres import Connection, Pool
from ingester.membership import NotPublished
from ingester.publication import Publication, Published
from ingester.standing import Standing

NAME = 'Pub "of" d.tests'
Outcome = Published | NotPublished

PLAIN = "CREATE TABLE public.items (id int PRIMARY KEY, v text)"
PARTITIONED = (
    "CREATE TABLE public.root (id int PRIMARY KEY) PARTITION BY RANGE (id)",
    "CREATE TABLE public.low PARTITION OF public.root FOR VALUES FROM (0) TO (10)",
    "CREATE TABLE public.mid PARTITION OF public.root FOR VALUES FROM (10) TO (20) PARTITION BY RANGE (id)",
    'CREATE TABLE public."mid a" PARTITION OF public.mid FOR VALUES FROM (10) TO (15)',
)


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
        async with asyncio.timeout(120):
            return await made.ensure_table(await self.oid(name, schema), schema, name)

    async def close(self) -> None:
        for made in self._publications:
            await made.close()
        for pool in self._pools:
            await pool.close()


def as_role(url: str, role: str) -> str:
    return url.replace("postgres@", f"{role}@")


def refused(outcome: Outcome) -> NotPublished:
    assert isinstance(outcome, NotPublished), outcome
    return outcome


async def backend_waits(bench: Bench) -> None:
    """Returns when one of the pool's backends waits for a lock."""
    async with asyncio.timeout(120):
        while True:
            if await bench.one(
                "SELECT true FROM pg_stat_activity WHERE application_name = 'galvanic test pool' "
                "AND datname = current_database() AND wait_event_type = 'Lock' LIMIT 1"
            ):
                return
            await asyncio.sleep(0.02)

"""TanStack DB collections: sync modes, and changes that come back by the stream."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from tests.clients import traffic
from tests.clients.driver import Driver, DriverError
from tests.clients.lineup import NO_HANDLE_YET, Lineup
from tests.clients.subject import Subject

pytestmark = pytest.mark.timeout(300)


class Backend:
    """Writes what collections hand over, as the backend of an application would, and tells the transaction's id."""

    def __init__(self, database: str, table: str) -> None:
        self._database = database
        self._table = sql.Identifier(table)

    async def write(self, question: dict[str, Any]) -> int:
        async with await psycopg.AsyncConnection.connect(self._database) as connection:
            for change in question["changes"]:
                row = change["modified"]
                if change["type"] == "delete":
                    query = sql.SQL("DELETE FROM {} WHERE id = %(id)s").format(self._table)
                elif change["type"] == "insert":
                    query = sql.SQL("INSERT INTO {} (id, v) VALUES (%(id)s, upper(%(v)s))").format(self._table)
                else:
                    query = sql.SQL("UPDATE {} SET v = upper(%(v)s) WHERE id = %(id)s").format(self._table)
                await connection.execute(query, row)
            return await txid(connection)


async def txid(connection: psycopg.AsyncConnection) -> int:
    """The id of the transaction as logical replication has it: without the epoch."""
    found = await (await connection.execute("SELECT pg_current_xact_id()::xid::text")).fetchone()
    assert found is not None
    return int(found[0])


async def _fill(lineup: Lineup, table: str) -> None:
    await traffic.run(
        lineup.database,
        f"CREATE TABLE {table} (id int PRIMARY KEY, v text, n int)",
        f"INSERT INTO {table} SELECT i, 'row ' || i, i % 10 FROM generate_series(1, 100) i",
    )


async def test_changes_come_back_by_the_stream(lineup: Lineup, tmp_path: Path) -> None:
    await _fill(lineup, "mutated")
    backend = Backend(lineup.database, "mutated")
    async with Driver("tanstack", tmp_path, backend.write) as tanstack:
        await tanstack.call("open", name="mutated", syncMode="eager", options=lineup.options("mutated"))
        subject = Subject(tanstack, "mutated", {"name": "mutated"})
        await subject.settle(lineup.database)
        # What the server made of it is there when the change counts as persisted.
        inserted = await tanstack.call("insert", name="mutated", row={"id": 1000, "v": "made here"})
        assert inserted["shown"]
        assert inserted["row"]["v"] == "MADE HERE"
        updated = await tanstack.call("update", name="mutated", id=5, changes={"v": "changed here"})
        assert updated["row"]["v"] == "CHANGED HERE"
        assert not (await tanstack.call("remove", name="mutated", id=7))["held"]
        await asyncio.gather(
            *(
                tanstack.call("update", name="mutated", id=number, changes={"v": f"v{number}"})
                for number in range(20, 40)
            )
        )
        await subject.compare(lineup.database)
        assert tanstack.warnings == []


async def test_transactions_are_waited_for_by_their_id(lineup: Lineup) -> None:
    await _fill(lineup, "awaited")
    await traffic.run(lineup.database, "CREATE TABLE elsewhere (id serial PRIMARY KEY)")
    await lineup.add_collection("awaited")
    tanstack = lineup.drivers["tanstack"]
    name = "awaited eager long-poll"
    await lineup.subjects[0].settle(lineup.database)
    for number in range(5):
        async with await psycopg.AsyncConnection.connect(lineup.database) as connection:
            await connection.execute("UPDATE awaited SET v = 'x' WHERE id = %s", [number])
            # A subtransaction has an id of its own, which nobody is told.
            async with connection.transaction():
                await connection.execute("UPDATE awaited SET v = 'y' WHERE id = %s", [number + 1])
            number_of_it = await txid(connection)
            waiting = asyncio.create_task(tanstack.call("awaitTxId", name=name, txid=number_of_it))
            await asyncio.sleep(0.2)
            assert not waiting.done()
        assert await waiting
    # Long gone by: seen already, or visible in the snapshot.
    assert await tanstack.call("awaitTxId", name=name, txid=number_of_it)
    async with await psycopg.AsyncConnection.connect(lineup.database) as connection:
        await connection.execute("INSERT INTO elsewhere DEFAULT VALUES")
        not_here = await txid(connection)
    with pytest.raises(DriverError, match="Timeout waiting for txId"):
        await tanstack.call("awaitTxId", name=name, txid=not_here, timeout=500)
    await lineup.check()


@pytest.mark.parametrize("sse", [False, True], ids=["long-poll", "sse"])
@pytest.mark.parametrize("mode", ["on-demand", "progressive"])
async def test_queries_get_the_rows_they_ask_for(lineup: Lineup, mode: str, sse: bool) -> None:
    table = f"asked_{mode.replace('-', '_')}_{sse}".lower()
    await _fill(lineup, table)
    tanstack = await lineup.driver("tanstack")
    await tanstack.call("open", name=table, syncMode=mode, options=lineup.options(table, sse=sse))
    await tanstack.call("query", name="low", over=table, where=[["gt", "id", 10], ["eq", "n", 3]])
    await tanstack.call("query", name="some", over=table, where=[["in", "id", [1, 2, 999]]])
    await tanstack.call("query", name="first", over=table, orderBy="id", limit=7)
    low = Subject(tanstack, table, {"name": "low"}, where="id > 10 AND n = 3")
    some = Subject(tanstack, table, {"name": "some"}, where="id IN (1, 2, 999)")
    first = Subject(tanstack, table, {"name": "first"}, where=f"id IN (SELECT id FROM {table} ORDER BY id LIMIT 7)")
    for subject in (low, some, first):
        await subject.settle(lineup.database)
    if mode == "on-demand":
        held = (await tanstack.call("state", name=table))["size"]
        assert held < 40, f"{held} rows were loaded, and only those of three queries were asked for"
    await traffic.run(
        lineup.database,
        f"UPDATE {table} SET v = 'changed' WHERE id IN (2, 3, 13)",
        f"UPDATE {table} SET n = 4 WHERE id = 23; DELETE FROM {table} WHERE id = 33",
        f"INSERT INTO {table} VALUES (999, 'new', 3); DELETE FROM {table} WHERE id = 5",
    )
    for subject in (low, some, first):
        await subject.settle(lineup.database)
    await lineup.check()


async def test_what_was_loaded_is_loaded_again_after_a_refetch(lineup: Lineup) -> None:
    await _fill(lineup, "truncated")
    await lineup.add_collection("truncated", "on-demand")
    await lineup.subjects[0].settle(lineup.database)
    await traffic.run(lineup.database, "TRUNCATE truncated; INSERT INTO truncated VALUES (1, 'anew'), (2, 'anew')")
    await lineup.subjects[0].settle(lineup.database)
    await lineup.check(warnings=[NO_HANDLE_YET])

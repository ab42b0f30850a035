"""Shapes synced into PGlite databases."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.clients import traffic
from tests.clients.lineup import NO_HANDLE_YET, Lineup
from tests.clients.subject import Subject

# A database takes seconds to be made; one is in `test_transfers.py`.
pytestmark = [pytest.mark.timeout(600), pytest.mark.faults]


# No bigint: filled by JSON, PGlite's client cannot write one down.
_TEXTS = """CREATE TABLE {0} (id int PRIMARY KEY, v text, n float8, b boolean);
INSERT INTO {0} SELECT i, CASE i % 4 WHEN 0 THEN NULL WHEN 1 THEN 'a,"b' WHEN 2 THEN E'two\\nlines' ELSE '' END,
  i / 8.0, i % 2 = 0 FROM generate_series(1, 300) i"""


@pytest.mark.parametrize("method", ["insert", "json", "csv"])
async def test_each_way_to_fill_a_table(lineup: Lineup, method: str) -> None:
    """The first rows come in their own way, all later changes as statements."""
    table = f"filled_{method}"
    create = _TEXTS.format(table)
    await traffic.run(lineup.database, create)
    pglite = await lineup.driver("pglite")
    await pglite.call("create", name=method, schema=create.partition(";")[0])
    await pglite.call("syncOne", name=method, table=table, shape=lineup.options(table), initialInsertMethod=method)
    subject = Subject(pglite, table, {"name": method, "table": table})
    await subject.settle(lineup.database)
    await traffic.run(
        lineup.database,
        f"UPDATE {table} SET v = 'new', n = NULL WHERE id < 50; DELETE FROM {table} WHERE id % 7 = 0",
        f"UPDATE {table} SET id = -id WHERE id = 1",
    )
    await subject.settle(lineup.database)
    await traffic.run(lineup.database, f"TRUNCATE {table}", f"INSERT INTO {table} VALUES (1, 'anew')")
    await subject.settle(lineup.database)
    assert (await subject.state())["synced"] == 1
    await lineup.check(warnings=[NO_HANDLE_YET])


async def test_a_database_that_was_closed_goes_on_where_it_was(lineup: Lineup, tmp_path: Path) -> None:
    create = _TEXTS.format("kept")
    await traffic.run(lineup.database, create)
    pglite = await lineup.driver("pglite")
    place = {"key": "kept", "shapes": {"kept": lineup.options("kept")}}
    subject = Subject(pglite, "kept", {"name": "kept", "table": "kept"})
    directory = str(tmp_path / "kept")
    await pglite.call("create", name="kept", schema=create.partition(";")[0], directory=directory)
    await pglite.call("sync", name="kept", **place)
    await subject.settle(lineup.database)
    for number in range(2):
        # One change that it takes, so that it notes where it is, and one that it misses.
        await traffic.run(lineup.database, f"UPDATE kept SET v = 'seen {number}' WHERE id = 5")
        await subject.settle(lineup.database)
        await pglite.call("close", name="kept")
        await traffic.run(
            lineup.database,
            f"DELETE FROM kept WHERE id = {10 + number}; INSERT INTO kept VALUES ({1000 + number}, 'missed')",
        )
        await pglite.call("requests")
        await pglite.call("create", name="kept", directory=directory)
        await pglite.call("sync", name="kept", **place)
        await subject.settle(lineup.database)
        asked = [note["url"] for note in await pglite.call("requests")]
        assert asked
        assert not any("offset=-1" in url for url in asked), asked
    await lineup.check()

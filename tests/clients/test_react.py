"""`useShape` of @electric-sql/react."""

from __future__ import annotations

import pytest

from tests.clients import traffic
from tests.clients.lineup import Lineup
from tests.clients.subject import Subject

pytestmark = pytest.mark.timeout(300)


async def test_components_show_the_shape(lineup: Lineup) -> None:
    await traffic.run(
        lineup.database,
        "CREATE TABLE shown (id int PRIMARY KEY, v text); INSERT INTO shown SELECT i, 'v' FROM generate_series(1, 5) i",
    )
    react = await lineup.driver("react")
    options = lineup.options("shown")
    await react.call("open", name="list", options=options)
    # The same stream: components share one per options.
    await react.call("open", name="count", options=options, counts=True)
    subject = Subject(react, "shown", {"name": "list"})
    await subject.settle(lineup.database)
    state = await subject.state()
    assert state["states"] == [[True, False], [False, False]]

    await traffic.run(
        lineup.database,
        "INSERT INTO shown VALUES (6, 'new'); UPDATE shown SET v = 'x' WHERE id = 1; DELETE FROM shown WHERE id = 2",
        "UPDATE shown SET v = 'again' WHERE id < 4",
    )
    await subject.settle(lineup.database)
    # One that selects a number is rendered when the number changes: never here, after the first time.
    assert (await react.call("state", name="count"))["states"] == [0, 5]
    await traffic.run(lineup.database, "INSERT INTO shown VALUES (7, 'seventh')")
    await react.until("count", states=[0, 5, 6])

    await react.call("close", name="list")
    await traffic.run(lineup.database, "DELETE FROM shown WHERE id = 3")
    await react.call("open", name="list", options=options)
    await subject.settle(lineup.database)
    assert await react.call("preload", options=lineup.options("shown", where="id = 1")) == [{"id": "1", "v": "again"}]
    await lineup.check()


async def test_components_show_errors(lineup: Lineup) -> None:
    react = await lineup.driver("react")
    await react.call("open", name="missing", options=lineup.options("missing"))
    text = (
        'Table "public"."missing" does not exist. '
        "If the table name contains capitals or special characters you must quote it."
    )
    body = {"message": "Invalid request", "errors": {"table": [text]}}
    state = await react.until("missing", errors=[{"status": 400, "body": body}])
    assert [True, True] in state["states"] or [False, True] in state["states"]

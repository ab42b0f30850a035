"""Clauses made to hurt, through the gateway and the worker: each is answered, little memory is used, and meanwhile
other clients are served and see changes."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import aiohttp
import psycopg

from gateway.request_head import LINE_BYTES
from tests.pipeline.fixtures import StartStack
from tests.pipeline.fleet import Fleet
from tests.pipeline.memory import check_peaks
from tests.pipeline.reader import HANG_SECONDS
from tests.pipeline.schema import create_schema
from tests.pipeline.workload import Workload

ROOM = LINE_BYTES - 1_000
"""How long a clause can be that has nothing to escape."""


def repeated(item: str, between: str, size: int) -> str:
    """The item as often as fits."""
    return between.join([item] * (size // (len(item) + len(between))))


def clauses(size: int) -> list[str]:
    """Of about this size, in bytes."""
    depth = size // 12
    return [
        repeated("n=1", "OR(n=2)OR ", size),
        repeated("done", " AND ", size),
        "n IN (" + ",".join(map(str, range(size // 5))) + ")",
        "(" * depth + "done" + ")" * depth,
        "NOT " * depth + "done",
        "upper(" * depth + "title" + ")" * depth + " = 'A'",
        "n" + "+1" * depth + " > 0",
        "CASE " + repeated("WHEN done THEN 1", " ", size) + " END = 1",
        "n IN (SELECT n FROM items WHERE " * 9 + "done" + ")" * 9,
        "price = " + "9" * size,
        "price = 1e999999999",
        "title = '" + "x" * size + "'",
        "title LIKE '" + "_a" * depth + "'",
        "title ~ '" + "(a*)*" * 5 + "$'",
        "title ~ '(((((a{200}){200}){200}){200}){200})'",
        "title ~ '" + "a?" * depth + "'",
        "doc @> '" + "[" * depth + "]" * depth + "'",
        "tags = '" + "{" * depth + "}" * depth + "'",
        "title = replace(replace(replace('aaaaaaaaaa','a','aaaaaaaaaa'),'a','aaaaaaaaaaaaaaaaaaaa'),'a','aaaaaaaaa')",
        " OR ".join(["lower(title)=upper(body)"] * (size // 30)),
        "at > '" + "1 " * depth + "'",
        "x" * size,
        "\0",
    ]


LONGEST = (
    *(
        "NOT " * (ROOM // 4) + "done",
        "- " * (ROOM // 2) + "n",
        "done OR " * (ROOM // 8) + "done",
        "n IN (" + "9" * ROOM,
    ),
    *("done AND NOT " * (ROOM // 13) + "done", "x" * ROOM, "CASE WHEN done THEN " * (ROOM // 20) + "done"),
)
"""As long as can be sent: a byte that needs an escape takes three."""

MATCHING = (
    *("body ~ '^(a|aa)+$x'", "body ~* '(a*)*(a*)*(a*)*b'", "body ~ '^(a+)+$b'"),
    *("body LIKE '" + "%a_" * 40 + "b'", "body LIKE '%a%a%a%a%a%a%a%a%a%a%a%a%b'", "body ILIKE '" + "%a" * 100 + "b'"),
)
"""Those that a backtracking engine takes for ever to decide about a long text."""


async def test_hostile_clauses(database: str, start_stack: StartStack, seed: int) -> None:
    await create_schema(database)
    stack = await start_stack(database, keep_alive=False)
    served: Counter[str] = Counter()
    answers: Counter[int] = Counter()

    async with aiohttp.ClientSession() as session, Fleet(stack, Workload(database, seed), protected=True) as fleet:

        async def ask(where: str, **query: Any) -> int:
            parameters = {"table": "items", "columns": "id", "where": where, "offset": "-1"} | query
            async with session.get(f"{stack.url}/v1/shape", params=parameters) as response:
                await response.read()
                answers[response.status] += 1
                return response.status

        async def others() -> None:
            """Somebody who makes small shapes and reads them."""
            for number in range(10_000):
                assert await ask(f"n = {number % 50}", table="late_0") == 200
                served["shapes"] += 1

        reader = fleet.add("items")
        await fleet.current()
        fleet.workload.start()
        other = asyncio.create_task(others())
        try:
            async with asyncio.timeout(HANG_SECONDS):
                for batch in (clauses(500), clauses(ROOM // 3), LONGEST):
                    before = served["shapes"], len(reader.view.journal.entries)
                    for status in await asyncio.gather(*map(ask, batch)):
                        assert status in (200, 400)
                    # Not one after the other: while some are worked on, others are answered, and changes come.
                    while not (served["shapes"] > before[0] and len(reader.view.journal.entries) > before[1]):
                        fleet.check()
                        await asyncio.sleep(0.01)
                assert set(await asyncio.gather(*map(ask, ["done OR " * 10_000 + "done", "n = " + "9" * 60_000]))) == {
                    414
                }
                for where in MATCHING:
                    fleet.add("items", ["id"], where=where)
                await fleet.current()
                async with await psycopg.AsyncConnection.connect(database, autocommit=True) as connection:
                    body = "UPDATE items SET body = repeat('a', 20000 + id::int) WHERE id < 20"
                    await connection.execute(body.encode())
                await fleet.run(1)
                other.cancel()
                await fleet.rest()
        finally:
            other.cancel()
            await asyncio.gather(other, return_exceptions=True)
    print(f"{dict(answers)}, small shapes meanwhile: {dict(served)}")
    check_peaks(stack, 200)

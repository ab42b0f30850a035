"""Something that a package keeps in step with a table, whatever it is, compared with Postgres at rest."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any

from tests.clients.driver import HANG_SECONDS, Driver
from tests.pipeline import oracle
from tests.pipeline.client_view import Row


class Subject:
    """The rows a driver holds under a name, as `table` has them, restricted to `columns` and `where`.

    `place`: the arguments that name it in the commands of its driver.
    """

    def __init__(
        self,
        driver: Driver,
        table: str,
        place: Mapping[str, str],
        *,
        columns: Sequence[str] | None = None,
        where: str | None = None,
        params: Sequence[str] = (),
    ) -> None:
        self.driver = driver
        self.table = table
        self.title = f"{driver.script} {' '.join(place.values())}"
        self.place = dict(place)
        self._columns = columns
        self._where = where
        self._params = params

    async def rows(self) -> dict[str, Row]:
        """What it holds, by id."""
        rows = await self.driver.call("rows", **self.place)
        assert len({row["id"] for row in rows}) == len(rows), f"{self.title} holds a row twice"
        return {row["id"]: row for row in rows}

    async def state(self) -> dict[str, Any]:
        """What its driver tells about it."""
        state: dict[str, Any] = await self.driver.call("state", **self.place)
        return state

    async def reach(self, row: int) -> None:
        """Waits until it holds the row with this id."""
        deadline = time.monotonic() + HANG_SECONDS
        while not await self.driver.call("holds", **self.place, id=row):
            if time.monotonic() > deadline:
                said = "\n".join(self.driver.warnings[-20:])
                raise AssertionError(f"{self.title} waits in vain for row {row}: {await self.state()}\n{said}")
            await asyncio.sleep(0.05)

    async def expected(self, database: str) -> dict[str, Row]:
        """What Postgres says it should hold, by id."""
        selected = await oracle.select(database, self.table, self._columns, self._where, self._params)
        return {str(row["id"]): row for row in selected.values()}

    async def compare(self, database: str) -> None:
        """At rest: raises AssertionError with the difference between what it holds and what Postgres has."""
        different = oracle.difference(await self.expected(database), await self.rows())
        assert different is None, f"{self.title}: {different}"

    async def settle(self, database: str) -> None:
        """Waits until it holds what Postgres has, which nobody changes any more."""
        deadline = time.monotonic() + HANG_SECONDS
        while oracle.difference(await self.expected(database), await self.rows()) is not None:
            if time.monotonic() > deadline:
                await self.compare(database)
            await asyncio.sleep(0.05)

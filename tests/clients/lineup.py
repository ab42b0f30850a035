"""All packages at once, each following the tables of `traffic` in its own way, through one story."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, NamedTuple, Self

from tests.clients import traffic
from tests.clients.driver import Driver
from tests.clients.subject import Subject

Options = dict[str, Any]


class Way(NamedTuple):
    """Which version of the client follows live how. Its text is part of names."""

    package: Literal["current", "old"]
    sse: bool = False

    def __str__(self) -> str:
        return f"{self.package}_sse" if self.sse else self.package


class Lineup:
    """Drivers and subjects of one test. `url` is where the packages go: to the stack or through a proxy before it."""

    def __init__(self, url: str, database: str, directory: Path) -> None:
        self.url = url
        self.database = database
        self.subjects: list[Subject] = []
        self.drivers: dict[str, Driver] = {}
        self._directory = directory
        self._exits = AsyncExitStack()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._exits.aclose()

    async def driver(self, script: str) -> Driver:
        """The driver of this kind, started when first asked for."""
        if script not in self.drivers:
            self.drivers[script] = await self._exits.enter_async_context(Driver(script, self._directory))
        return self.drivers[script]

    def options(self, table: str, *, sse: bool = False, **params: object) -> Options:
        """The options of a shape's stream."""
        # The name that version 1.0 knows; later ones know it too.
        live = {"experimentalLiveSse": True} if sse else {}
        return {
            "url": f"{self.url}/v1/shape",
            "params": {"table": table, **params},
            # Left alone, clients wait up to half a minute after a restart.
            "backoffOptions": {"initialDelay": 100, "maxDelay": 1000, "multiplier": 1.3},
            **live,
        }

    async def follow(
        self,
        name: str,
        table: str,
        way: Way,
        *,
        place: Mapping[str, str] | None = None,
        retry: Mapping[str, object] | None = None,
        **params: object,
    ) -> Driver:
        """Opens a `Shape` under a name in the client's driver.

        `place`: handle and offset to go on from; `retry`: what the stream is told to do after an error.
        """
        driver = await self.driver("client")
        options = self.options(table, sse=way.sse, **params) | dict(place or {})
        await driver.call("open", name=name, package=way.package, options=options, strict=place is None, retry=retry)
        return driver

    async def add_client(self, table: str, way: Way, where: str | None = None) -> Subject:
        """A `Shape` over a `ShapeStream`."""
        name = f"{table} {way}" if where is None else f"{table} {way} {where}"
        params: Options = {} if where is None else {"where": where}
        driver = await self.follow(name, table, way, **params)
        return self._add(driver, table, {"name": name}, where)

    async def add_multi(self, *, transactional: bool, tables: Sequence[str] = traffic.TABLES) -> None:
        """A multi-shape stream over the tables."""
        driver = await self.driver("multi")
        name = "transactional" if transactional else "plain"
        shapes = {table: self.options(table) for table in tables}
        await driver.call("open", name=name, transactional=transactional, shapes=shapes)
        for table in tables:
            self._add(driver, table, {"name": name, "shape": table})

    async def add_react(self, table: str, *, sse: bool = False) -> None:
        """A component that shows the shape by `useShape`."""
        driver = await self.driver("react")
        name = f"{table} {'sse' if sse else 'long-poll'}"
        await driver.call("open", name=name, options=self.options(table, sse=sse))
        self._add(driver, table, {"name": name})

    async def add_collection(self, table: str, mode: str = "eager", *, sse: bool = False) -> None:
        """A TanStack DB collection; unless it is eager, a live query over all of it asks for rows."""
        driver = await self.driver("tanstack")
        name = f"{table} {mode} {'sse' if sse else 'long-poll'}"
        await driver.call("open", name=name, syncMode=mode, options=self.options(table, sse=sse))
        if mode != "eager":
            await driver.call("query", name=f"all {name}", over=name)
        self._add(driver, table, {"name": name})

    async def add_pglite(self, *, method: str = "insert", tables: Sequence[str] = traffic.TABLES) -> None:
        """Tables in a PGlite database."""
        driver = await self.driver("pglite")
        await driver.call("create", name=method, schema=traffic.SCHEMA)
        shapes = {table: self.options(table) for table in tables}
        await driver.call("sync", name=method, shapes=shapes, initialInsertMethod=method)
        for table in tables:
            self._add(driver, table, {"name": method, "table": table})

    def leave(self, kind: str) -> None:
        """Subjects with this in their titles go on, but are not looked at any more."""
        self.subjects = [subject for subject in self.subjects if kind not in subject.title]

    async def rest(self) -> None:
        """When nobody writes any more: every subject holds what Postgres has."""
        last = await traffic.tick(self.database)
        await asyncio.gather(*(subject.reach(last) for subject in self.subjects))
        await asyncio.gather(*(subject.compare(self.database) for subject in self.subjects))

    async def check(self, refetches: int | None = None, warnings: Sequence[str] = ()) -> None:
        """Raises AssertionError for complaints, errors, warnings without one of these texts in them, and, of those who
        count them, another number of refetches."""
        for subject in self.subjects:
            state = await subject.state()
            for name in ("errors", "complaints"):
                assert not state.get(name), f"{subject.title}: {name} {state[name]}"
            if refetches is not None and "refetches" in state:
                assert state["refetches"] == refetches, f"{subject.title}: {state}"
        for driver in self.drivers.values():
            harmless = (*_HARMLESS, *warnings)
            unexpected = [text for text in driver.warnings if not any(known in text for known in harmless)]
            assert not unexpected, f"{driver.script} says {unexpected}"

    def _add(self, driver: Driver, table: str, place: dict[str, str], where: str | None = None) -> Subject:
        subject = Subject(driver, table, place, where=where)
        self.subjects.append(subject)
        return subject


_HARMLESS: Final = ("react-test-renderer is deprecated",)
NO_HANDLE_YET: Final = "Received 409 response without a shape handle header"
"""The client's warning about a shape that ended and has no successor yet; so does the reference (http-api.md 11)."""

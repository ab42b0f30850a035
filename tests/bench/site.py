"""Where it is measured: an embedded Postgres, Galvanic's processes over it, and perhaps another server beside them."""

from __future__ import annotations

import contextlib
import itertools
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import urlsplit

import psycopg

from deploy.embedded_postgres import EmbeddedPostgres
from tests.bench import rows
from tests.bench.limits import drop_slot
from tests.bench.program import Program
from tests.bench.usage import POSTGRES, Meter, Processes, Usage
from tests.pipeline.stack import Stack

_SETTINGS: Final = {
    # A process that stands still for the sake of a measurement is to keep its slot.
    "wal_sender_timeout": "10min",
    # Checkpoints would make repeats unequal.
    "max_wal_size": "8GB",
    "checkpoint_timeout": "30min",
    "max_connections": "200",
}
_ENVIRONMENT: Final = {
    "ELECTRIC_LONG_POLL_TIMEOUT": "20000",
    "ELECTRIC_DB_POOL_SIZE": "20",
    # 500 clients ask for their first answer at once, and 10 000 wait.
    "ELECTRIC_MAX_CONCURRENT_REQUESTS": '{"initial":1000,"existing":20000}',
}


@dataclass
class Target:
    """A server that is measured. ``stack``: its processes, of ours only."""

    name: str
    url: str
    database: str
    limit_database: str
    """Another database of our own Postgres: what is written there for the limits costs the server nothing."""
    stack: Stack | None = None
    postgres: EmbeddedPostgres | None = None
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    @property
    def processes(self) -> Processes:
        """Those that can be looked at: ours."""
        stack, postgres = self.stack, self.postgres
        if stack is None or postgres is None:
            return {}
        names = {"ingester": "ingester", "worker": "w00", "gateway": "g0"}
        ours = {told: (lambda name=name: stack.pid(name)) for told, name in names.items()}
        return ours | {POSTGRES: lambda: postgres.pid or 0}

    def new_table(self) -> str:
        """A name that no table has had."""
        return f"bench_{next(self._numbers)}"

    @contextlib.asynccontextmanager
    async def table(self, count: int = 0, **options: Any) -> AsyncIterator[str]:
        """A table of :mod:`tests.bench.rows` with so many rows, here and in the database of the limits."""
        name = self.new_table()
        databases = [self.database] if self.stack is None else [self.database, self.limit_database]
        for database in databases:
            await rows.create(database, name)
            if count:
                await rows.fill(database, name, count, **options)
        try:
            yield name
        finally:
            for database in databases:
                await rows.drop(database, name)

    def load(
        self, scenario: str, url: str | None = None, **order: Any
    ) -> contextlib.AbstractAsyncContextManager[Program]:
        """The load generator with one of its scenarios, against this server or another URL."""
        return Program.started("tests.bench.load", scenario=scenario, url=url or self.url, **order)

    async def measured(
        self, scenario: str, *, beside: Processes | None = None, url: str | None = None, **order: Any
    ) -> tuple[dict[str, Any], Usage]:
        """What the load generator answers when it has done a scenario that starts at one word, and what that took: the
        processes of this server, or those ``beside`` the load at another URL, and the load itself."""
        async with self.load(scenario, url, **order) as load:
            await load.hear()
            meter = Meter({**(self.processes if beside is None else beside), "load": lambda: load.pid})
            load.say(go=True)
            answer = await load.hear()
            return answer, meter.read()


class Site:
    """The servers of one run."""

    def __init__(self, root: Path, postgres: EmbeddedPostgres, other: Target | None) -> None:
        self._root = root
        self._postgres = postgres
        self._other = other
        self._stack: Stack | None = None
        self._number = 0
        self._target: Target | None = None

    @classmethod
    @contextlib.asynccontextmanager
    async def opened(cls, other_url: str | None = None, other_database: str | None = None) -> AsyncIterator[Self]:
        """Starts Postgres (with fsync, as in production) and stops whatever runs in the end."""
        root = Path(tempfile.mkdtemp(prefix="galvanic-bench-"))
        other = None
        if other_url and other_database:
            other = Target(urlsplit(other_url).netloc, other_url.rstrip("/"), other_database, "")
        postgres = EmbeddedPostgres(root / "postgres", settings=_SETTINGS)
        try:
            with postgres:
                site = cls(root, postgres, other)
                try:
                    await site._create_database("limits")
                    yield site
                finally:
                    await site.clear()
        finally:
            shutil.rmtree(root, ignore_errors=True)
            shutil.rmtree(postgres.directory, ignore_errors=True)

    async def targets(self) -> list[Target]:
        """Galvanic, which is started if it does not run, and the other server if there is one."""
        if self._target is None:
            self._target = await self._start()
        return [self._target, *([self._other] if self._other else [])]

    async def clear(self) -> None:
        """Stops Galvanic and forgets all it has: what comes next begins with nothing."""
        stack, self._stack, self._target = self._stack, None, None
        if stack is None:
            return
        await stack.stop()
        stack.dispose()
        stack.check()
        shutil.rmtree(stack.storage, ignore_errors=True)
        name = f"bench_{self._number}"
        async with await psycopg.AsyncConnection.connect(self._postgres.url, autocommit=True) as admin:
            await drop_slot(admin, f"electric_slot_{name}")
            await admin.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())

    async def _start(self) -> Target:
        self._number += 1
        name = f"bench_{self._number}"
        database = await self._create_database(name)
        environment = {**_ENVIRONMENT, "ELECTRIC_REPLICATION_STREAM_ID": name}
        self._stack = stack = Stack(database, self._root / name, environment=environment)
        stack.start()
        await stack.wait_active()
        await stack.wait_balanced()
        return Target("Galvanic", stack.url, database, self._url("limits"), stack, self._postgres)

    async def _create_database(self, name: str) -> str:
        async with await psycopg.AsyncConnection.connect(self._postgres.url, autocommit=True) as admin:
            await admin.execute(f"CREATE DATABASE {name}".encode())
        return self._url(name)

    def _url(self, name: str) -> str:
        return f"{self._postgres.url.rsplit('/', 1)[0]}/{name}"

"""Fixtures of the tests with real processes: a printed seed, and stacks whose logs are shown when a test fails."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator, Generator, Iterator, Mapping
from pathlib import Path
from typing import Protocol

import pytest

from deploy.embedded_postgres import EmbeddedPostgres
from tests.pipeline.stack import Stack

_stacks = pytest.StashKey[list[Stack]]()


class StartStack(Protocol):
    """Starts a stack for this test and, unless told otherwise, waits until it is active and all workers hold
    partitions."""

    async def __call__(
        self,
        database_url: str,
        *,
        workers: int = 1,
        gateways: int = 1,
        environment: Mapping[str, str] | None = None,
        environments: Mapping[str, Mapping[str, str]] | None = None,
        storage: Path | None = None,
        descriptors: int | None = None,
        keep_alive: bool = True,
        ready: bool = True,
    ) -> Stack: ...


@pytest.fixture
def seed() -> int:
    """The seed of all that is random in a test: GALVANIC_TEST_SEED, or a new one; printed either way."""
    value = int(os.environ.get("GALVANIC_TEST_SEED") or random.randrange(1 << 32))
    print(f"GALVANIC_TEST_SEED={value}")
    return value


@pytest.fixture
def private_server(tmp_path: Path) -> Iterator[EmbeddedPostgres]:
    """A Postgres of this test's own, to be crashed or set up otherwise."""
    with EmbeddedPostgres(tmp_path / "postgres", fsync=False) as server:
        yield server


@pytest.fixture
async def start_stack(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[StartStack]:
    """Starts stacks; they are stopped before the databases go, if the test asks for its database first."""
    stacks: list[Stack] = []
    request.node.stash[_stacks] = stacks

    async def start(
        database_url: str,
        *,
        workers: int = 1,
        gateways: int = 1,
        environment: Mapping[str, str] | None = None,
        environments: Mapping[str, Mapping[str, str]] | None = None,
        storage: Path | None = None,
        descriptors: int | None = None,
        keep_alive: bool = True,
        ready: bool = True,
    ) -> Stack:
        stack = Stack(
            database_url,
            tmp_path / f"stack{len(stacks)}",
            workers=workers,
            gateways=gateways,
            environment=environment,
            environments=environments,
            storage=storage,
            descriptors=descriptors,
            keep_alive=keep_alive,
        )
        stacks.append(stack)
        stack.start()
        if not ready:
            return stack
        # A worker that joins a moment later takes partitions over, which ends shapes that are just being created there.
        await asyncio.gather(stack.wait_active(), stack.wait_balanced())
        return stack

    yield start
    try:
        for stack in stacks:
            await stack.stop()
    finally:
        for stack in stacks:
            stack.dispose()
    for stack in stacks:
        stack.check()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Adds the end of each process's log to the report of a failed test."""
    report = yield
    if report.failed:
        for stack in item.stash.get(_stacks, []):
            report.sections.extend((f"log of {name}", text) for name, text in stack.tails())
    return report

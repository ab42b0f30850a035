"""Which 409 the strict reader takes for a failure."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from tests.pipeline import reader as module
from tests.pipeline.client_view import Violation
from tests.pipeline.reader import HANG_SECONDS, Reader

SETTLED = 0.2
HANDLES = ("1-1", "1-2")
SNAPSHOT = b'[{"headers":{"control":"snapshot-end","xmin":"1","xmax":"1","xip_list":[]}}]'
UP_TO_DATE = b'{"headers":{"control":"up-to-date","global_last_seen_lsn":"0"}}'
REFETCH = b'[{"headers":{"control":"must-refetch"}}]'


class Service:
    """Serves an empty shape which ends after some live answers; the 409 that says so comes late."""

    def __init__(self, answers: int, pause: float, delay: float) -> None:
        """``pause``: seconds that each live answer takes, ``delay`` those of the 409."""
        self.answers, self.pause, self.delay = answers, pause, delay
        self.handle = HANDLES[0]

    async def get(self, request: web.Request) -> web.Response:
        query = request.query
        if query["offset"] == "-1":
            return _answer(self.handle, "0_0", SNAPSHOT)
        if "live" in query and not self.answers and query["handle"] == HANDLES[0]:
            await asyncio.sleep(self.delay)
            self.handle = HANDLES[1]
            return web.Response(status=409, body=REFETCH, headers={"electric-handle": self.handle})
        if "live" in query:
            self.answers = max(0, self.answers - 1)
            await asyncio.sleep(max(self.pause, 0.02))
        return _answer(query["handle"], "0_inf", b"[" + UP_TO_DATE + b"]", {"electric-up-to-date": ""})


def _answer(handle: str, offset: str, body: bytes, headers: dict[str, str] | None = None) -> web.Response:
    always = {"electric-handle": handle, "electric-offset": offset, "electric-schema": "{}", "electric-cursor": "1"}
    return web.Response(body=body, headers={**always, **(headers or {})})


@asynccontextmanager
async def served(service: Service) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_get("/v1/shape", service.get)
    async with TestServer(app) as server:
        yield str(server.make_url("/")).rstrip("/")


@pytest.fixture(autouse=True)
def settled_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SETTLED_SECONDS", SETTLED)


async def _until_replaced(reader: Reader) -> None:
    async with asyncio.timeout(HANG_SECONDS):
        while reader.view.handle != HANDLES[1] or not reader.view.up_to_date:
            reader.check()
            await asyncio.sleep(0.01)


async def test_a_late_409_tells_nothing_of_how_long_the_shape_lived() -> None:
    """It ended while it was being made; its client was kept waiting until there was a successor."""
    async with served(Service(answers=0, pause=0, delay=2 * SETTLED)) as url, Reader(url, "t") as reader:
        await _until_replaced(reader)
        assert reader.view.ended == [HANDLES[0]]


async def test_a_409_for_a_shape_that_was_served_for_long_is_a_failure() -> None:
    async with served(Service(answers=3, pause=SETTLED, delay=0)) as url, Reader(url, "t") as reader:
        with pytest.raises(Violation, match="must live"):
            await _until_replaced(reader)
        await _forget(reader)


async def test_how_long_a_shape_lives_that_is_not_complete_does_not_matter() -> None:
    """On a slow machine that takes its time."""
    service = Service(answers=3, pause=SETTLED, delay=0)
    async with served(service) as url, Reader(url, "t", complete=lambda handle: False) as reader:
        await _until_replaced(reader)
        assert reader.view.ended == [HANDLES[0]]


async def test_nor_may_a_protected_shape_end_while_it_is_made() -> None:
    async with served(Service(answers=0, pause=0, delay=0)) as url, Reader(url, "t", protected=True) as reader:
        with pytest.raises(Violation, match="must live"):
            await _until_replaced(reader)
        await _forget(reader)


async def _forget(reader: Reader) -> None:
    with pytest.raises(Violation):
        await reader.pause()

"""Waits that may take as long as they like: somebody looks into them meanwhile, and says what is being waited for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final

WATCH_SECONDS: Final = 10.0
"""How often a wait for the lock or for the slot's creation is looked into (engine.md 3.2, 3.6)."""

OnWaiting = Callable[[str], None]
"""Told in one line what is being waited for: at once, then every WATCH_SECONDS."""


@asynccontextmanager
async def meanwhile(watch: Awaitable[None]) -> AsyncIterator[None]:
    """Has somebody look into a wait for as long as the block takes; a failure of the look is raised afterwards."""
    task = asyncio.ensure_future(watch)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})
    if not task.cancelled():
        task.result()

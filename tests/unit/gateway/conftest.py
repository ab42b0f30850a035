"""The gateway's tests run on the event loop that the gateway runs on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import pytest
import uvloop


@pytest.hookimpl(optionalhook=True)
def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """uvloop, whose transports differ from asyncio's where it matters: write buffers and aborts."""
    return {"uvloop": uvloop.new_event_loop}

"""The gateway process: set up, run until told to stop, take leave of the clients."""

from __future__ import annotations

import asyncio
import signal

import structlog
import uvloop
import zmq

from common.config import Settings
from common.instruments import Instruments
from common.process import collect_rarely
from gateway.gateway import Gateway

log = structlog.get_logger(__name__)


def main(settings: Settings, gateway_id: str) -> int:
    """Serve until SIGTERM or SIGINT; the exit code is 0 then, 1 if the port could not be bound."""
    collect_rarely()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_serve(settings, gateway_id))


async def _serve(settings: Settings, gateway_id: str) -> int:
    settings.run_dir.mkdir(parents=True, exist_ok=True)
    async with Instruments(settings, gateway_id) as instruments:
        return await _serve_measured(settings, gateway_id, instruments)


async def _serve_measured(settings: Settings, gateway_id: str, instruments: Instruments) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    context = zmq.Context()
    gateway = Gateway(settings, context, instruments.obstacles)
    instruments.watch(gateway.measures)
    try:
        try:
            await gateway.start()
        except OSError as error:
            log.error("cannot listen", variable="ELECTRIC_PORT", port=settings.port, error=str(error))
            return 1
        log.info("listening", gateway=gateway_id, port=settings.port)
        await stop.wait()
        log.info("stopping", gateway=gateway_id)
    finally:
        await gateway.stop()
        context.destroy(linger=0)
    return 0

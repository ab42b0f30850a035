"""What stands before a Postgres: a listener that ends TLS, as the servers of providers do; or only another address."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import struct
from collections.abc import AsyncIterator

_SSL_REQUEST = 80877103
_GSS_REQUEST = 80877104
_REFUSAL = (
    b"SFATAL\0VFATAL\0C28000\0"
    b'Mno pg_hba.conf entry for host "127.0.0.1", user "postgres", database "postgres", no encryption\0\0'
)


@contextlib.asynccontextmanager
async def gate(port: int, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """Listens at `host` for a Postgres at 127.0.0.1:`port`; the port it listens on.

    With `tls` nobody comes in without it, and who tries is told so in the words of a server that has only `hostssl`
    lines in its pg_hba.conf.
    """
    tasks: set[asyncio.Task[None]] = set()

    async def admit(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await _admit(reader, writer, port, tls)
        except (OSError, asyncio.IncompleteReadError):
            pass  # either side went away
        finally:
            tasks.discard(task)
            writer.close()

    server = await asyncio.start_server(admit, host, 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _admit(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int, tls: ssl.SSLContext | None
) -> None:
    head = await reader.readexactly(8)
    while struct.unpack("!II", head) == (8, _GSS_REQUEST):
        writer.write(b"N")
        head = await reader.readexactly(8)
    encrypted = struct.unpack("!II", head) == (8, _SSL_REQUEST)
    if tls is not None and not encrypted:
        writer.write(b"E" + struct.pack("!I", 4 + len(_REFUSAL)) + _REFUSAL)
        await writer.drain()
        return
    if encrypted and tls is not None:
        writer.write(b"S")
        await writer.drain()
        await writer.start_tls(tls)
        head = b""
    elif encrypted:
        writer.write(b"N")
        head = b""
    inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", port)
    inner_writer.write(head)
    try:
        await asyncio.wait(
            [
                asyncio.ensure_future(_pump(reader, inner_writer)),
                asyncio.ensure_future(_pump(inner_reader, writer)),
            ],
            return_when=asyncio.FIRST_COMPLETED,
        )
    finally:
        inner_writer.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()

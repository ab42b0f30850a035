"""Compressed bodies: closed chunks of snapshots and logs as gzip or zstd, each made once, in a thread, kept a while.

Only what never changes is compressed, so the work is done for many clients, and no answer that still grows is held back
for it. What is in memory has a bound: bodies that are being sent count until their last client has them.
"""

from __future__ import annotations

import asyncio
import sys
import zlib
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from types import TracebackType
from typing import Final, Literal, Protocol

import structlog

from common.shapelog.layout import DamagedLog

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

log = structlog.get_logger(__name__)

Coding = Literal["zstd", "gzip"]

LEAST: Final = 4 * 1024
"""Bytes below which a body goes as it is: it fits into a few packets anyhow."""

CACHE_BYTES: Final = 32 * 1024 * 1024
"""Compressed bodies in memory: those being sent, and those asked for last."""

ENTRY_BYTES: Final = CACHE_BYTES // 4
"""The most that one compressed body may have."""

QUEUE_BYTES: Final = 24 * 1024 * 1024
"""Of bodies that wait for compression; at 100 MB/s a client waits a quarter of a second. Others go as they are."""

WORTH: Final = 0.9
"""A body that does not shrink to this part of its size goes as it is."""

REMEMBERED: Final = 10_000
"""Bodies remembered, also those that are not worth it."""

GZIP_LEVEL: Final = 4
ZSTD_LEVEL: Final = 3
"""The points where more time starts to bring little: rows of 200 bytes shrink to a fifth at 105 MB/s, to a seventh at
370 MB/s."""

_GZIP_FRAMING: Final = 16 + zlib.MAX_WBITS


@lru_cache(maxsize=1024)
def negotiate(accepted: str | None) -> Coding | None:
    """The coding for an ``Accept-Encoding`` header: the highest quality, zstd before gzip. ``*`` names neither."""
    best: tuple[float, Coding] | None = None
    for item in (accepted or "").lower().split(","):
        name, _, parameter = item.partition(";")
        coding: Coding
        match name.strip():
            case "zstd":
                coding = "zstd"
            case "gzip":
                coding = "gzip"
            case _:
                continue
        quality = _quality(parameter)
        if quality > 0 and (best is None or (quality, coding) > best):
            best = quality, coding
    return None if best is None else best[1]


def _quality(parameter: str) -> float:
    name, _, value = parameter.strip().partition("=")
    if not name:
        return 1.0
    try:
        return min(1.0, float(value)) if name.strip() == "q" else 0.0
    except ValueError:
        return 0.0


def coded_tag(tag: str, coding: Coding | None) -> str:
    """The entity tag of a coded body: strong tags are of bytes, so each coding needs its own (http-api.md 22)."""
    return tag if coding is None else f'{tag[:-1]}-{coding}"'


class Encoded:
    """A compressed body. It counts as used inside its ``with`` block."""

    __slots__ = ("data", "users")

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.users = 0

    def __enter__(self) -> bytes:
        self.users += 1
        return self.data

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.users -= 1


Key = tuple[Hashable, Coding]


class Compression:
    """The cache and its thread."""

    def __init__(self, cache_bytes: int = CACHE_BYTES) -> None:
        self._cache_bytes = cache_bytes
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="compression")
        # ``None``: not worth it.
        self._known: OrderedDict[Key, Encoded | None] = OrderedDict()
        self._jobs: dict[Key, asyncio.Task[Encoded | None]] = {}
        self._queued = 0
        self._held = 0

    async def encoded(
        self, body: Hashable, coding: Coding, size: int, pieces: Callable[[], Iterator[bytes]]
    ) -> Encoded | None:
        """The compressed form of a body that never changes, or ``None`` if it is to be sent as it is.

        ``body`` names it for ever; it has ``size`` bytes, and ``pieces`` reads them, in another thread.
        """
        key = body, coding
        if key in self._known:
            self._known.move_to_end(key)
            return self._known[key]
        job = self._jobs.get(key)
        if job is None:
            if self._queued and self._queued + size > QUEUE_BYTES:
                return None
            self._queued += size
            job = asyncio.create_task(self._compress(key, size, pieces))
            self._jobs[key] = job
            job.add_done_callback(lambda _: self._finished(key, size))
        return await asyncio.shield(job)

    def close(self) -> None:
        """Stop the thread after what it is at."""
        for job in self._jobs.values():
            job.cancel()
        self._thread.shutdown(wait=True, cancel_futures=True)

    async def _compress(self, key: Key, size: int, pieces: Callable[[], Iterator[bytes]]) -> Encoded | None:
        try:
            limit = min(int(size * WORTH), ENTRY_BYTES)
            data = await asyncio.get_running_loop().run_in_executor(self._thread, _encode, key[1], size, limit, pieces)
        except (OSError, DamagedLog) as error:
            # The shape ends, or a file is damaged: whoever sends the body as it is meets that where it can be told.
            log.info("a chunk could not be compressed", chunk=str(key[0]), error=str(error))
            return None
        found = None if data is None else Encoded(data)
        if found is not None and not self._make_room(len(found.data)):
            return None
        self._known[key] = found
        while len(self._known) > REMEMBERED and self._drop_oldest():
            pass
        return found

    def _finished(self, key: Key, size: int) -> None:
        self._queued -= size
        del self._jobs[key]

    def _make_room(self, size: int) -> bool:
        while self._held + size > self._cache_bytes:
            if not self._drop_oldest():
                return False
        self._held += size
        return True

    def _drop_oldest(self) -> bool:
        for key, found in self._known.items():
            if found is None or not found.users:
                del self._known[key]
                self._held -= 0 if found is None else len(found.data)
                return True
        return False


class _Compressor(Protocol):
    def compress(self, data: bytes, /) -> bytes: ...
    def flush(self) -> bytes: ...


def _encode(coding: Coding, size: int, limit: int, pieces: Callable[[], Iterator[bytes]]) -> bytes | None:
    """Compress in the calling thread; ``None`` as soon as there are more than ``limit`` bytes."""
    compressor: _Compressor
    if coding == "gzip":
        compressor = zlib.compressobj(GZIP_LEVEL, zlib.DEFLATED, _GZIP_FRAMING)
    else:
        compressor = zstd.ZstdCompressor(level=ZSTD_LEVEL)
    parts: list[bytes] = []
    read = written = 0
    for piece in pieces():
        read += len(piece)
        parts.append(compressor.compress(piece))
        written += len(parts[-1])
        if written > limit:
            return None
    if read != size:
        raise DamagedLog(f"a closed chunk has {read} bytes instead of {size}")
    parts.append(compressor.flush())
    return b"".join(parts) if written + len(parts[-1]) <= limit else None

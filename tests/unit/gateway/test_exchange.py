"""How the bytes of an answer are handed to the connection."""

from __future__ import annotations

from typing import Any

import pytest
from aiohttp import HttpVersion10, HttpVersion11
from multidict import CIMultiDict, CIMultiDictProxy

from gateway.exchange import Exchange
from gateway.request_head import Request
from gateway.response import Answer


class Recorder:
    """A connection and its transport: keeps what it is given."""

    stays_open = True

    def __init__(self) -> None:
        self.pieces: list[Any] = []
        self.transport = self

    def is_closing(self) -> bool:
        return False

    def write(self, data: Any) -> None:
        self.pieces.append(data)

    def writelines(self, pieces: Any) -> None:
        self.pieces.extend(pieces)

    async def drain(self) -> None:
        """Nothing waits."""


def exchange(recorder: Recorder, version: Any = HttpVersion11) -> Exchange:
    headers = CIMultiDictProxy(CIMultiDict[str]())
    connection: Any = recorder
    return Exchange(connection, Request("GET", "/", headers, version, True, None))


@pytest.mark.parametrize("version", [HttpVersion10, HttpVersion11])
async def test_a_large_body_that_many_share_is_not_copied(version: Any) -> None:
    answer = Answer(200, {}, b"x" * 100_000, streamed=True)
    for _ in range(2):
        recorder = Recorder()
        await exchange(recorder, version).answer(answer)
        assert any(piece is answer.body for piece in recorder.pieces)


async def test_a_slice_is_not_copied() -> None:
    recorder = Recorder()
    sending = exchange(recorder)
    await sending.start(Answer(200, {}), None)
    piece = b"x" * 65_536
    await sending.write(piece)
    await sending.finish()
    assert any(each is piece for each in recorder.pieces)
    assert b"".join(recorder.pieces).endswith(b"\r\n10000\r\n" + piece + b"\r\n0\r\n\r\n")


@pytest.mark.parametrize("size", [0, 1, 16_384, 16_385, 100_000])
async def test_chunks_are_framed_whatever_the_size(size: int) -> None:
    recorder = Recorder()
    await exchange(recorder).answer(Answer(200, {}, b"y" * size, streamed=True))
    _, _, body = b"".join(recorder.pieces).partition(b"\r\n\r\n")
    assert body == (b"%x\r\n%b\r\n" % (size, b"y" * size) if size else b"") + b"0\r\n\r\n"

"""What a turn brought goes to gateways at once, tails before what is applied, and only what somebody waits on."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import cast

import pytest

import shapeworker.announcer
from common.lsn import Offset
from common.messages import APPLIED_TOPIC, Applied, Ended, Tail, decode_applied, decode_handle_event, handle_topic
from shapeworker.announcer import Announcer
from shapeworker.shape import Shape

Told = list[tuple[str, Tail | Ended | Applied]]


class Wire:
    """In place of a channel: each burst of messages, and subscriptions by hand."""

    def __init__(self, _: object, on_message: Callable[[list[bytes]], None]) -> None:
        self.subscribe = on_message
        self.bursts: list[Told] = []

    def send(self, parts: list[bytes]) -> bool:
        return self.send_all([parts])

    def send_all(self, messages: Iterable[list[bytes]]) -> bool:
        self.bursts.append([_told(*parts) for parts in messages])
        return True


def _told(topic: bytes, body: bytes) -> tuple[str, Tail | Ended | Applied]:
    if topic == APPLIED_TOPIC:
        return "", decode_applied(body)
    return topic[1:-1].decode(), decode_handle_event(body)


@pytest.fixture
def wire(monkeypatch: pytest.MonkeyPatch) -> list[Wire]:
    """The channel of the announcer that is made next."""
    made: list[Wire] = []

    def make(socket: object, on_message: Callable[[list[bytes]], None]) -> Wire:
        made.append(Wire(socket, on_message))
        return made[-1]

    monkeypatch.setattr(shapeworker.announcer, "Channel", make)
    return made


def shape(handle: str) -> Shape:
    return cast(Shape, SimpleNamespace(handle=handle, last=Offset(1, 0)))


def test_a_turn_is_told_at_once_with_what_is_applied_last(wire: list[Wire]) -> None:
    known = {handle: shape(handle) for handle in ("1-1", "1-2", "1-3")}
    announcer = Announcer(None, known.get, lambda _: True)
    for handle in ("1-1", "1-2"):
        wire[0].subscribe([b"\1" + handle_topic(handle)])
    assert wire[0].bursts == [[("1-1", Tail(Offset(1, 0)))], [("1-2", Tail(Offset(1, 0)))]], "the present one, at once"
    wire[0].bursts.clear()

    announcer.applied(7, 200, {3})
    announcer.tail(known["1-1"], Offset(100, 0))
    announcer.tail(known["1-3"], Offset(100, 0))
    announcer.tail(known["1-2"], Offset(200, 0))
    announcer.tail(known["1-1"], Offset(200, 2))
    assert not wire[0].bursts
    announcer.tell()
    announcer.tell()
    assert wire[0].bursts == [
        [("1-1", Tail(Offset(200, 2))), ("1-2", Tail(Offset(200, 0))), ("", Applied(7, 200, (3,)))]
    ], "nobody waits for the third shape, and nothing is told twice"


def test_who_waits_for_what_is_not_there_is_told(wire: list[Wire]) -> None:
    Announcer(None, lambda _: None, lambda handle: handle == "1-1")
    wire[0].subscribe([b"\1" + handle_topic("1-1")])
    wire[0].subscribe([b"\1" + handle_topic("2-1")])
    assert [[handle for handle, _ in burst] for burst in wire[0].bursts] == [["1-1"]]

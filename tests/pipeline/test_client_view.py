"""The strict client notices each kind of wrong answer: without this, the pipeline tests could pass for nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from tests.pipeline.client_view import MUST_REFETCH, ClientView, Journal, Replica, Violation

KEY_1 = '"public"."recipes"/"1"'
KEY_2 = '"public"."recipes"/"2"'
SCHEMA = json.dumps({"id": {"type": "int4", "not_null": True, "pk_index": 0}, "title": {"type": "text"}})
SNAPSHOT_END = {"headers": {"control": "snapshot-end", "xmin": "9", "xmax": "9", "xip_list": []}}


def row(key: str, title: str | None) -> dict[str, Any]:
    value = {"id": key.split('"')[-2], "title": title}
    return {"key": key, "value": value, "headers": {"operation": "insert", "relation": ["public", "recipes"]}}


def change(operation: str, key: str, lsn: int, op: int, value: Mapping[str, str | None], **more: Any) -> dict[str, Any]:
    headers = {"operation": operation, "relation": ["public", "recipes"], "lsn": str(lsn), "op_position": op}
    headers |= {name: more.pop(name) for name in list(more) if name != "old_value"}
    return {"key": key, "value": value, "headers": {**headers, "txids": [7]}, **more}


def up_to_date(lsn: int) -> dict[str, Any]:
    return {"headers": {"control": "up-to-date", "global_last_seen_lsn": str(lsn)}}


class Server:
    """Says to a view whatever a test wants said."""

    def __init__(self, replica: Replica = "default") -> None:
        self.view = ClientView("recipes", replica=replica)

    def answer(self, offset: str, *items: dict[str, Any], handle: str = "1-1", drop: str = "", **more: str) -> None:
        headers = {"electric-handle": handle, "electric-offset": offset, "electric-cursor": "1"}
        headers["electric-schema"] = SCHEMA
        if items and items[-1]["headers"].get("control") == "up-to-date":
            headers["electric-up-to-date"] = ""
        headers = {**headers, **more}
        headers.pop(drop, None)
        body = b"[" + b",\n".join(json.dumps(item).encode() for item in items) + b"]"
        self.view.accept(self.view.query(live=True), headers, body)

    def synced(self) -> Server:
        """One row in the snapshot, everything read up to LSN 100."""
        self.answer("0_0", row(KEY_1, "Soup"), SNAPSHOT_END)
        self.answer("0_inf", up_to_date(100))
        return self


def test_a_correct_session_is_accepted() -> None:
    server = Server().synced()
    server.answer(
        "200_4",
        change("update", KEY_1, 200, 0, {"id": "1", "title": "Stew"}),
        change("delete", KEY_1, 200, 2, {"id": "1"}, key_change_to=KEY_2),
        change("insert", KEY_2, 200, 3, {"id": "2", "title": "Stew"}, key_change_from=KEY_1),
        change("insert", KEY_1, 200, 4, {"id": "1", "title": None}, last=True),
        up_to_date(200),
    )
    server.answer("200_4", up_to_date(300))
    assert server.view.rows == {KEY_1: {"id": "1", "title": None}, KEY_2: {"id": "2", "title": "Stew"}}
    assert server.view.query(live=True)["live"] == "true"
    assert len(server.view.journal.entries) == 4


def test_replica_full_shows_old_values() -> None:
    server = Server("full").synced()
    update = change("update", KEY_1, 200, 0, {"id": "1", "title": "Stew"}, old_value={"title": "Soup"}, last=True)
    server.answer("200_0", update, up_to_date(200))
    server.answer("300_0", change("delete", KEY_1, 300, 0, {"id": "1", "title": "Stew"}, last=True), up_to_date(300))
    assert server.view.rows == {}


STEW = {"id": "1", "title": "Stew"}


@pytest.mark.parametrize(
    ("offset", "items", "message"),
    [
        ("200_0", [change("insert", KEY_1, 200, 0, STEW), up_to_date(200)], "insert of a held key"),
        ("200_0", [change("insert", KEY_2, 200, 0, {"id": "2"}), up_to_date(200)], "without all columns"),
        ("200_0", [change("update", KEY_2, 200, 0, STEW), up_to_date(200)], "update of a missing key"),
        ("200_0", [change("update", KEY_1, 200, 0, {"id": "1", "title": "Soup"})], "changes nothing"),
        ("200_0", [change("update", KEY_1, 200, 0, {"title": "Stew"})], "not the key and what changed"),
        ("200_0", [change("update", KEY_1, 200, 0, STEW, old_value={"title": "Soup"})], "not the key and what changed"),
        ("200_0", [change("delete", KEY_2, 200, 0, {"id": "2"})], "delete of a missing key"),
        ("200_0", [change("delete", KEY_1, 200, 0, {"id": "2"})], "does not show the row"),
        ("200_0", [change("update", KEY_1, 90, 0, STEW)], "at or below LSN 100"),
        ("200_0", [change("update", KEY_1, 200, 2, STEW), up_to_date(200)], "out of order"),
        ("200_2", [change("update", KEY_1, 200, 0, STEW), up_to_date(200)], "not the last entry's offset"),
        ("200_0", [up_to_date(200)], "moved without an entry"),
        ("0_inf", [], "no progress"),
        ("0_inf", [up_to_date(99)], "fell from 100 to 99"),
        ("0_inf", [up_to_date(100), up_to_date(100)], "before the end"),
        ("0_0", [up_to_date(100)], "went back"),
        ("0_inf", [SNAPSHOT_END, up_to_date(100)], "not a change"),
        (
            "200_0",
            [change("delete", KEY_1, 200, 0, {"id": "1"}, key_change_to=KEY_2), up_to_date(200)],
            "between delete and insert",
        ),
        (
            "200_3",
            [change("insert", KEY_2, 200, 3, {"id": "2", "title": None}, key_change_from=KEY_1), up_to_date(200)],
            "without its delete",
        ),
        (
            "300_0",
            [
                change("update", KEY_1, 200, 0, STEW, last=True),
                change("update", KEY_1, 200, 2, {"id": "1", "title": "Pie"}),
            ],
            "at or below LSN 200",
        ),
    ],
)
def test_wrong_changes(offset: str, items: list[dict[str, Any]], message: str) -> None:
    server = Server().synced()
    with pytest.raises(Violation, match=message):
        server.answer(offset, *items)


@pytest.mark.parametrize("name", ["electric-handle", "electric-offset", "electric-cursor"])
def test_missing_live_headers(name: str) -> None:
    server = Server().synced()
    with pytest.raises(Violation, match=rf"missing headers.*{name}"):
        server.answer("0_inf", up_to_date(100), drop=name)


def test_missing_schema() -> None:
    with pytest.raises(Violation, match=r"missing headers.*electric-schema"):
        Server().answer("0_0", SNAPSHOT_END, drop="electric-schema")


def test_header_and_message_must_agree() -> None:
    server = Server().synced()
    with pytest.raises(Violation, match="header electric-up-to-date: False"):
        server.answer("0_inf", up_to_date(100), drop="electric-up-to-date")
    with pytest.raises(Violation, match="header electric-up-to-date: True"):
        server.answer("200_0", change("update", KEY_1, 200, 0, STEW, last=True), **{"electric-up-to-date": ""})


def test_another_handle() -> None:
    server = Server().synced()
    with pytest.raises(Violation, match="asked for handle 1-1, got 200 with 1-2"):
        server.answer("0_inf", up_to_date(100), handle="1-2")


def test_snapshot_out_of_shape() -> None:
    with pytest.raises(Violation, match="insert of a held key"):
        Server().answer("0_0", row(KEY_1, "a"), row(KEY_1, "a"))
    with pytest.raises(Violation, match="message after snapshot-end"):
        Server().answer("0_0", SNAPSHOT_END, row(KEY_1, "a"))
    with pytest.raises(Violation, match="without gaps"):
        Server().answer("0_1", row(KEY_1, "a"))
    server = Server()
    server.answer("0_0", row(KEY_1, "a"))
    with pytest.raises(Violation, match="the log begins before snapshot-end"):
        server.answer("0_inf", up_to_date(100))


def test_a_conflict_starts_again_and_an_ended_handle_stays_dead() -> None:
    server = Server().synced()
    body = json.dumps(MUST_REFETCH).encode()
    with pytest.raises(Violation, match="body of a 409"):
        server.view.conflict({}, b"[]")
    server.view.conflict({"electric-handle": "1-2"}, body)
    assert (server.view.handle, server.view.rows, server.view.ended) == ("1-2", {}, ["1-1"])
    query = server.view.query(live=True)
    assert (query["offset"], query["handle"], query["expired_handle"]) == ("-1", "1-2", "1-1")
    with pytest.raises(Violation, match="ended handle 1-1"):
        server.answer("0_0", SNAPSHOT_END, handle="1-1")
    with pytest.raises(Violation, match="names a handle that has ended"):
        server.view.conflict({"electric-handle": "1-1"}, body)


def test_a_journal_tells_what_was_rewritten() -> None:
    def journal(title: str, lsn: int = 200) -> Journal:
        server = Server().synced()
        server.answer(
            f"{lsn}_0", change("update", KEY_1, lsn, 0, {"id": "1", "title": title}, last=True), up_to_date(lsn)
        )
        return server.view.journal

    offset = max(journal("a").entries)
    assert journal("a").difference(journal("a"), offset) is None
    assert "entry 200_0" in (journal("a").difference(journal("b"), offset) or "")
    assert "entry 200_0" in (journal("a").difference(journal("a", 150), offset) or "")
    assert "not served at first" in (Server().synced().view.journal.difference(journal("a"), offset) or "")
    other = Server()
    other.answer("0_0", row(KEY_1, "Broth"), SNAPSHOT_END)
    assert "snapshot item 0" in (other.view.journal.difference(journal("a"), offset) or "")


def test_framing_does_not_matter() -> None:
    view = ClientView("recipes")
    headers = {"electric-handle": "1-1", "electric-offset": "0_0", "electric-schema": SCHEMA}
    items = [row(KEY_1, ",\n[{"), row(KEY_2, "]"), SNAPSHOT_END]
    view.accept(view.query(live=False), headers, json.dumps(items, indent=1).encode())
    assert [json.loads(raw) for raw in view.journal.snapshot] == items


class Streams(Server):
    """A server of events."""

    def open(self, drop: str = "", **more: str) -> None:
        query = self.view.query(live=True, events=True)
        headers = {"electric-handle": "1-1", "electric-offset": query["offset"], "electric-cursor": "1"}
        headers = {**headers, "content-type": "text/event-stream", **more}
        headers.pop(drop, None)
        self.view.open_events(query, headers)

    def send(self, *items: dict[str, Any]) -> None:
        self.view.accept_events([json.dumps(item).encode() for item in items])


def streaming() -> Streams:
    """A stream behind the snapshot, and a transaction of two changes by it."""
    server = Streams()
    server.synced()
    assert {"live", "live_sse", "experimental_live_sse"} <= server.view.query(live=True, events=True).keys()
    server.open()
    server.send(*BATCH)
    return server


BATCH = (
    change("insert", KEY_2, 200, 0, {"id": "2", "title": "Stew"}),
    change("update", KEY_2, 200, 2, {"id": "2", "title": "Pie"}, last=True),
    up_to_date(201),
)
LATER = (change("delete", KEY_2, 300, 6, {"id": "2"}, last=True), up_to_date(301))
SINGLE = (change("update", KEY_2, 300, 0, {"id": "2", "title": "Tart"}, last=True), up_to_date(300))


def test_events_are_followed_and_resumed_as_the_official_client_does() -> None:
    server = streaming()
    assert server.view.rows[KEY_2]["title"] == "Pie"
    assert server.view.query(live=True)["offset"] == "201_0"
    server.open()
    server.send(*LATER)
    assert KEY_2 not in server.view.rows
    assert (str(server.view.offset), server.view.lsn) == ("301_0", 301)


def test_of_a_transaction_of_one_change_events_name_the_lsn() -> None:
    server = streaming()
    server.send(*SINGLE)
    assert server.view.query(live=True)["offset"] == "300_0"


def test_a_client_of_events_may_go_on_without() -> None:
    server = streaming()
    server.answer("201_0", up_to_date(201))
    server.answer("300_0", *SINGLE)
    assert server.view.query(live=False)["offset"] == "300_0"


@pytest.mark.parametrize(
    "more",
    [{"electric-offset": "200_2"}, {"electric-offset": "-1"}, {"content-type": "application/json"}],
)
def test_wrong_heads_of_streams(more: dict[str, str]) -> None:
    with pytest.raises(Violation):
        streaming().open(**more)


@pytest.mark.parametrize("name", ["electric-handle", "electric-offset", "electric-cursor"])
def test_missing_heads_of_streams(name: str) -> None:
    with pytest.raises(Violation, match="missing headers"):
        streaming().open(drop=name)


@pytest.mark.parametrize(
    "items",
    [
        BATCH,
        (change("update", KEY_2, 200, 2, {"id": "2", "title": "Tart"}, last=True), BATCH[2]),
        (LATER[0],),
        BATCH[1:],
        (LATER[0], up_to_date(302)),
        (LATER[0], up_to_date(300)),
        (SINGLE[0], up_to_date(299)),
        (up_to_date(300),),
        (*LATER, up_to_date(301)),
        (change("insert", "k0", 150, 0, {"id": "0", "title": ""}), up_to_date(150)),
    ],
    ids=["all again", "altered", "no end", "rest again", "ahead", "behind", "before", "nothing", "twice", "late"],
)
def test_wrong_batches_of_events(items: tuple[dict[str, Any], ...]) -> None:
    server = streaming()
    server.open()
    with pytest.raises(Violation):
        server.send(*items)

"""What a strict client believes after each answer of `/v1/shape`: plain values in, a view or a `Violation` out, no I/O.

The official client forgives much (it merges an update of an unknown row, it never compares offsets). This one forgives
nothing that the protocol rules out, so that lost, repeated, reordered or altered changes are noticed where they appear.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import orjson

from common.lsn import BEFORE_ALL, SNAPSHOT_END, Offset, parse_offset

Row = dict[str, str | None]
Replica = Literal["default", "full"]

MUST_REFETCH = [{"headers": {"control": "must-refetch"}}]


class Violation(AssertionError):
    """The server broke the protocol or sent something that cannot be true."""


class Journal:
    """Every byte one handle ever served us: items of the snapshot in order, entries of the log by offset."""

    def __init__(self) -> None:
        self.snapshot: list[bytes] = []
        self.chunks: dict[str, int] = {}
        self.entries: dict[Offset, bytes] = {}

    def difference(self, again: Journal, until: Offset) -> str | None:
        """How a complete second reading differs from this one, up to `until`; None if not at all (INV-21, INV-24)."""
        if self.chunks != again.chunks:
            return f"snapshot chunks (items by requested offset): first {self.chunks}, now {again.chunks}"
        for number, (first, now) in enumerate(zip(self.snapshot, again.snapshot, strict=True)):
            if first != now:
                return f"snapshot item {number}: first {_short(first)}, now {_short(now)}"
        now_there = {offset: entry for offset, entry in again.entries.items() if offset <= until}
        for offset, entry in self.entries.items():
            other = now_there.pop(offset, None)
            if other != entry:
                return f"entry {offset}: first {_short(entry)}, now {_short(other)}"
        if now_there:
            return f"entries that were not served at first: {[str(offset) for offset in list(now_there)[:5]]}"
        return None


class ClientView:
    """The state of one shape as its client sees it, moved on by `accept` (200) and `conflict` (409).

    `monotone_lsn`: `global_last_seen_lsn` may not fall; switch it off where processes are killed, since what only a
    dead process knew may be forgotten. That a change never lies at or below an LSN announced before holds always.

    `offset` is how far what is held reaches, and what the next request asks for.
    """

    offset: Offset

    def __init__(
        self,
        table: str,
        *,
        columns: Sequence[str] | None = None,
        where: str | None = None,
        params: Sequence[str] = (),
        replica: Replica = "default",
        monotone_lsn: bool = True,
    ) -> None:
        self.table = table
        self.where = where
        self.params = params
        self.columns = columns
        self.replica = replica
        self.monotone_lsn = monotone_lsn
        self.ended: list[str] = []
        self.journals: dict[str, Journal] = {}
        self._reset(None)

    @property
    def journal(self) -> Journal:
        """What the present handle served."""
        return self.journals.setdefault(self.handle or "", Journal())

    def query(self, live: bool, events: bool = False) -> dict[str, str]:
        """The parameters of the next request, as the official client builds them (client-expectations.md 1).

        ``events``: a live one asks for server-sent events.
        """
        query = {"table": self.table, "offset": str(self.offset), "log": "full"}
        if self.columns is not None:
            query["columns"] = ",".join(f'"{name}"' for name in (c.replace('"', '""') for c in self.columns))
        if self.where is not None:
            query["where"] = self.where
            query |= {f"params[{number}]": value for number, value in enumerate(self.params, 1)}
        if self.replica == "full":
            query["replica"] = "full"
        if self.handle is not None:
            query["handle"] = self.handle
        if self.ended:
            query["expired_handle"] = self.ended[-1]
        if self.up_to_date:
            query["cursor"] = self.cursor
            if live:
                query["live"] = "true"
                if events:
                    query |= {"live_sse": "true", "experimental_live_sse": "true"}
        return dict(sorted(query.items()))

    def accept(self, query: Mapping[str, str], headers: Mapping[str, str], body: bytes) -> None:
        """Take in a 200. Raises Violation at the first thing that cannot be right."""
        live = query.get("live") == "true"
        requested = parse_offset(query["offset"])
        self._check_headers(headers, live)
        self._adopt_handle(headers["electric-handle"], requested)
        if not live:
            self._adopt_schema(headers["electric-schema"])
        end = parse_offset(headers["electric-offset"])
        if end < requested:
            raise Violation(f"electric-offset went back: {requested} -> {end}")
        items, raws = _split(body)
        final = _control(items[-1]) if items else None
        self.up_to_date = final == "up-to-date"
        if self.up_to_date != ("electric-up-to-date" in headers):
            raise Violation(
                f"header electric-up-to-date: {'electric-up-to-date' in headers}, last message: {_short(raws[-1:])}"
            )
        payload = items[:-1] if self.up_to_date else items
        try:
            if end.is_virtual and end != SNAPSHOT_END:
                self._take_snapshot(query["offset"], requested, end, payload, raws)
            else:
                self._take_log(requested, end, payload, raws)
        except Violation as violation:
            raise Violation(f"{violation} (requested {requested}, electric-offset {end})") from None
        self.offset = end
        if self.up_to_date:
            self._note_lsn(items[-1]["headers"])
        elif end == requested:
            raise Violation(f"no progress at {requested}: neither a new offset nor up-to-date")
        if live:
            self.cursor = headers["electric-cursor"]

    def open_events(self, query: Mapping[str, str], headers: Mapping[str, str]) -> None:
        """Take in the head of a stream of events. Raises Violation."""
        self._check_headers(headers, live=True)
        requested = parse_offset(query["offset"])
        self._adopt_handle(headers["electric-handle"], requested)
        if headers["content-type"] != "text/event-stream":
            raise Violation(f"content-type {headers['content-type']} for events")
        # The official client adopts it before any event, so it must not be past one.
        if parse_offset(headers["electric-offset"]) != max(requested, SNAPSHOT_END):
            raise Violation(f"events after {requested} are announced with offset {headers['electric-offset']}")
        self.cursor = headers["electric-cursor"]

    def accept_events(self, items: Sequence[bytes]) -> None:
        """Take in the events of a stream up to the first up-to-date. Raises Violation."""
        parsed, raws = _split(b"[" + b",\n".join(items) + b"]")
        if not parsed or _control(parsed[-1]) != "up-to-date":
            raise Violation(f"a batch does not end with up-to-date: {_short(raws[-1:])}")
        headers = parsed[-2]["headers"] if len(parsed) > 1 else {}
        if "lsn" not in headers:
            raise Violation(f"up-to-date without a change before it: {_short(raws[-2:])}")
        end = Offset(int(headers["lsn"]), headers["op_position"])
        self.up_to_date = True
        self._take_log(self.offset, end, parsed[:-1], raws)
        self._note_lsn(parsed[-1]["headers"])
        # No header comes with it: this is how the official client goes on (http-api.md 16.8), and to nothing twice.
        self.offset = Offset(self.lsn, 0)
        if not end <= self.offset <= Offset(end.tx + 1, 0):
            raise Violation(f"up-to-date does not name the place of the event before it: {_short(raws[-2:])}")

    def conflict(self, headers: Mapping[str, str], body: bytes) -> None:
        """Take in a 409: forget all and start again (http-api.md 11)."""
        if orjson.loads(body) != MUST_REFETCH:
            raise Violation(f"body of a 409: {_short(body)}")
        if self.handle is not None and self.offset != BEFORE_ALL:
            self.ended.append(self.handle)
        successor = headers.get("electric-handle")
        if successor in self.ended:
            raise Violation(f"409 names a handle that has ended: {successor}")
        self._reset(successor)

    def _reset(self, handle: str | None) -> None:
        self.handle = handle
        self.offset = BEFORE_ALL
        self.cursor = ""
        self.up_to_date = False
        self.rows: dict[str, Row] = {}
        self.lsn = 0
        self.names: frozenset[str] | None = None
        self.key_columns: tuple[str, ...] = ()
        self._snapshot_ended = False
        self._last_entry = Offset(0, 0)
        self._closed_tx = 0
        self._moved: tuple[str, str] | None = None

    def _check_headers(self, headers: Mapping[str, str], live: bool) -> None:
        required = ["electric-handle", "electric-offset", "electric-cursor" if live else "electric-schema"]
        missing = [name for name in required if name not in headers]
        if missing:
            raise Violation(f"missing headers {missing} (live={live})")

    def _adopt_handle(self, handle: str, requested: Offset) -> None:
        if handle in self.ended:
            raise Violation(f"the ended handle {handle} is served again")
        if requested == BEFORE_ALL:
            if handle != self.handle:
                self.handle = handle
        elif handle != self.handle:
            raise Violation(f"asked for handle {self.handle}, got 200 with {handle}")

    def _adopt_schema(self, text: str) -> None:
        if self.names is not None:
            return
        schema = orjson.loads(text)
        self.names = frozenset(schema)
        keys = sorted((info["pk_index"], name) for name, info in schema.items() if "pk_index" in info)
        self.key_columns = tuple(name for _, name in keys)

    def _take_snapshot(
        self, asked: str, requested: Offset, end: Offset, items: Sequence[Any], raws: Sequence[bytes]
    ) -> None:
        if self.up_to_date:
            raise Violation("up-to-date inside the snapshot")
        if end.op != (0 if requested == BEFORE_ALL else requested.op + 1):
            raise Violation("snapshot chunks are numbered without gaps")
        if items and self._snapshot_ended:
            raise Violation(f"snapshot goes on after snapshot-end: {_short(raws[0])}")
        for item, raw in zip(items, raws, strict=False):
            if self._snapshot_ended:
                raise Violation(f"message after snapshot-end: {_short(raw)}")
            if _control(item) == "snapshot-end":
                self._snapshot_ended = True
            elif set(item["headers"]) != {"operation", "relation"} or item["headers"]["operation"] != "insert":
                raise Violation(f"not a snapshot row: {_short(raw)}")
            else:
                self._insert(item, raw)
        if items:
            self.journal.chunks[asked] = len(items)
            self.journal.snapshot.extend(raws[: len(items)])

    def _take_log(self, requested: Offset, end: Offset, items: Sequence[Any], raws: Sequence[bytes]) -> None:
        if not self._snapshot_ended:
            raise Violation("the log begins before snapshot-end was sent")
        entries = self.journal.entries
        offset = requested
        for item, raw in zip(items, raws, strict=False):
            headers = item["headers"]
            if "operation" not in headers:
                raise Violation(f"not a change: {_short(raw)}")
            offset = Offset(int(headers["lsn"]), headers["op_position"])
            if not (requested < offset <= end and self._last_entry < offset):
                raise Violation(f"entry {offset} is out of order after {self._last_entry}: {_short(raw)}")
            if offset.tx <= self._closed_tx:
                raise Violation(f"a change at or below LSN {self._closed_tx}, which was complete: {_short(raw)}")
            if entries.setdefault(offset, raw) != raw:
                raise Violation(f"entry {offset} was {_short(entries[offset])}, is now {_short(raw)}")
            self._apply(item, headers, raw, offset)
            self._last_entry = offset
            if headers.get("last"):
                self._closed_tx = offset.tx
        if items and end != offset:
            raise Violation(f"electric-offset is not the last entry's offset {offset}")
        if not items and end not in (requested, SNAPSHOT_END):
            raise Violation("electric-offset moved without an entry")
        if self.up_to_date and self._moved is not None:
            raise Violation(f"up-to-date between delete and insert of a key change: {self._moved}")

    def _apply(self, item: Any, headers: Any, raw: bytes, offset: Offset) -> None:
        operation = headers["operation"]
        if self._moved is not None and headers.get("key_change_from") != self._moved[0]:
            raise Violation(f"a key change of {self._moved[0]} to {self._moved[1]} is not completed by {_short(raw)}")
        if operation == "insert":
            self._insert(item, raw)
            source = headers.get("key_change_from")
            if source is not None and (self._moved != (source, item["key"]) or offset.op % 2 == 0):
                raise Violation(f"key_change_from without its delete before: {_short(raw)}")
            self._moved = None
        elif operation == "update":
            self._update(item, raw)
        elif operation == "delete":
            self._delete(item, raw)
            target = headers.get("key_change_to")
            self._moved = None if target is None else (item["key"], target)
        else:
            raise Violation(f"unknown operation: {_short(raw)}")

    def _insert(self, item: Any, raw: bytes) -> None:
        key, value = item["key"], item["value"]
        if key in self.rows:
            raise Violation(f"insert of a held key: {_short(raw)}; held: {self.rows[key]}")
        if value.keys() != self.names:
            raise Violation(f"insert without all columns {sorted(self.names or ())}: {_short(raw)}")
        self.rows[key] = value

    def _update(self, item: Any, raw: bytes) -> None:
        key, value = item["key"], item["value"]
        held = self.rows.get(key)
        if held is None:
            raise Violation(f"update of a missing key: {_short(raw)}")
        changed = {name for name, text in value.items() if held.get(name, ...) != text}
        if not changed or changed & set(self.key_columns):
            raise Violation(f"update that changes {sorted(changed) or 'nothing'}: {_short(raw)}; held: {held}")
        if self.replica == "full":
            old = item.get("old_value")
            if value.keys() != self.names or old != {name: held[name] for name in changed}:
                raise Violation(f"replica=full update: {_short(raw)}; held: {held}")
        elif "old_value" in item or value.keys() != changed | set(self.key_columns):
            raise Violation(f"update is not the key and what changed ({sorted(changed)}): {_short(raw)}")
        held.update(value)

    def _delete(self, item: Any, raw: bytes) -> None:
        held = self.rows.pop(item["key"], None)
        if held is None:
            raise Violation(f"delete of a missing key: {_short(raw)}")
        names = self.key_columns if self.replica == "default" and self.key_columns else held
        if item["value"] != {name: held[name] for name in names}:
            raise Violation(f"delete does not show the row that was there: {_short(raw)}; held: {held}")

    def _note_lsn(self, headers: Mapping[str, Any]) -> None:
        text = headers.get("global_last_seen_lsn")
        if not isinstance(text, str) or not text.isdigit():
            raise Violation(f"up-to-date without global_last_seen_lsn: {dict(headers)}")
        lsn = int(text)
        if self.monotone_lsn and lsn < self.lsn:
            raise Violation(f"global_last_seen_lsn fell from {self.lsn} to {lsn}")
        self.lsn = lsn
        # Clients drop a change at or below an LSN they were told (client-expectations.md 3): it must never come.
        self._closed_tx = max(self._closed_tx, lsn)


def _split(body: bytes) -> tuple[list[Any], list[bytes]]:
    """The items of an answer, parsed, and the bytes of each."""
    try:
        items = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Violation(f"not JSON ({error}): {_short(body)}") from None
    if not isinstance(items, list):
        raise Violation(f"not an array: {_short(body)}")
    raws = body.strip()[1:-1].strip().split(b",\n")
    if len(raws) != len(items):
        raws = _scan(body.decode())
    if any(not isinstance(item, dict) or "headers" not in item for item in items):
        raise Violation(f"a message without headers: {_short(body)}")
    for item, raw in zip(items[:-1], raws, strict=False):
        if _control(item) in ("up-to-date", "must-refetch"):
            raise Violation(f"control message before the end: {_short(raw)}")
    return items, raws


def _scan(text: str) -> list[bytes]:
    """The bytes of each item of an array, whatever separates them."""
    decoder = json.JSONDecoder()
    spans: list[bytes] = []
    at = text.index("[") + 1
    while True:
        while text[at] in " \t\r\n,":
            at += 1
        if text[at] == "]":
            return spans
        _, end = decoder.raw_decode(text, at)
        spans.append(text[at:end].encode())
        at = end


def _control(item: Any) -> str | None:
    control: str | None = item["headers"].get("control")
    return control


def _short(data: object) -> str:
    text = data.decode(errors="replace") if isinstance(data, bytes) else repr(data)
    return text if len(text) <= 600 else text[:400] + f"… ({len(text)} characters)"

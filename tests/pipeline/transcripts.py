"""Recorded conversations with the reference (tests/transcripts), and how an answer of ours is compared with a record.

Handles, LSNs, xids and clocks differ with each run. :class:`Correspondence` learns which of ours stands for which of
the record's, and demands that it stays so: one of ours for one of theirs, and LSNs in the same order.
"""

from __future__ import annotations

import json
import re
import sys
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

FOLDER: Final = Path(__file__).resolve().parents[1] / "transcripts"

EXPOSED: Final = (
    "electric-cursor,electric-handle,electric-has-data,electric-offset,electric-schema,electric-up-to-date,"
    "electric-internal-known-error,retry-after"
)
METHODS: Final = {"shape": "GET, POST, HEAD, DELETE, OPTIONS", "other": "GET, HEAD"}
OPEN: Final = ("date", "x-request-id", "content-length", "retry-after")
"""Headers of which only the form counts; a length is compared through its body."""

_TOKENS = re.compile(r"\d+-\d{16}|(?<![\d_])\d{7,}(?=_(?:\d|inf))")


class Step(msgspec.Struct, omit_defaults=True):
    """A request and its recorded answer, a statement, or a note of what was done to the server.

    ``fields`` holds the headers but those that every answer has; ``cors`` names the methods that are told.
    ``meanwhile`` are steps that were taken while the request waited; ``after`` is how long the answer took, in seconds,
    where that was long; ``limit`` is when the client hung up.
    """

    ask: str = ""
    label: str = ""
    headers: dict[str, str] = {}
    body: str | None = None
    status: int = 0
    cors: str | None = None
    bare: bool = False
    fields: dict[str, Any] = {}
    answer: Any = None
    text: str = ""
    meanwhile: list[Step] = []
    after: float = 0
    limit: float | None = None
    sql: str = ""
    session: str = ""
    note: str = ""

    @property
    def name(self) -> str:
        """How differences speak of it."""
        return self.label or self.ask

    @property
    def is_stream(self) -> bool:
        """Whether the answer is a stream of events."""
        return self.fields.get("content-type") == "text/event-stream"

    def expected_headers(self) -> dict[str, Any]:
        """All headers of the recorded answer."""
        expected = dict(self.fields)
        if self.bare:
            return expected
        expected |= {"date": "", "electric-server": "ElectricSQL/1.7.12"}
        expected.setdefault("x-request-id", "")
        if self.status != 204:
            expected["vary"] = "accept-encoding"
        if self.cors is not None:
            expected.setdefault("access-control-allow-origin", "*")
            expected |= {"access-control-expose-headers": EXPOSED, "access-control-allow-methods": METHODS[self.cors]}
        return expected


def read(number: str) -> list[Step]:
    """The steps of a transcript."""
    (path,) = FOLDER.glob(f"{number}-*.jsonl")
    lines = path.read_text().strip("\n").split("\n")
    return [msgspec.json.decode(line, type=Step) for line in lines[1:]]


class Correspondence:
    """What of ours stands for what of the record."""

    def __init__(self) -> None:
        self._ours: dict[str, str] = {}
        self._theirs: dict[str, str] = {}
        self._lsns: dict[int, int] = {}

    def translate(self, text: str) -> str:
        """The record's text with our handles and LSNs in it; what was never learnt stays."""
        return _TOKENS.sub(lambda match: self._ours.get(match[0], match[0]), text)

    def pair(self, kind: str, theirs: str, ours: str) -> Iterator[str]:
        """Learn that these stand for one another, or tell what contradicts it."""
        key, back = (theirs, ours) if kind != "xid" else (f"xid {theirs}", f"xid {ours}")
        known = self._ours.setdefault(key, ours)
        if known != ours:
            yield f"{kind} {ours} stands for {theirs}, which was {known} before"
        if kind == "LSN":
            for other, our_other in self._lsns.items():
                if (int(theirs) > other) != (int(ours) > our_other) and int(theirs) != other:
                    yield f"LSN {ours} stands for {theirs}, but {our_other} for {other}"
            self._lsns[int(theirs)] = int(ours)
        known = self._theirs.setdefault(back, theirs)
        if known != theirs:
            yield f"{kind} {ours} stands for {theirs}, but it was {known} before"

    def offsets(self, theirs: str, ours: str) -> Iterator[str]:
        """Compare two offsets."""
        their_tx, _, their_op = theirs.partition("_")
        our_tx, _, our_op = ours.partition("_")
        if their_op != our_op or (len(their_tx) > 6) != (len(our_tx) > 6):
            yield f"offset {ours} for {theirs}"
        elif len(their_tx) > 6:
            yield from self.pair("LSN", their_tx, our_tx)
        elif their_tx != our_tx:
            yield f"offset {ours} for {theirs}"


def decoded(headers: Mapping[str, str], body: bytes) -> bytes:
    """The body as it was before it was compressed."""
    match headers.get("content-encoding"):
        case "zstd":
            return zstd.decompress(body)
        case "gzip":
            return zlib.decompress(body, 16 + zlib.MAX_WBITS)
    return body


def compare(
    step: Step, status: int, headers: Mapping[str, str], body: bytes, known: Correspondence, *, sent_cursor: int = 0
) -> Iterator[str]:
    """What is different in an answer of ours."""
    if status != step.status:
        yield f"status {status} for {step.status}: {body[:300]!r}"
        return
    expected = step.expected_headers()
    if handle := expected.get("electric-handle"):
        yield from known.pair("handle", handle, headers.get("electric-handle", ""))
    yield from _body(step, body, known, headers)
    missing, added = sorted(expected.keys() - headers.keys()), sorted(headers.keys() - expected.keys())
    if missing or added:
        yield f"headers missing: {missing}, added: {added}"
    if offset := expected.get("electric-offset"):
        yield from known.offsets(offset, headers.get("electric-offset", ""))
    for name in expected.keys() & headers.keys():
        yield from _header(name, expected[name], headers[name], known, sent_cursor)


def _header(name: str, theirs: Any, ours: str, known: Correspondence, sent_cursor: int) -> Iterator[str]:
    if name in OPEN:
        if name == "retry-after" and not ours.isdigit():
            yield f"{name}: {ours}"
    elif name == "electric-schema":
        if json.loads(ours) != theirs:
            yield f"{name}: {ours} for {json.dumps(theirs)}"
    elif name == "electric-cursor":
        if not ours.isdigit() or int(ours) <= sent_cursor:
            yield f"{name}: {ours} after {sent_cursor}"
    elif name == "etag" and theirs.count(":") == 3:
        if known.translate(theirs).rpartition(":")[0] != ours.rpartition(":")[0]:
            yield f"{name}: {ours} for {known.translate(theirs)}"
    elif known.translate(theirs) != ours:
        yield f"{name}: {ours} for {known.translate(theirs)}"


def _body(step: Step, body: bytes, known: Correspondence, headers: Mapping[str, str]) -> Iterator[str]:
    if step.ask.startswith("HEAD"):
        if body:
            yield f"a body: {body[:200]!r}"
    elif step.is_stream:
        yield from _items(_data(step.text), _data(body.decode()), known, headers.get("electric-offset", ""), False)
    elif isinstance(step.answer, list) and headers.get("content-type", "").startswith("application/json"):
        end = headers.get("electric-offset", "")
        has_data = "live=true" in step.ask and headers.get("electric-has-data") == "true"
        yield from _items(step.answer, json.loads(body), known, end, has_data)
    elif "electric-snapshot" in step.fields:
        yield from _subset(step.answer, json.loads(body), "order_by" in step.ask + (step.body or ""))
    elif step.answer is not None:
        if json.loads(body) != step.answer:
            yield f"body: {body.decode()} for {json.dumps(step.answer, ensure_ascii=False)}"
    elif body.decode() != step.text:
        yield f"body: {body[:300]!r} for {step.text[:300]!r}"


def _data(stream: str) -> list[Any]:
    """The messages of a stream of events, without the comments."""
    events = [event for event in stream.split("\n\n") if event and not event.startswith(":")]
    return [json.loads(event.removeprefix("data: ")) for event in events]


def _subset(theirs: Any, ours: Any, is_ordered: bool) -> Iterator[str]:
    metadata = ours["metadata"]
    mark = metadata.get("snapshot_mark")
    if metadata.keys() != theirs["metadata"].keys() or not isinstance(mark, int):
        yield f"metadata: {metadata}"
    if not all(isinstance(metadata.get(name), str) for name in ("database_lsn", "xmin", "xmax")):
        yield f"metadata: {metadata}"
    their_rows, our_rows = (
        [{**row, "headers": {**row["headers"], "snapshot_mark": mark}} for row in theirs["data"]],
        ours["data"],
    )
    if not is_ordered:
        their_rows, our_rows = sorted(their_rows, key=_key), sorted(our_rows, key=_key)
    if their_rows != our_rows:
        yield f"rows: {json.dumps(our_rows)} for {json.dumps(their_rows)}"


def _items(theirs: list[Any], ours: list[Any], known: Correspondence, end: str, live: bool) -> Iterator[str]:
    skip = next((index for index, item in enumerate(theirs) if "more" in item), None)
    if skip is not None:
        count = theirs[skip]["more"]
        theirs, ours = theirs[:skip] + theirs[skip + 1 :], ours[:skip] + ours[skip + count :]
    if len(theirs) != len(ours):
        yield f"{len(ours)} items for {len(theirs)}: {json.dumps(ours)[:1000]}"
        return
    # The rows of a snapshot come in whatever order Postgres has them.
    if any(item["headers"].get("control") == "snapshot-end" for item in theirs):
        theirs, ours = sorted(theirs, key=_key), sorted(ours, key=_key)
    for their, our in zip(theirs, ours, strict=True):
        yield from _item(their, our, known, end, live)


def _key(item: Any) -> str:
    return item.get("key") or "~"


def _item(their: Any, our: Any, known: Correspondence, end: str, live: bool) -> Iterator[str]:
    theirs, ours = dict(their["headers"]), dict(our["headers"])
    if theirs.get("control") == "up-to-date":
        lsn, tx = ours.pop("global_last_seen_lsn", "none"), end.partition("_")[0]
        del theirs["global_last_seen_lsn"]
        # A live answer with data names the shape's own LSN; the others one that is at least that (http-api.md 13.3).
        if not lsn.isdigit() or not tx.isdigit() or int(lsn) < int(tx) or (live and lsn != tx):
            yield f"global_last_seen_lsn {lsn} at {end}"
    elif theirs.get("control") == "snapshot-end":
        for name in ("xmin", "xmax"):
            if not (isinstance(ours.get(name), str) and ours[name].isdigit()):
                yield f"{name}: {ours.get(name)!r}"
            theirs.pop(name, None)
            ours.pop(name, None)
        if len(theirs.pop("xip_list")) != len(ours.pop("xip_list", "?")):
            yield f"xip_list: {our}"
    if "lsn" in theirs and "lsn" in ours:
        yield from known.pair("LSN", theirs.pop("lsn"), ours.pop("lsn"))
    if "txids" in theirs and "txids" in ours:
        for one, other in zip(theirs.pop("txids"), ours.pop("txids"), strict=True):
            yield from known.pair("xid", str(one), str(other))
    yield from _members("headers", theirs, ours)
    for name in ("key", "value", "old_value"):
        yield from _members(name, their.get(name), our.get(name))
    if extra := our.keys() - their.keys():
        yield f"members added: {sorted(extra)}"


def _members(path: str, theirs: Any, ours: Any) -> Iterator[str]:
    if isinstance(theirs, dict) and isinstance(ours, dict):
        for name in sorted(theirs.keys() | ours.keys()):
            yield from _members(f"{path}.{name}", theirs.get(name, "absent"), ours.get(name, "absent"))
    elif theirs != ours:
        yield f"{path}: {json.dumps(ours, ensure_ascii=False)} for {json.dumps(theirs, ensure_ascii=False)}"

"""What a client asks of ``/v1/shape``: casting and validation without the database (http-api.md 6, 8, 9, 26).

Checks run in rounds; all errors of the first round are reported together, later rounds stop at the first that fails.
"""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Final, NamedTuple, TypeVar

import msgspec

from common.lsn import BEFORE_ALL, MAX_LSN, OP_INFINITE, Offset, parse_offset
from common.normal_form import normal_form
from common.shape import LogMode, Replica, ShapeRequest
from gateway.identifier import IdentifierError, parse_columns, parse_relation
from gateway.query_string import Value

Errors = dict[str, list[str] | dict[str, list[str]]]
"""Texts by field; those about a subset are one level deeper."""

BLANK: Final = "can't be blank"
INVALID: Final = "is invalid"
OUT_OF_BOUNDS: Final = "out of bounds for this shape"
NOT_NUMBERS: Final = "Parameters can only use numbers as keys"
NOT_SEQUENTIAL: Final = "Parameters must be numbered sequentially, starting from 1"

REMEMBERED: Final = 512
"""Definitions of shapes that are remembered with what they mean."""

REMEMBERED_CHARS: Final = 10_000
"""And no longer ones: a request line cannot have them."""

_BOOLEANS: Final[Mapping[str, bool]] = {"true": True, "1": True, "false": False, "0": False}
_REPLICAS: Final[Mapping[str, Replica]] = {"default": "default", "full": "full"}
_LOG_MODES: Final[Mapping[str, LogMode]] = {"full": "full", "changes_only": "changes_only"}
_TOO_LARGE = re.compile(r"\+?(\d+)_(\+?\d+|inf)", re.ASCII)
_KEY = re.compile(r"\d{1,9}", re.ASCII)
_INTEGER = re.compile(r"[+-]?\d{1,1000}", re.ASCII)

T = TypeVar("T")


class InvalidRequest(Exception):
    """The request is refused with status 400; ``errors`` maps each field to its texts."""

    def __init__(self, errors: Errors) -> None:
        super().__init__(errors)
        self.errors = errors


class LogQuery(msgspec.Struct, frozen=True, kw_only=True):
    """A valid GET: ``offset`` is ``None`` for ``now``; ``cursor`` is 0 when the client sent none that counts.

    ``shape`` is what identifies the shape; ``sent`` is the same with the clause as the client wrote it, for errors.
    ``sse`` asks for events; it implies ``live``, and an offset.
    ``queryable`` are the columns that a subset may mention, all if ``None``; no part of the shape.
    """

    shape: ShapeRequest
    sent: ShapeRequest
    offset: Offset | None
    handle: str | None
    live: bool
    sse: bool
    cursor: int
    queryable: tuple[str, ...] | None = None

    @property
    def resumes(self) -> bool:
        """Whether the client goes on from an earlier answer, so that its handle counts (http-api.md 11)."""
        return self.offset is not None and self.offset != BEFORE_ALL


class DeleteQuery(msgspec.Struct, frozen=True, kw_only=True):
    """A valid DELETE: a handle or a shape is given. ``sent`` is the shape with its clause as the client wrote it."""

    shape: ShapeRequest | None
    sent: ShapeRequest | None
    handle: str | None


def parse_log_query(query: Mapping[str, Value]) -> LogQuery:
    """Check a GET or HEAD. Raises :class:`InvalidRequest`."""
    cast = _Cast(query)
    offset_text = cast.text("offset")
    handle = cast.text("handle")
    live = _flag(query, "live")
    live_sse = cast.legacy_sse() if "live_sse" not in query else _flag(query, "live_sse")
    definition = _Definition.cast(cast)
    if offset_text is None:
        cast.errors.setdefault("offset", [BLANK])
    cast.check()
    assert offset_text is not None

    offset = _offset(offset_text)
    if offset is not None and offset != BEFORE_ALL and handle is None:
        raise InvalidRequest({"handle": ["can't be blank when offset != -1"]})
    if live and offset == BEFORE_ALL:
        raise InvalidRequest({"live": ["can't be true when offset == -1"]})
    if live and offset is None:
        raise InvalidRequest({"live": ["can't be true when offset is 'now'"]})
    if live_sse and not live:
        raise InvalidRequest({"live_sse": ["can't be true unless live is also true"]})
    understand = _remembered if definition.size <= REMEMBERED_CHARS else _understood
    sent, shape, queryable = understand(definition)
    return LogQuery(
        shape=shape,
        sent=sent,
        offset=offset,
        handle=handle,
        live=live,
        sse=live_sse,
        cursor=_cursor(query.get("cursor")),
        queryable=queryable,
    )


def parse_explain_query(query: Mapping[str, Value]) -> ShapeRequest:
    """Check what defines a shape, whose clause stays as sent. Raises :class:`InvalidRequest` as for a GET."""
    cast = _Cast(query)
    definition = _Definition.cast(cast)
    cast.check()
    return definition.shape()


def parse_delete_query(query: Mapping[str, Value]) -> DeleteQuery:
    """Check a DELETE. Raises :class:`InvalidRequest`. Flags are strict here, unlike in a GET (http-api.md 6.2)."""
    cast = _Cast(query)
    handle = cast.text("handle")
    cast.text("offset")
    cast.choice("live", _BOOLEANS, False)
    cast.choice("live_sse", _BOOLEANS, False)
    definition = _Definition.cast(cast)
    cast.check()
    if definition.table is None:
        if handle is None:
            raise InvalidRequest({"handle": ["can't be blank when shape definition is missing"]})
        return DeleteQuery(shape=None, sent=None, handle=handle)
    sent = definition.shape()
    return DeleteQuery(shape=_normal(sent), sent=sent, handle=handle)


class _Cast:
    """The first round: takes values of the right type out of the query and collects what is wrong."""

    def __init__(self, query: Mapping[str, Value]) -> None:
        self._query = query
        self.errors: Errors = {}

    def check(self) -> None:
        if self.errors:
            raise InvalidRequest(self.errors)

    def given(self, name: str) -> Value | None:
        """The value, unless it is absent or a blank text, which counts as absent."""
        value = self._query.get(name)
        return None if isinstance(value, str) and not value.strip() else value

    def text(self, name: str) -> str | None:
        value = self.given(name)
        if value is None or isinstance(value, str):
            return value
        self._refuse(name)
        return None

    def choice(self, name: str, choices: Mapping[str, T], default: T) -> T:
        value = self.given(name)
        if value is None:
            return default
        if isinstance(value, str) and value in choices:
            return choices[value]
        self._refuse(name)
        return default

    def texts(self, name: str) -> tuple[str, ...] | str | None:
        """A comma list as it is, or the elements of ``name[]=…``."""
        value = self.given(name)
        if value is None or isinstance(value, str):
            return value
        if isinstance(value, list):
            elements = tuple(element for element in value if isinstance(element, str))
            if len(elements) == len(value):
                return elements
        self._refuse(name)
        return None

    def mapping(self, name: str) -> dict[str, str]:
        """``name[key]=…``, or all of it as the text of a JSON object, which the reference does not take."""
        value: object = self.given(name)
        if value is None:
            return {}
        if isinstance(value, str) and value.startswith("{"):
            with contextlib.suppress(msgspec.DecodeError, RecursionError):
                value = msgspec.json.decode(value)
        if isinstance(value, dict):
            pairs = {key: element for key, element in value.items() if isinstance(element, str)}
            if len(pairs) == len(value):
                return pairs
        self._refuse(name)
        return {}

    def legacy_sse(self) -> bool:
        """``experimental_live_sse``: strict, and its errors are told under the new name."""
        value = self.given("experimental_live_sse")
        if value is None:
            return False
        if isinstance(value, str) and value in _BOOLEANS:
            return _BOOLEANS[value]
        self._refuse("live_sse")
        return False

    def _refuse(self, name: str) -> None:
        self.errors.setdefault(name, [INVALID])


class _Definition(msgspec.Struct, frozen=True, kw_only=True):
    """What defines the shape, cast but not yet understood."""

    table: str | None
    where: str | None
    params: tuple[tuple[str, str], ...]
    columns: tuple[str, ...] | str | None
    queryable: tuple[str, ...] | str | None
    replica: Replica
    log: LogMode

    @staticmethod
    def cast(cast: _Cast) -> _Definition:
        definition = _Definition(
            table=cast.text("table"),
            where=cast.text("where"),
            params=tuple(cast.mapping("params").items()),
            columns=cast.texts("columns"),
            queryable=cast.texts("queryable_columns"),
            replica=cast.choice("replica", _REPLICAS, "default"),
            log=cast.choice("log", _LOG_MODES, "full"),
        )
        # Accepted without effect: a log that is never compacted is one the flag allows (http-api.md 12.8).
        cast.choice("experimental_compaction", _BOOLEANS, False)
        return definition

    @property
    def size(self) -> int:
        """How many characters its texts have."""
        texts = [self.table or "", self.where or "", *itertools.chain(*self.params)]
        for names in (self.columns or (), self.queryable or ()):
            texts.extend((names,) if isinstance(names, str) else names)
        return sum(map(len, texts))

    def shape(self) -> ShapeRequest:
        """Raises :class:`InvalidRequest` for a missing table, bad identifiers and what this version lacks."""
        if self.table is None:
            raise InvalidRequest({"table": [BLANK]})
        schema, table = _identifiers("table", parse_relation, self.table)
        columns = _columns("columns", self.columns)
        queryable = self.queryable_columns()
        if queryable is not None:
            unknown = [name for name in columns or () if name not in queryable]
            if unknown:
                raise InvalidRequest({"columns": [_not_found(unknown)]})
            columns = list(queryable) if columns is None else columns
        return ShapeRequest(
            schema=schema,
            table=table,
            columns=None if columns is None else tuple(sorted(columns)),
            where=self.where,
            params=() if self.where is None else _in_order(dict(self.params)),
            replica=self.replica,
            log=self.log,
        )

    def queryable_columns(self) -> tuple[str, ...] | None:
        """Raises :class:`InvalidRequest` for bad identifiers."""
        names = _columns("queryable_columns", self.queryable)
        return None if names is None else tuple(names)


class _Meaning(NamedTuple):
    """Of a definition: the shape with its clause as sent and as all spellings have it, and columns for subsets."""

    sent: ShapeRequest
    shape: ShapeRequest
    queryable: tuple[str, ...] | None


def _understood(definition: _Definition) -> _Meaning:
    """Raises :class:`InvalidRequest`."""
    sent = definition.shape()
    return _Meaning(sent, _normal(sent), definition.queryable_columns())


# A client that follows a shape defines it again in each of its requests.
_remembered = lru_cache(maxsize=REMEMBERED)(_understood)


def _normal(sent: ShapeRequest) -> ShapeRequest:
    """The request as all spellings of its clause have it."""
    if sent.where is None:
        return sent
    where, params = normal_form(sent.where, sent.params)
    return msgspec.structs.replace(sent, where=where, params=params)


def _in_order(params: dict[str, str]) -> tuple[str, ...]:
    """The values of ``$1``, ``$2``… Keys are compared as numbers."""
    if not all(_KEY.fullmatch(key) for key in params):
        raise InvalidRequest({"params": [NOT_NUMBERS]})
    values = {int(key): value for key, value in params.items()}
    if values.keys() != set(range(1, len(params) + 1)):
        raise InvalidRequest({"params": [NOT_SEQUENTIAL]})
    return tuple(values[number] for number in range(1, len(params) + 1))


def _identifiers(field: str, parse: Callable[[str], T], text: str) -> T:
    try:
        return parse(text)
    except IdentifierError as error:
        raise InvalidRequest({field: [str(error)]}) from None


def _columns(field: str, given: tuple[str, ...] | str | None) -> list[str] | None:
    """The unique names; the list form takes them verbatim (http-api.md 7.3)."""
    if given is None:
        return None
    if isinstance(given, str):
        names = _identifiers(field, parse_columns, given)
    elif "" in given:
        raise InvalidRequest({field: ["Invalid zero-length identifier"]})
    else:
        names = list(given)
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise InvalidRequest({field: [_not_found(repeated)]})
    return names


def _not_found(names: list[str]) -> str:
    return f"The following columns are not found on the table: {', '.join(names)}"


def _flag(query: Mapping[str, Value], name: str) -> bool:
    """Any value but the text ``false`` turns a flag of a GET on, an empty one too."""
    return name in query and query[name] != "false"


def _offset(text: str) -> Offset | None:
    if text == "now":
        return None
    try:
        return parse_offset(text)
    except ValueError:
        match = _TOO_LARGE.fullmatch(text)
        if match is None:
            raise InvalidRequest({"offset": ["has invalid format"]}) from None
        # Beyond 64 bits is no other format: it is merely beyond the end of every log.
        digits = match[1].lstrip("0") or "0"
        return Offset(MAX_LSN if len(digits) > 20 else min(int(digits), MAX_LSN), OP_INFINITE)


def _cursor(value: Value | None) -> int:
    return int(value) if isinstance(value, str) and _INTEGER.fullmatch(value) else 0

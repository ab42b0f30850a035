"""The parameters of a subset snapshot (http-api.md 18.1, 18.2), from a query or, merged into one, a body."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Final, TypeVar

import msgspec

from common.subset import SubsetRequest
from gateway.body import as_parameter
from gateway.query_string import Value
from gateway.request import INVALID, InvalidRequest

PREFIX: Final = "subset__"

NO_JSON: Final = "params must be valid JSON"
NO_OBJECT: Final = "params must be a JSON object"
NO_ORDER: Final = "order_by is required when limit or offset is present"

MAX_COUNT: Final = 2**63 - 1
"""What Postgres takes as LIMIT and OFFSET; no table has more rows."""

_INTEGER = re.compile(r"[+-]?\d{1,100}", re.ASCII)
_decode = msgspec.json.Decoder(float_hook=str).decode

T = TypeVar("T")


def parse_subset(query: Mapping[str, Value], queryable: tuple[str, ...] | None) -> SubsetRequest | None:
    """What a request asks of a subset; ``None`` if it asks for none. Raises InvalidRequest.

    Any parameter of a subset asks for one, even one without meaning or value.
    """
    given = _members(query)
    if given is None:
        return None
    errors: dict[str, list[str]] = {}

    def cast(name: str, convert: Callable[[Value], T]) -> T | None:
        value = given.get(name, "")
        if isinstance(value, str) and not value.strip():
            return None
        try:
            return convert(value)
        except ValueError as error:
            errors[name] = [str(error)]
            return None

    where, order_by = cast("where", _text), cast("order_by", _text)
    params = cast("params", _params)
    limit, offset = cast("limit", _integer), cast("offset", _integer)
    _check(errors)
    if limit is not None and limit < 1:
        errors["limit"] = ["must be greater than 0"]
    if offset is not None and offset < 0:
        errors["offset"] = ["must be greater than or equal to 0"]
    _check(errors)
    if order_by is None and (limit is not None or offset is not None):
        raise InvalidRequest({"subset": {"order_by": [NO_ORDER]}})
    return SubsetRequest(
        where=where, params=params or {}, order_by=order_by, limit=limit, offset=offset, queryable=queryable
    )


def _members(query: Mapping[str, Value]) -> dict[str, Value] | None:
    """Both spellings, ``subset[where]`` and ``subset__where``, of which the latter comes first."""
    bracketed = query.get("subset")
    if isinstance(bracketed, list) or (isinstance(bracketed, str) and bracketed.strip()):
        raise InvalidRequest({"subset": [INVALID]})
    prefixed = {name[len(PREFIX) :]: value for name, value in query.items() if name.startswith(PREFIX)}
    if isinstance(bracketed, dict):
        return bracketed | prefixed
    return prefixed or None


def _check(errors: dict[str, list[str]]) -> None:
    if errors:
        raise InvalidRequest({"subset": errors})


def _text(value: Value) -> str:
    if isinstance(value, str):
        return value
    raise ValueError(INVALID)


def _integer(value: Value) -> int:
    if isinstance(value, str) and _INTEGER.fullmatch(value):
        return max(-1, min(int(value), MAX_COUNT))
    raise ValueError(INVALID)


def _params(value: Value) -> dict[str, str]:
    """The values by number: an object, or its JSON text. Numbers keep the digits that they came with."""
    members: Value | None = value
    if isinstance(value, str):
        try:
            members = as_parameter(_decode(value.encode()))
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            raise ValueError(NO_JSON) from None
    if not isinstance(members, dict):
        raise ValueError(NO_OBJECT)
    texts = {name: text for name, text in members.items() if isinstance(text, str)}
    if len(texts) != len(members):
        raise ValueError(INVALID)
    return texts

"""The description of the HTTP interface that ``/openapi.json`` serves, in the terms of OpenAPI 3.1.

Written by hand next to the code that it describes; tests compare it with the routes, parameters and headers that the
gateway really has.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import orjson

from gateway.response import SERVER

Json = dict[str, Any]

CORS_HEADERS: Final = (
    "access-control-allow-methods",
    "access-control-allow-origin",
    "access-control-expose-headers",
)
EVERY_HEADER: Final = ("date", "electric-server", "x-request-id")
LOG_HEADERS: Final = ("cache-control", "electric-handle", "electric-has-data", "electric-offset", "etag")

_DESCRIPTIONS: Final[Mapping[str, str]] = {
    "access-control-allow-headers": "Those of the requested headers that a client may send.",
    "access-control-allow-methods": "The methods of this path.",
    "access-control-allow-origin": "The origin of the request if it has one, else `*`.",
    "access-control-expose-headers": "The headers that scripts may read.",
    "access-control-max-age": "Seconds for which a pre-flight holds.",
    "cache-control": "How long caches may keep the answer. Answers of shapes are made to be cached.",
    "connection": "`close` if the connection ends with this answer.",
    "content-encoding": "`zstd` or `gzip` where the body is compressed.",
    "content-length": "Length of the body in bytes; absent where the body is streamed.",
    "content-type": "The type of the body.",
    "date": "When the answer was made.",
    "electric-cursor": "To be sent back as `cursor` with the next live request.",
    "electric-handle": "The shape that the answer is of; after a 409 the one to go on with.",
    "electric-has-data": "`false` if the answer has nothing but the news that there is none.",
    "electric-internal-known-error": "`true` for failures that say what is wrong in `message`.",
    "electric-offset": "Where the answer ends: the `offset` of the next request.",
    "electric-schema": "The columns and their types, as JSON.",
    "electric-server": "The protocol's name and version.",
    "electric-snapshot": "`true` for the answer to a subset.",
    "electric-up-to-date": "Present, and empty, if nothing came after the answer when it was made.",
    "etag": "Names the answer: as long as it would be the same, a request with this as `If-None-Match` gets a 304.",
    "retry-after": "Seconds to wait before trying again.",
    "surrogate-control": "`no-store` where shared caches must not keep an error.",
    "transfer-encoding": "`chunked` where the body is streamed.",
    "vary": "Of which request headers the answer depends.",
    "x-request-id": "The id that the request came with, if it has 20 to 200 characters, else a fresh one.",
}

_TEXT: Final[Json] = {"type": "string"}


def _ref(kind: str, name: str) -> Json:
    return {"$ref": f"#/components/{kind}/{name}"}


def _schema(name: str) -> Json:
    return _ref("schemas", name)


def _object(required: list[str] | None = None, /, **properties: Json) -> Json:
    schema: Json = {"type": "object", "properties": properties}
    if required:
        schema["required"] = required
    return schema


def _list(of: Json) -> Json:
    return {"type": "array", "items": of}


def _parameter(name: str, description: str, schema: Json | None = None, **more: Any) -> Json:
    return {"name": name, "in": "query", "description": description, "schema": schema or _TEXT, **more}


_COLUMNS: Final[Json] = {"oneOf": [_TEXT, _list(_TEXT)]}

PARAMETERS: Final[Mapping[str, Json]] = {
    parameter["name"]: parameter
    for parameter in (
        _parameter(
            "table",
            "The table: `name` or `schema.name`, each part folded to lower case unless it is in double quotes.",
            example="public.items",
        ),
        _parameter(
            "offset",
            "Where to go on: `-1` from the beginning, `now` without what is there already, else what"
            " `electric-offset` said.",
            {"type": "string", "pattern": r"^(-1|now|[+-]?\d+_([+-]?\d+|inf))$"},
            example="-1",
        ),
        _parameter("handle", "What `electric-handle` said. Needed unless the offset is `-1` or `now`."),
        _parameter("live", "Wait for changes if there are none yet. On for any value but `false`."),
        _parameter("live_sse", "With `live`: send changes as server-sent events. On for any value but `false`."),
        _parameter(
            "experimental_live_sse",
            "An older name of `live_sse`, which goes before it.",
            {"type": "string", "enum": ["true", "1", "false", "0"]},
        ),
        _parameter("where", "An SQL condition: the rows of the shape.", example="id > $1"),
        _parameter(
            "params",
            "Values of `$1`, `$2`… in `where`: `params[1]=…`, or all of them as a JSON object.",
            {"oneOf": [{"type": "object", "additionalProperties": _TEXT}, _TEXT]},
            style="deepObject",
            explode=True,
        ),
        _parameter("columns", "The columns of the shape, a comma list or `columns[]=…`. All if absent.", _COLUMNS),
        _parameter("queryable_columns", "The columns that `columns` and subsets may name.", _COLUMNS),
        _parameter(
            "replica",
            "What updates and deletes carry: what changed and the key, or the whole row.",
            {"type": "string", "enum": ["default", "full"], "default": "default"},
        ),
        _parameter(
            "log",
            "Whether the shape begins with the rows that are there.",
            {"type": "string", "enum": ["full", "changes_only"], "default": "full"},
        ),
        _parameter("cursor", "What `electric-cursor` said: keeps live requests apart for caches."),
        _parameter(
            "experimental_compaction",
            "Accepted without effect.",
            {"type": "string", "enum": ["true", "1", "false", "0"]},
        ),
        _parameter("secret", "The secret, if the server has one."),
        _parameter("api_secret", "An older name of `secret`, which goes before it."),
        _parameter("subset__where", "A condition within the shape: asks for these rows as they are now, and no log."),
        _parameter("subset__params", "Values of `$1`, `$2`… in `subset__where`, as a JSON object."),
        _parameter("subset__order_by", "Columns to sort the subset by."),
        _parameter("subset__limit", "How many rows at most; needs an order.", {"type": "integer", "minimum": 1}),
        _parameter("subset__offset", "How many rows to skip; needs an order.", {"type": "integer", "minimum": 0}),
        _parameter("subset__where_expr", "Sent by clients, accepted without effect."),
        _parameter("subset__order_by_expr", "Sent by clients, accepted without effect."),
    )
}

_DEFINITION: Final = ("table", "where", "params", "columns", "queryable_columns", "replica", "log")
_AUTHENTICATION: Final = ("secret", "api_secret")
_FLAGS: Final = ("live", "live_sse", "experimental_compaction")
LOG_PARAMETERS: Final = tuple(PARAMETERS)
DELETE_PARAMETERS: Final = (*_DEFINITION, "offset", "handle", *_FLAGS, *_AUTHENTICATION)
EXPLAIN_PARAMETERS: Final = (*_DEFINITION, "experimental_compaction", *_AUTHENTICATION)

_REQUEST_HEADERS: Final[Mapping[str, str]] = {
    "if-none-match": "Entity tags that the client has; weak ones and `*` match nothing.",
    "x-request-id": "An id of 20 to 200 characters for this request; the answer has it, and the server's log.",
    "origin": "Whose page asks.",
    "access-control-request-headers": "Headers that a page wants to send.",
}

_CHANGE_HEADERS: Final = _object(
    ["operation", "relation"],
    operation={"enum": ["insert", "update", "delete"]},
    relation={**_list(_TEXT), "description": "Schema and table."},
    lsn={**_TEXT, "description": "Of the transaction's commit, as a decimal number. Absent in a snapshot."},
    op_position={"type": "integer", "description": "The place of the change in its transaction."},
    txids=_list({"type": "integer"}),
    last={"const": True, "description": "Only on the last change of a transaction."},
    key_change_to=_TEXT,
    key_change_from=_TEXT,
    snapshot_mark={"type": "integer", "description": "Only in subsets."},
)
_ROW: Final[Json] = {"type": "object", "additionalProperties": {"type": ["string", "null"]}}

SCHEMAS: Final[Json] = {
    "Change": _object(
        ["key", "value", "headers"],
        key={**_TEXT, "description": "Names the row among all tables."},
        value={**_ROW, "description": "Values by column, as text, null for NULL."},
        old_value={**_ROW, "description": "What the changed columns held before; only with `replica=full`."},
        headers=_CHANGE_HEADERS,
    ),
    "Control": _object(
        ["headers"],
        headers=_object(
            ["control"],
            control={"enum": ["up-to-date", "must-refetch", "snapshot-end"]},
            global_last_seen_lsn={**_TEXT, "description": "With `up-to-date`: the log is complete up to here."},
            xmin=_TEXT,
            xmax=_TEXT,
            xip_list=_list(_TEXT),
        ),
    ),
    "Log": _list({"anyOf": [_schema("Change"), _schema("Control")]}),
    "MustRefetch": {"const": [{"headers": {"control": "must-refetch"}}]},
    "Subset": _object(
        ["metadata", "data"],
        metadata=_object(
            ["snapshot_mark", "xmin", "xmax", "xip_list", "database_lsn"],
            snapshot_mark={"type": "integer"},
            xmin=_TEXT,
            xmax=_TEXT,
            xip_list=_list(_TEXT),
            database_lsn={**_TEXT, "description": "All that is at or below this LSN is in the rows."},
        ),
        data=_list(_schema("Change")),
    ),
    "SubsetRequest": {
        "description": "Members of `subset`, or of the body itself, are those of the query without `subset__`; others"
        " override parameters of the same name.",
        **_object(
            None,
            subset={"type": "object"},
            where=_TEXT,
            params={"type": "object"},
            order_by=_TEXT,
            limit={"type": "integer", "minimum": 1},
            offset={"type": "integer", "minimum": 0},
        ),
    },
    "InvalidRequest": _object(
        ["message"],
        message=_TEXT,
        errors={"type": "object", "description": "What is wrong, by parameter."},
    ),
    "Failure": {
        "description": "`message` or `error` says what is wrong.",
        **_object(None, message=_TEXT, error=_TEXT, code=_TEXT, details=_TEXT),
    },
    "Health": _object(
        ["status"],
        status={"enum": ["active", "waiting", "starting"]},
        reason={**_TEXT, "description": "What is held back, and what to do about it."},
    ),
    "Explanation": {"type": "object", "description": "How the shape would be filtered and found."},
}


def _response(
    description: str, headers: tuple[str, ...], content: Json | None = None, cors: bool = True, varies: bool = True
) -> Json:
    """A response; the headers of every answer are added."""
    names = {*EVERY_HEADER, *headers, "connection", *(CORS_HEADERS if cors else ()), *(["vary"] if varies else [])}
    response: Json = {
        "description": description,
        "headers": {name: _ref("headers", name) for name in sorted(names)},
    }
    if content is not None:
        response["content"] = content
    return response


def _json(schema: str) -> Json:
    return {"application/json": {"schema": _schema(schema)}}


_LENGTH: Final = ("cache-control", "content-length", "content-type")
_ERROR: Final = (*_LENGTH, "surrogate-control")
_STREAMED: Final = ("content-length", "content-type", "transfer-encoding")
_ANSWER: Final = (
    *LOG_HEADERS,
    *_STREAMED,
    "content-encoding",
    "electric-cursor",
    "electric-schema",
    "electric-up-to-date",
)

_INVALID: Final = _response("The request is not valid.", _ERROR, _json("InvalidRequest"))
_UNAUTHORIZED: Final = _response(
    "The secret is missing or wrong.", ("cache-control", "content-length"), _json("Failure"), cors=False
)
_UNAVAILABLE: Final = _response(
    "The service cannot answer now: try again.",
    (*_ERROR, "retry-after", "electric-internal-known-error"),
    _json("Failure"),
)
_FAILED: Final = _response("The server failed.", (*_ERROR, "electric-internal-known-error"), _json("Failure"))
_CONFLICT: Final = _response(
    "The shape has ended: start again with `offset=-1`, and with `electric-handle` if there is one.",
    (*_LENGTH, "electric-handle", "etag"),
    _json("MustRefetch"),
)
_NOT_MODIFIED: Final = _response(
    "The client has this answer.",
    (*LOG_HEADERS, "content-type", "electric-cursor", "electric-up-to-date"),
)
_TOO_LARGE: Final = _response("The body is too large.", _LENGTH, _json("Failure"))

_LOG_CONTENT: Final[Json] = {
    "application/json": {"schema": {"oneOf": [_schema("Log"), _schema("Subset")]}},
    "text/event-stream": {"schema": {**_TEXT, "description": "Each event is an item of the log."}},
}
_LOG_RESPONSES: Final[Json] = {
    "200": _response("A piece of the log, or a subset.", (*_ANSWER, "electric-snapshot"), _LOG_CONTENT),
    "304": _NOT_MODIFIED,
    "400": _INVALID,
    "401": _UNAUTHORIZED,
    "409": _CONFLICT,
    "500": _FAILED,
    "503": _UNAVAILABLE,
}


def _operation(name: str, summary: str, parameters: tuple[str, ...], responses: Json, *headers: str) -> Json:
    return {
        "operationId": name,
        "summary": summary,
        "parameters": [_ref("parameters", each) for each in parameters]
        + [
            {"name": header, "in": "header", "description": _REQUEST_HEADERS[header], "schema": _TEXT}
            for header in ("x-request-id", "origin", *headers)
        ],
        "responses": responses,
    }


def _reading(name: str, summary: str, parameters: tuple[str, ...], responses: Json, *headers: str) -> Json:
    """GET, and HEAD, which is the same without the body."""
    bare = {
        status: {part: value for part, value in response.items() if part != "content"}
        for status, response in responses.items()
    }
    return {
        "get": _operation(name, summary, parameters, responses, *headers),
        "head": _operation(f"{name}Head", f"{summary} Without the body.", parameters, bare, *headers),
    }


def document() -> Json:
    """The whole description."""
    shape = _reading("readShape", "Read the log of a shape.", LOG_PARAMETERS, _LOG_RESPONSES, "if-none-match")
    shape["post"] = {
        **_operation(
            "readShapeByBody",
            "The same with parameters in a body.",
            LOG_PARAMETERS,
            {**_LOG_RESPONSES, "413": _TOO_LARGE},
        ),
        "requestBody": {"content": _json("SubsetRequest")},
    }
    shape["delete"] = _operation(
        "deleteShape",
        "End a shape, for tests; only if the server allows it.",
        DELETE_PARAMETERS,
        {
            "202": _response("The shape has ended.", (*_LENGTH, "electric-has-data")),
            "400": _INVALID,
            "401": _UNAUTHORIZED,
            "404": _response("There is no such shape.", _LENGTH, _json("Failure")),
            "405": _response("The server does not allow it.", _LENGTH, _json("Failure")),
            "500": _FAILED,
            "503": _UNAVAILABLE,
        },
    )
    allowed = _response(
        "What pages of other origins may do.",
        ("access-control-allow-headers", "access-control-max-age"),
        varies=False,
    )
    shape["options"] = _operation(
        "preflight", "Ask what is allowed.", (), {"204": allowed}, "access-control-request-headers"
    )
    health = {
        "200": _response("Active.", _LENGTH, _json("Health")),
        "202": _response("Changes do not reach clients at present.", _LENGTH, _json("Health")),
    }
    explanation = {
        "200": _response("The explanation.", _ERROR, _json("Explanation")),
        **{status: _LOG_RESPONSES[status] for status in ("400", "401", "500", "503")},
    }
    itself = {"200": _response("This description.", _LENGTH, {"application/json": {"schema": {"type": "object"}}})}
    alive = {"200": _response("Nothing.", ("cache-control", "content-length"))}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Galvanic",
            "version": SERVER.partition("/")[2],
            "summary": "Shapes of Postgres tables, kept up to date over HTTP.",
            "description": "Electric's protocol. Unknown parameters are ignored; blank ones count as absent; of"
            " repeated ones the last counts.",
        },
        "paths": {
            "/": _reading("root", "Whether somebody listens.", (), alive),
            "/v1/shape": shape,
            "/v1/health": _reading("health", "The state of the service.", (), health),
            "/v1/explain": _reading("explain", "How a shape would be filtered.", EXPLAIN_PARAMETERS, explanation),
            "/openapi.json": _reading("describe", "This description.", (), itself),
        },
        "components": {
            "schemas": SCHEMAS,
            "parameters": dict(PARAMETERS),
            "headers": {name: {"description": text, "schema": _TEXT} for name, text in _DESCRIPTIONS.items()},
        },
    }


DOCUMENT: Final = orjson.dumps(document())
"""What clients get."""

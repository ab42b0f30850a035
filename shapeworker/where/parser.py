"""From the client's text to :mod:`syntax`, by the grammar of Postgres itself.

Everything that the grammar knows and the filter language does not is refused here, by the name of its node.

libpg_query recurses, and checks its stack less well than a server does: 65 536 bytes of operators took 6 MB of it. So
long texts are parsed on a thread of their own, whose stack is large.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, Final, Literal

import orjson

from common import pg_query
from shapeworker.where import syntax
from shapeworker.where.errors import InvalidWhere

MAX_BYTES: Final = 65_536
"""The longest clause, in bytes of UTF-8 (where-and-subqueries.md 8)."""

MAX_DEPTH: Final = 64
"""How deep expressions may nest. Chains of AND and of OR count once. Keeps every recursive walk far below Python's
limit.
"""

MAX_NODES: Final = 30_000
"""How many expressions a clause may have in all."""

_SHORT: Final = 4096
"""Texts of up to so many bytes cannot nest deeply enough to need more than 1 MB of stack."""

_STACK_BYTES: Final = 64 << 20
_PREFIX: Final = "SELECT 1 WHERE "
_CLAUSES: Final = frozenset(
    (
        "distinctClause",
        "intoClause",
        "fromClause",
        "groupClause",
        "havingClause",
        "windowClause",
        "valuesLists",
        "sortClause",
        "limitOffset",
        "limitCount",
        "lockingClause",
        "withClause",
        "larg",
        "rarg",
    )
)
_SPECIAL: Final = "expression {} of :{} is not currently supported"
Json = dict[str, Any]


def parse(text: str) -> syntax.Node:
    """The expression in a where clause. Raises InvalidWhere for what is no clause of the filter language."""
    return _Reader().node(_where(text), 0)


def statements_of(prefix: str, text: str, clause: str) -> list[Json]:
    """The statements of ``prefix`` and the client's text together; ``clause`` names what the text is, for errors.

    Raises InvalidWhere for what no grammar knows, and for texts that are too long or too deep to be looked at.
    """
    try:
        encoded = text.encode()
    except UnicodeEncodeError:
        raise InvalidWhere(f"the {clause} clause is not valid Unicode") from None
    if len(encoded) > MAX_BYTES:
        size = f"{clause.upper()} clause of {len(encoded)} bytes"
        raise InvalidWhere(f"{size} is bigger than maximum size of {MAX_BYTES} bytes")
    if b"\0" in encoded:
        raise InvalidWhere(f"the {clause} clause contains a zero byte")
    wrapped = prefix.encode() + encoded
    short = len(encoded) <= _SHORT
    document = _document(wrapped) if short else _deep_stack().submit(_document, wrapped).result()
    try:
        statements: list[Json] = orjson.loads(document)["stmts"]
    except orjson.JSONDecodeError:
        # The document is the library's own, so all that can be wrong with it is its depth.
        raise _too_deep(clause) from None
    return statements


def _where(text: str) -> Json:
    statements = statements_of(_PREFIX, text, "where")
    if len(statements) != 1:
        raise InvalidWhere('unescaped ";" causing statement split')
    statement = statements[0]["stmt"].get("SelectStmt")
    if statement is None or statement.keys() & _CLAUSES or len(statement["targetList"]) != 1:
        raise InvalidWhere("malformed query ending with SQL clauses")
    where: Json = statement["whereClause"]
    return where


def _document(wrapped: bytes) -> bytes:
    try:
        return pg_query.parse(wrapped)
    except pg_query.GrammarError as error:
        # It counts from the start of the wrapped text, as the reference does.
        raise InvalidWhere.located(error.position, str(error)) from None


@cache
def _deep_stack() -> ThreadPoolExecutor:
    executor = ThreadPoolExecutor(1, "where-parser")
    usual = threading.stack_size(_STACK_BYTES)
    try:
        # The one thread starts with the first task.
        executor.submit(int).result()
    finally:
        threading.stack_size(usual)
    return executor


def _too_deep(clause: str = "where") -> InvalidWhere:
    return InvalidWhere(f"the {clause} clause nests too deeply: more than {MAX_DEPTH} levels")


class _Reader:
    def __init__(self) -> None:
        self._nodes = 0

    def node(self, wrapped: Json, depth: int) -> syntax.Node:
        ((kind, content),) = wrapped.items()
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise InvalidWhere(f"the where clause has too many terms: more than {MAX_NODES}")
        if depth > MAX_DEPTH:
            raise _too_deep()
        at = max(content.get("location", 0) - len(_PREFIX), 0)
        read = _NODES.get(kind)
        if read is None:
            raise InvalidWhere.located(at, f"{kind} is not supported in this context")
        return read(self, at, content, depth + 1)

    def nodes(self, items: list[Json], depth: int) -> tuple[syntax.Node, ...]:
        return tuple(self.node(item, depth) for item in items)

    def constant(self, at: int, content: Json, depth: int) -> syntax.Node:
        if "isnull" in content:
            return syntax.Literal(at, "null", "")
        if "ival" in content:
            return syntax.Literal(at, "integer", str(content["ival"].get("ival", 0)))
        if "fval" in content:
            text = content["fval"]["fval"]
            # Integers beyond int4 come as text too, with their sign. Only they may be in another base.
            digits = text.lstrip("-").replace("_", "")
            whole = digits.isdecimal() or digits[:2].lower() in ("0x", "0o", "0b")
            return syntax.Literal(at, "integer" if whole else "decimal", text)
        if "sval" in content:
            return syntax.Literal(at, "string", content["sval"].get("sval", ""))
        if "boolval" in content:
            return syntax.Literal(at, "boolean", "t" if content["boolval"].get("boolval") else "f")
        raise InvalidWhere.located(at, "BitString values are not supported")

    def column(self, at: int, content: Json, depth: int) -> syntax.Node:
        fields = content["fields"]
        if not all("String" in field for field in fields):
            raise InvalidWhere.located(at, "A_Star is not supported in this context")
        names = [field["String"].get("sval", "") for field in fields]
        if len(names) > 1:
            raise InvalidWhere.located(at, "unknown reference " + ".".join(map(quoted_if_needed, names)))
        return syntax.ColumnName(at, names[0])

    def parameter(self, at: int, content: Json, depth: int) -> syntax.Node:
        return syntax.Parameter(at, content.get("number", 0))

    def logical(self, at: int, content: Json, depth: int) -> syntax.Node:
        operation = content["boolop"]
        if operation == "NOT_EXPR":
            return syntax.Negation(at, self.node(content["args"][0], depth))
        # A chain is one node, however it was parenthesised. Written right to left, it would nest.
        items: list[syntax.Node] = []
        pending = list(reversed(content["args"]))
        while pending:
            item = pending.pop()
            nested = item.get("BoolExpr")
            if nested is not None and nested["boolop"] == operation:
                pending.extend(reversed(nested["args"]))
            else:
                items.append(self.node(item, depth))
        return syntax.Logical(at, "and" if operation == "AND_EXPR" else "or", tuple(items))

    def expression(self, at: int, content: Json, depth: int) -> syntax.Node:
        name = _operator(at, content["name"])
        kind = content["kind"]
        right = content.get("rexpr")
        if kind in ("AEXPR_OP", "AEXPR_LIKE", "AEXPR_ILIKE"):
            left = content.get("lexpr")
            assert right is not None
            return syntax.Operator(at, name, self.node(left, depth) if left else None, self.node(right, depth))
        assert right is not None
        item = self.node(content["lexpr"], depth)
        match kind:
            case "AEXPR_OP_ANY" | "AEXPR_OP_ALL":
                return syntax.Quantified(at, name, item, self.node(right, depth), kind == "AEXPR_OP_ALL")
            case "AEXPR_DISTINCT" | "AEXPR_NOT_DISTINCT":
                return syntax.Distinct(at, item, self.node(right, depth), kind == "AEXPR_NOT_DISTINCT")
            case "AEXPR_NULLIF":
                return syntax.NullIf(at, item, self.node(right, depth))
            case "AEXPR_IN":
                members = self.nodes(right["List"]["items"], depth)
                return syntax.Membership(at, item, members, name == "<>")
            case "AEXPR_BETWEEN" | "AEXPR_NOT_BETWEEN" | "AEXPR_BETWEEN_SYM" | "AEXPR_NOT_BETWEEN_SYM":
                low, high = self.nodes(right["List"]["items"], depth)
                return syntax.Between(at, item, low, high, kind.endswith("_SYM"), "_NOT_" in kind)
        raise InvalidWhere.located(at, _SPECIAL.format(f'"{name}"', kind))

    def null_test(self, at: int, content: Json, depth: int) -> syntax.Node:
        return syntax.NullTest(at, self.node(content["arg"], depth), content["nulltesttype"] == "IS_NOT_NULL")

    def truth_test(self, at: int, content: Json, depth: int) -> syntax.Node:
        kind = content["booltesttype"]
        tests: dict[str, Literal["TRUE", "FALSE", "UNKNOWN"]] = {"T": "TRUE", "F": "FALSE", "U": "UNKNOWN"}
        test = tests[kind.removeprefix("IS_NOT_").removeprefix("IS_")[0]]
        return syntax.TruthTest(at, self.node(content["arg"], depth), test, kind.startswith("IS_NOT_"))

    def cast(self, at: int, content: Json, depth: int) -> syntax.Node:
        name = _type_name(content["typeName"])
        item = self.node(content["arg"], depth)
        # Errors about a cast name its operand, unless the type comes first, as in date '2024-01-01'.
        return syntax.Cast(item.at, item, name)

    def call(self, at: int, content: Json, depth: int) -> syntax.Node:
        names = [part["String"]["sval"] for part in content["funcname"]]
        if content.keys() & {"agg_star", "agg_distinct", "agg_order", "agg_filter", "agg_within_group", "over"}:
            raise InvalidWhere.located(at, "aggregation is not supported in this context")
        if "func_variadic" in content:
            raise InvalidWhere.located(at, "explicit VARIADIC function calls are not currently supported")
        given = content.get("args", [])
        if (len(names) > 1 and names[0] != "pg_catalog") or len(names) > 2:
            shown = ".".join(map(quoted_if_needed, names))
            raise InvalidWhere.located(at, f"unknown or unsupported function {shown}/{len(given)}")
        return syntax.Call(at, names[-1], self.nodes(given, depth))

    def array(self, at: int, content: Json, depth: int) -> syntax.Node:
        return syntax.Array(at, self.nodes(content.get("elements", []), depth))

    def subscript(self, at: int, content: Json, depth: int) -> syntax.Node:
        item = self.node(content["arg"], depth)
        indices = []
        for wrapped in content["indirection"]:
            part = wrapped.get("A_Indices")
            if part is None:
                ((kind, _),) = wrapped.items()
                raise InvalidWhere.located(item.at, f"{kind} is not supported in this context")
            lower, upper = part.get("lidx"), part.get("uidx")
            indices.append(
                syntax.Index(
                    self.node(lower, depth) if lower else None,
                    self.node(upper, depth) if upper else None,
                    part.get("is_slice", False),
                )
            )
        return syntax.Subscript(item.at, item, tuple(indices))

    def case(self, at: int, content: Json, depth: int) -> syntax.Node:
        item, otherwise = content.get("arg"), content.get("defresult")
        arms = []
        for wrapped in content["args"]:
            when = wrapped["CaseWhen"]
            arms.append((self.node(when["expr"], depth), self.node(when["result"], depth)))
        return syntax.Case(
            at,
            self.node(item, depth) if item else None,
            tuple(arms),
            self.node(otherwise, depth) if otherwise else None,
        )

    def coalesce(self, at: int, content: Json, depth: int) -> syntax.Node:
        return syntax.Coalesce(at, self.nodes(content["args"], depth))

    def extreme(self, at: int, content: Json, depth: int) -> syntax.Node:
        items = self.nodes(content["args"], depth)
        return syntax.Extreme(at, "greatest" if content["op"] == "IS_GREATEST" else "least", items)

    def row(self, at: int, content: Json, depth: int) -> syntax.Node:
        return syntax.Row(at, self.nodes(content.get("args", []), depth))

    def sublink(self, at: int, content: Json, depth: int) -> syntax.Node:
        if content["subLinkType"] != "ANY_SUBLINK" or "operName" in content:
            raise InvalidWhere.located(at, "only `value IN (SELECT ...)` sublinks are supported right now")
        return syntax.Sublink(at, self.node(content["testexpr"], depth))


_NODES: Final[dict[str, Callable[[_Reader, int, Json, int], syntax.Node]]] = {
    "A_Const": _Reader.constant,
    "ColumnRef": _Reader.column,
    "ParamRef": _Reader.parameter,
    "BoolExpr": _Reader.logical,
    "A_Expr": _Reader.expression,
    "NullTest": _Reader.null_test,
    "BooleanTest": _Reader.truth_test,
    "TypeCast": _Reader.cast,
    "FuncCall": _Reader.call,
    "A_ArrayExpr": _Reader.array,
    "A_Indirection": _Reader.subscript,
    "CaseExpr": _Reader.case,
    "CoalesceExpr": _Reader.coalesce,
    "MinMaxExpr": _Reader.extreme,
    "RowExpr": _Reader.row,
    "SubLink": _Reader.sublink,
}


def _operator(at: int, parts: list[Json]) -> str:
    names: list[str] = [part["String"]["sval"] for part in parts]
    if len(names) == 1 or (len(names) == 2 and names[0] == "pg_catalog"):
        return names[-1]
    raise InvalidWhere.located(at, f'unknown binary operator "{".".join(names)}"')


def _type_name(content: Json) -> syntax.TypeName:
    at = max(content.get("location", 0) - len(_PREFIX), 0)
    names = [part["String"]["sval"] for part in content["names"]]
    modifiers = []
    for wrapped in content.get("typmods", []):
        value = wrapped.get("A_Const", {}).get("ival")
        if value is None:
            raise InvalidWhere.located(at, "type modifiers must be integers")
        modifiers.append(value.get("ival", 0))
    if len(names) > 2 or content.keys() & {"setof", "pct_type"}:
        raise InvalidWhere.located(at, f"unsupported type {'.'.join(names)}")
    schema = names[0] if len(names) == 2 else None
    return syntax.TypeName(at, schema, names[-1], tuple(modifiers), bool(content.get("arrayBounds")))


def quoted_if_needed(name: str) -> str:
    """An identifier as error messages show it: quoted unless it is plain lower case."""
    plain = name.isascii() and name.isidentifier() and name == name.lower()
    return name if plain else '"' + name.replace('"', '""') + '"'

"""The ORDER BY of a subset: which columns, in which direction (http-api.md 18.4).

What is let in is listed here by name; everything else that the grammar knows is refused. The SQL is made anew from what
was understood, so nothing of the client's text gets into a query.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Final, NamedTuple

from shapeworker.where.errors import InvalidWhere
from shapeworker.where.parser import quoted_if_needed, statements_of

_PREFIX: Final = "SELECT 1 ORDER BY "
_PARTS: Final = frozenset(("targetList", "sortClause", "limitOption", "op"))
_DIRECTIONS: Final = {"SORTBY_DEFAULT": "", "SORTBY_ASC": " ASC", "SORTBY_DESC": " DESC"}
_NULLS: Final = {
    "SORTBY_NULLS_DEFAULT": "",
    "SORTBY_NULLS_FIRST": " NULLS FIRST",
    "SORTBY_NULLS_LAST": " NULLS LAST",
}


class SortKey(NamedTuple):
    """A column and how to sort by it: ``""``, or ``ASC``, ``DESC``, ``NULLS FIRST``, ``NULLS LAST`` after a blank."""

    column: str
    direction: str


def parse_ordering(text: str, columns: Container[str]) -> tuple[SortKey, ...]:
    """The sort keys in a client's ``order_by``; constants, which order nothing, are left out.

    ``columns`` are those that may be mentioned. A column that comes a second time decides nothing, and is left out too.
    Raises InvalidWhere; its offsets count from the start of ``SELECT 1 ORDER BY``, as those of the reference do.
    """
    statements = statements_of(_PREFIX, text, "order by")
    # A semicolon shows even if nothing follows it.
    if len(statements) != 1 or "stmt_len" in statements[0]:
        raise InvalidWhere("Unexpected `;` in order by")
    select = statements[0]["stmt"].get("SelectStmt")
    if select is None or select.keys() - _PARTS or len(select["targetList"]) != 1:
        raise InvalidWhere("malformed query ending with SQL clauses")
    found: dict[str, SortKey] = {}
    for wrapped in select["sortClause"]:
        sort = wrapped["SortBy"]
        ((kind, node),) = sort["node"].items()
        at = node.get("location", 0)
        if sort["sortby_dir"] not in _DIRECTIONS:
            raise InvalidWhere.located(at, "USING operators are not allowed in ORDER BY clauses")
        if kind == "A_Const":
            continue
        if kind == "ParamRef":
            number = node.get("number", 0)
            raise InvalidWhere.located(at, f"parameter ${number} is not supported in ORDER BY clauses")
        if kind != "ColumnRef":
            raise InvalidWhere.located(at, f"{kind} expressions are not allowed in ORDER BY clauses")
        names = [field["String"]["sval"] if "String" in field else "*" for field in node["fields"]]
        if len(names) > 1 or names[0] not in columns:
            shown = ".".join(name if name == "*" else quoted_if_needed(name) for name in names)
            raise InvalidWhere.located(at, f"unknown reference {shown}")
        direction = _DIRECTIONS[sort["sortby_dir"]] + _NULLS[sort["sortby_nulls"]]
        found.setdefault(names[0], SortKey(names[0], direction))
    return tuple(found.values())

"""The SQL of a clause: what identifies a shape and what its snapshot asks Postgres.

Every operand has the type that the resolver gave it: constants are written with theirs, casts stand wherever there is
one. So Postgres has nothing left to decide, and what it evaluates is what the stream evaluates. It must run with
``search_path = pg_catalog`` and the display settings (common/postgres.py).

The SQL of the snapshot says two things more than the text that identifies the shape: text is ordered by
``COLLATE "C"``, and upper and lower case are those of :mod:`texts`, neither of which depends on the database then.
"""

from __future__ import annotations

from typing import Final

from shapeworker.where import texts, tree
from shapeworker.where.types import BPCHAR, Type

_ORDERINGS: Final = frozenset(("<", "<=", ">", ">="))
_EQUALITIES: Final = frozenset(("=", "<>", "~~", "!~~", "@>", "<@", "&&", "^@"))
_REGULAR: Final = frozenset(("~", "!~", "~*", "!~*"))
_CASELESS: Final = {"~~*": "~~", "!~~*": "!~~"}


def identity(expression: tree.Expression) -> str:
    """The text that identifies a clause: equal for clauses that mean the same for the same reasons."""
    return _Writer(for_snapshot=False).sql(expression)


def snapshot_sql(expression: tree.Expression) -> str:
    """The boolean SQL expression for a snapshot's WHERE."""
    return _Writer(for_snapshot=True).sql(expression)


def quoted(text: str) -> str:
    """A string literal, for ``standard_conforming_strings = on``."""
    return "'" + text.replace("'", "''") + "'"


def identifier(name: str) -> str:
    """A quoted identifier."""
    return '"' + name.replace('"', '""') + '"'


def literal(type_: Type, value: object) -> str:
    """A constant with its type."""
    return f"NULL::{type_.sql}" if value is None else f"{quoted(type_.printed(value))}::{type_.sql}"


class _Writer:
    def __init__(self, for_snapshot: bool) -> None:
        self._for_snapshot = for_snapshot

    def sql(self, node: tree.Expression) -> str:
        match node:
            case tree.Constant():
                return literal(node.type, node.value)
            case tree.ColumnRef():
                # Without its domain, so that no operator of somebody's own can be meant.
                return f"{identifier(node.name)}::{node.type.sql}" if node.is_domain else identifier(node.name)
            case tree.Apply():
                return self._applied(node.function, node.arguments)
            case tree.Junction():
                return "(" + f" {node.connective.upper()} ".join(map(self.sql, node.items)) + ")"
            case tree.Not():
                return f"(NOT {self.sql(node.item)})"
            case tree.IsNull():
                # Not IS NULL: of a composite value that asks whether all its fields are.
                return f"({self.sql(node.item)} IS NOT DISTINCT FROM NULL)"
            case tree.Is():
                test = {True: "TRUE", False: "FALSE", None: "UNKNOWN"}[node.test]
                return f"({self.sql(node.item)} IS {test})"
            case tree.IsDistinct():
                return self._comparison("IS DISTINCT FROM", node.left, node.right, ordering=False)
            case tree.Quantified():
                return self._quantified(node)
            case tree.ArrayOf():
                inner = ", ".join(map(self.sql, node.items))
                return f"ARRAY[{inner}]::{node.type.sql}"
            case tree.Element():
                return f"({self.sql(node.item)})" + "".join(f"[{self.sql(index)}]" for index in node.indices)
            case tree.Slice():
                ends = "".join(f"[{self._end(first)}:{self._end(last)}]" for first, last in node.ends)
                return f"({self.sql(node.item)}){ends}"
            case tree.Coalesce():
                return f"COALESCE({', '.join(map(self.sql, node.items))})"
            case tree.Extreme():
                first, *others = node.items
                items = [self._collated(first) if node.type.is_textual else self.sql(first), *map(self.sql, others)]
                return f"{node.name.upper()}({', '.join(items)})"
            case tree.Case():
                arms = "".join(f" WHEN {self.sql(when)} THEN {self.sql(then)}" for when, then in node.arms)
                return f"CASE{arms} ELSE {self.sql(node.otherwise)} END"
            case tree.NullIf():
                left = self._collated(node.left) if node.left.type.is_textual else self.sql(node.left)
                return f"NULLIF({left}, {self.sql(node.right)})"
        raise TypeError(type(node).__name__)

    def _end(self, end: tree.Expression | None) -> str:
        return "" if end is None else self.sql(end)

    def _collated(self, node: tree.Expression) -> str:
        """Compared by bytes, whatever collations the columns have."""
        return f'({self.sql(node)} COLLATE "C")' if self._for_snapshot else self.sql(node)

    def _needs_collation(self, ordering: bool, *operands: tree.Expression) -> bool:
        if not any(operand.type.is_textual for operand in operands):
            return False
        if ordering:
            return True
        # Equality is that of bytes under every collation that is let in, and an index on the column may have its own.
        # Only two collations that disagree would be an error.
        columns = [node for node in operands if not tree.is_constant(node)]
        return not (len(columns) == 1 and isinstance(tree.unlabelled(columns[0]), tree.ColumnRef))

    def _comparison(self, operator: str, left: tree.Expression, right: tree.Expression, *, ordering: bool) -> str:
        if self._needs_collation(ordering, left, right) and left.type.is_textual:
            return f"({self._collated(left)} {operator} {self.sql(right)})"
        return f"({self.sql(left)} {operator} {self.sql(right)})"

    def _applied(self, function: tree.Function, arguments: tuple[tree.Expression, ...]) -> str:
        role = function.role
        if role in _ORDERINGS or role in _EQUALITIES or role in _REGULAR:
            ordering = role in _ORDERINGS or role in _REGULAR
            if arguments[0].type.is_textual and self._needs_collation(ordering, *arguments):
                return function.sql(self._collated(arguments[0]), self.sql(arguments[1]))
        elif role in _CASELESS and self._for_snapshot:
            return self._caseless(_CASELESS[role], *arguments)
        elif role in ("lower", "upper") and self._for_snapshot:
            return _folded(self.sql(arguments[0]), role, isinstance(arguments[0], tree.ColumnRef))
        elif role is None and self._needs_collation(False, *arguments) and arguments[0].type.category == "S":
            # strpos, replace and their kin search, for which two collations must not disagree.
            return function.sql(self._collated(arguments[0]), *map(self.sql, arguments[1:]))
        return function.sql(*map(self.sql, arguments))

    def _caseless(self, operator: str, subject: tree.Expression, pattern: tree.Expression) -> str:
        if isinstance(pattern, tree.Constant) and pattern.value is not None:
            # Only letters of the pattern matter, so only they are folded.
            lowered = texts.lower(pattern.value)
            wanted = {ord(letter) for letter in lowered}
            pairs = {code: low for code, low in texts.case_map("lower").items() if low in wanted and code > 127}
            folded = f'lower({self._with_blanks(subject)} COLLATE "C")'
            if pairs:
                folded = f"translate({folded}, {_letters(pairs.keys())}, {_letters(pairs.values())})"
            return f"({folded} {operator} {quoted(lowered)}::text)"
        left = _folded(self._with_blanks(subject), "lower", isinstance(subject, tree.ColumnRef))
        return f"({left} {operator} {_folded(self.sql(pattern), 'lower', isinstance(pattern, tree.ColumnRef))})"

    def _with_blanks(self, subject: tree.Expression) -> str:
        # A cast of bpchar to text would drop the blanks that LIKE sees.
        operand = self.sql(subject)
        return f"textin(bpcharout({operand}))" if subject.type is BPCHAR else operand

    def _quantified(self, node: tree.Quantified) -> str:
        role, name = node.function.role, node.function.name
        left, array = self.sql(node.left), self.sql(node.array)
        if role in _CASELESS and self._for_snapshot:
            # The elements of a constant array are folded here; those of others have no SQL.
            name, left = (
                _CASELESS[role or ""],
                _folded(self._with_blanks(node.left), "lower", isinstance(node.left, tree.ColumnRef)),
            )
            if isinstance(node.array, tree.Constant) and node.array.value is not None:
                value = node.array.value
                elements = tuple(None if item is None else texts.lower(item) for item in value.elements)
                array = literal(node.array.type, value._replace(elements=elements))
        elif self._needs_collation(role in _ORDERINGS, node.left, node.array) and node.left.type.is_textual:
            left = self._collated(node.left)
        return f"({left} {name} {'ALL' if node.all else 'ANY'} ({array}))"


def _letters(codes: object) -> str:
    return quoted("".join(map(chr, codes)))  # type: ignore[call-overload]


def _folded(operand: str, to: str, is_column: bool) -> str:
    pairs = {code: other for code, other in texts.case_map(to).items() if code > 127}
    folded = f'{to}({operand} COLLATE "C")'
    general = f"translate({folded}, {_letters(pairs.keys())}, {_letters(pairs.values())})"
    if not is_column:
        return general
    # translate() looks at its whole table for each letter, so it is spared where all are ASCII.
    return f"CASE WHEN octet_length({operand}) = length({operand}) THEN {folded} ELSE {general} END"

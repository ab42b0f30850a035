"""From :mod:`syntax` to :mod:`tree`: every name gets its meaning, every literal its type, every operand its cast.

The rules are those of Postgres' parser (docs 10.2 to 10.5). Types do not depend on the values of parameters, so that
one resolved tree serves all requests with the same text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from shapeworker.where import numbers, numeric, overloads, syntax, tree
from shapeworker.where.application import Application
from shapeworker.where.columns import Column
from shapeworker.where.conversion import Conversion, Unknown, modified
from shapeworker.where.errors import InvalidWhere
from shapeworker.where.parser import quoted_if_needed
from shapeworker.where.types import (
    BOOL,
    BY_NAME,
    INT4,
    INT8,
    NUMERIC,
    TEXT,
    UNKNOWN,
    ColumnType,
    Type,
    array_of,
    type_of,
)

MAX_COST: Final = 100_000
"""How many nodes one evaluation may visit. More than the text has, because BETWEEN looks at its operand twice."""

MAX_FOLDINGS: Final = 50
"""How many lower(), upper() and ILIKE a clause may have: the SQL of each can take 7 kB."""

_FOLDINGS: Final = frozenset(("lower", "upper", "~~*", "!~~*"))
_SUBLINK: Final = "subqueries are not supported yet"


class Resolver:
    """Resolves one clause. ``columns`` are by name; ``parameters`` are the types given to the parameters so far."""

    def __init__(self, columns: Mapping[str, Column]) -> None:
        self._columns = columns
        self._conversion = Conversion()
        self._application = Application(self._conversion)
        self.parameters = self._conversion.parameters
        self.locations: dict[int, int] = {}
        self._enums = {
            type_.name.removeprefix("enum "): type_
            for column in columns.values()
            if (type_ := type_of(column.type)).is_enum
            or (type_.element is not None and (type_ := type_.element).is_enum)
        }

    def clause(self, node: syntax.Node) -> tree.Expression:
        """The boolean expression of a whole clause. Raises InvalidWhere."""
        result = self.expression(node)
        if result.type is not BOOL:
            raise InvalidWhere("WHERE clause must return a boolean")
        if _cost(result) > MAX_COST:
            raise InvalidWhere(f"the where clause is too complex: more than {MAX_COST} steps for each row")
        if sum(_folds(part) for part in tree.parts(result)) > MAX_FOLDINGS:
            raise InvalidWhere(f"the where clause has more than {MAX_FOLDINGS} uses of lower, upper and ILIKE")
        return result

    def expression(self, node: syntax.Node) -> tree.Expression:
        """An expression; of type UNKNOWN as long as a literal's surroundings have not given it one."""
        return _NODES[type(node)](self, node)

    # ------------------------------------------------------------------------------------------------ leaves

    def literal(self, node: syntax.Literal) -> tree.Expression:
        match node.kind:
            case "string":
                return Unknown(UNKNOWN, node.text, 0, node.at)
            case "null":
                return Unknown(UNKNOWN, None, 0, node.at)
            case "boolean":
                return tree.Constant(BOOL, node.text == "t")
            case "integer":
                for type_, bound in ((INT4, numbers.INT4), (INT8, numbers.INT8)):
                    try:
                        return tree.Constant(type_, numbers.integer_input(bound)(node.text))
                    except ValueError:
                        continue
        try:
            return tree.Constant(NUMERIC, numeric.numeric_input(node.text))
        except ValueError:
            raise InvalidWhere.located(node.at, f"invalid syntax for type numeric: {node.text[:100]}") from None

    def parameter(self, node: syntax.Parameter) -> tree.Expression:
        self.locations.setdefault(node.number, node.at)
        known = self.parameters.get(node.number)
        if known is not None:
            return tree.Param(known, node.number, node.at)
        return Unknown(UNKNOWN, None, node.number, node.at)

    def column(self, node: syntax.ColumnName) -> tree.ColumnRef:
        column = self._column(node)
        if not column.deterministic:
            raise InvalidWhere.located(
                node.at,
                f"column {quoted_if_needed(node.name)} has a nondeterministic collation: only NULL tests are possible",
            )
        return tree.ColumnRef(type_of(column.type), column.name, column.position, _has_domain(column.type))

    def _column(self, node: syntax.ColumnName) -> Column:
        column = self._columns.get(node.name)
        if column is None:
            raise InvalidWhere.located(node.at, f"unknown reference {quoted_if_needed(node.name)}")
        if not column.published:
            raise InvalidWhere.located(
                node.at,
                f"column {quoted_if_needed(node.name)} is generated and not part of the stream:"
                " only stored columns of Postgres 18 and later are",
            )
        return column

    # ------------------------------------------------------------------------------------------------ casts

    def cast(self, node: syntax.Cast) -> tree.Expression:
        target = self._type(node.type)
        if isinstance(node.item, syntax.Array) and target.element is not None:
            result = self._array_of(node.item, target)
        else:
            result = self._conversion.explicit(self.expression(node.item), target, node.at)
        return modified(result, node.type, node.at)

    def _type(self, name: syntax.TypeName) -> Type:
        shown = name.name if name.schema is None else f"{name.schema}.{name.name}"
        found = BY_NAME.get(name.name) if name.schema in (None, "pg_catalog") else None
        if found is None:
            # An enum is known if a column has it.
            found = self._enums.get(name.name)
            if found is None or (name.schema is not None and not found.sql.startswith(f'"{name.schema}".')):
                raise InvalidWhere.located(name.at, f"unsupported type {shown}")
        return array_of(found) if name.is_array else found

    # ------------------------------------------------------------------------------------------------ logic

    def boolean(self, node: syntax.Node) -> tree.Expression:
        """An operand of AND, OR, NOT or CASE."""
        item = self.expression(node)
        if isinstance(item, Unknown):
            return self._conversion.typed(item, BOOL)
        if item.type is BOOL:
            return item
        if isinstance(item, tree.ColumnRef):
            shown = f"reference {quoted_if_needed(item.name)} of type {item.type}"
        elif isinstance(item, tree.Apply):
            shown = f"function {item.function.name} returning {item.type}"
        else:
            shown = f"expression of type {item.type}"
        raise InvalidWhere.located(node.at, f"{shown} is not castable to bool")

    def logical(self, node: syntax.Logical) -> tree.Expression:
        return tree.Junction(BOOL, node.connective, tuple(map(self.boolean, node.items)))

    def negation(self, node: syntax.Negation) -> tree.Expression:
        return tree.Not(BOOL, self.boolean(node.item))

    def null_test(self, node: syntax.NullTest) -> tree.Expression:
        if isinstance(node.item, syntax.ColumnName):
            # No collation has a say in this.
            column = self._column(node.item)
            item: tree.Expression = tree.ColumnRef(type_of(column.type), column.name, column.position, False)
        else:
            item = self.settled(node.item)
        return _negated(tree.IsNull(BOOL, item), node.negated)

    def settled(self, node: syntax.Node) -> tree.Expression:
        """An expression whose type nothing around it decides: text, if it is a literal."""
        item = self.expression(node)
        return self._conversion.typed(item, TEXT) if isinstance(item, Unknown) else item

    def truth_test(self, node: syntax.TruthTest) -> tree.Expression:
        item = self.expression(node.item)
        if isinstance(item, Unknown):
            item = self._conversion.typed(item, BOOL)
        if item.type is not BOOL:
            test = ("NOT " if node.negated else "") + node.test
            raise InvalidWhere.located(node.at, f"argument of IS {test} must be bool, not {item.type}")
        return _negated(tree.Is(BOOL, item, {"TRUE": True, "FALSE": False, "UNKNOWN": None}[node.test]), node.negated)

    def distinct(self, node: syntax.Distinct) -> tree.Expression:
        equal, left, right = self._equality(node.left, node.right, node.at)
        return _negated(tree.IsDistinct(BOOL, left, right, equal), node.negated)

    def _equality(
        self, left: syntax.Node, right: syntax.Node, at: int
    ) -> tuple[tree.Function, tree.Expression, tree.Expression]:
        applied = self._application.operation("=", (self.expression(left), self.expression(right)), at)
        first, second = applied.arguments
        return applied.function, first, second

    def null_if(self, node: syntax.NullIf) -> tree.Expression:
        equal, left, right = self._equality(node.left, node.right, node.at)
        return tree.NullIf(left.type, left, right, equal)

    def case(self, node: syntax.Case) -> tree.Expression:
        conditions: list[tree.Expression] = []
        if node.item is None:
            conditions = [self.boolean(condition) for condition, _ in node.arms]
        else:
            item = self.settled(node.item)
            conditions = [
                self._application.operation("=", (item, self.expression(value)), value.at) for value, _ in node.arms
            ]
        results = [self.expression(result) for _, result in node.arms]
        otherwise = self.expression(node.otherwise) if node.otherwise else Unknown(UNKNOWN, None, 0, node.at)
        type_, unified = self._conversion.unified([*results, otherwise], node.at, "CASE")
        return tree.Case(type_, tuple(zip(conditions, unified[:-1], strict=True)), unified[-1])

    def coalesce(self, node: syntax.Coalesce) -> tree.Expression:
        type_, items = self._conversion.unified([self.expression(item) for item in node.items], node.at, "COALESCE")
        return tree.Coalesce(type_, items)

    def extreme(self, node: syntax.Extreme) -> tree.Expression:
        type_, items = self._conversion.unified(
            [self.expression(item) for item in node.items], node.at, node.name.upper()
        )
        if not type_.ordered:
            raise InvalidWhere.located(node.at, f"values of type {type_} cannot be ordered")
        return tree.Extreme(type_, node.name, items)

    # ------------------------------------------------------------------------------------------------ operators

    def operator(self, node: syntax.Operator) -> tree.Expression:
        operands = [self.expression(operand) for operand in (node.left, node.right) if operand is not None]
        return self._application.operation(node.name, tuple(operands), node.at)

    def between(self, node: syntax.Between) -> tree.Expression:
        item, low, high = (self.expression(part) for part in (node.item, node.low, node.high))

        def inside(low: tree.Expression, high: tree.Expression) -> tree.Expression:
            above, below = ("<", ">") if node.negated else (">=", "<=")
            operation = self._application.operation
            tests = operation(above, (item, low), node.at), operation(below, (item, high), node.at)
            return tree.Junction(BOOL, "or" if node.negated else "and", tests)

        if not node.symmetric:
            return inside(low, high)
        return tree.Junction(BOOL, "and" if node.negated else "or", (inside(low, high), inside(high, low)))

    def membership(self, node: syntax.Membership) -> tree.Expression:
        item = self.expression(node.item)
        members = [self.expression(member) for member in node.members]
        constants = [member for member in members if not tree.columns_of(member)]
        tests: list[tree.Expression] = []
        others = members
        if len(constants) > 1:
            # Postgres makes an array of them, of the type that they and the item have in common.
            common = overloads.common_type([item.type, *(member.type for member in constants)])
            if common is not None and not common.is_array:
                converted = tuple(self._conversion.implicit(member, common, node.at) for member in constants)
                array = tree.ArrayOf(array_of(common), converted, False)
                tests.append(self._application.quantified("=", item, array, False, node.at))
                others = [member for member in members if tree.columns_of(member)]
        tests += [self._application.operation("=", (item, member), node.at) for member in others]
        result = tests[0] if len(tests) == 1 else tree.Junction(BOOL, "or", tuple(tests))
        return _negated(result, node.negated)

    def quantified(self, node: syntax.Quantified) -> tree.Expression:
        return self._application.quantified(
            node.operator, self.expression(node.left), self.expression(node.array), node.all, node.at
        )

    # ------------------------------------------------------------------------------------------------ functions, arrays

    def call(self, node: syntax.Call) -> tree.Expression:
        arguments = tuple(map(self.expression, node.arguments))
        return self._application.call(node.name, arguments, node.at)

    def array(self, node: syntax.Array) -> tree.Expression:
        if not node.items:
            raise InvalidWhere.located(
                node.at, "cannot determine type of empty array: write ARRAY[]::int4[] or the like"
            )
        type_, items = self._conversion.unified([self.expression(item) for item in node.items], node.at, "ARRAY")
        if type_.is_array:
            return tree.ArrayOf(type_, items, True)
        return tree.ArrayOf(array_of(type_), items, False)

    def _array_of(self, node: syntax.Array, target: Type) -> tree.Expression:
        """``ARRAY[…]::target``, which casts each element."""
        assert target.element is not None
        nested = any(isinstance(item, syntax.Array) for item in node.items)
        items: list[tree.Expression] = []
        for item in node.items:
            if isinstance(item, syntax.Array):
                items.append(self._array_of(item, target))
                continue
            element = self.expression(item)
            nested = nested or element.type.is_array
            items.append(self._conversion.explicit(element, target if nested else target.element, item.at))
        return tree.ArrayOf(target, tuple(items), nested)

    def subscript(self, node: syntax.Subscript) -> tree.Expression:
        item = self.expression(node.item)
        if item.type.element is None:
            raise InvalidWhere.located(node.at, f"cannot subscript type {item.type} because it is not an array")

        def index(part: syntax.Node | None) -> tree.Expression | None:
            return None if part is None else self._conversion.explicit(self.expression(part), INT4, part.at)

        if not any(part.is_slice for part in node.indices):
            indices = [index(part.upper) for part in node.indices]
            return tree.Element(item.type.element, item, tuple(part for part in indices if part is not None))
        # One slice makes slices of all of them, from 1.
        one = tree.Constant(INT4, 1)
        ends = tuple((index(part.lower) if part.is_slice else one, index(part.upper)) for part in node.indices)
        return tree.Slice(item.type, item, ends)

    # ------------------------------------------------------------------------------------------------ not here

    def row(self, node: syntax.Row) -> tree.Expression:
        raise InvalidWhere.located(node.at, "RowExpr is not supported in this context")

    def sublink(self, node: syntax.Sublink) -> tree.Expression:
        raise InvalidWhere.located(node.at, _SUBLINK)


_NODES: Final[dict[type[syntax.Node], Callable[[Resolver, Any], tree.Expression]]] = {
    syntax.Literal: Resolver.literal,
    syntax.Parameter: Resolver.parameter,
    syntax.ColumnName: Resolver.column,
    syntax.Operator: Resolver.operator,
    syntax.Logical: Resolver.logical,
    syntax.Negation: Resolver.negation,
    syntax.NullTest: Resolver.null_test,
    syntax.TruthTest: Resolver.truth_test,
    syntax.Distinct: Resolver.distinct,
    syntax.Between: Resolver.between,
    syntax.Membership: Resolver.membership,
    syntax.Quantified: Resolver.quantified,
    syntax.Cast: Resolver.cast,
    syntax.Call: Resolver.call,
    syntax.Array: Resolver.array,
    syntax.Subscript: Resolver.subscript,
    syntax.Case: Resolver.case,
    syntax.Coalesce: Resolver.coalesce,
    syntax.Extreme: Resolver.extreme,
    syntax.NullIf: Resolver.null_if,
    syntax.Row: Resolver.row,
    syntax.Sublink: Resolver.sublink,
}


def _has_domain(column_type: ColumnType) -> bool:
    return column_type.kind == "d" or (column_type.element is not None and _has_domain(column_type.element))


def _negated(item: tree.Expression, negated: bool) -> tree.Expression:
    return tree.Not(BOOL, item) if negated else item


def _folds(node: tree.Expression) -> bool:
    return isinstance(node, tree.Apply | tree.Quantified) and node.function.role in _FOLDINGS


def _cost(root: tree.Expression) -> int:
    known: dict[int, int] = {}

    def cost(node: tree.Expression) -> int:
        found = known.get(id(node))
        if found is None:
            found = known[id(node)] = 1 + sum(map(cost, tree.children(node)))
        return found

    return cost(root)

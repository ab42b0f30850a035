"""From :mod:`syntax` to :mod:`tree`: every name gets its meaning, every literal its type, every operand its cast.

The rules are those of Postgres' parser (docs 10.2 to 10.5). Types do not depend on the values of parameters, so that
one resolved tree serves all requests with the same text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from shapeworker.where import casts, numbers, numeric, overloads, syntax, texts, tree
from shapeworker.where.columns import Column
from shapeworker.where.errors import InvalidWhere
from shapeworker.where.functions import FUNCTIONS, OPERATORS, REFUSED
from shapeworker.where.overloads import Match
from shapeworker.where.parser import quoted_if_needed
from shapeworker.where.types import (
    BOOL,
    BPCHAR,
    BY_NAME,
    INT4,
    INT8,
    NUMERIC,
    TEXT,
    UNKNOWN,
    VARCHAR,
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


class _Unknown(tree.Expression, frozen=True, eq=False):
    """A string literal, NULL (``text`` is None), or the first use of a parameter, before its type is known."""

    text: str | None
    number: int
    at: int


class Resolver:
    """Resolves one clause. ``columns`` are by name; ``parameters`` are the types given to the parameters so far."""

    def __init__(self, columns: Mapping[str, Column]) -> None:
        self._columns = columns
        self.parameters: dict[int, Type] = {}
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
                return _Unknown(UNKNOWN, node.text, 0, node.at)
            case "null":
                return _Unknown(UNKNOWN, None, 0, node.at)
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
        return _Unknown(UNKNOWN, None, node.number, node.at)

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

    def typed(self, item: tree.Expression, target: Type) -> tree.Expression:
        """An unknown constant as one of this type. Raises InvalidWhere for what is no value of the type."""
        assert isinstance(item, _Unknown)
        if target.input is None and (item.number or item.text is not None):
            raise InvalidWhere.located(item.at, f"constants of type {target} are not supported")
        if item.number:
            # A later use in the same expression may come too late to see the type that it was given here.
            known = self.parameters.setdefault(item.number, target)
            return self.implicit(tree.Param(known, item.number, item.at), target, item.at)
        return tree.Constant(target, None if item.text is None else input_value(target, item.text, item.at))

    def implicit(self, item: tree.Expression, target: Type, at: int) -> tree.Expression:
        """The same as a value of another type, if that needs no explicit cast. Raises InvalidWhere."""
        if isinstance(item, _Unknown):
            return self.typed(item, target)
        if item.type is target:
            return item
        if not casts.is_implicit(item.type, target):
            raise InvalidWhere.located(at, f"type conflict: {item.type} and {target}")
        return _cast(item, target, at)

    def explicit(self, item: tree.Expression, target: Type, at: int) -> tree.Expression:
        """``item::target``. Raises InvalidWhere if there is no such cast."""
        if isinstance(item, _Unknown):
            if item.text is None:
                return self.typed(item, target)
            try:
                return self.typed(item, target)
            except InvalidWhere:
                shown = f'"{item.text[:100]}" from text to {target}'
                raise InvalidWhere.located(at, f"could not cast value {shown}") from None
        if item.type is target:
            return item
        if casts.find(item.type, target) is None:
            raise InvalidWhere.located(at, f"unknown cast from type {item.type} to type {target}")
        return _cast(item, target, at)

    def cast(self, node: syntax.Cast) -> tree.Expression:
        target = self._type(node.type)
        if isinstance(node.item, syntax.Array) and target.element is not None:
            result = self._array_of(node.item, target)
        else:
            result = self.explicit(self.expression(node.item), target, node.at)
        return _modified(result, node.type, node.at)

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
        if isinstance(item, _Unknown):
            return self.typed(item, BOOL)
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
        return self.typed(item, TEXT) if isinstance(item, _Unknown) else item

    def truth_test(self, node: syntax.TruthTest) -> tree.Expression:
        item = self.expression(node.item)
        if isinstance(item, _Unknown):
            item = self.typed(item, BOOL)
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
        applied = self.operation("=", (self.expression(left), self.expression(right)), at)
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
            conditions = [self.operation("=", (item, self.expression(value)), value.at) for value, _ in node.arms]
        results = [self.expression(result) for _, result in node.arms]
        otherwise = self.expression(node.otherwise) if node.otherwise else _Unknown(UNKNOWN, None, 0, node.at)
        type_, unified = self._unified([*results, otherwise], node.at, "CASE")
        return tree.Case(type_, tuple(zip(conditions, unified[:-1], strict=True)), unified[-1])

    def coalesce(self, node: syntax.Coalesce) -> tree.Expression:
        type_, items = self._unified([self.expression(item) for item in node.items], node.at, "COALESCE")
        return tree.Coalesce(type_, items)

    def extreme(self, node: syntax.Extreme) -> tree.Expression:
        type_, items = self._unified([self.expression(item) for item in node.items], node.at, node.name.upper())
        if not type_.ordered:
            raise InvalidWhere.located(node.at, f"values of type {type_} cannot be ordered")
        return tree.Extreme(type_, node.name, items)

    def _unified(self, items: list[tree.Expression], at: int, what: str) -> tuple[Type, tuple[tree.Expression, ...]]:
        common = overloads.common_type([item.type for item in items])
        if common is None:
            first, *others = [item.type for item in items if item.type is not UNKNOWN]
            other = next(type_ for type_ in others if overloads.common_type([first, type_]) is None)
            raise InvalidWhere.located(at, f"{what} types {first} and {other} cannot be matched")
        return common, tuple(self.implicit(item, common, at) for item in items)

    # ------------------------------------------------------------------------------------------------ operators

    def operator(self, node: syntax.Operator) -> tree.Expression:
        operands = [self.expression(operand) for operand in (node.left, node.right) if operand is not None]
        return self.operation(node.name, tuple(operands), node.at)

    def operation(self, name: str, operands: tuple[tree.Expression, ...], at: int) -> tree.Apply:
        """An operator with its operands. Raises InvalidWhere if there is none for their types."""
        name = "<>" if name == "!=" else name
        candidates = OPERATORS.get((name, len(operands)))
        if not candidates:
            arity = "binary" if len(operands) == 2 else "unary"
            raise InvalidWhere.located(at, f'unknown {arity} operator "{name}"')
        match = overloads.select(candidates, tuple(operand.type for operand in operands))
        if match is None:
            raise InvalidWhere.located(at, "Could not select an operator overload")
        if reason := REFUSED.get((name, match.arguments)):
            raise InvalidWhere.located(at, reason)
        return self._applied(match, operands, at, "Could not select an operator overload")

    def _applied(self, match: Match, arguments: tuple[tree.Expression, ...], at: int, otherwise: str) -> tree.Apply:
        function = _function(match, at, otherwise)
        converted = tuple(
            self.implicit(argument, type_, at) for argument, type_ in zip(arguments, match.arguments, strict=True)
        )
        if match.overload.needs_constant and tree.columns_of(converted[function.prepared_place]):
            raise InvalidWhere.located(
                at, f"{function.name} needs a constant as argument {function.prepared_place + 1}"
            )
        return tree.Apply(match.result, function, converted, at)

    def between(self, node: syntax.Between) -> tree.Expression:
        item, low, high = (self.expression(part) for part in (node.item, node.low, node.high))

        def inside(low: tree.Expression, high: tree.Expression) -> tree.Expression:
            above, below = ("<", ">") if node.negated else (">=", "<=")
            tests = self.operation(above, (item, low), node.at), self.operation(below, (item, high), node.at)
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
                converted = tuple(self.implicit(member, common, node.at) for member in constants)
                array = tree.ArrayOf(array_of(common), converted, False)
                tests.append(self._quantified("=", item, array, False, node.at))
                others = [member for member in members if tree.columns_of(member)]
        tests += [self.operation("=", (item, member), node.at) for member in others]
        result = tests[0] if len(tests) == 1 else tree.Junction(BOOL, "or", tuple(tests))
        return _negated(result, node.negated)

    def quantified(self, node: syntax.Quantified) -> tree.Expression:
        return self._quantified(
            node.operator, self.expression(node.left), self.expression(node.array), node.all, node.at
        )

    def _quantified(
        self, name: str, left: tree.Expression, array: tree.Expression, all: bool, at: int
    ) -> tree.Expression:
        name = "<>" if name == "!=" else name
        element = array.type.element or UNKNOWN
        if array.type is not UNKNOWN and not array.type.is_array:
            raise InvalidWhere.located(at, f"argument of {'ALL' if all else 'ANY'} must be an array")
        candidates = OPERATORS.get((name, 2))
        if not candidates:
            raise InvalidWhere.located(at, f'unknown binary operator "{name}"')
        match = overloads.select(candidates, (left.type, element))
        if match is None:
            raise InvalidWhere.located(at, "Could not select an operator overload")
        if match.result is not BOOL:
            raise InvalidWhere.located(at, "ANY/ALL requires operator that returns bool")
        if match.overload.needs_constant:
            raise InvalidWhere.located(at, f"ANY/ALL is not supported with {name}")
        if match.arguments[1].is_array:
            raise InvalidWhere.located(at, "ANY/ALL over arrays of arrays is not supported")
        left = self.implicit(left, match.arguments[0], at)
        array = self.implicit(array, array_of(match.arguments[1]), at)
        function = _function(match, at, "Could not select an operator overload")
        return tree.Quantified(BOOL, function, left, array, all)

    # ------------------------------------------------------------------------------------------------ functions, arrays

    def call(self, node: syntax.Call) -> tree.Expression:
        arguments = tuple(map(self.expression, node.arguments))
        candidates = FUNCTIONS.get(node.name)
        if not candidates or all(overload.expanded(len(arguments)) is None for overload in candidates):
            if node.name in BY_NAME and len(arguments) == 1 and node.name not in FUNCTIONS:
                return self.explicit(arguments[0], BY_NAME[node.name], node.at)
            shown = f"{quoted_if_needed(node.name)}/{len(arguments)}"
            raise InvalidWhere.located(node.at, f"unknown or unsupported function {shown}")
        types = ", ".join(argument.type.name for argument in arguments)
        otherwise = f"Could not select a function overload for {quoted_if_needed(node.name)}({types})"
        match = overloads.select(candidates, tuple(argument.type for argument in arguments))
        if match is None:
            raise InvalidWhere.located(node.at, otherwise)
        return self._applied(match, arguments, node.at, otherwise)

    def array(self, node: syntax.Array) -> tree.Expression:
        if not node.items:
            raise InvalidWhere.located(
                node.at, "cannot determine type of empty array: write ARRAY[]::int4[] or the like"
            )
        type_, items = self._unified([self.expression(item) for item in node.items], node.at, "ARRAY")
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
            items.append(self.explicit(element, target if nested else target.element, item.at))
        return tree.ArrayOf(target, tuple(items), nested)

    def subscript(self, node: syntax.Subscript) -> tree.Expression:
        item = self.expression(node.item)
        if item.type.element is None:
            raise InvalidWhere.located(node.at, f"cannot subscript type {item.type} because it is not an array")

        def index(part: syntax.Node | None) -> tree.Expression | None:
            return None if part is None else self.explicit(self.expression(part), INT4, part.at)

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


def input_value(target: Type, text: str, at: int) -> Any:
    """The value that a literal's or parameter's text has in a type. Raises InvalidWhere."""
    assert target.input is not None
    try:
        return target.input(text)
    except (ValueError, RecursionError):
        raise InvalidWhere.located(at, f"invalid syntax for type {target}: {text[:100]}") from None


def _negated(item: tree.Expression, negated: bool) -> tree.Expression:
    return tree.Not(BOOL, item) if negated else item


def _function(match: Match, at: int, otherwise: str) -> tree.Function:
    overload = match.overload
    try:
        body = overload.make(*match.arguments)
    except ValueError:
        raise InvalidWhere.located(at, otherwise) from None
    needs_order = overload.role in ("<", "<=", ">", ">=")
    needs_equality = overload.role in ("=", "<>", "@>", "<@", "&&") and match.arguments[0].is_array
    if any((needs_order and not t.ordered) or (needs_equality and not t.comparable) for t in match.arguments):
        raise InvalidWhere.located(at, otherwise)
    return tree.Function(
        *(overload.name, match.arguments, match.result, body, overload.sql),
        *(overload.strict, overload.role, overload.prepare),
        prepared_place=overload.prepared_place,
    )


def _cast(item: tree.Expression, target: Type, at: int) -> tree.Expression:
    cast = casts.find(item.type, target)
    assert cast is not None
    body, role = (cast.body, "cast") if cast.body else (_same, "relabel")
    function = tree.Function(
        *(target.name, (item.type,), target, body, lambda operand: f"({operand}::{target.sql})"), role=role
    )
    return tree.Apply(target, function, (item,), at)


def _same(value: Any) -> Any:
    return value


def _modified(item: tree.Expression, name: syntax.TypeName, at: int) -> tree.Expression:
    """With the length or precision of a cast."""
    if not name.modifiers:
        return item
    type_, modifiers = item.type, name.modifiers
    body: Callable[[Any], Any] | None = None
    if type_ in (VARCHAR, BPCHAR) and len(modifiers) == 1 and 1 <= modifiers[0] <= 10_000:
        body = (texts.cut if type_ is VARCHAR else texts.padded)(modifiers[0])
    elif type_ is NUMERIC and len(modifiers) <= 2:
        precision, digits = modifiers[0], modifiers[1] if len(modifiers) > 1 else 0
        if 1 <= precision <= 1000 and 0 <= digits <= precision:
            body = numeric.limited(precision, digits)
    if body is None:
        raise InvalidWhere.located(name.at, f"modifiers of type {type_} are not supported")
    shown = f"{type_.sql}({', '.join(map(str, modifiers))})"
    function = tree.Function(*(type_.name, (type_,), type_, body, lambda operand: f"({operand}::{shown})"), role="cast")
    return tree.Apply(type_, function, (item,), at)


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

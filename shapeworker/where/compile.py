"""From :mod:`tree` to Python code.

The code of a clause holds only names made here; every constant, function and reader is a parameter of its outer
function. Clauses that differ in constants alone therefore have the same code, which is compiled once.

Of a boolean expression up to three things are asked: is it true, is it false, which of true, false and NULL is it.
Code for the first two is plain short-circuiting Python without a NULL in it, and each asks each operand one question,
so the work is that of one pass over the tree.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Final

from shapeworker.where import arrays, evaluation, tree
from shapeworker.where.errors import InvalidWhere
from shapeworker.where.program import Prepare, Program, Slot, factory_of
from shapeworker.where.tree import is_constant, never_null, unlabelled
from shapeworker.where.types import BOOL, INTEGERS, STRINGS, Type, same_texts

_INLINE: Final = {"=": "==", "<>": "!=", "<": "<", "<=": "<=", ">": ">", ">=": ">="}
_DEPTH: Final = 12
"""How deep one Python expression may nest; what is deeper becomes a function of its own."""

MAX_CODE: Final = 700_000
"""Characters. Python takes 130 bytes for each while it compiles them."""

_ALL_PATTERNS: Final = ("~~", "!~~", "~~*", "!~~*")
"""Operators that take any text as their pattern."""


def predicate_program(expression: tree.Expression) -> Program:
    """Code that says whether a boolean expression is true for a row. Raises InvalidWhere if it gets too long."""
    generator = _Generator()
    return generator.program(generator.true(expression))


def value_program(expression: tree.Expression) -> Program:
    """Code that gives the value of an expression for a row: None for NULL."""
    generator = _Generator()
    return generator.program(generator.value(expression))


def evaluate(expression: tree.Expression) -> Any:
    """The value of an expression whose operands are constants. Raises EvaluationError."""
    if isinstance(expression, tree.Constant):
        return expression.value
    generator = _Generator(evaluated=expression)
    return generator.program(generator.value(expression)).bound(constant_value)(())


def constant_value(expression: tree.Expression) -> Any:
    """The value of a Constant."""
    assert isinstance(expression, tree.Constant)
    return expression.value


def _raw_text(type_: Type) -> Prepare:
    assert type_.raw is not None
    return type_.raw


class _Generator:
    def __init__(self, evaluated: tree.Expression | None = None) -> None:
        # A constant expression becomes a parameter, unless the code is to evaluate that very expression.
        self._evaluated = evaluated
        self._slots: list[Any] = []
        self._named: dict[tuple[int, int], str] = {}
        self._functions: list[str] = []
        self._locals = 0
        self._depth = 0

    def program(self, result: str) -> Program:
        lines = [f"def make({', '.join(f'k{number}' for number in range(len(self._slots)))}):"]
        for function in self._functions:
            lines += ["  " + line for line in function.splitlines()]
        lines += ["  def predicate(row):", f"    return {result}", "  return predicate", ""]
        source = "\n".join(lines)
        if len(source) > MAX_CODE:
            raise InvalidWhere("the where clause has too many terms that are not constants")
        return Program(factory_of(source), tuple(self._slots), source)

    # ------------------------------------------------------------------------------------------------ names

    def _is_constant(self, node: tree.Expression) -> bool:
        return node is not self._evaluated and is_constant(node)

    def _object(self, thing: Any) -> str:
        return self._named_slot((id(thing), 0), thing)

    def _constant(self, expression: tree.Expression, prepare: Prepare | None = None, fallible: bool = False) -> str:
        return self._named_slot((id(expression), id(prepare)), Slot(expression, prepare, fallible))

    def _named_slot(self, key: tuple[int, int], slot: Any) -> str:
        # Slots keep what the ids are of alive.
        name = self._named.get(key)
        if name is None:
            name = self._named[key] = f"k{len(self._slots)}"
            self._slots.append(slot)
        return name

    def _local(self) -> str:
        self._locals += 1
        return f"t{self._locals}"

    def _function(self, lines: list[str]) -> str:
        name = f"f{len(self._functions)}"
        self._functions.append("\n".join([f"def {name}(row):", *("  " + line for line in lines)]))
        return f"{name}(row)"

    def _outlined(self, generate: Callable[[tree.Expression], str], node: tree.Expression) -> str:
        """The code of an operand, as a call of its own function if it comes to lie too deep."""
        if self._depth < _DEPTH:
            self._depth += 1
            code = generate(node)
            self._depth -= 1
            return code
        outer, self._depth = self._depth, 0
        code = generate(node)
        self._depth = outer
        return self._function([f"return {code}"])

    # ------------------------------------------------------------------------------------------------ values

    def value(self, node: tree.Expression) -> str:
        """Code for the value of a node, None for NULL."""
        return self._outlined(self._value, node)

    def _value(self, node: tree.Expression) -> str:
        if self._is_constant(node):
            if isinstance(node, tree.Constant) and node.value is None:
                return "None"
            return self._constant(node)
        match node:
            case tree.ColumnRef():
                local = self._local()
                return f"(None if ({local} := row[{node.position}]) is None else {self._read(node.type, local)})"
            case tree.Apply():
                return self._applied(node)
            case tree.Junction():
                return self._junction(node)
            case tree.Not():
                local = self._local()
                return f"(None if ({local} := {self.value(node.item)}) is None else not {local})"
            case tree.IsNull() | tree.Is() | tree.IsDistinct():
                return self.true(node)
            case tree.Quantified():
                test, every = self._object(node.function.body), node.all
                helper = self._object(evaluation.quantified)
                return f"{helper}({test}, {every}, {self.value(node.left)}, {self.value(node.array)})"
            case tree.ArrayOf():
                return f"{self._object(arrays.build)}({self._tuple(node.items)}, {node.nested})"
            case tree.Element():
                return self._unless_null(node.item, arrays.element_at, self._tuple(node.indices))
            case tree.Slice():
                pairs = (f"({self._end(first)}, {self._end(last)})" for first, last in node.ends)
                return self._unless_null(node.item, evaluation.slice_of, f"({', '.join(pairs)},)")
            case tree.Coalesce():
                lines = []
                for item in node.items[:-1]:
                    lines += [f"v = {self._alone(self._value, item)}", "if v is not None: return v"]
                return self._function([*lines, f"return {self._alone(self._value, node.items[-1])}"])
            case tree.Extreme():
                best, key = self._object(max if node.name == "greatest" else min), self._object(node.type.key)
                return f"{self._object(evaluation.extreme)}({best}, {key}, {self._tuple(node.items)})"
            case tree.Case():
                lines = []
                for condition, result in node.arms:
                    lines.append(f"if {self._alone(self._true, condition)}: return {self._alone(self._value, result)}")
                return self._function([*lines, f"return {self._alone(self._value, node.otherwise)}"])
            case tree.NullIf():
                test, helper = self._object(node.equal.body), self._object(evaluation.null_if)
                return f"{helper}({test}, {self.value(node.left)}, {self.value(node.right)})"
        raise TypeError(type(node).__name__)

    def _unless_null(self, array: tree.Expression, function: Callable[..., Any], subscripts: str) -> str:
        """A function of an array and its subscripts; those of a NULL are not evaluated, and cannot fail."""
        local, value = self._local(), self.value(array)
        return f"(None if ({local} := {value}) is None else {self._object(function)}({local}, {subscripts}))"

    def _alone(self, generate: Callable[[tree.Expression], str], node: tree.Expression) -> str:
        """Code that starts at depth 0 because it is a line of its own."""
        outer, self._depth = self._depth, 0
        code = generate(node)
        self._depth = outer
        return code

    def _tuple(self, items: Sequence[tree.Expression]) -> str:
        return "(" + "".join(self.value(item) + ", " for item in items) + ")"

    def _end(self, end: tree.Expression | None) -> str:
        return "..." if end is None else self.value(end)

    def _read(self, type_: Type, local: str) -> str:
        if type_ in INTEGERS:
            return f"int({local})"
        if type_ in STRINGS:
            return f"{local}.decode()"
        return f"{self._object(type_.read)}({local})"

    def _operand(self, node: tree.Expression) -> tuple[str | None, str]:
        """What must not be None, unless it cannot be, and the code of the value then."""
        if never_null(node) and self._is_constant(node):
            return None, self._constant(node)
        if isinstance(node, tree.Apply) and node.function.role == "relabel":
            return self._operand(node.arguments[0])
        local = self._local()
        if isinstance(node, tree.ColumnRef):
            return f"({local} := row[{node.position}])", self._read(node.type, local)
        return f"({local} := {self.value(node)})", local

    def _call(self, node: tree.Apply) -> tuple[list[str], str]:
        """The operands that must not be None, and the call."""
        function, arguments = node.function, node.arguments
        if function.prepare is not None:
            fixed, other = arguments[function.prepared_place], arguments[1 - function.prepared_place]
            if self._is_constant(fixed) and never_null(fixed):
                check, subject = self._operand(other)
                fallible = function.name not in _ALL_PATTERNS
                return [check] if check else [], f"{self._constant(fixed, function.prepare, fallible)}({subject})"
        operands = [self._operand(argument) for argument in arguments]
        checks = [check for check, _ in operands if check]
        codes = [code for _, code in operands]
        if _inlined(function):
            key = function.arguments[0].key
            if key is not None:
                name = self._object(key)
                codes = [
                    self._constant(argument, key)
                    if self._is_constant(argument) and never_null(argument)
                    else f"{name}({code})"
                    for argument, code in zip(arguments, codes, strict=True)
                ]
            assert function.role is not None
            return checks, f"{codes[0]} {_INLINE[function.role]} {codes[1]}"
        return checks, f"{self._object(function.body)}({', '.join(codes)})"

    def _applied(self, node: tree.Apply) -> str:
        function = node.function
        if function.role == "relabel":
            return self.value(node.arguments[0])
        if not function.strict:
            arguments = ", ".join(map(self.value, node.arguments))
            return f"{self._object(function.body)}({arguments})"
        checks, call = self._call(node)
        if not checks:
            return f"({call})"
        return f"(None if {_joined(node, [f'{check} is None' for check in checks], 'or')} else {call})"

    def _junction(self, node: tree.Junction) -> str:
        stop = node.connective == "or"
        lines = [f"r = {not stop}"]
        for item in node.items:
            lines += [
                f"v = {self._alone(self._value, item)}",
                f"if v is {stop}: return {stop}",
                "if v is None: r = None",
            ]
        return self._function([*lines, "return r"])

    # ------------------------------------------------------------------------------------------------ truths

    def true(self, node: tree.Expression) -> str:
        """Code that is truthy exactly if a boolean node is TRUE."""
        return self._outlined(self._true, node)

    def false(self, node: tree.Expression) -> str:
        """Code that is truthy exactly if a boolean node is FALSE."""
        return self._outlined(self._false, node)

    def _true(self, node: tree.Expression) -> str:
        return self._truth(node, True)

    def _false(self, node: tree.Expression) -> str:
        return self._truth(node, False)

    def _truth(self, node: tree.Expression, wanted: bool) -> str:
        if isinstance(node, tree.Constant):
            return str(node.value is wanted)
        if self._is_constant(node):
            return f"({self._constant(node)} is {wanted})"
        match node:
            case tree.ColumnRef():
                return f"(row[{node.position}] == {self._constant(tree.Constant(BOOL, wanted), BOOL.raw)})"
            case tree.Junction():
                ask = self.true if wanted else self.false
                word = node.connective if wanted else {"and": "or", "or": "and"}[node.connective]
                return "(" + f" {word} ".join(map(ask, node.items)) + ")"
            case tree.Not():
                return self.false(node.item) if wanted else self.true(node.item)
            case tree.IsNull():
                return f"({self._raw(node.item)} is {'None' if wanted else 'not None'})"
            case tree.Is():
                if node.test is None:
                    return f"({self.value(node.item)} is {'None' if wanted else 'not None'})"
                asked = self.true(node.item) if node.test else self.false(node.item)
                return asked if wanted else f"(not {asked})"
            case tree.IsDistinct():
                test, helper = self._object(node.equal.body), self._object(evaluation.distinct)
                call = f"{helper}({test}, {self.value(node.left)}, {self.value(node.right)})"
                return call if wanted else f"(not {call})"
            case tree.Quantified():
                return self._membership(node, wanted) or f"({self.value(node)} is {wanted})"
            case tree.Apply() if node.function.strict and node.function.role not in ("relabel", "cast"):
                return self._raw_comparison(node, wanted) or self._test(node, wanted)
        return f"({self.value(node)} is {wanted})"

    def _raw(self, node: tree.Expression) -> str:
        """Code that is None exactly if a node is NULL."""
        return f"row[{node.position}]" if isinstance(node, tree.ColumnRef) else self.value(node)

    def _test(self, node: tree.Apply, wanted: bool) -> str:
        checks, call = self._call(node)
        if not _inlined(node.function) and node.function.role is None:
            # Such a function may itself give NULL.
            return f"({self._applied(node)} is {wanted})"
        tests = [f"{check} is not None" for check in checks]
        result = call if wanted else f"not ({call})"
        return f"({_joined(node, tests, 'and')} and {result})" if tests else f"({result})"

    def _raw_comparison(self, node: tree.Apply, wanted: bool) -> str | None:
        """A column against a constant, as texts: no value has to be read."""
        role = node.function.role or ""
        if role not in _INLINE or len(node.arguments) != 2:
            return None
        left, right = map(unlabelled, node.arguments)
        if isinstance(right, tree.ColumnRef):
            left, right = right, left
            role = {"<": ">", ">": "<", "<=": ">=", ">=": "<="}.get(role, role)
        if not isinstance(left, tree.ColumnRef) or not self._is_constant(right) or not never_null(right):
            return None
        if not same_texts(left.type, right.type):
            return None
        if role not in ("=", "<>") and not (left.type.raw_order and right.type.raw_order):
            return None
        constant = self._constant(right, _raw_text(right.type))
        if not wanted:
            role = {"=": "<>", "<>": "=", "<": ">=", ">=": "<", ">": "<=", "<=": ">"}[role]
        if role == "=":
            return f"(row[{left.position}] == {constant})"
        local = self._local()
        return f"(({local} := row[{left.position}]) is not None and {local} {_INLINE[role]} {constant})"

    def _membership(self, node: tree.Quantified, wanted: bool) -> str | None:
        """``= ANY`` of a constant array: a look-up in a set."""
        if node.function.role != "=" or node.all or not _inlined(node.function):
            return None
        if not self._is_constant(node.array) or not never_null(node.array):
            return None
        element = node.array.type.element
        assert element is not None
        left = unlabelled(node.left)
        local = self._local()
        if isinstance(left, tree.ColumnRef) and same_texts(left.type, element):
            members = self._constant(node.array, _set_of(_raw_text(element)))
            if wanted:
                return f"(row[{left.position}] in {members})"
            check, subject = f"({local} := row[{left.position}])", local
        else:
            members = self._constant(node.array, _set_of(element.same))
            code = self.value(node.left)
            key = element.key
            check = f"({local} := {code})"
            subject = local if key is None else f"{self._object(key)}({local})"
            if wanted:
                return f"({check} is not None and {subject} in {members})"
        # Nothing equals an element of an empty array, not even NULL; with a NULL in it, nothing is known not to.
        full, empty = self._constant(node.array, _has_no_null), self._constant(node.array, _is_empty)
        # The left side is evaluated in any case, because it may fail.
        return f"({check} is not None and {full} and {subject} not in {members} or {empty})"


@lru_cache(maxsize=1024)
def _set_of(key: Prepare) -> Prepare:
    return lambda array: frozenset(key(item) for item in array.elements if item is not None)


def _has_no_null(array: arrays.Array) -> bool:
    return None not in array.elements


def _is_empty(array: arrays.Array) -> bool:
    return not array.elements


def _joined(node: tree.Apply, checks: list[str], word: str) -> str:
    """Checks that operands are (not) None. Those that could fail are evaluated even if one before them is NULL."""
    if any(tree.children(argument) for argument in node.arguments[1:]) and len(checks) > 1:
        return {"or": " | ", "and": " & "}[word].join(f"({check})" for check in checks)
    return f" {word} ".join(checks)


def _inlined(function: tree.Function) -> bool:
    """Whether Python's own operator on the values, or on their keys, is what the function does."""
    if function.role not in _INLINE or len(function.arguments) != 2:
        return False
    left, right = function.arguments
    alike = left is right or any(left in group and right in group for group in (INTEGERS, STRINGS))
    return alike and left.key is right.key

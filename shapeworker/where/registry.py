"""Where functions and operators are entered, by the modules that define them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from shapeworker.where.overloads import Overload, Parameter
from shapeworker.where.types import Type

OPERATORS: Final[dict[tuple[str, int], list[Overload]]] = defaultdict(list)
FUNCTIONS: Final[dict[str, list[Overload]]] = defaultdict(list)

Body = Callable[..., Any]


def operator_sql(name: str) -> Callable[..., str]:
    """The SQL of an operator with one or two operands."""

    def sql(*operands: str) -> str:
        return f"({name} {operands[0]})" if len(operands) == 1 else f"({operands[0]} {name} {operands[1]})"

    return sql


def function_sql(name: str) -> Callable[..., str]:
    """The SQL of a call."""
    return lambda *arguments: (
        f'"{name}"({", ".join(arguments)})'
        if name == "left" or name == "right"
        else (f"{name}({', '.join(arguments)})")
    )


def _constantly(body: Body, *types: Type) -> Body:
    return body


def op(name: str, parameters: tuple[Parameter, ...], result: Parameter, body: Any, **more: Any) -> None:
    make: Callable[..., Body] = more.pop("make", None) or partial(_constantly, body)
    sql = more.pop("sql", None) or operator_sql(name)
    more.setdefault("role", name if len(parameters) == 2 else None)
    OPERATORS[name, len(parameters)].append(Overload(name, parameters, result, make, sql, **more))


def func(name: str, parameters: tuple[Parameter, ...], result: Parameter, body: Any, **more: Any) -> None:
    make: Callable[..., Body] = more.pop("make", None) or partial(_constantly, body)
    sql = more.pop("sql", None) or function_sql(name)
    FUNCTIONS[name].append(Overload(name, parameters, result, make, sql, **more))


def same(value: Any) -> Any:
    """The value itself."""
    return value

"""The functions and operators of the filter language, with the meaning that Postgres gives them.

What is registered is exact. What Postgres has under the same name and cannot be exact here is registered as refused, so
that a call is not taken for another one.
"""

from __future__ import annotations

from typing import Final

# Each enters its functions into the registry.
from shapeworker.where import (  # noqa: F401
    comparison_functions,
    container_functions,
    number_functions,
    range_functions,
    registry,
    text_functions,
    time_functions,
)
from shapeworker.where.types import NUMERIC, Type

REFUSED: Final[dict[tuple[str, tuple[Type, ...]], str]] = {
    ("^", (NUMERIC, NUMERIC)): "powers of numeric are not exact here; cast to float8",
}
"""Why an operator is not offered."""

OPERATORS: Final = {key: tuple(overloads) for key, overloads in registry.OPERATORS.items()}
"""By name and number of operands."""

FUNCTIONS: Final = {name: tuple(overloads) for name, overloads in registry.FUNCTIONS.items()}
"""By name."""

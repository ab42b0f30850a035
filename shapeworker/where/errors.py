"""The two ways in which a where clause fails: before there is a shape, and for one row."""

from __future__ import annotations


class InvalidWhere(ValueError):
    """A clause or its parameters that a client has to change: HTTP 400, with ``message`` under ``field``.

    ``field`` is ``where`` or ``params`` (where-and-subqueries.md 8).
    """

    def __init__(self, message: str, field: str = "where") -> None:
        super().__init__(message)
        self.message = message
        self.field = field

    @classmethod
    def located(cls, offset: int, message: str) -> InvalidWhere:
        """An error at a byte offset of the client's text, counted from 0."""
        return cls(f"At location {max(offset, 0)}: {message}")


class EvaluationError(Exception):
    """An operator that Postgres, too, would fail with for these values: overflow, division by zero and their kin.

    As a constant expression fails so, its clause is invalid; as a row does, the shape cannot go on.
    """

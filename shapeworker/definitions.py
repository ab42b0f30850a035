"""What a request asks for, as the database has it: which table, which of its columns, which of its rows."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import NamedTuple

import structlog

from common.postgres import DATABASE_ERRORS, Pool, is_unavailable
from common.shape import ShapeRequest
from common.table import Table, selection
from shapeworker.descriptions import Descriptions
from shapeworker.filters import Filter, InvalidWhere, make_filter_aside
from shapeworker.requests import CannotCreate, invalid

log = structlog.get_logger()


class Definition(NamedTuple):
    """What a shape is made of. ``version`` is that of the table (:mod:`common.table_version`) if it has one."""

    table: Table
    selected: tuple[str, ...]
    filter: Filter | None
    version: str


class Definitions:
    """Finds out what requests ask for. Nothing is made by that."""

    def __init__(self, pool: Pool) -> None:
        self._descriptions = Descriptions(pool)

    def forget(self) -> None:
        """The server may have been set back: what it said of its tables may have never been."""
        self._descriptions.forget()

    async def of(self, request: ShapeRequest, accept: Callable[[Table], Awaitable[None]] | None = None) -> Definition:
        """What a shape for this request would be made of at present.

        ``accept`` is asked about the table first. Raises :class:`CannotCreate`, with what a client has to change or for
        want of a database.
        """
        try:
            table, version, server_version = await self._descriptions.of(request.schema, request.table)
        except DATABASE_ERRORS as error:
            if not is_unavailable(error):
                raise
            log.warning("a table cannot be looked up", error=str(error).split("\n")[0])
            message = "Cannot connect to the database to verify the shape. Please try again later."
            raise CannotCreate(503, {"message": message}, 1) from error
        if table is None:
            name = f'Table "{request.schema}"."{request.table}" does not exist.'
            hint = "If the table name contains capitals or special characters you must quote it."
            raise invalid({"table": [f"{name} {hint}"]})
        if not table.is_replicable:
            name = f'"{request.schema}"."{request.table}"'
            raise invalid({"table": [f"Table {name} is unlogged or temporary and cannot be replicated"]})
        if accept is not None:
            await accept(table)
        selected = selection(table, request.columns, server_version)
        if isinstance(selected, dict):
            raise invalid(selected)
        try:
            filter_ = await make_filter_aside(request, table, server_version)
        except InvalidWhere as error:
            raise invalid({error.field: [error.message]}) from None
        return Definition(table, selected, filter_, version)

"""What a client asks of a subset snapshot: some rows of a shape, now, in some order (http-api.md 18)."""

from __future__ import annotations

import msgspec


class SubsetRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Texts are as sent, and understood by the worker; blank ones count as not given.

    ``params`` are the values of ``$1``, ``$2``… by number. ``limit`` is at least 1 and ``offset`` at least 0; neither
    comes without ``order_by``. ``queryable``: the columns that ``where`` and ``order_by`` may mention, all if ``None``.
    """

    where: str | None = None
    params: dict[str, str] = {}
    order_by: str | None = None
    limit: int | None = None
    offset: int | None = None
    queryable: tuple[str, ...] | None = None

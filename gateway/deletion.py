"""DELETE ``/v1/shape``: ends a shape, for integration tests (http-api.md 26)."""

from __future__ import annotations

from collections.abc import Callable

from common.messages import Delete, Done, Refusal, Reply
from common.shape import ShapeRequest, partition_of_handle
from gateway import response
from gateway.reception import declined
from gateway.request import DeleteQuery
from gateway.response import Answer
from gateway.shape import Shape
from gateway.shapes import Shapes, Unavailable

MISMATCH = (
    "The specified shape definition and handle do not match. Please ensure the shape definition is correct or omit the"
    " shape handle from the request to obtain a new one."
)

DELETED = Answer(202, {**response.NO_CACHE, **response.JSON, "electric-has-data": "true"})


class Deletion:
    """Answers DELETE requests. ``ended`` is told each handle that was deleted, so that waiters need no hint."""

    def __init__(self, shapes: Shapes, ended: Callable[[str], None]) -> None:
        self._shapes = shapes
        self._ended = ended

    async def answer(self, query: DeleteQuery) -> Answer:
        """The answer to a valid DELETE, after it was carried out."""
        shape: Shape | None = None
        handle = query.handle
        if query.shape is not None and query.sent is not None:
            found = await self._shapes.find(query.shape)
            if isinstance(found, Unavailable):
                return declined(found, "write")
            if isinstance(found, Refusal):
                # 409: it ended while it was being made, perhaps by another DELETE.
                return _missing() if found.status == 409 else declined(found, "write")
            shape = found
            if shape is None:
                return await self._absent(query.sent)
            if handle is not None and handle != shape.handle:
                return response.failure(400, MISMATCH, "write")
            handle = shape.handle
        assert handle is not None
        reply = await self._delete(handle)
        if isinstance(reply, Refusal | Unavailable):
            return declined(reply, "write")
        if shape is not None:
            self._shapes.forget(shape)
        if not isinstance(reply, Done):
            return _missing()
        self._ended(handle)
        return DELETED

    async def _absent(self, sent: ShapeRequest) -> Answer:
        """There is no such shape: perhaps since there can be none (http-api.md 26)."""
        said = await self._shapes.explain(sent)
        return declined(said, "write") if isinstance(said, Refusal) and said.status == 400 else _missing()

    async def _delete(self, handle: str) -> Reply | Unavailable | None:
        if partition_of_handle(handle, 1) is None:
            return None
        return await self._shapes.ask_partition(
            lambda total: partition_of_handle(handle, total) or 0, lambda id: Delete(id, handle)
        )


def _missing() -> Answer:
    return response.failure(404, "No existing shape found", "write")

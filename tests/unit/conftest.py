"""What all unit tests need."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from common.shapelog.files import SyncedFile
from common.shapelog.reader import ShapeReader


@pytest.fixture(autouse=True)
def _files_of_shapes_are_closed() -> Iterator[None]:
    """Tests leave the shapes open that they make: over the suite, more than a thousand descriptors."""
    made: list[SyncedFile | ShapeReader] = []

    def note(patch: pytest.MonkeyPatch, kind: type[SyncedFile] | type[ShapeReader]) -> None:
        init = kind.__init__

        def noted(self: Any, *args: Any, **rest: Any) -> None:
            init(self, *args, **rest)
            made.append(self)

        patch.setattr(kind, "__init__", noted)

    # Not the fixture, which would then be undone after those that tests have of their own.
    with pytest.MonkeyPatch.context() as patch:
        note(patch, SyncedFile)
        note(patch, ShapeReader)
        yield
    for file in made:
        file.close()

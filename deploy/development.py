"""The development database: an embedded Postgres with a sample table, used when DATABASE_URL is not set."""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from pathlib import Path
from types import TracebackType
from typing import Self

from deploy.embedded_postgres import EmbeddedPostgres
from deploy.sample import SampleWriter, create_sample_table

_PLACEHOLDER = "postgresql://postgres@127.0.0.1:5432/postgres"


def prepare_environment(environ: MutableMapping[str, str]) -> bool:
    """Completes the environment of a start without DATABASE_URL, so that settings can be checked; tells if it was one.

    An *empty* DATABASE_URL is a mistake to report, not a wish for a development database.
    """
    if "DATABASE_URL" in environ:
        return False
    environ["DATABASE_URL"] = _PLACEHOLDER
    if not environ.get("ELECTRIC_SECRET"):
        # The server has nothing but sample data.
        environ.setdefault("ELECTRIC_INSECURE", "true")
    return True


class DevelopmentDatabase:
    """A context manager: the running server with its sample table and writer. `url` is its connection URL."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / ".gitignore").write_text("*\n")
        self._server = EmbeddedPostgres(directory / "postgres")
        self._writer: SampleWriter | None = None

    @property
    def url(self) -> str:
        """Its connection URL, once it runs."""
        return self._server.url

    def __enter__(self) -> Self:
        self._server.start()
        try:
            create_sample_table(self.url)
        except BaseException:
            self._server.stop()
            raise
        self._writer = SampleWriter(self.url).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._writer.stop()
        self._server.stop()


def development_directory() -> Path:
    """Where the development database lives: GALVANIC_DEV_DIR, by default `.galvanic-dev` in the working directory."""
    return Path(os.environ.get("GALVANIC_DEV_DIR") or ".galvanic-dev").absolute()

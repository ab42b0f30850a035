"""The sample table of the development server: a few rows to sync, and a writer that keeps them changing."""

from __future__ import annotations

import contextlib
import random
import threading
from typing import Self

import psycopg

TABLE = "items"
_ROWS = 50
_CHANGE_SECONDS = 1.0
_NOUNS = ("anode", "cathode", "cell", "coil", "electrolyte", "fuse", "lamp", "meter", "relay", "wire")
_ADJECTIVES = ("amber", "bright", "copper", "damp", "galvanic", "humming", "quiet", "rusty", "spare", "warm")
_CREATE = f"""
CREATE TABLE IF NOT EXISTS {TABLE} (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text NOT NULL,
    quantity integer NOT NULL,
    updated_at timestamptz NOT NULL DEFAULT now()
)
"""


def create_sample_table(url: str) -> None:
    """Creates the table and its rows, unless they are there."""
    with psycopg.connect(url) as connection:
        connection.execute(_CREATE)
        if connection.execute(f"SELECT count(*) FROM {TABLE}").fetchone() == (0,):
            rows = [(_name(), random.randint(0, 100)) for _ in range(_ROWS)]
            connection.cursor().executemany(f"INSERT INTO {TABLE} (name, quantity) VALUES (%s, %s)", rows)


class SampleWriter:
    """Changes a row each second in a thread of its own, from `start` to `stop`; the number of rows stays the same."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sample-writer", daemon=True)

    def start(self) -> Self:
        """Starts writing."""
        self._thread.start()
        return self

    def stop(self) -> None:
        """Ends the thread; waits for the statement in hand."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(5)

    def _run(self) -> None:
        while not self._stop.is_set():
            # A restarted server, a table dropped by hand: the sample must not disturb whoever tries things out.
            with contextlib.suppress(psycopg.Error), psycopg.connect(self._url, autocommit=True) as connection:
                while not self._stop.wait(_CHANGE_SECONDS):
                    _change(connection)
            self._stop.wait(_CHANGE_SECONDS)


def _change(connection: psycopg.Connection) -> None:
    # Ordering by a random number reads the whole table, which is small unless its owner fills it: hence the sample.
    some = f"(SELECT id FROM (SELECT id FROM {TABLE} LIMIT 1000) AS sample ORDER BY random() LIMIT 1)"
    if random.random() < 0.8:
        connection.execute(
            f"UPDATE {TABLE} SET quantity = %s, updated_at = now() WHERE id = {some}", [random.randint(0, 100)]
        )
    else:
        with connection.transaction():
            connection.execute(f"DELETE FROM {TABLE} WHERE id = {some}")
            connection.execute(
                f"INSERT INTO {TABLE} (name, quantity) VALUES (%s, %s)", [_name(), random.randint(0, 100)]
            )


def _name() -> str:
    return f"{random.choice(_ADJECTIVES)} {random.choice(_NOUNS)}"

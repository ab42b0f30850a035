"""What Postgres itself says a shape holds: `{key: {column: text}}`, made without any of Galvanic's code."""

from __future__ import annotations

from collections.abc import Sequence

import psycopg
from psycopg import sql

from tests.pipeline.client_view import Row

_BOOL = 16
_DISPLAY = {
    "bytea_output": "hex",
    "DateStyle": "ISO, DMY",
    "TimeZone": "UTC",
    "extra_float_digits": "1",
    "IntervalStyle": "iso_8601",
}


async def select(
    url: str, table: str, columns: Sequence[str] | None = None, where: str | None = None, params: Sequence[str] = ()
) -> dict[str, Row]:
    """The rows of `public.<table>` by their keys (http-api.md 14.4), values as output functions print them.

    `where` goes to Postgres as it is, its `params` as literals of unknown type.
    """
    names: sql.Composable = sql.SQL("*") if columns is None else sql.SQL(",").join(map(sql.Identifier, columns))
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        for name, value in _DISPLAY.items():
            await connection.execute("SELECT set_config(%s, %s, false)", [name, value])
        found = await connection.execute(
            """SELECT a.attname FROM pg_index i
               JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey)
               WHERE i.indrelid = %s::regclass AND i.indisprimary
               ORDER BY array_position(i.indkey::int2[], a.attnum)""",
            [f'"public"."{table}"'],
        )
        key_columns = [row[0] for row in await found.fetchall()]
        query = sql.SQL("SELECT {} FROM {}").format(names, sql.Identifier("public", table)).as_string(connection)
        if where is not None:
            query += f" WHERE {_with_values(where, params, connection)}"
        cursor = await connection.execute(query.encode())
        result = cursor.pgresult
    assert result is not None
    fields = [(result.fname(i) or b"").decode() for i in range(result.nfields)]
    booleans = [result.ftype(i) == _BOOL for i in range(result.nfields)]
    rows: dict[str, Row] = {}
    for number in range(result.ntuples):
        row: Row = {}
        for position, name in enumerate(fields):
            raw = result.get_value(number, position)
            text = None if raw is None else raw.decode()
            row[name] = {"t": "true", "f": "false"}[text] if booleans[position] and text is not None else text
        key = _key(table, [row[name] for name in key_columns or fields])
        assert key not in rows, f"the workload must not make two rows with the key {key}"
        rows[key] = row
    return rows


def _with_values(where: str, params: Sequence[str], connection: psycopg.AsyncConnection) -> str:
    for number in reversed(range(len(params))):
        where = where.replace(f"${number + 1}", sql.Literal(params[number]).as_string(connection))
    return where


def difference(expected: dict[str, Row], actual: dict[str, Row]) -> str | None:
    """How a reader's rows differ from the oracle's; None if they do not."""
    if expected == actual:
        return None
    missing = sorted(expected.keys() - actual.keys())
    surplus = sorted(actual.keys() - expected.keys())
    altered = sorted(key for key in expected.keys() & actual.keys() if expected[key] != actual[key])
    lines = [f"{len(expected)} rows expected, {len(actual)} held"]
    lines += [f"missing {len(missing)}: {missing[:5]}"] if missing else []
    lines += [f"surplus {len(surplus)}: {[(key, actual[key]) for key in surplus[:3]]}"] if surplus else []
    for key in altered[:3]:
        columns = [name for name in expected[key] if expected[key][name] != actual[key].get(name)]
        shown = [(name, expected[key][name], actual[key].get(name)) for name in columns]
        lines.append(f"altered {len(altered)}: {key}: (column, expected, held) {shown}")
    return "\n".join(lines)[:4000]


def _key(table: str, values: Sequence[str | None]) -> str:
    sections = ("/_" if value is None else '/"' + value.replace("/", "//") + '"' for value in values)
    return f'"public"."{table}"' + "".join(sections)

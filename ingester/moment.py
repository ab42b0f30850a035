"""Where the server is at this moment: what its snapshots show, and the end of its WAL."""

from __future__ import annotations

from common.lsn import parse_lsn
from common.postgres import Connection
from common.xid import Snapshot


async def full_xid(admin: Connection) -> int:
    """A 64-bit transaction id of this moment, to widen 32-bit ones by (``common.xid.widen``)."""
    return (await current_snapshot(admin)).xmax


async def current_snapshot(connection: Connection) -> Snapshot:
    """What a snapshot taken now shows."""
    cursor = await connection.execute("SELECT pg_current_snapshot()::text", prepare=True)
    row = await cursor.fetchone()
    assert row is not None
    return Snapshot.parse(row[0])


async def insert_position(connection: Connection) -> int:
    """The LSN that the next record gets."""
    row = await (await connection.execute("SELECT pg_current_wal_insert_lsn()::text")).fetchone()
    assert row is not None
    return parse_lsn(row[0])

"""What snapshots show."""

from __future__ import annotations

import pytest

from common.postgres import connect
from ingester.moment import current_snapshot, full_xid
from tests.unit.ingester.publishing import PLAIN, Bench


@pytest.mark.parametrize("end", ["COMMIT", "ROLLBACK"])
async def test_open_transactions_are_unseen(bench: Bench, end: str) -> None:
    await bench.run(PLAIN)
    writer = await connect(bench.url, "galvanic test writer")
    await writer.execute("BEGIN")
    await writer.execute("INSERT INTO public.items VALUES (1)")
    row = await (await writer.execute("SELECT pg_current_xact_id()::text::int8")).fetchone()
    assert row is not None
    xid = row[0]
    snapshot = await current_snapshot(bench.admin)
    assert [snapshot.shows(each) for each in (xid - 1, xid, xid + 1000)] == [True, False, False]
    await writer.execute(end.encode())
    assert (await current_snapshot(bench.admin)).shows(xid)
    assert xid < await full_xid(bench.admin) < xid + 1000
    await writer.close()

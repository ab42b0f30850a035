"""Roles that own nothing: each thing that is missing is named to clients, with the SQL for operators, which then works.

engine.md 4.5, 21 (manual-table-publishing, not-owner-of-the-publication, not-owner-of-the-table); http-api.md 25.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from deploy.embedded_postgres import EmbeddedPostgres
from tests.faults.generations import PUBLICATION, create_table, execute, run_ingester, witness
from tests.pipeline.fixtures import StartStack
from tests.pipeline.stack import Stack

pytestmark = pytest.mark.timeout(600)

FATAL = 78
_SQL = re.compile(r'event="an operator can help".*? reason=("(?:[^"\\]|\\.)*"|\S+) sql=("(?:[^"\\]|\\.)*"|\S+)')


@pytest.fixture
async def poor(private_server: EmbeddedPostgres) -> str:
    """The URL for a role that may log in and replicate, and nothing else; the superuser has the table `t`."""
    await create_table(private_server.url)
    await execute(private_server.url, "CREATE ROLE poor LOGIN REPLICATION")
    return private_server.url.replace("postgres@", "poor@")


async def ask(stack: Stack) -> tuple[int, dict[str, Any], str | None]:
    """Status, body and retry-after of a request for the table."""
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"{stack.url}/v1/shape", params={"table": "t", "offset": "-1"}) as response,
    ):
        body = await response.json() if response.status != 200 else {}
        return response.status, body, response.headers.get("retry-after")


async def refusal(stack: Stack) -> str:
    """The message of the 503 that a request for the table gets."""
    status, body, retry_after = await ask(stack)
    assert (status, retry_after) == (503, "10"), body
    return str(body["message"])


def remedies(stack: Stack) -> list[tuple[str, str]]:
    """Reason and SQL of all lines that tell operators how to help, oldest first."""
    text = "\n".join(stack.log_of(name) for name in ("ingester", "w00"))
    return [(_unquoted(reason), _unquoted(sql)) for reason, sql in _SQL.findall(text)]


def _unquoted(text: str) -> str:
    return text[1:-1].replace('\\"', '"').replace("\\\\", "\\") if text.startswith('"') else text


async def help_with(stack: Stack, admin: str, reason: str) -> None:
    """Runs, as the superuser, what the log says about this reason."""
    found = [sql for said, sql in remedies(stack) if said == reason]
    assert len(found) == 1, (reason, remedies(stack))
    await execute(admin, *filter(None, (statement.strip() for statement in found[0].split(";"))))


MISSING = f'Database table "public.t" is missing from the publication "{PUBLICATION}" and '
IDENTITY = 'Database table "public.t" does not have its replica identity set to FULL'
NO_SELECT = "Unable to create initial snapshot: permission denied for table t"


@pytest.mark.faults
@pytest.mark.parametrize("manual", [True, False])
async def test_the_ladder_of_what_is_missing(
    private_server: EmbeddedPostgres, poor: str, start_stack: StartStack, manual: bool
) -> None:
    """The publication was made by an administrator; manual publishing or not, each step is said with its SQL."""
    admin = private_server.url
    await execute(admin, f"CREATE PUBLICATION {PUBLICATION}")
    environment = {"ELECTRIC_MANUAL_TABLE_PUBLISHING": str(manual).lower()}
    stack = await start_stack(poor, environment=environment)
    missing = MISSING + (
        "the ELECTRIC_MANUAL_TABLE_PUBLISHING setting prevents Electric from adding it"
        if manual
        else "Electric lacks privileges to add it"
    )
    for _ in range(3):  # asked often, said to operators once
        assert await refusal(stack) == missing
    # The operator takes one step at a time.
    await execute(admin, f"ALTER PUBLICATION {PUBLICATION} ADD TABLE t")
    assert await refusal(stack) == IDENTITY
    await help_with(stack, admin, IDENTITY)
    assert await refusal(stack) == NO_SELECT
    await help_with(stack, admin, NO_SELECT)
    async with witness(stack, admin) as reader:
        await reader.kept()
    # The whole remedy of the first step would have done both.
    ((_, sql),) = [(reason, sql) for reason, sql in remedies(stack) if reason == missing]
    assert sql == (
        f'ALTER PUBLICATION "{PUBLICATION}" ADD TABLE ONLY "public"."t"; '
        'ALTER TABLE ONLY "public"."t" REPLICA IDENTITY FULL;'
    )
    await execute(admin, f"ALTER PUBLICATION {PUBLICATION} DROP TABLE t", "ALTER TABLE t REPLICA IDENTITY DEFAULT")
    await execute(admin, *filter(None, (statement.strip() for statement in sql.split(";"))))
    assert await execute(admin, "SELECT tablename FROM pg_publication_tables") == [("t",)]
    # What people have published stays as it is.
    await stack.stop()
    assert await execute(admin, "SELECT tablename FROM pg_publication_tables") == [("t",)]


@pytest.mark.faults
async def test_who_may_publish_but_does_not_own_the_table(
    private_server: EmbeddedPostgres, poor: str, start_stack: StartStack
) -> None:
    admin = private_server.url
    await execute(admin, "GRANT CREATE ON DATABASE postgres TO poor", "GRANT SELECT ON t TO poor")
    stack = await start_stack(poor)
    reason = "Unable to create initial snapshot: must be owner of table t"
    assert await refusal(stack) == reason
    # Publishing alone is not enough.
    await execute(admin, f"ALTER PUBLICATION {PUBLICATION} ADD TABLE t")
    assert await refusal(stack) == reason
    await execute(admin, "ALTER TABLE t REPLICA IDENTITY FULL")
    async with witness(stack, admin) as reader:
        await reader.kept()
    first, second = [sql for said, sql in remedies(stack) if said == reason]
    assert "ADD TABLE" in first
    assert second == 'ALTER TABLE ONLY "public"."t" REPLICA IDENTITY FULL;'


async def test_who_may_not_make_the_publication(private_server: EmbeddedPostgres, poor: str, tmp_path: Path) -> None:
    """None, or one that lacks operations, is fatal at the start; what is said to be run makes it work."""
    code, output = await run_ingester(poor, tmp_path / "storage")
    assert code == FATAL
    assert f'Publication "{PUBLICATION}" not found in the database' in output.replace('\\"', '"')
    await run_advice(private_server.url, output)
    await execute(private_server.url, f"ALTER PUBLICATION {PUBLICATION} SET (publish = 'insert')")
    code, output = await run_ingester(poor, tmp_path / "storage")
    assert code == FATAL
    assert "does not publish INSERT, UPDATE, DELETE and TRUNCATE" in output
    assert "is not owned by the provided user" in output
    await run_advice(private_server.url, output)
    rows = await execute(private_server.url, "SELECT pubinsert, pubupdate, pubdelete, pubtruncate FROM pg_publication")
    assert rows == [(True, True, True, True)]


async def run_advice(admin: str, output: str) -> None:
    """Runs, as the superuser, the statement at the end of the line that says why the ingester cannot go on."""
    (line,) = [line for line in output.splitlines() if "cannot go on" in line]
    statement = line.replace('\\"', '"').partition("run as its owner: ")[2].rstrip('"')
    await execute(admin, statement)


async def test_who_may_not_replicate(private_server: EmbeddedPostgres, tmp_path: Path) -> None:
    await execute(private_server.url, "CREATE ROLE poor LOGIN")
    url = private_server.url.replace("postgres@", "poor@")
    code, output = await run_ingester(url, tmp_path / "storage")
    assert code == FATAL
    assert "ALTER ROLE" in output
    assert "WITH REPLICATION" in output

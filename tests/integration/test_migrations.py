from __future__ import annotations

import asyncio
import os
import re
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path

import asyncpg
import pytest

from sidecar.embedded import postgres
from sidecar.errors import LedgerRefused, LedgerUnavailable
from sidecar.ledger import migrate as migrations
from sidecar.ledger.connection import Ledger
from sidecar.ledger.migrate import current, migrate, newest
from sidecar.ledger.queries import queries

EXPECTED = Path(__file__).with_name("ledger_schema.txt")

# One line a column, constraint, index, policy, grant and function; what the months add is left out.
SCHEMA = """
with tables as (
    select oid, relname, relkind from pg_class
    where relnamespace = 'public'::regnamespace and relkind in ('r', 'p', 'v', 'S')
        and (not relispartition or relname ~ '_default$')
)
select 'column ' || relname || '.' || attname || ' ' || format_type(atttypid, atttypmod)
    || case when attnotnull then ' not null' else '' end || coalesce(' default ' || pg_get_expr(adbin, adrelid), '')
    || case when attidentity <> '' then ' identity' else '' end
    || case when collname = 'C' then ' C' else '' end
from tables join pg_attribute on attrelid = tables.oid and attnum > 0 and relkind <> 'S'
left join pg_attrdef on adrelid = attrelid and adnum = attnum left join pg_collation on pg_collation.oid = attcollation
union all
select 'constraint ' || relname || ' ' || pg_get_constraintdef(c.oid)
from tables join pg_constraint as c on conrelid = tables.oid where contype <> 'n'
union all
select 'index ' || pg_get_indexdef(indexrelid) from tables join pg_index on indrelid = tables.oid
union all
select 'rows ' || relname || case when relrowsecurity and relforcerowsecurity then ' forced' else ' open' end
from pg_class where relnamespace = 'public'::regnamespace and relkind in ('r', 'p') and not relispartition
union all
select 'policy ' || tablename || '.' || policyname || ' ' || cmd || ' ' || roles::text || ' '
    || regexp_replace(coalesce(qual, ''), '\\s+', ' ', 'g')
from pg_policies
union all
select 'grant ' || privilege_type || ' on ' || table_name || ' to ' || grantee
from information_schema.role_table_grants where grantee like 'sidecar\\_%'
union all
select 'function ' || p.oid::regprocedure || case when prosecdef then ' definer' else '' end || ' ' || provolatile::text
from pg_proc as p where pronamespace = 'public'::regnamespace
union all
select 'sequence ' || relname from tables where relkind = 'S'
"""


async def schema(dsn: str) -> str:
    connection = await asyncpg.connect(dsn)
    rows = await connection.fetch(SCHEMA)
    await connection.close()
    return "".join(f"{line}\n" for line in sorted(row[0] for row in rows))


async def test_a_migrated_database_has_the_expected_schema(empty_database: str) -> None:
    """After a wanted change: SCHEMA_WRITE=1 pytest tests/integration/test_migrations.py, and read the difference."""
    assert await current(empty_database) == ""
    assert await migrate(empty_database) == newest() == await current(empty_database)
    found = await schema(empty_database)
    if os.environ.get("SCHEMA_WRITE"):
        EXPECTED.write_text(found, encoding="utf-8")
    assert found == EXPECTED.read_text(encoding="utf-8")


async def test_migrating_twice_changes_nothing(empty_database: str) -> None:
    await migrate(empty_database)
    before = await schema(empty_database)
    assert await migrate(empty_database) == newest()
    assert await schema(empty_database) == before


async def test_migrations_at_once_are_harmless(empty_database: str) -> None:
    revisions = await asyncio.gather(*(migrate(empty_database) for _ in range(3)))
    assert revisions == [newest()] * 3
    assert await schema(empty_database) == EXPECTED.read_text(encoding="utf-8")


async def test_a_migration_that_fails_leaves_nothing(empty_database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migrations, "PARTITIONS_AHEAD", 10_000)
    with pytest.raises(LedgerRefused, match="months_ahead"):
        await migrate(empty_database)
    assert await current(empty_database) == ""
    connection = await asyncpg.connect(empty_database)
    assert await connection.fetchval("select count(*) from pg_tables where schemaname = 'public'") == 0
    await connection.close()


async def test_a_server_that_is_away_or_refuses_says_which(postgres_server_dsn: str) -> None:
    with pytest.raises(LedgerUnavailable):
        await migrate("postgresql://nobody@127.0.0.1:1/none")
    with pytest.raises(LedgerRefused, match="does not exist"):
        await migrate(postgres_server_dsn.rpartition("/")[0] + "/no_such_database")


async def test_a_server_that_may_give_numbers_of_the_audit_log_twice_is_refused(
    servers_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(postgres.SETTINGS, "wal_level", "minimal")
    server = postgres.EmbeddedPostgres(servers_directory / "minimal", durable=False)
    await server.start()
    try:
        with pytest.raises(LedgerRefused, match="set wal_level = replica"):
            await migrate(server.dsn)
        assert await current(server.dsn) == ""
    finally:
        await server.stop()


async def test_a_server_that_is_too_old_is_refused(empty_database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migrations, "OLDEST", 1_000)
    with pytest.raises(LedgerRefused, match="use 1000 or newer"):
        await migrate(empty_database)
    assert await current(empty_database) == ""


@pytest.fixture
def postgres_server_dsn(empty_database: str) -> str:
    return empty_database


async def test_a_ledger_without_its_schema_says_to_migrate(empty_database: str) -> None:
    ledger = await Ledger.open(empty_database)
    with pytest.raises(LedgerRefused, match="sidecar migrate"):
        await ledger.installation()
    await ledger.close()


async def test_partitions_are_made_once_and_take_along_what_came_too_early(empty_database: str) -> None:
    await migrate(empty_database)
    connection = await asyncpg.connect(empty_database)
    for month in ("2031-05-31 23:00", "2031-06-01 00:00", "2031-06-30 23:00", "2031-07-01 00:00"):
        hour = datetime.fromisoformat(month).replace(tzinfo=UTC)
        await connection.execute("insert into usage_windows values ('t', 'm', '', 'epoch', $1, 1)", hour)
    make = "select ensure_partitions(0, '2031-07-15')"
    assert await connection.fetchval(make) == 4
    assert await connection.fetchval(make) == 0
    assert await connection.fetchval("select count(*) from usage_windows_2031_06") == 2
    assert await connection.fetchval("select count(*) from usage_windows_2031_07") == 1
    assert await connection.fetchval("select count(*) from usage_windows_default") == 1
    assert await connection.fetchval("select count(*) from usage_windows") == 4
    await connection.close()


async def test_every_query_has_a_sentence_and_a_caller_and_is_valid(database: str) -> None:
    sources = "".join(path.read_text() for path in Path(str(files("sidecar"))).rglob("*.py"))
    connection = await asyncpg.connect(database)
    for name, body in queries().items():
        assert re.match(r"-- [A-Z].*\.\n", body), f"{name} has no sentence"
        assert f'"{name}"' in sources, f"nobody asks {name}"
        await connection.prepare(body)
    asked = set(re.findall(r'tx\.(?:rows|row|value)\(\s*"(\w+)"', sources))
    assert asked <= queries().keys()
    await connection.close()

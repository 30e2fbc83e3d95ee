"""The whole job over verified TLS, as the Postgres logins that are shipped."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sidecar.embedded import EmbeddedPostgres
from sidecar.errors import LedgerRefused, LedgerUnavailable, SidecarError
from sidecar.ledger.connection import Ledger
from sidecar.ledger.migrate import migrate, newest
from tests.servers.certificates import Certificates
from tests.servers.postgres_secured import PostgresSecured, with_tls
from tests.servers.whole_job import Job, do_the_whole_job

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
async def postgres(servers_directory: Path, tmp_path: Path) -> AsyncIterator[PostgresSecured]:
    directory = servers_directory / f"secured-{tmp_path.name}"
    server = EmbeddedPostgres(directory, durable=False, installation=with_tls())
    await server.start()
    try:
        secured = PostgresSecured(server, Certificates(servers_directory / f"tls-{tmp_path.name}"))
        if not await secured.secure():
            pytest.skip("no Postgres of this machine was built with TLS; on Debian: apt-get install postgresql")
        yield secured
    finally:
        await server.stop()
        shutil.rmtree(directory)


@pytest.mark.slow
async def test_the_whole_job_runs_over_verified_tls_as_the_logins_that_are_shipped(
    postgres: PostgresSecured, redis_url: str, tmp_path: Path
) -> None:
    assert await migrate(postgres.dsn("quota_migrator")) == newest()
    catalogue = {"SIDECAR_CATALOGUE_FILE": str(tmp_path / "catalogue.yaml")}
    job = Job(
        redis_url,
        postgres.dsn("quota_control"),
        tmp_path,
        parts={
            "flusher": {"SIDECAR_POSTGRES_DSN": postgres.dsn("quota_flusher")},
            "control": {"SIDECAR_POSTGRES_DSN": postgres.dsn("quota_control"), **catalogue},
            "authz": {},
        },
    )
    async with job:
        await do_the_whole_job(job, ["acme"])
    said = job.tail()
    assert "denied" not in said, said
    for login in ("quota_flusher", "quota_control"):
        assert postgres.password(login) not in said


async def test_a_postgres_that_cannot_be_trusted_or_does_not_let_us_in_is_told_with_its_cause(
    postgres: PostgresSecured, servers_directory: Path, tmp_path: Path
) -> None:
    other = Certificates(servers_directory / f"other-{tmp_path.name}")
    cases: list[tuple[str, type[SidecarError], str]] = [
        (postgres.dsn("quota_operator", ca=other.ca), LedgerUnavailable, "certificate verify failed"),
        (postgres.dsn("quota_operator", mode="disable"), LedgerRefused, "no pg_hba.conf entry|no encryption"),
        (postgres.dsn("quota_operator", password="wrong"), LedgerRefused, "password authentication failed"),
    ]
    for dsn, kind, said in cases:
        ledger = await Ledger.open(dsn, timeout_s=10)
        with pytest.raises(kind, match=said) as failed:
            await ledger.installation()
        await ledger.close()
        assert "wrong" not in str(failed.value)
        assert postgres.password("quota_operator") not in str(failed.value)

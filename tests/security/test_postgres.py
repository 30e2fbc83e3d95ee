"""The whole job over verified TLS, as the Postgres logins that are shipped."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sidecar.embedded import EmbeddedPostgres
from sidecar.errors import LedgerRefused, LedgerUnavailable, SidecarError
from sidecar.ledger.connection import Ledger
from sidecar.ledger.migrate import migrate, newest
from tests.servers.certificates import Certificates
from tests.servers.lacking import lacking
from tests.servers.load_client import LoadClient
from tests.servers.postgres_secured import PostgresSecured, with_tls
from tests.servers.stripe import KEY, WEBHOOK_SECRET, Stripe
from tests.servers.subscribed import CATALOGUE
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
            lacking("no Postgres of this machine was built with TLS; on Debian: apt-get install postgresql")
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


@pytest.mark.slow
async def test_usage_is_billed_by_a_flusher_and_a_control_that_may_do_no_more_than_that(
    postgres: PostgresSecured, redis_url: str, stripe: Stripe, tmp_path: Path
) -> None:
    """Subscribed, counted, sent, changed, cancelled and compared; control asks the flusher for a flush in between."""
    await migrate(postgres.dsn("quota_migrator"))
    account = {"SIDECAR_STRIPE_KEY": KEY, "SIDECAR_STRIPE_URL": stripe.url, "SIDECAR_STRIPE_INTERVAL_S": "1"}
    office = {"SIDECAR_STRIPE_WEBHOOK_SECRETS": WEBHOOK_SECRET}
    job = Job(
        redis_url,
        postgres.dsn("quota_control"),
        tmp_path,
        parts={
            "flusher": {"SIDECAR_POSTGRES_DSN": postgres.dsn("quota_flusher"), **account},
            "control": {"SIDECAR_POSTGRES_DSN": postgres.dsn("quota_control"), **account, **office},
            "authz": {},
        },
        text=CATALOGUE + "default:\n  costs: {calls: 1}\n",
    )
    subscription = "/api/v1/tenants/acme/subscription"
    async with job:
        await job.cli("catalogue", "apply", str(tmp_path / "catalogue.yaml"))
        await job.ready()
        await job.put(["acme"], "free")
        await job.cli("stripe", "setup", settings=account)
        stripe.deliver_to(f"http://127.0.0.1:{job.ports['CONTROL']}/webhooks/stripe")
        await job.control("POST", subscription, {"plan": "standard", "days_until_due": 30})
        await counted_and_sent(job, stripe, 7)
        await job.control("PATCH", subscription, {"plan": "big"})
        await counted_and_sent(job, stripe, 12)
        await job.control("DELETE", f"{subscription}?when=now")
        operator = {**account, "SIDECAR_POSTGRES_DSN": postgres.dsn("quota_operator")}
        assert "0 days with unexplained drift" in await job.cli("stripe", "reconcile", settings=operator)
        await asyncio.to_thread(stripe.settle)
    said = "\n".join(line for child in job.children for line in child.err)
    assert "permission denied" not in said, said


async def counted_and_sent(job: Job, stripe: Stripe, amount: int) -> None:
    """Ask until so much was allowed in all, and wait until Stripe has it."""

    def sent() -> int:
        return sum(int(float(total["total"])) for total in stripe.totals())

    async with LoadClient(job.ports["AUTHZ"], "acme") as client:
        for _ in range(amount - await asyncio.to_thread(sent)):
            assert (await client.decided()).allowed
    await job.until(lambda: sent() == amount, 40)


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

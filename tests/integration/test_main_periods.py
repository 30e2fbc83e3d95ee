"""Periods that end while a sidecar runs: counters start anew, the ledger keeps both, and graces are over."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest

from tests.servers.accounts import control, put_tenant
from tests.servers.load_client import LoadClient, Traffic, until
from tests.servers.sidecar_dev import SidecarDev

pytestmark = pytest.mark.timeout(120)

CATALOGUE = Path(__file__).parent.parent / "faults" / "limits.yaml"


@pytest.fixture
def dev(servers_directory: Path, tmp_path: Path) -> Iterator[SidecarDev]:
    with SidecarDev(servers_directory / tmp_path.name, CATALOGUE, workers=2) as running:
        yield running


def anchored(ahead: dt.timedelta) -> int:
    """A billing anchor some years ago whose monthly period ends that far from now."""
    end = dt.datetime.now(dt.UTC) + ahead
    return int(end.replace(year=end.year - 4).timestamp())


async def per_period(dev: SidecarDev, tenant: str) -> list[int]:
    """What the ledger has of the tenant's billing periods, oldest first."""
    dev.cli("flush")
    connection = await asyncpg.connect(dev.at.postgres)
    try:
        rows = await connection.fetch(
            "select sum(amount)::bigint as total from usage_counters where tenant = $1 and scope = ''"
            " group by period order by period",
            tenant,
        )
    finally:
        await connection.close()
    return [row["total"] for row in rows]


async def test_periods_end_and_graces_run_out_when_the_clock_moves_on(dev: SidecarDev) -> None:
    """One start for all of it, since each move of the clock is one for everybody."""
    billed = put_tenant(dev, "monthly_billing", anchor_s=anchored(dt.timedelta(hours=36)))
    overspent = put_tenant(dev, "graceful", anchor_s=anchored(dt.timedelta(days=20)))
    lifelong = put_tenant(dev, "for_life")
    trial = put_tenant(dev, "large")
    until_day = (dt.datetime.now(dt.UTC) + dt.timedelta(hours=30)).strftime("%Y-%m-%dT%H:%M:%S")
    dev.cli("tenant", "put", trial, "--plan", "large", "--status", "trialing", "--until", until_day)
    past_due = put_tenant(dev, "large")
    dev.cli("tenant", "put", past_due, "--plan", "large", "--status", "past_due", "--until", until_day)
    dev.cli("flush")
    async with (
        LoadClient(dev.authz_port, billed) as of_billed,
        LoadClient(dev.authz_port, overspent) as of_overspent,
        LoadClient(dev.authz_port, lifelong) as of_lifelong,
        LoadClient(dev.authz_port, trial) as of_trial,
        LoadClient(dev.authz_port, past_due) as of_past_due,
    ):
        answers = [await of_billed.decided() for _ in range(11)]
        assert [answer.status for answer in answers] == [200] * 10 + [429]
        assert int(answers[10].header("retry-after")) > 35 * 3_600
        assert [(await of_overspent.decided()).mark for _ in range(7)][-2:] == ["grace", "grace"]
        assert [(await of_lifelong.decided()).status for _ in range(11)] == [200] * 10 + [429]
        assert (await of_trial.decided()).mark == "ok"
        assert (await of_past_due.decided()).mark == "grace"

        dev.cli("flush")  # the excess is known to Redis before the clock moves
        dev.advance_clock("23h")
        assert (await of_billed.decided()).status == 429
        assert (await of_overspent.decided()).mark == "grace"
        assert [limit["status"] for limit in dev.usage(overspent)["limits"]] == ["grace"]
        assert (await of_trial.decided()).status == 200

        dev.advance_clock("2h")
        denied = await of_overspent.decided()
        assert (denied.status, denied.reason) == (429, "grace_over")

        dev.advance_clock("12h")
        assert [(await of_billed.decided()).status for _ in range(11)] == [200] * 10 + [429]
        assert (await of_overspent.decided()).reason == "grace_over"
        assert [limit["status"] for limit in dev.usage(overspent)["limits"]] == ["denied"]
        assert (await of_lifelong.decided()).reason == "limit_reached"
        assert ((await of_trial.decided()).status, (await of_past_due.decided()).status) == (402, 402)

        dev.advance_clock("480h")
        assert (await of_overspent.decided()).allowed
        assert (await of_lifelong.decided()).reason == "limit_reached"
    assert await per_period(dev, billed) == [10, 10]
    assert await per_period(dev, overspent) == [8, 1]
    assert dev.cli_json("verify") == []


async def test_nothing_is_lost_when_a_period_ends_in_mid_traffic(dev: SidecarDev) -> None:
    tenant = put_tenant(dev, "large", anchor_s=anchored(dt.timedelta(minutes=30)))
    async with Traffic(dev.authz_port, [tenant], clients=10, rate_per_s=300) as traffic:
        for _ in range(2):
            await traffic.reached(200)
            dev.advance_clock("20m")
        await traffic.reached(200)
    assert set(traffic.tally.reasons) == {"allowed"}
    periods = await per_period(dev, tenant)
    assert len(periods) == 2
    assert sum(periods) == traffic.tally.allowed
    usage = control(dev, "GET", f"/api/v1/tenants/{tenant}/usage")
    assert usage["ledger"] == {"api_calls": periods[1]}
    # The journals let go of hours that are over and in the ledger.
    dev.advance_clock("3h")
    await until(lambda: "sidecar_journal_lag_windows 0.0" in dev.metrics(), 20)
    assert dev.cli_json("verify") == []

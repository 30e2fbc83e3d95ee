"""The wall clock jumps in mid-traffic: leases run by elapsed time, so no cap is passed and nothing is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers.accounts import put_tenant
from tests.servers.load_client import LoadClient, Tally, crowd, until
from tests.servers.sidecar_dev import SidecarDev

pytestmark = pytest.mark.timeout(120)

CATALOGUE = Path(__file__).parent / "limits.yaml"
CAP = 4_000


@pytest.fixture
def dev(servers_directory: Path) -> Iterator[SidecarDev]:
    with SidecarDev(servers_directory / "jumps", CATALOGUE, workers=3) as running:
        yield running


async def test_a_hard_cap_stays_exact_when_the_clock_jumps(dev: SidecarDev) -> None:
    tenant = put_tenant(dev, "capped_for_life")
    tally = Tally()

    async def turn(client: LoadClient, tally: Tally) -> bool:
        answer = await client.ask()
        tally.add(answer)
        if answer is not None and not answer.allowed:
            await asyncio.sleep(0.1)
        return answer is None or answer.reason != "limit_reached"

    async def jumps() -> None:
        for allowed in (800, 1_600, 2_400, 3_200):
            await until(lambda least=allowed: tally.allowed >= least, 30)  # type: ignore[misc]
            await asyncio.to_thread(dev.advance_clock, "36h")

    await asyncio.gather(jumps(), crowd(dev.authz_port, 60, [tenant], turn, tally))
    assert tally.allowed == CAP
    dev.cli("flush")
    limits = {limit["limit"]: limit["used"] for limit in dev.usage(tenant)["limits"]}
    assert limits == {"api_calls": CAP}
    assert dev.cli_json("verify") == []

"""The path over the meter event stream gives what single calls give: every delta once, whatever fails."""

from __future__ import annotations

import random

import pytest

from tests.faults.test_forwarding import STEPS, claims_end, killed_at, until_killed
from tests.servers.forwarding import HOUR_S, Forwarding

pytestmark = pytest.mark.timeout(240)

STREAM = "/v2/billing/meter_event_s*"  # sessions and the stream
TENANTS = 120
HOURS = 5


@pytest.mark.slow
async def test_deltas_of_the_bulk_path_arrive_once_though_calls_fail_and_forwarders_die(place: Forwarding) -> None:
    chance = random.Random(21)
    names = [f"tenant-{n}" for n in range(TENANTS)]
    await place.tenants(names)
    for hours_ago in range(HOURS):
        amounts = [(name, metric, chance.randint(1, 10**6)) for name in names for metric in ("api_calls", "llm_tokens")]
        await place.count_all(amounts, hour_s=place.now_s - hours_ago * HOUR_S)
    kinds = ("rate_limited", "error_before", "error_after", "cut_before", "cut_after", "slow")
    place.stripe.faults(
        *({"kind": kind, "path": STREAM, "share": 0.05, "seed": n, "seconds": 0.05} for n, kind in enumerate(kinds))
    )
    died: set[str] = set()
    for turn in range(200):
        step = STEPS[turn % len(STEPS)]
        forwarder = place.forwarder(bulk=True, step=killed_at(step, chance.choice((1, 2))), timeout_s=5)
        if await until_killed(forwarder):
            died.add(step)
            await claims_end(place)
        if turn == 50:
            place.stripe.faults()
        await place.advance(chance.choice((20, 61, 305)))
        if turn > 50 and not (await place.states()).keys() - {"delivered"}:
            break
    assert any(row["tries"] > 1 for row in await place.rows()), "calls failed"
    assert died >= set(STEPS) - {"settled"}
    assert await place.states() == {"delivered": TENANTS * HOURS * 2}
    await place.agree()
    assert place.refusals() == []
    accepted = [found["accepted"] for found in place.stripe.state("identifiers")["identifiers"].values()]
    assert set(accepted) <= {0, 1}
    assert sum(accepted) == TENANTS * HOURS * 2

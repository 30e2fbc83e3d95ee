"""A real process that sends usage to Stripe is killed again and again; every delta arrives once.

It takes some ten seconds: five lives of a process, each of which starts from nothing.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sidecar.embedded.port import free_port
from tests.servers.child import Child
from tests.servers.forwarding import HOUR_S, Forwarding
from tests.servers.processes import alive, family
from tests.servers.stripe import KEY, Stripe

EVENTS = "/v1/billing/meter_events"
TENANTS = 30
HOURS = 6
KILLS = 4
CALLS_PER_S = 100
POLL_S = 0.01
WITHIN_S = 25.0
KINDS = ("rate_limited", "error_before", "error_after", "cut_before", "cut_after")


@pytest.fixture
def environment(database: str, redis_url: str, stripe: Stripe, tmp_path: Path) -> dict[str, str]:
    return {
        "SIDECAR_STATE_DIR": str(tmp_path / "state"),
        "SIDECAR_POSTGRES_DSN": database,
        "SIDECAR_REDIS_URL": redis_url,
        "SIDECAR_OPS_LISTEN": f"127.0.0.1:{free_port()}",
        "SIDECAR_STRIPE_KEY": KEY,
        "SIDECAR_STRIPE_URL": stripe.url,
        "SIDECAR_STRIPE_INTERVAL_S": "1",
        "SIDECAR_STRIPE_CALLS_PER_S": str(CALLS_PER_S),
    }


@contextmanager
def serving(environment: dict[str, str]) -> Iterator[Child]:
    """`sidecar serve --role flusher`; its supervisor starts the process that forwards again when that was killed."""
    child = Child([sys.executable, "-m", "sidecar", "serve", "--role", "flusher"], env=environment)
    try:
        yield child
    finally:
        child.stop(signal.SIGTERM)


async def forwarding_process(served: Child, not_pid: int) -> int:
    """The process that forwards, another one than before."""
    async with asyncio.timeout(WITHIN_S):
        while True:
            assert served.running(), served.tail()
            for pid in family(served.pid)[1:]:
                if pid != not_pid and alive(pid):
                    return pid
            await asyncio.sleep(POLL_S)


async def tried(place: Forwarding) -> int:
    """How many calls were begun so far."""
    return int((await place.sql("select coalesce(sum(tries), 0) from stripe_outbox"))[0][0])


async def more_calls(place: Forwarding, calls: int) -> None:
    """Wait until so many more calls were begun, or nothing is left to begin."""
    before = await tried(place)
    async with asyncio.timeout(WITHIN_S):
        while await tried(place) < before + calls:
            states = await place.states()
            if states and not states.keys() - {"delivered"}:
                return
            await asyncio.sleep(POLL_S)


async def test_a_process_killed_while_it_sends_loses_and_doubles_nothing(
    place: Forwarding, stripe: Stripe, environment: dict[str, str]
) -> None:
    chance = random.Random(6)
    names = [f"t{number}" for number in range(TENANTS)]
    await place.tenants(names)
    for hours_ago in range(HOURS):
        amounts = [(name, metric, chance.randint(1, 10**6)) for name in names for metric in ("api_calls", "llm_tokens")]
        await place.count_all(amounts, hour_s=place.now_s - hours_ago * HOUR_S)
    stripe.faults(*({"kind": kind, "path": EVENTS, "share": 0.03, "seed": n} for n, kind in enumerate(KINDS)))
    pid, under_way = 0, 0
    with serving(environment) as served:
        for _ in range(KILLS):
            pid = await forwarding_process(served, pid)
            await more_calls(place, chance.randint(10, 60))
            os.kill(pid, signal.SIGKILL)
            under_way += (await place.states()).get("sending", 0)
            # Its claims end by themselves after some time; nobody waits for that here.
            await place.sql("update stripe_lanes set claimed_until = now() where claimed_until > now()")
            await place.advance(61)
        stripe.faults()
        async with asyncio.timeout(WITHIN_S):
            while (await place.states()).keys() != {"delivered"}:
                await place.advance(61)
                await asyncio.sleep(10 * POLL_S)
    assert under_way, "no process was killed between a call and its record"
    rows = await place.rows()
    assert len(rows) == TENANTS * HOURS * 2
    assert any(row["tries"] > 1 for row in rows)
    await place.agree()
    assert place.refusals() == []
    accepted = [found["accepted"] for found in stripe.state("identifiers")["identifiers"].values()]
    assert set(accepted) <= {0, 1}
    assert sum(accepted) == len(rows)

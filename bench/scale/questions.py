"""What is asked of a fleet; each answers with numbers."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterable
from contextlib import suppress
from itertools import accumulate

from bench.scale.fleet import CAP, Fleet
from bench.scale.servers import Servers
from sidecar.enforcement.core import Core
from sidecar.errors import StoreUnavailable

HOT_TENANTS = 100
TAIL_TENANTS = 100_000
BATCH = 10  # requests that one decision on /many stands for
CHANGES = 5
LOOKING_MOST = 100  # writers of which each look is timed; the looks of the others are only made
POLL_S = 0.5
LOOK_S = 0.005


async def hot(fleet: Fleet, servers: Servers, per_second: int, seconds: int) -> dict[str, float]:
    """Everybody's requests go to the same 100 tenants; a decision stands for ten requests of one tenant."""
    names = [f"hot-{number}" for number in range(HOT_TENANTS)]
    seeded = random.Random(1)
    await fleet.meet(names, "/many")

    def pick(count: int) -> Iterable[str]:
        return seeded.choices(names, k=count)

    return await _traffic(fleet, servers, pick, per_second / BATCH, seconds, "/many", BATCH)


async def tail(fleet: Fleet, servers: Servers, per_second: float, seconds: int) -> dict[str, float]:
    """100,000 tenants by Zipf's law: the n-th of them asks a n-th as often as the first."""
    names = [f"tail-{number}" for number in range(TAIL_TENANTS)]
    weights = list(accumulate(1 / rank for rank in range(1, TAIL_TENANTS + 1)))
    seeded = random.Random(2)

    def pick(count: int) -> Iterable[str]:
        return seeded.choices(names, cum_weights=weights, k=count)

    return await _traffic(fleet, servers, pick, per_second, seconds, "/", 1)


async def _traffic(
    fleet: Fleet, servers: Servers, pick: object, per_second: float, seconds: int, path: str, units: int
) -> dict[str, float]:
    async def run(steps: int) -> None:
        for _ in range(steps):
            await fleet.step(pick, per_second, path)  # type: ignore[arg-type]

    await run(4)  # two seconds in which leases find their size
    allowed, unanswered, before = fleet.allowed, fleet.unanswered, await servers.used()
    await run(2 * seconds)
    used = (await servers.used()).since(before)
    allowed = (fleet.allowed - allowed) * units
    return {
        "redis_cpu_s_per_million": round(used.cpu_s / allowed * 1e6, 3),
        "script_calls_per_1000": round(used.calls / allowed * 1000, 3),
        "script_us_per_call": round(used.script_us / max(1, used.calls), 1),
        "requests_per_s": round(allowed / seconds),
        "redis_cores": round(used.cpu_s / seconds, 3),
        "unanswered": fleet.unanswered - unanswered,
    }


async def cap(fleet: Fleet, seconds_most: int = 15) -> dict[str, float]:
    """Everybody uses up one hard cap: what was unspent at the first refusal, and how much was used in the end."""
    tenant = "capped"
    await fleet.publish(tenant, "capped")
    per_second = max(2.0, CAP / len(fleet.cores) / 5)
    batch = 10 if per_second > 50 else 1
    began = fleet.allowed
    unspent = -1
    for _ in range(2 * seconds_most):
        before = fleet.refused
        await fleet.step(lambda count: [tenant] * count, per_second / batch, "/many" if batch > 1 else "/")
        spent = (fleet.allowed - began) * batch
        assert spent <= CAP, f"{spent} admitted under a cap of {CAP}"
        if unspent < 0 and fleet.refused > before:
            unspent = CAP - spent
        if spent == CAP:
            break
    return {
        "cap_unspent_at_first_refusal": round(max(0, unspent) / CAP, 5),
        "cap_used": round((fleet.allowed - began) * batch / CAP, 5),
    }


async def change(fleet: Fleet) -> dict[str, float]:
    """Milliseconds from the moment a changed tenant is published until a writer enforces it, in real time.

    A process of Python cannot look at the stream for a thousand writers in time. Redis has the looks of all of them to
    answer, but those beyond LOOKING_MOST come from a loop that makes them in batches and does nothing with them.
    """
    with fleet.clock.running():
        return await _change(fleet)


async def _change(fleet: Fleet) -> dict[str, float]:
    tenant = "changing"
    await fleet.publish(tenant, "standard")
    looking = fleet.cores[:LOOKING_MOST]
    for core in looking:
        await core.changes.catch_up()
        await core.directory.load(tenant)
    polling = [asyncio.create_task(_poll(core, POLL_S * turn / len(looking))) for turn, core in enumerate(looking)]
    polling.append(asyncio.create_task(fleet.look(len(fleet.cores) - len(looking), POLL_S)))
    took: list[float] = []
    try:
        await asyncio.sleep(POLL_S)
        for turn in range(CHANGES):
            began = time.perf_counter()
            revision = await fleet.publish(tenant, "standard", ("suspended", "active")[turn % 2])
            behind = set(looking)
            while behind:
                await asyncio.sleep(LOOK_S)
                now = time.perf_counter()
                for core in [one for one in behind if _revision(one, tenant) >= revision]:
                    behind.remove(core)
                    took.append(now - began)
                    fleet.watch.doing(f"change {turn}, which {len(behind)} of {len(looking)} writers do not know of")
                fleet.check(polling)
    finally:
        for task in polling:
            task.cancel()
        await asyncio.gather(*polling, return_exceptions=True)
    took.sort()
    return {
        "change_median_ms": round(took[len(took) // 2] * 1000, 1),
        "change_p99_ms": round(took[len(took) * 99 // 100] * 1000, 1),
    }


async def _poll(core: Core, after_s: float) -> None:
    await asyncio.sleep(after_s)
    while True:
        with suppress(StoreUnavailable):
            await core.changes.catch_up()
        await asyncio.sleep(POLL_S)


def _revision(core: Core, tenant: str) -> int:
    account = core.directory.account(tenant)
    return -1 if account is None else account.rev

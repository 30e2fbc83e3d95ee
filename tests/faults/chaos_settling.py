"""What is waited for when the traffic of a chaos run has ended: all in the ledger and at Stripe, and no lease left.

Gives up:   patience: what does not come about in time is a problem, which the verdict counts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import redis.asyncio
from redis.exceptions import RedisError

from sidecar import child
from sidecar.child import Unanswered
from tests.faults.chaos_numbers import at_stripe, in_ledger
from tests.faults.chaos_place import EDGES, FLUSHERS, RECLAIM_AFTER_MS, Place

QUIET_S = 120.0
# A flusher that was killed with lanes in its hands keeps them for two and a half minutes.
STRIPE_S = 240.0
POLL_S = 0.25


async def settle(place: Place, tell: Callable[[str], None], *, patient: bool) -> list[str]:
    """Wait until all is in the ledger and at Stripe; what did not come about in time."""
    problems = []
    await asyncio.gather(*(program.ready() for program in place.programs.values()))
    tell("adopting journals")
    if not await _until(lambda: _only_living_journals(place), QUIET_S):
        problems.append("journals of dead workers were not adopted: " + ", ".join(_journals(place)))
    for name in EDGES:
        for socket in place.programs[name].state.glob("ops-*.sock"):
            await _flushed(socket)
    if not patient:
        tell("voiding claims of dead flushers")
        await place.restart_office()
    for name in FLUSHERS:
        tell(f"sidecar flush at {name}")
        status, told = await place.programs[name].command("flush")
        if status:
            problems.append(f"sidecar flush at {name} ended with {status}: {told.strip()[-300:]}")
    tell("waiting for Stripe")
    await _until(lambda: _same_at_stripe(place), STRIPE_S)
    tell("waiting for leases")
    if not await _until(lambda: _nothing_held(place), QUIET_S / 4):
        problems.append("leases were not given back")
    status, told = await place.programs[FLUSHERS[0]].command("verify", "--json", state=place.folder)
    if status:
        problems.append(f"sidecar verify ended with {status}: {told.strip()[-1500:]}")
    return problems


async def _same_at_stripe(place: Place) -> bool:
    return await at_stripe(place) == {tenant: amount for tenant, amount in (await in_ledger(place)).items() if amount}


async def _nothing_held(place: Place) -> bool:
    """Whether every lease came back: an idle one does by itself (L2)."""
    async with redis.asyncio.Redis.from_url(place.redis.primary.url, socket_timeout=5) as client:
        held = [await client.hget(key, "held") async for key in client.scan_iter(match="sc:*:limit:*", count=1000)]
    return not any(int(value or 0) for value in held)


def _journals(place: Place) -> list[str]:
    return [path.name for name in EDGES for path in place.programs[name].state.rglob("*.journal")]


async def _only_living_journals(place: Place) -> bool:
    """Whether there are as many journals as workers: those of the dead are deleted when the ledger has them."""
    return all(
        len(list(program.state.rglob("*.journal"))) == len(program.children())
        for program in (place.programs[name] for name in EDGES)
    )


async def _flushed(socket: Any) -> None:
    deadline = asyncio.get_running_loop().time() + QUIET_S
    while True:
        try:
            return await child.flush(socket, RECLAIM_AFTER_MS / 1000)
        except Unanswered:
            if asyncio.get_running_loop().time() > deadline:
                raise
            await asyncio.sleep(POLL_S)


async def _until(condition: Callable[[], Any], within_s: float) -> bool:
    deadline = asyncio.get_running_loop().time() + within_s
    while True:
        try:
            if await condition():
                return True
        except (RedisError, OSError, TimeoutError) as error:
            last = error
            if asyncio.get_running_loop().time() > deadline:
                raise AssertionError(f"still failing after {within_s} s") from last
        if asyncio.get_running_loop().time() > deadline:
            return False
        await asyncio.sleep(POLL_S)

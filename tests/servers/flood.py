"""Floods of made-up names at the decision listener, and good clients that ask meanwhile.

Guarantees: every request of a flood is answered, and so is every one of the good clients.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager

import redis.asyncio

from tests.servers.load_client import LoadClient, Tally

GOOD_CLIENTS = 3  # of each plan
_MADE_UP = re.compile(r":(tenant|limit|windows?):([0-9a-f]{64})(?:\W|$)")  # names as secrets.token_hex makes them


async def flood(
    port: int, header: str, name: Callable[[], str], *, peers: int = 100, requests: int = 4_000
) -> Counter[str]:
    """Many connections at once, each request with a name that nobody has; what they were told."""
    told: Counter[str] = Counter()
    left = requests

    async def one() -> None:
        nonlocal left
        async with LoadClient(port) as client:
            while left > 0:
                left -= 1
                answer = await client.insist(headers={header: name()})
                told[answer.reason or str(answer.status)] += 1

    await asyncio.gather(*(one() for _ in range(peers)))
    assert sum(told.values()) == requests
    return told


async def made_up(redis_url: str) -> set[str]:
    """The made-up tenants that Redis was told of; of no other it keeps a limit, a window or anything else."""
    introduced: set[str] = set()
    kept: set[str] = set()
    async with redis.asyncio.Redis.from_url(redis_url) as client:
        for key in await client.keys():  # all at one instant
            if found := _MADE_UP.search(str(key)):
                (introduced if found[1] == "tenant" else kept).add(found[2])
    assert kept <= introduced
    return introduced


@asynccontextmanager
async def good_clients(port: int, keys: Mapping[str, Sequence[str]], said: str) -> AsyncIterator[Tally]:
    """Clients with the API keys of each plan ask all the time; each request is answered.

    And allowed: always on the plan "good", which only counts. The hard cap of "capped" needs a new lease every two
    seconds; a worker that a flood leaves no time for it says 503 now and then. What is given is the tally of "good".
    """
    tallies, stop = {plan: Tally() for plan in keys}, asyncio.Event()

    async def one(key: str, tally: Tally) -> None:
        async with LoadClient(port, headers={"x-api-key": key}) as client:
            await client.decided()
            while not stop.is_set():
                tally.add(await client.ask())
                await asyncio.sleep(0.01)

    clients = [asyncio.create_task(one(key, tallies[plan])) for plan, found in keys.items() for key in found]
    try:
        while min(tally.answered for tally in tallies.values()) < 50 * GOOD_CLIENTS:  # each has a lease by then
            await asyncio.sleep(0.01)
        yield tallies["good"]
    finally:
        stop.set()
        await asyncio.gather(*clients)
    for plan, tally in tallies.items():
        middle, late = tally.percentile_ms(50), tally.percentile_ms(99)
        print(f"\n{said}: {plan} {dict(tally.reasons)}, p50 {middle:.1f} ms, p99 {late:.1f} ms")
        assert tally.lost == 0
    assert set(tallies["good"].reasons) == {"allowed"}
    assert set(tallies["capped"].reasons) <= {"allowed", "store_unavailable"}
    assert tallies["capped"].allowed > tallies["capped"].answered * 0.9
